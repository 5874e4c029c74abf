"""The guest kernel's deterministic core: one ``GuestCore`` per VM.

It decides which task a vCPU runs and for how long. A vCPU traps into it (``TrapTaken``) and goes on as the one
``Reply`` says. What comes from outside of the run arrives when no vCPU runs (``ArrivalsTaken``).

    core.py      the step: one trap in, one Dispatch out
    kernel.py    the kernel's tables; starting, waking, switching, balancing and ending tasks
    cpu.py       one vCPU as the guest kernel sees it: its place in the conversation, its run queue, its timers
    sched.py     the scheduler class: what a policy is asked
    cfs.py       a policy: CFS as of Linux 5.10
    eevdf.py     a policy: EEVDF as of Linux 6.18
    rr.py        a policy: round robin, a baseline
    apf_wait.py  the table of tasks that wait for a page: arch/x86/kernel/kvm.c
    task.py      a task and the life it may lead
    process.py   a process: its plan, its address space, guest memory
    syscall.py   the system calls there are
    access.py    accesses that tasks perform for others, and feed.py, who gives them out
    arrivals.py  what comes from outside, and the answers
    profile.py   samples by symbol
    killing.py   what an exception of a task is called
"""
