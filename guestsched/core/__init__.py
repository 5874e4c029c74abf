"""The guest kernel's deterministic core: one ``GuestCore`` per VM.

It decides which task a vCPU runs and for how long. A vCPU traps into it (``TrapTaken``) and goes on as the one
``Reply`` says. What comes from outside of the run arrives when no vCPU runs (``ArrivalsTaken``).

    core.py      the step: one trap in, one Dispatch out
    kvm.py       the guest's half of APF: arch/x86/kernel/kvm.c
    dispatch.py  what a vCPU goes on with
    kernel.py    the kernel's tables; starting, waking, switching, balancing and ending tasks
    cpu.py       one vCPU as the guest kernel sees it: its place in the conversation, its run queue, its timers
    sched.py     the scheduler class: what a policy is asked
    cfs.py       a policy: CFS as of Linux 5.10
    eevdf.py     a policy: EEVDF as of Linux 6.18
    rr.py        a policy: round robin, a baseline
    apf_wait.py  the table of tasks that wait for a page: kvm.c's async_pf_sleepers
    task.py      a task and the life it may lead
    process.py   a process: its plan, its address space, guest memory
    syscall.py   the system calls there are
    access.py    accesses that tasks perform for others, and feed.py, who gives them out
    arrivals.py  what comes from outside, and the answers; outside.py, how it takes effect
    profile.py   samples by symbol
    killing.py   what an exception of a task is called

Transitions, drawn from the tables by ``poe diagrams``:

guest task:

    READY    --- PICKED ------> RUNNING
                 kernel/sched/core.c:__schedule
             --- KILLED ------> DEAD
                 kernel/signal.c:get_signal, then do_exit

    RUNNING  --- PREEMPTED ---> READY
                 kernel/sched/core.c:__schedule (preempted, or yields)
             --- NOT PRESENT -> APF WAIT
                 arch/x86/kernel/kvm.c:kvm_async_pf_task_wait_schedule
             --- SLEPT -------> SLEEP
                 kernel/time/hrtimer.c:do_nanosleep
             --- WAITED ------> WAIT
                 kernel/futex/waitwake.c:futex_wait_queue
             --- EXITED ------> DEAD
                 kernel/exit.c:do_exit
             --- KILLED ------> DEAD
                 kernel/signal.c:get_signal, then do_exit

    APF WAIT --- PAGE READY --> READY
                 arch/x86/kernel/kvm.c:kvm_async_pf_task_wake, apf_task_wake_all

    NEW      --- STARTED -----> READY
                 kernel/sched/core.c:wake_up_new_task
             --- KILLED ------> DEAD
                 kernel/signal.c:get_signal, then do_exit

    SLEEP    --- TIMER -------> READY
                 kernel/time/hrtimer.c:hrtimer_wakeup
             --- KILLED ------> DEAD
                 kernel/signal.c:get_signal, then do_exit

    WAIT     --- WOKEN -------> READY
                 kernel/sched/core.c:try_to_wake_up
             --- KILLED ------> DEAD
                 kernel/signal.c:get_signal, then do_exit
"""
