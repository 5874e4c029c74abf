"""What all parts of a vCPU's core share: its state, its time, its thread, and how it moves.

The parts are layers of one class, each in a file of its own: ``page_ready`` (telling the guest), ``msr_steps`` (what it
writes, and what is injected), ``faults`` (what it asks hostd) and ``vcpu`` (the run loop, which has the whole theory).
What a layer needs of one above it is declared here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from apf.journal import Journal
from apf.messages import (
    NEVER_NS,
    Access,
    Account,
    Dispatch,
    FaultMet,
    KernelPath,
    KernelStep,
    Trap,
)
from vcpud.core.account import CAUSE_OF_ACCOUNT, Cause, TimeAccount
from vcpud.core.apf_msr import ApfMsrs, Context
from vcpud.core.async_pf import AsyncPfQueue, WorkItem
from vcpud.core.effects import (
    Effect,
    FillShadow,
    ReadGuest,
    WriteGuest,
)
from vcpud.core.injected import Injected, Injections
from vcpud.core.observed import Observed
from vcpud.core.sampler import Sampler
from vcpud.core.state import ALLOWED, State, VcpuConfig, VcpuCounters
from vcpud.core.thread import Thread, ThreadEvent, ThreadState

_STORY = 32
_COUNTING = Cause.COUNTING


class Vcpu(ABC):
    """One vCPU. ``now_ns`` is its clock as of the last step."""

    def __init__(self, config: VcpuConfig, journal: Journal) -> None:
        self._config = config
        self._costs = config.costs
        self._end_ns = config.end_ns
        self._tick_period_ns = 1_000_000_000 // config.hz
        self.journal = journal
        self.state = State.NEW
        self.now_ns = config.start_ns
        self.retired = 0
        self.counters = VcpuCounters()
        self.observed = Observed()
        self.account = TimeAccount(config.end_ns, config.start_ns)
        self._spent_ns = self.account.spent_ns
        self.async_pf = AsyncPfQueue(config.vcpu)
        self.msrs = ApfMsrs(config.mode, hlt_exits=config.hlt_exits, guest_bytes=config.guest_bytes)
        self.thread = Thread()
        self._story: deque[tuple[int, State]] = deque(maxlen=_STORY)
        self._at = State.IDLE  # what the guest is at when it is entered: RUNNING, IDLE or COPY
        self._halted = False  # vcpu->arch.apf.halted
        self._apf_ready = False  # KVM_REQ_APF_READY
        self._irr = 0  # interrupts for page ready that the guest has yet to take
        self._again_token = 0  # of a ready of 2010 that is injected a second time
        self._injections = Injections(config.injections)
        self._late_vector = 0
        self._booting = True
        self._dispatch = Dispatch(0, 0, 0, Account.IDLE, None, NEVER_NS)
        self._cause = CAUSE_OF_ACCOUNT[Account.IDLE]  # of the time of the task that runs
        self._next_tick_ns = NEVER_NS
        self._fault_gfn = 0  # of the fault hostd is asked about
        self._fill = FillShadow(0, Access.READ)  # of the exit that is looked up
        self._cr3 = 0  # asid of the address space that is loaded
        self._forgotten: list[int] = []  # tokens of items that hostd will not be asked to prefault
        self._item: WorkItem | None = None  # the item being announced, prefaulted or presented
        self._ready_token = 0  # of the ready of 2010 being injected
        self._resume = State.RUNNING  # where KERNEL_FAULT and RETRY go back to
        self._interrupt = False  # one is posted
        self._path: KernelPath | None = None  # of the guest kernel while it has a trap
        self._in_kernel = False  # the trap interrupted the guest kernel
        self._resched = False  # such a trap has come since the copy began
        self._steps: deque[KernelStep] = deque()  # what STEPS has yet to do
        self._dispatched_steps = False  # they are a dispatch's
        self._copies: deque[ReadGuest | WriteGuest] = deque()  # what COPY has yet to do
        self._fetched = bytearray()
        self._entering = False  # COPY is part of entering a system call
        self._sampler = Sampler(config.sample_period_ns, config.start_ns + config.sample_phase_ns)
        self._rip = 0  # of the task, when it last left the CPU
        self._min_flt = self._maj_flt = 0  # since the last trap
        self._faults: list[FaultMet] = []

    @property
    def telling(self) -> bool:
        """Whether a page ready is on its way to the guest."""
        asked = self.state is State.TRAP and self._path is KernelPath.PAGE_READY
        return asked or bool(self._irr or self._again_token) or self._announcing() is State.READY

    def story(self) -> str:
        """The last state changes, for error messages."""
        return "\n".join(f"  {at} ns: {state.value}" for at, state in self._story)

    def _announcing(self) -> State:
        return self._resume if self.state in (State.KERNEL_FAULT, State.RETRY) else self.state

    def _move(self, state: State) -> None:
        assert state in ALLOWED[self.state], (
            f"vCPU {self._config.vcpu}: {self.state} -> {state} at {self.now_ns}\n{self.story()}"
        )
        if __debug__:
            self._story.append((self.now_ns, state))
        self.state = state

    def _spend(self, cause: Cause, until_ns: int) -> None:
        """Let the clock go on to ``until_ns`` and book the time."""
        spent_ns = until_ns - self.now_ns
        if spent_ns > 0:
            self.now_ns = until_ns
            if until_ns > self.account.end_ns:
                spent_ns = self.account.within(spent_ns, until_ns)
            self._spent_ns[cause] += spent_ns

    def _spend_in_kernel(self, cause: Cause, until_ns: int, path: KernelPath | None) -> None:
        """``_spend`` while the guest kernel runs, on ``path``, where samples of the profile find it."""
        self._spend(cause, until_ns)
        if path is not None and self._sampler.next_ns <= self.now_ns:
            self._sampler.in_kernel(self.now_ns, path)
            self._sampled()

    def _sampled(self) -> None:
        """What taking a sample costs the guest."""
        self.counters.samples += 1
        self._spend(Cause.KERNEL, self.now_ns + self._costs.profile_sample_ns)

    def _wake(self, event: ThreadEvent) -> None:
        """The thread is in an exit again, if it slept."""
        if self.thread.state in (ThreadState.APF_HALT, ThreadState.HLT):
            self.thread.move(event)

    def _end_halt(self, event: ThreadEvent) -> None:
        """An interrupt or a completion ends the APF halt (E07), and HLT."""
        self._halted = False
        self._wake(event)
        if self.state is State.HALTED:
            self._move(self._at)

    def _halt(self) -> None:
        """KVM_REQ_APF_HALT: out of the guest until something comes."""
        self.counters.halts += 1
        self._halted = True
        self.thread.move(ThreadEvent.HALTED)

    def _advance(self) -> None:
        """Workers have run; the first item that comes into an empty done list raises KVM_REQ_APF_READY."""
        before = len(self.async_pf.done)
        self._apf_ready |= self.async_pf.advance(self.now_ns)
        if len(self.async_pf.done) > before:
            self._end_halt(ThreadEvent.DONE)

    def _ran_to(self, retired: int) -> None:
        if self._cause is _COUNTING:
            self.observed.work += retired - self.retired
        self.retired = retired

    def work(self, retired: int) -> int:
        """Instructions retired in counting tasks, of ``retired`` in all, which may be later than the last exit."""
        since = retired - self.retired if self._dispatch.account is Account.COUNTING else 0
        return self.observed.work + since

    def _exit(self, reason: str) -> None:
        """The vCPU leaves guest mode, for ``reason`` as kvm_exit names it (SYSCALL: no exit in KVM)."""
        self.counters.exits += 1
        self.journal.record((self.now_ns, "exit", reason, self._rip))

    def _hit(self, what: Injected) -> bool:
        """Whether this event is one that is to be spoiled."""
        hit = self._injections.hits(what, self.now_ns)
        if hit:
            self._note_injected(what)
        return hit

    def _note_injected(self, what: Injected) -> None:
        self.counters.injected += 1
        self.journal.record((self.now_ns, "injected", what.value))

    # What the layers above do

    @abstractmethod
    def _enter(self) -> list[Effect]:
        """vcpu_enter_guest."""

    @abstractmethod
    def _go_back(self) -> list[Effect]:
        """To what the guest was at, by way of what is due."""

    @abstractmethod
    def _ask_guest(self, trap: Trap, state: State) -> list[Effect]:
        """Deliver a trap."""

    @abstractmethod
    def _after_steps(self) -> list[Effect]:
        """A handler's steps are done."""

    @abstractmethod
    def _do_steps(self) -> list[Effect]:
        """Go on with a handler's steps."""

    @abstractmethod
    def _kernel_fault(self, gpa: int, access: Access, context: Context | None) -> list[Effect]:
        """A fault of the guest kernel's own, or of KVM's."""
