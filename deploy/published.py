"""The published results of 2010 that the emulator's are put beside: T17 to T19 of the talk.

Counters after one minute: 4 vCPUs, 2 GiB of guest memory in a memory group of 512 MiB, 4 faulting and 4 working
threads.
"""

from __future__ import annotations

from apf.scenario import ApfName

DURATION_S = 60
VCPUS = 4
GUEST_MEMORY = 2 << 30
GROUP_MEMORY = 512 << 20
FAULT_THREADS = 4
WORK_THREADS = 4

# T17
COUNTERS: dict[ApfName, tuple[int, ...]] = {
    "off": (30_619_912_622, 33_951_339_266, 31_577_780_093, 33_603_607_972),
    "pv2010": (63_972_141_051, 65_149_033_299, 66_301_967_246, 63_423_000_989),
}
SUMS: dict[ApfName, int] = {"off": 129_752_639_953, "pv2010": 258_846_142_585}
RATIO = SUMS["pv2010"] / SUMS["off"]

# T18 and T19: profile inside the guest, in percent.
PROFILES: dict[ApfName, dict[str, float]] = {
    "off": {
        "work_thread": 63.42,
        "do_softirq": 13.64,
        "fault_thread": 8.95,
        "_raw_spin_unlock_irq": 5.27,
        "hrtimer_run_pending": 2.79,
        "run_timer_softirq": 2.35,
        "_raw_spin_lock_irq": 1.28,
    },
    "pv2010": {
        "work_thread": 97.93,
        "retint_careful": 1.74,
        "_raw_spin_unlock_irq": 0.10,
        "fault_thread": 0.08,
        "_raw_spin_unlock_irqrestore": 0.05,
        "do_softirq": 0.02,
        "rcu_process_gp_end": 0.02,
    },
}

USER_SYMBOLS = ("work_thread", "fault_thread")

# Why a kernel row differs: what the emulator does on that path, by the function the sample is booked on.
KERNEL_ROWS: dict[str, str] = {
    "do_softirq": "the tick ({tick_ns} ns): those missed in a stall come as one here; KVM's APIC timer likely caught up",
    "_raw_spin_unlock_irq": "switches of tick and not-present ({context_switch_ns} ns each), all booked on their end",
    "_raw_spin_unlock_irqrestore": "timers that wake tasks; this guest has none",
    "retint_careful": "page ready: handler and switch ({apf_handler_ns} + {context_switch_ns} ns), booked on its end",
    "system_call": "system calls ({syscall_ns} ns)",
    "native_safe_halt": "idle: in 2010 no vCPU was",
    "hrtimer_run_pending": "not modelled: in do_softirq's",
    "run_timer_softirq": "not modelled: in do_softirq's",
    "rcu_process_gp_end": "not modelled: in do_softirq's",
    "_raw_spin_lock_irq": "not modelled: in _raw_spin_unlock_irq's",
}
