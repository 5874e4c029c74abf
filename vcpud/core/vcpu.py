"""The run loop of one vCPU: enter the guest, handle the exit, deliver what is due, enter again.

Theory of operation. ``_enter`` is ``vcpu_enter_guest``: it looks at what is due in the order KVM does - page ready
(KVM_REQ_APF_READY) before interrupts (the tick) - and otherwise runs the guest, waits in an APF halt, or idles. Every
exit ends in ``_enter`` again. What another process decides (hostd a fault, guestsched a trap) is a question that the
shell carries there; the core waits in a state of its own for the answer.

    RUNNING --fault--> FAULT --mapped or retry--> RUNNING
                       FAULT --in progress--> NOT_PRESENT --reason word read--> TRAP --dispatch--> RUNNING | IDLE
    RUNNING | IDLE | HALTED --item done--> PREFAULT --mapped--> READY --reason word read--> TRAP
    RUNNING --repeated fault--> HALTED --interrupt or item done--> RUNNING
    TRAP --dispatch with guest memory to read or write--> COPY --done--> RUNNING | TRAP
    NOT_PRESENT | READY | COPY --its page not mapped--> KERNEL_FAULT --mapped--> back

Protocol of 2010 (``pv2010``; arch/x86/kvm/x86.c before 5.8): both events are #PF; the reason word in per-CPU guest
memory says 1 (not present) or 2 (ready), CR2 holds the token. ``off``: every fault is BLOCKING; the vCPU sleeps in
the host and the guest cannot tell.

Eligibility (``kvm_can_do_async_pf``): the guest has enabled APF and runs user code with interrupts on, which is all
that ever runs on the CPU here: the guest kernel's own paths are modelled costs. Its accesses to the reason word are
kernel accesses; they fault synchronously (E45).

Ticks: HZ is delivered locally. A tick costs ``tick_ns``; only one at or after the dispatch's ``run_until_ns`` can change
which task runs, so only that one traps. Ticks missed in a stall come as one, late. An idle vCPU has none (NO_HZ). The
dispatch's ``timer_ns`` (the guest's other hrtimers) expires likewise, also in an idle vCPU, and always traps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from apf.journal import Journal
from apf.messages import (
    FAULTS_LOGGED_MAX,
    NEVER_NS,
    PAGE_SHIFT,
    Access,
    Account,
    ApfMode,
    Booted,
    Dispatch,
    ExceptionRaised,
    FaultKind,
    FaultMet,
    FaultMode,
    FaultRaised,
    Fetched,
    HostReply,
    InProgress,
    InterruptArrived,
    KernelPath,
    Mapped,
    NotPresentArrived,
    PageReadyArrived,
    PrefaultRaised,
    Retry,
    Stopped,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    Trap,
)
from apf.registers import get as register
from apf.scenario import Costs
from vcpud.core.account import CAUSE_OF_ACCOUNT, Cause, TimeAccount
from vcpud.core.async_pf import AsyncPfQueue, WorkItem
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    Attached,
    Effect,
    EnterGuest,
    Event,
    ExitCause,
    Finish,
    GuestExited,
    GuestMemoryRead,
    GuestMemoryWritten,
    GuestReplied,
    HostReplied,
    InjectReason,
    InterruptPosted,
    LoadTask,
    MapPage,
    ReadGuest,
    ReasonRead,
    SetSpace,
    TimeReached,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.observed import Observed
from vcpud.core.sampler import Sampler

REASON_NOT_PRESENT = 1
REASON_READY = 2
_EN_ENABLED = 1
_STORY = 32


class State(Enum):
    """What the vCPU is doing, or whose answer it waits for."""

    NEW = "new"
    RUNNING = "running"
    IDLE = "idle"
    HALTED = "halted"  # APF_HALT: blocked in KVM, interrupts still served
    FAULT = "fault"  # hostd has a FaultRaised
    RETRY = "retry"  # hostd could not settle it; the access is executed again later
    NOT_PRESENT = "not present"  # injecting
    PREFAULT = "prefault"  # hostd has a PrefaultRaised
    READY = "ready"  # injecting
    COPY = "copy"  # the guest kernel reads or writes guest memory
    KERNEL_FAULT = "kernel fault"  # hostd has a fault of a page that the guest kernel (or KVM for it) uses
    TRAP = "trap"  # guestsched has a trap
    STOPPING = "stopping"  # guestsched has the last trap
    FINISHED = "finished"


_S = State
TRANSITIONS: dict[State, tuple[State, ...]] = {
    _S.NEW: (_S.TRAP,),
    _S.RUNNING: (_S.RUNNING, _S.FAULT, _S.HALTED, _S.PREFAULT, _S.TRAP, _S.COPY, _S.STOPPING),
    _S.IDLE: (_S.IDLE, _S.PREFAULT, _S.TRAP, _S.STOPPING),
    _S.HALTED: (_S.HALTED, _S.RUNNING, _S.PREFAULT, _S.STOPPING),
    _S.FAULT: (_S.RUNNING, _S.RETRY, _S.NOT_PRESENT),
    _S.RETRY: (_S.RUNNING, _S.PREFAULT, _S.NOT_PRESENT, _S.READY, _S.COPY),
    _S.NOT_PRESENT: (_S.TRAP, _S.KERNEL_FAULT),
    _S.PREFAULT: (_S.READY, _S.RETRY),
    _S.READY: (_S.TRAP, _S.KERNEL_FAULT),
    _S.COPY: (_S.RUNNING, _S.TRAP, _S.KERNEL_FAULT),
    _S.KERNEL_FAULT: (_S.NOT_PRESENT, _S.READY, _S.COPY, _S.RETRY),
    _S.TRAP: (_S.RUNNING, _S.IDLE, _S.COPY),
    _S.STOPPING: (_S.FINISHED,),
    _S.FINISHED: (),
}

_PATH_OF_TRAP = {
    Booted: KernelPath.SCHEDULE,
    TickArrived: KernelPath.SCHEDULE,
    TimerArrived: KernelPath.TIMER,
    InterruptArrived: KernelPath.INTERRUPT,
    NotPresentArrived: KernelPath.NOT_PRESENT,
    PageReadyArrived: KernelPath.PAGE_READY,
    SyscallRaised: KernelPath.SYSCALL,
    Fetched: KernelPath.SYSCALL,
    ExceptionRaised: KernelPath.EXCEPTION,
}
"""Where the guest kernel is while it handles a trap."""

_REASONS = {
    ExitCause.EPT_VIOLATION: "EPT_VIOLATION",
    ExitCause.SYSCALL: "SYSCALL",
    ExitCause.EXCEPTION: "EXCEPTION_NMI",
}
"""Exit reasons, as arch/x86/include/uapi/asm/vmx.h names them."""


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
    sync_limit: int = 0  # 64 items live: handled synchronously
    prefault_again: int = 0  # the page was gone again before page ready could go out (E37)
    ticks: int = 0
    timers: int = 0
    interrupts: int = 0
    kernel_faults: int = 0  # of pages the guest kernel used
    samples: int = 0
    traps: int = 0
    stall_ns: int = 0
    async_wait_ns: int = 0  # not-present to done, summed over asynchronous faults

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


class VcpuCore:
    """See the module's theory of operation. ``now_ns`` is the vCPU's clock as of the last step."""

    def __init__(self, config: VcpuConfig, journal: Journal) -> None:
        self._config = config
        self._costs = config.costs
        self._end_ns = config.end_ns
        self._tick_period_ns = 1_000_000_000 // config.hz
        self.journal = journal
        self.state = State.NEW
        self.now_ns = 0
        self.retired = 0
        self.counters = VcpuCounters()
        self.observed = Observed()
        self.account = TimeAccount(config.end_ns)
        self.async_pf = AsyncPfQueue(config.vcpu)
        self._story: deque[tuple[int, State]] = deque(maxlen=_STORY)
        self._reason_gpa: int | None = None
        self._dispatch = Dispatch(0, 0, 0, Account.IDLE, None, NEVER_NS)
        self._next_tick_ns = NEVER_NS
        self._fault_gfn = 0  # of the fault hostd is asked about
        self._item: WorkItem | None = None  # the item being announced or prefaulted
        self._resume = State.RUNNING  # where KERNEL_FAULT and RETRY go back to
        self._interrupt = False  # one is posted
        self._path: KernelPath | None = None  # of the guest kernel while it has a trap
        self._copies: deque[ReadGuest | WriteGuest] = deque()  # what COPY has yet to do
        self._fetched = bytearray()
        self._entering = False  # COPY is part of entering a system call
        self._sampler = Sampler(config.sample_period_ns, config.sample_phase_ns)
        self._rip = 0  # of the task, when it last left the CPU
        self._min_flt = self._maj_flt = 0  # since the last trap
        self._faults: list[FaultMet] = []

    # the only way in

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event; see ``effects`` for what comes back."""
        assert now_ns >= self.now_ns, f"time went back: {self.now_ns} -> {now_ns}\n{self.story()}"
        match event:
            case Attached():
                return self._ask_guest(Booted(), State.TRAP)
            case GuestExited():
                return self._guest_exited(event, now_ns)
            case HostReplied(reply=reply):
                return self._host_replied(reply)
            case GuestReplied(dispatch=dispatch):
                return self._dispatched(dispatch)
            case TimeReached():
                return self._time_reached(now_ns)
            case ReasonRead(reason=reason):
                return self._reason_read(reason)
            case GuestMemoryRead(data=data):
                return self._copied(data is not None, data or b"")
            case GuestMemoryWritten(done=done):
                return self._copied(done, b"")
            case InterruptPosted():
                return self._interrupt_posted(event, now_ns)
            case _:
                assert_never(event)

    def deadline_ns(self) -> int | None:
        """When the next page ready is due, or None."""
        return self.async_pf.next_ready_ns()

    def check(self) -> None:
        """Assert the invariants."""
        self.async_pf.check()
        self.account.check()
        assert (self._item is not None) == (self._announcing() in (State.NOT_PRESENT, State.READY, State.PREFAULT))

    def story(self) -> str:
        """The last state changes, for error messages."""
        return "\n".join(f"  {at} ns: {state.value}" for at, state in self._story)

    def finish(self) -> None:
        """Write the final counters to the journal."""
        counters = self.counters
        self.journal.record(self.now_ns, "final.retired", self.retired)
        for name in counters.__slots__:
            self.journal.record(self.now_ns, f"final.{name}", getattr(counters, name))
        for cause, spent_ns in self.account.spent_ns.items():
            self.journal.record(self.now_ns, f"final.time.{cause.value}", spent_ns)

    # states and time

    def _announcing(self) -> State:
        return self._resume if self.state in (State.KERNEL_FAULT, State.RETRY) else self.state

    def _move(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(
                f"vCPU {self._config.vcpu}: {self.state} -> {state} at {self.now_ns}\n{self.story()}"
            )
        self._story.append((self.now_ns, state))
        self.state = state

    def _spend(self, cause: Cause, until_ns: int, path: KernelPath | None = None) -> None:
        """Let the clock go on to ``until_ns`` and book the time; if the guest kernel ran then, it was on ``path``."""
        self.account.spend(cause, until_ns)
        self.now_ns = max(self.now_ns, until_ns)
        if path is not None and self._sampler.next_ns <= self.now_ns:
            self._sampler.in_kernel(self.now_ns, path)
            self._sampled()

    def _sampled(self) -> None:
        """What taking a sample costs the guest."""
        self.counters.samples += 1
        self.now_ns += self._costs.profile_sample_ns
        self.account.spend(Cause.KERNEL, self.now_ns)

    def _task_cause(self) -> Cause:
        return CAUSE_OF_ACCOUNT[self._dispatch.account]

    # enter

    def _enter(self) -> list[Effect]:
        """vcpu_enter_guest: deliver what is due, in KVM's order, or let the guest run."""
        if self.now_ns >= self._end_ns:
            return self._ask_guest(Stopped(), State.STOPPING)
        if (item := self.async_pf.pop_done(self.now_ns)) is not None:
            return self._complete(item)
        if self._interrupt:
            return self._take_interrupt()
        if self.now_ns >= self._sampler.next_ns and self.state is not State.IDLE:
            # The profile's timer and the tick are hrtimers of one base (hrtimer_interrupt): a sample that is due with
            # the tick, or was missed with it in a stall, sees what that one interrupt has interrupted.
            self._end_halt()
            self._sampler.in_task(self.now_ns, self._dispatch.task, self._rip)
            self._sampled()
            return self._enter()
        if self.now_ns >= self._next_tick_ns:
            return self._tick()
        if self.now_ns >= self._dispatch.timer_ns:
            return self._timer()
        ready_ns = self.async_pf.next_ready_ns()
        until_ns = min(
            self._next_tick_ns, self._dispatch.timer_ns, self._end_ns, NEVER_NS if ready_ns is None else ready_ns
        )
        if self.state is State.IDLE:
            return [WaitUntil(until_ns, interruptible=True)]
        until_ns = min(until_ns, self._sampler.next_ns)
        if self.state is State.HALTED:
            return [WaitUntil(until_ns, interruptible=True)]
        return [EnterGuest(self.now_ns - self._retired_ns(), until_ns)]

    def _ran_to(self, retired: int) -> None:
        if self._dispatch.account is Account.COUNTING:
            self.observed.work += retired - self.retired
        self.retired = retired

    def work(self, retired: int) -> int:
        """Instructions retired in counting tasks, of ``retired`` in all, which may be later than the last exit."""
        since = retired - self.retired if self._dispatch.account is Account.COUNTING else 0
        return self.observed.work + since

    def _retired_ns(self) -> int:
        return self.retired * 1000 // self._config.cpu_mips

    def _time_reached(self, now_ns: int) -> list[Effect]:
        """The end of an idle or halted stretch, or of a retry's delay."""
        self._waited(now_ns)
        if self.state is State.RETRY:
            return self._retry_over()
        return self._enter()

    def _waited(self, until_ns: int) -> None:
        self._spend(Cause.IDLE if self.state is State.IDLE else Cause.STALL, until_ns)
        if self.state is State.IDLE:
            self._sampler.idled(self.now_ns)

    def _interrupt_posted(self, posted: InterruptPosted, now_ns: int) -> list[Effect]:
        """A kick: out of the guest, of HLT or of the APF halt; anything else is gone through with first."""
        self._interrupt = True
        if self.state is State.RUNNING:
            self._ran_to(posted.retired)
            if posted.rip is not None:
                self._rip = posted.rip
            self._spend(self._task_cause(), now_ns)
        elif self.state in (State.IDLE, State.HALTED):
            self._waited(now_ns)
        else:
            return []
        return self._enter()

    def _take_interrupt(self) -> list[Effect]:
        self._interrupt = False
        self.counters.interrupts += 1
        if self.state is State.RUNNING:
            self._exit("EXTERNAL_INTERRUPT")
        self._end_halt()
        return self._ask_guest(InterruptArrived(), State.TRAP)

    def _timer(self) -> list[Effect]:
        """The local APIC timer: the guest's hrtimers (hrtimer_interrupt)."""
        self.counters.timers += 1
        if self.state is State.RUNNING:
            self._exit("PREEMPTION_TIMER")
        self._end_halt()
        return self._ask_guest(TimerArrived(), State.TRAP)

    def _end_halt(self) -> None:
        """An interrupt ends the APF halt (E07)."""
        if self.state is State.HALTED:
            self._move(State.RUNNING)

    def _tick(self) -> list[Effect]:
        """Apic timer interrupt; what was missed since the last one has coalesced into it."""
        due_ns = self.now_ns
        self.counters.ticks += 1
        self._next_tick_ns = (due_ns // self._tick_period_ns + 1) * self._tick_period_ns
        self._end_halt()
        self._spend(Cause.KERNEL, due_ns + self._costs.tick_ns, KernelPath.TICK)
        if due_ns >= self._dispatch.run_until_ns:
            return self._ask_guest(TickArrived(), State.TRAP)
        return self._enter()

    # exits

    def _exit(self, reason: str) -> None:
        """The vCPU leaves guest mode, for ``reason`` as kvm_exit names it (SYSCALL: no exit in KVM)."""
        self.counters.exits += 1
        self.journal.record(self.now_ns, "exit", reason, self._rip)

    def _guest_exited(self, exited: GuestExited, now_ns: int) -> list[Effect]:
        assert self.state is State.RUNNING, self.story()
        self._ran_to(exited.retired)
        self._rip = exited.rip
        self._spend(self._task_cause(), now_ns)
        if exited.cause is ExitCause.BUDGET:
            return self._enter()
        self._exit(_REASONS[exited.cause])
        if self.now_ns >= self._end_ns:  # the run ended under this instruction: it is not executed
            return self._enter()
        match exited.cause:
            case ExitCause.EPT_VIOLATION:
                return self._page_fault(exited.gfn, exited.access)
            case ExitCause.SYSCALL:
                return self._syscall()
            case ExitCause.EXCEPTION:
                return self._ask_guest(ExceptionRaised(exited.vector, exited.address, exited.rip), State.TRAP)
            case _:
                assert_never(exited.cause)

    def _syscall(self) -> list[Effect]:
        """The entry of a system call, with what the guest kernel reads in it first, if it said so."""
        if not self._dispatch.syscall_fetch:
            return self._ask_guest(SyscallRaised(), State.TRAP)
        self._copies.extend(ReadGuest(gpa, length) for gpa, length in self._dispatch.syscall_fetch)
        self._entering = True
        self._move(State.COPY)
        return [self._copies[0]]

    def _page_fault(self, gfn: int, access: Access) -> list[Effect]:
        """kvm_mmu_page_fault -> gfn_to_pfn, up to the question whether this fault may be asynchronous."""
        mode, work = FaultMode.BLOCKING, 0
        if self._reason_gpa is not None:  # kvm_can_do_async_pf
            if self.async_pf.has_gfn(gfn):
                self.counters.repeated += 1
                self.journal.record(self.now_ns, "async_pf_repeated_fault", gfn, access.name, self._dispatch.task)
                self._move(State.HALTED)
                return self._enter()
            if self.async_pf.full:
                self.counters.sync_limit += 1
            else:
                mode, work = FaultMode.NOWAIT, self.async_pf.next_token()
        else:
            self.observed.sync_disabled += 1
        self.observed.raised(gfn, self._dispatch.task, self.retired, self.now_ns)
        place = (self._dispatch.task, self.retired)
        self.journal.record(self.now_ns, "page_fault", gfn, access.name, mode.name, work, *place)
        self._fault_gfn = gfn
        self._move(State.FAULT)
        return [AskHost(FaultRaised(gfn, access, mode, work))]

    # hostd's answers

    def _host_replied(self, reply: HostReply) -> list[Effect]:
        match reply:
            case Mapped():
                return self._mapped(reply)
            case Retry(at_ns=at_ns):
                self.counters.retries += 1
                self._resume = State.RUNNING if self.state is State.FAULT else self._announcing()
                self._move(State.RETRY)
                return [WaitUntil(at_ns)]
            case InProgress():
                return self._in_progress(reply)
            case _:
                assert_never(reply)

    def _mapped(self, reply: Mapped) -> list[Effect]:
        prefault = self.state is State.PREFAULT
        major = reply.kind is FaultKind.MAJOR
        if major:
            self.counters.stall_ns += reply.stall_ns
        if prefault:
            self.counters.prefault_again += major
        elif major:
            self.counters.faults_major += 1
        else:
            self.counters.faults_minor += 1
        if self.state is State.FAULT:
            self._task_faulted(reply.gfn, reply.kind)
            self.observed.mapped(reply.kind, reply.stall_ns, reply.at_ns)
        self._spend(Cause.STALL, min(self.now_ns + reply.stall_ns, reply.at_ns))
        self._spend(self._fault_cause(), reply.at_ns)
        page = MapPage(reply.gfn, reply.pfn, reply.writable)
        self.journal.record(self.now_ns, "mapped", reply.gfn, reply.kind.name, reply.stall_ns)
        if prefault:
            assert self._item is not None
            self.observed.prefaulted(self._item.token, reply.at_ns)
            self._move(State.READY)
            return [page, self._inject(REASON_READY)]
        if self.state is State.KERNEL_FAULT:
            self._move(self._resume)
            return [page, self._again()]
        self._move(State.RUNNING)
        return [page, *self._enter()]

    def _fault_cause(self) -> Cause:
        """Whose time the part of a fault is in which the vCPU does not sleep."""
        if self.state is State.FAULT:
            return self._task_cause()
        return Cause.KERNEL if self._announcing() is State.COPY else Cause.APF

    def _task_faulted(self, gfn: int, kind: FaultKind) -> None:
        """mm_account_fault, for the guest's task: what its next trap will tell."""
        if kind is FaultKind.MINOR:
            self._min_flt += 1
        else:
            self._maj_flt += 1
        if self._dispatch.log_faults and len(self._faults) < FAULTS_LOGGED_MAX:
            self._faults.append(FaultMet(gfn, kind))

    def _in_progress(self, reply: InProgress) -> list[Effect]:
        """kvm_setup_async_pf worked: tell the guest that the page is not present."""
        self.counters.faults_async += 1
        self.counters.async_wait_ns += reply.ready_at_ns - self.now_ns
        self._task_faulted(self._fault_gfn, FaultKind.ASYNC)
        self._spend(self._task_cause(), reply.at_ns)
        self._item = self.async_pf.setup(reply.work, self._fault_gfn, reply.ready_at_ns)
        self.observed.in_progress(reply.work, reply.at_ns, reply.ready_at_ns)
        self._move(State.NOT_PRESENT)
        return [self._inject(REASON_NOT_PRESENT)]

    def _retry_over(self) -> list[Effect]:
        """The delay of a Retry is over: do again what led to it."""
        self._move(self._resume)
        if self.state in (State.NOT_PRESENT, State.READY, State.COPY):
            return [self._again()]
        if self.state is State.PREFAULT:
            return self._ask_prefault()
        return self._enter()

    def _again(self) -> Effect:
        """The page that the guest kernel needed is there: what it was needed for."""
        return self._copies[0] if self.state is State.COPY else self._inject(self._reason())

    def _kernel_fault(self, gpa: int, access: Access) -> list[Effect]:
        """A fault at CPL 0: the vCPU waits for it."""
        self.counters.kernel_faults += 1
        self._resume = self.state
        self._move(State.KERNEL_FAULT)
        return [AskHost(FaultRaised(gpa >> PAGE_SHIFT, access, FaultMode.BLOCKING))]

    # the protocol of 2010

    def _reason(self) -> int:
        return REASON_READY if self.state is State.READY else REASON_NOT_PRESENT

    def _inject(self, reason: int) -> InjectReason:
        assert self._reason_gpa is not None
        return InjectReason(self._reason_gpa, reason)

    def _reason_read(self, reason: int | None) -> list[Effect]:
        """The #PF is delivered; the word the guest's entry code read tells which of the two it is."""
        assert self._item is not None and self._reason_gpa is not None
        item = self._item
        if reason is None:  # the word's page is out: the host's put_user faults it in, synchronously (E45)
            return self._kernel_fault(self._reason_gpa, Access.WRITE)
        self._spend(Cause.APF, self.now_ns + self._costs.apf_inject_ns)
        self._item = None
        if reason == REASON_NOT_PRESENT:
            assert self.state is State.NOT_PRESENT, self.story()
            self.counters.not_present += 1
            self.observed.injected(item.token, self.now_ns)
            self.journal.record(self.now_ns, "async_pf_not_present", item.token, item.gfn)
            return self._ask_guest(NotPresentArrived(item.token), State.TRAP)
        assert reason == REASON_READY and self.state is State.READY, self.story()
        self.async_pf.present(item)
        self.counters.ready += 1
        self.observed.delivered(item.token, self.now_ns)
        self.journal.record(self.now_ns, "async_pf_ready", item.token, item.gfn)
        return self._ask_guest(PageReadyArrived(item.token), State.TRAP)

    def _complete(self, item: WorkItem) -> list[Effect]:
        """kvm_check_async_pf_completion: kicked out of the guest, map the page before the guest is told."""
        self._item = item
        if self.state is not State.IDLE:
            self._exit("EXTERNAL_INTERRUPT")
        self._spend(Cause.APF, self.now_ns + self._costs.apf_ready_exit_ns)
        self.observed.exited(item.token, self.now_ns)
        self._move(State.PREFAULT)
        return self._ask_prefault()

    def _ask_prefault(self) -> list[Effect]:
        assert self._item is not None
        return [AskHost(PrefaultRaised(self._item.gfn, self._item.token))]

    # guestsched

    def _ask_guest(self, trap: Trap, state: State) -> list[Effect]:
        self.counters.traps += 1
        self._move(state)
        self._path = _PATH_OF_TRAP.get(type(trap))
        asked = AskGuest(
            trap,
            with_registers=self._dispatch.task != 0,
            min_flt=self._min_flt,
            maj_flt=self._maj_flt,
            faults=tuple(self._faults),
            samples=self._sampler.drain(),
        )
        self._min_flt = self._maj_flt = 0
        self._faults.clear()
        return [asked]

    def _dispatched(self, dispatch: Dispatch) -> list[Effect]:
        """Back from the guest kernel: what runs now."""
        self._spend(Cause.APF, self.now_ns + dispatch.apf_ns, self._path)
        self._spend(Cause.KERNEL, dispatch.at_ns, self._path)
        if self.state is State.STOPPING:
            self._move(State.FINISHED)
            return [Finish()]
        effects: list[Effect] = [SetSpace(space) for space in dispatch.spaces]
        if dispatch.async_pf_en is not None:  # kvm_pv_enable_async_pf
            enabled = dispatch.async_pf_en & _EN_ENABLED and self._config.mode is ApfMode.PV2010
            self._reason_gpa = dispatch.async_pf_en & ~_EN_ENABLED if enabled else None
        if dispatch.shutdown:
            self._end_ns = self.now_ns
            self.account.end(self.now_ns)
        was_idle = self._dispatch.task == 0
        self._dispatch = dispatch
        if dispatch.task == 0:
            self._next_tick_ns = NEVER_NS
        elif was_idle:
            self._next_tick_ns = (self.now_ns // self._tick_period_ns + 1) * self._tick_period_ns
        if dispatch.registers is not None:
            self._rip = register(dispatch.registers, "rip")
            effects.append(LoadTask(dispatch.asid, dispatch.registers))
        self._copies.extend(WriteGuest(gpa, data) for gpa, data in dispatch.copies)
        self._copies.extend(ReadGuest(gpa, length) for gpa, length in dispatch.fetch)
        if self._copies:
            self._move(State.COPY)
            return [*effects, self._copies[0]]
        return effects + self._go_on()

    def _copied(self, done: bool, data: bytes) -> list[Effect]:
        """copy_from_user or copy_to_user got so far."""
        assert self.state is State.COPY, self.story()
        copy = self._copies[0]
        if not done:
            return self._kernel_fault(copy.gpa, Access.READ if isinstance(copy, ReadGuest) else Access.WRITE)
        self._copies.popleft()
        self._fetched += data
        if self._copies:
            return [self._copies[0]]
        fetched = bytes(self._fetched)
        self._fetched.clear()
        if self._entering:
            self._entering = False
            return self._ask_guest(SyscallRaised(fetched), State.TRAP)
        if self._dispatch.fetch:
            return self._ask_guest(Fetched(fetched), State.TRAP)
        return self._go_on()

    def _go_on(self) -> list[Effect]:
        """The guest kernel is done: back to the task it chose."""
        self._move(State.RUNNING if self._dispatch.task else State.IDLE)
        return self._enter()
