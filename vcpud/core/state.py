"""What a vCPU's core waits for, what it counts, and what it has to know of the scenario."""

from __future__ import annotations

from dataclasses import dataclass

from apf.core import Kind
from apf.costs import Costs
from apf.messages import ApfMode
from vcpud.core.injected import Injection


class State(Kind):
    """What the vCPU is doing, or whose answer it waits for."""

    NEW = "new"
    RUNNING = "running"
    IDLE = "idle"
    HALTED = "halted"  # APF_HALT: blocked in KVM, interrupts still served
    SHADOW = "shadow"  # KVM looks whether the host has the page mapped, to put it into the shadow table
    FAULT = "fault"  # hostd has a FaultRaised
    RETRY = "retry"  # hostd could not settle it; the access is executed again later
    NOT_PRESENT = "not present"  # KVM writes the flags word, #PF, the guest reads and clears it
    SLOT = "slot"  # KVM reads the token word: can an item be dequeued?
    PREFAULT = "prefault"  # hostd has a PrefaultRaised
    PRESENT = "present"  # KVM writes the token word
    READY = "ready"  # the guest learns of page ready: it reads the token word, or the reason word of 2010
    STEPS = "steps"  # a handler of the guest kernel does the rest, with interrupts off
    DRAIN = "drain"  # APF was disabled: workers that run are waited for
    COPY = "copy"  # the guest kernel reads or writes guest memory
    KERNEL_FAULT = "kernel fault"  # hostd has a fault of a page that the guest kernel (or KVM for it) uses
    TRAP = "trap"  # guestsched has a trap
    STOPPING = "stopping"  # guestsched has the last trap
    FINISHED = "finished"


_S = State
_DUE = (_S.SLOT, _S.PREFAULT, _S.PRESENT, _S.READY, _S.STEPS, _S.DRAIN, _S.TRAP, _S.STOPPING)
"""Where what is due before the guest is entered leads."""
_BACK = (_S.RUNNING, _S.IDLE, _S.COPY)
"""What the guest is at when it is entered: user code, HLT, or the kernel in an access of its own."""
TRANSITIONS: dict[State, tuple[State, ...]] = {
    _S.NEW: (_S.TRAP,),
    _S.RUNNING: (_S.RUNNING, _S.SHADOW, _S.FAULT, _S.HALTED, _S.COPY, *_DUE),
    _S.SHADOW: (_S.RUNNING, _S.FAULT),
    _S.IDLE: (_S.IDLE, *_DUE),
    _S.HALTED: (_S.HALTED, _S.RUNNING, _S.COPY, *_DUE),
    _S.FAULT: (_S.RUNNING, _S.RETRY, _S.NOT_PRESENT, _S.TRAP),
    _S.RETRY: (_S.RUNNING, _S.NOT_PRESENT, _S.SLOT, _S.PREFAULT, _S.PRESENT, _S.READY, _S.STEPS, _S.COPY),
    _S.NOT_PRESENT: (_S.TRAP, _S.KERNEL_FAULT, *_BACK),
    _S.SLOT: (_S.PREFAULT, _S.PRESENT, _S.STEPS, _S.KERNEL_FAULT, *_BACK),
    _S.PREFAULT: (_S.PRESENT, _S.READY, _S.RETRY, _S.SLOT, _S.PREFAULT, _S.STEPS, _S.TRAP, *_BACK),
    _S.PRESENT: (_S.STEPS, _S.KERNEL_FAULT, *_BACK),
    _S.READY: (_S.TRAP, _S.KERNEL_FAULT, *_BACK),
    _S.STEPS: (_S.SLOT, _S.PREFAULT, _S.PRESENT, _S.READY, _S.STEPS, _S.DRAIN, _S.KERNEL_FAULT, *_BACK),
    _S.DRAIN: (_S.STEPS,),
    _S.COPY: (_S.RUNNING, _S.TRAP, _S.KERNEL_FAULT, _S.HALTED, _S.COPY, *_DUE),
    _S.KERNEL_FAULT: (_S.NOT_PRESENT, _S.SLOT, _S.PRESENT, _S.READY, _S.STEPS, _S.COPY, _S.RETRY, _S.TRAP),
    _S.TRAP: (_S.RUNNING, _S.IDLE, _S.COPY, _S.STEPS),
    _S.STOPPING: (_S.FINISHED,),
    _S.FINISHED: (),
}
ALLOWED = {state: frozenset(after) for state, after in TRANSITIONS.items()}
"""The same, to be asked at every step."""


@dataclass(slots=True)
class VcpuCounters:
    """What this vCPU has seen, under KVM's and the project's names."""

    exits: int = 0
    faults_minor: int = 0
    faults_major: int = 0
    faults_async: int = 0
    retries: int = 0
    not_present: int = 0
    ready: int = 0
    repeated: int = 0
    halts: int = 0  # faults for which the vCPU halted, repeated ones too
    sync_limit: int = 0  # of tasks, 64 items being live: handled synchronously
    sync_ineligible: int = 0  # of tasks, kvm_can_do_async_pf having said no
    sync_alloc: int = 0  # of tasks, there being no memory for the item
    sync_kernel: int = 0  # of the guest kernel and of KVM for it, for any reason
    prefault_again: int = 0  # the page was gone again before page ready could go out (E37)
    shadow_faults: int = 0  # that a mapping of the host's settled
    prefault_skipped: int = 0  # the address space was another (E43)
    wake_all: int = 0
    acks: int = 0
    msr_gp: int = 0  # writes of MSRs that the CPU refused
    dropped: int = 0  # items that were live when APF was disabled
    injected: int = 0  # faults of the protocol, by the scenario
    ticks: int = 0
    timers: int = 0
    interrupts: int = 0
    kernel_faults: int = 0  # of pages the guest kernel used
    faults_failed: int = 0  # of pages that cannot be had
    prefault_failed: int = 0  # likewise, of items that are done
    samples: int = 0
    traps: int = 0
    stall_ns: int = 0
    halt_ns: int = 0  # in APF_HALT
    async_wait_ns: int = 0  # from the reply to done, summed over asynchronous faults

    @property
    def faults(self) -> int:
        """Faults of all kinds."""
        return self.faults_minor + self.faults_major + self.faults_async


@dataclass(frozen=True, slots=True)
class VcpuConfig:
    """What a vCPU has to know of the scenario."""

    vcpu: int
    mode: ApfMode
    cpu_mips: int
    hz: int
    end_ns: int
    costs: Costs
    sample_period_ns: int = 0  # of the profile; 0: none is taken
    sample_phase_ns: int = 0
    hlt_exits: bool = True
    shadow: bool = False
    injections: tuple[Injection, ...] = ()
    guest_bytes: int = 1 << 52
    start_ns: int = 0  # when its VM joined the host
    reports: bool = False  # swap.errors: the guest is told of a page that cannot be had
