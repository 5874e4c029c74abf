"""The guest kernel's deterministic core: one ``GuestCore`` per VM.

It decides which task a vCPU runs and for how long. A vCPU traps into it (``TrapTaken``) and goes on as the one
``Reply`` says. There is no load balancing: a task stays on the vCPU it started on.

    core.py      the step: one trap in, one Dispatch out
    cpu.py       one vCPU as the guest kernel sees it: its place in the conversation, its run queue
    sched.py     the scheduler class: what a policy is asked
    cfs.py       a policy: CFS as of Linux 5.10
    eevdf.py     a policy: EEVDF as of Linux 6.18
    rr.py        a policy: round robin, a baseline
    apf_wait.py  the table of tasks that wait for a page: arch/x86/kernel/kvm.c
    task.py      a task and the life it may lead
    syscall.py   the system calls there are
    killing.py   what an exception of a task is called
    program.py   what the kernel has to know about a guest program
    image.py     the VM's memory and tasks at boot, from the scenario
"""
