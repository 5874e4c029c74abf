"""The run loop of one vCPU: enter the guest, handle the exit, deliver what is due, enter again.

Theory of operation. ``_enter`` is ``vcpu_enter_guest``: it looks at what is due in the order KVM does - page ready
(KVM_REQ_APF_READY) before interrupts (the tick) - and otherwise runs the guest, waits in an APF halt, or idles. Every
exit ends in ``_enter`` again. What another process decides (hostd a fault, guestsched a trap) is a question that the
shell carries there; the core waits in a state of its own for the answer.

    RUNNING --fault--> FAULT --mapped or retry--> RUNNING
                       FAULT --in progress--> NOT_PRESENT --flags word read--> TRAP --dispatch--> RUNNING | IDLE
                       FAULT --in progress, guest cannot be told--> HALTED
    RUNNING | IDLE | HALTED | COPY --item done--> SLOT --free--> PREFAULT --mapped--> PRESENT --token written--> back
    RUNNING | IDLE | HALTED | COPY --ready's interrupt--> READY --token read--> TRAP --dispatch--> STEPS: token 0, ACK
    RUNNING --repeated fault--> HALTED --interrupt or item done--> RUNNING
    TRAP --dispatch with guest memory to read or write--> COPY --done--> RUNNING | TRAP
    any access of the guest kernel, or of KVM for it --its page not mapped--> KERNEL_FAULT --mapped--> back
    FAULT | KERNEL_FAULT --the page cannot be had--> TRAP --dispatch--> the end of the VM, or of the task

The tables of what this implements are in ``async_pf`` (work items), ``apf_msr`` (MSRs, eligibility, the ready slot)
and ``thread`` (the vCPU's thread). The protocols, arch/x86/kvm/x86.c (X), virt/kvm/async_pf.c (A), mmu/mmu.c (M):

``off``: KVM without its half. Every fault is BLOCKING; the vCPU sleeps in the host and the guest cannot tell.
``halt``: KVM's half only; the guest has not enabled anything. The fault is left to a worker and the vCPU halts in KVM,
where an interrupt finds it, as letting mm/ sleep would not; the guest executes the access again (E04, E05, E07).
``pv2010`` (before 5.8): both events are #PF; the reason word in per-CPU guest memory says 1 (not present) or 2
(ready), CR2 holds the token.
``pv`` (since 5.8): not-present is #PF with the token in CR2 and 1 in the flags word. Ready is an interrupt; its token is
in the token word, one at a time: what is done meanwhile waits for the guest to store 0 there and to write ACK.

Where the guest is decides (``apf_msr.Context``): in its own code a task can be told; in the kernel with interrupts on
(``COPY``: system calls' and programs' bytes) the vCPU halts (E04); with interrupts off (the handlers' accesses to the
per-CPU words) it sleeps in mm/ (E03), as it does where KVM itself accesses guest memory for the guest (E45).

A page that cannot be had (``Failed``: get_user_pages returns -EFAULT) is none to the worker, whose result nobody looks
at: ready goes out all the same, and the guest, executing the access again, faults again, for ever (E39). Where the vCPU
itself needs it, KVM_RUN returns -EFAULT (M:kvm_handle_error_pfn) and the VMM ends, and with it the VM. KVM's own access
to the words of the protocol fails quietly: a not-present that cannot be told is a halt, a ready that cannot be told is
lost, a slot that cannot be read is not free (X:apf_put_user_notpresent, apf_put_user_ready, apf_pageready_slot_free).
With ``swap.errors = "report"`` the guest is told, and kills the task alone (departure, after what is done elsewhere):
by a machine check where the task's own access or the kernel's copy for it needs the page, as for memory that has failed
(kvm_send_hwpoison_signal, the VMM's #MC, the guest's kill_me_maybe); by an error word beside the token where ready tells
it (pv2010: bit 4 of the reason word), after V. Goyal's KVM_PV_REASON_PAGE_ERROR of 2020, which was not merged.

Ticks: HZ is delivered locally. A tick costs ``tick_ns``; only one at or after the dispatch's ``run_until_ns`` can change
which task runs, so only that one traps. Ticks missed in a stall come as one, late. An idle vCPU has none (NO_HZ). The
dispatch's ``timer_ns`` (the guest's other hrtimers) expires likewise, also in an idle vCPU, and always traps.

Shadow paging (mmu/mmu.c, paging_tmpl.h): an exit for a page that the shadow table of the address space lacks is first
looked up in what the host has mapped (``SHADOW``). If that is enough the table gets it; else it is a fault as with EPT.
An item done while another address space is loaded is not prefaulted (E43). An idle vCPU keeps its last CR3.

Departures. A fault on a gfn whose item is in flight does not try get_user_pages first: the page is locked until then.
One on a gfn whose item is done but undelivered sleeps for the page if it is gone again, where KVM would try, halt and
be woken by the done list again and again (A:kvm_check_async_pf_completion, X:vcpu_block); likewise an APF halt or HLT
ends when an item comes to be done, not while some are (E24). ``pv2010``: the first EN write does not wake all (nobody
waits yet), and a ready is sent only if its not-present was, which came with 5.8 (E18). Interrupts at the end of a copy
by the guest kernel: if any came meanwhile, the vCPU traps once more before user code, where need_resched is seen.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import assert_never

from apf.journal import Journal
from apf.messages import (
    FAULTS_LOGGED_MAX,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    NEVER_NS,
    PAGE_SHIFT,
    Access,
    Account,
    ApfMode,
    Booted,
    Dispatch,
    ExceptionRaised,
    Failed,
    FaultKind,
    FaultMet,
    FaultMode,
    FaultRaised,
    Fetched,
    HostReply,
    InProgress,
    InterruptArrived,
    KernelPath,
    KernelStep,
    Mapped,
    MsrWrite,
    NotPresentArrived,
    PageReadyArrived,
    PrefaultRaised,
    Retry,
    RunFailed,
    Stopped,
    Store,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    Trap,
)
from apf.registers import get as register
from vcpud.core.account import CAUSE_OF_ACCOUNT, Cause, TimeAccount
from vcpud.core.apf_msr import INTERRUPTS_OFF, KERNEL, SLOT, USER, ApfMsrs, Context, Outcome, SlotEvent
from vcpud.core.async_pf import AsyncPfQueue, ItemState, WorkItem
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    Attached,
    Effect,
    EnterGuest,
    Event,
    ExitCause,
    FillShadow,
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
    ShadowFilled,
    TimeReached,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.injected import Injected, Injection, Injections
from vcpud.core.observed import Observed
from vcpud.core.sampler import Sampler
from vcpud.core.state import ALLOWED, TRANSITIONS, State, VcpuConfig, VcpuCounters
from vcpud.core.thread import Thread, ThreadEvent, ThreadState

REASON_NOT_PRESENT = 1
REASON_READY = 2
REASON_ERROR = 4
"""With REASON_READY: KVM_PV_REASON_PAGE_ERROR."""
_MACHINE_CHECK = 18
_STORY = 32
_ACCESSES, _MODES, _KINDS = (tuple(one.name for one in kind) for kind in (Access, FaultMode, FaultKind))
"""Names by number: asking a member of an enum for its name is a call."""
_TOKEN_BYTES = 4
_ERROR_BYTES = 4
"""Of the word behind the token, which is there with ``swap.errors = "report"``."""
_NO_TOKEN = bytes(_TOKEN_BYTES)
_LEFT_TOKEN = 0xFFFFE
"""Id of the token that an injected snapshot has left in the token word."""

__all__ = ("TRANSITIONS", "State", "VcpuConfig", "VcpuCore", "VcpuCounters")

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
    RunFailed: KernelPath.EXCEPTION,
}
"""Where the guest kernel is while it handles a trap."""

_REASONS = {
    (ExitCause.EPT_VIOLATION, False): "EPT_VIOLATION",
    (ExitCause.EPT_VIOLATION, True): "EXCEPTION_NMI",
    **{(ExitCause.SYSCALL, shadow): "SYSCALL" for shadow in (False, True)},
    **{(ExitCause.EXCEPTION, shadow): "EXCEPTION_NMI" for shadow in (False, True)},
}
"""Exit reasons, as arch/x86/include/uapi/asm/vmx.h names them, by cause and whether paging is shadowed."""


class VcpuCore:
    """See the module's theory of operation. ``now_ns`` is the vCPU's clock as of the last step."""

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

    # the only way in

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event; see ``effects`` for what comes back."""
        assert now_ns >= self.now_ns, f"time went back: {self.now_ns} -> {now_ns}\n{self.story()}"
        match event:
            case GuestExited():
                return self._guest_exited(event, now_ns)
            case HostReplied():
                return self._host_replied(event.reply)
            case GuestReplied():
                return self._dispatched(event.dispatch)
            case TimeReached():
                return self._time_reached(now_ns)
            case ReasonRead(reason=reason):
                return self._reason_read(reason)
            case GuestMemoryRead(data=data):
                return self._memory_read(data)
            case GuestMemoryWritten(done=done):
                return self._memory_written(done)
            case ShadowFilled(done=done):
                return self._shadow_filled(done)
            case InterruptPosted():
                return self._interrupt_posted(event, now_ns)
            case Attached():
                return self._ask_guest(Booted(), State.TRAP)
            case _:
                assert_never(event)

    def deadline_ns(self) -> int | None:
        """When the next worker is done, or None."""
        return self.async_pf.next_done_ns()

    def check(self) -> None:
        """Assert the invariants."""
        self.async_pf.check()
        self.account.check()
        announcing = self._announcing()
        of_item = announcing in (State.NOT_PRESENT, State.PREFAULT, State.PRESENT)
        assert of_item <= (self._item is not None), self.story()
        assert not self._halted or self.thread.state is ThreadState.APF_HALT, self.story()
        assert not self.msrs.pageready_pending or self._config.mode is ApfMode.PV

    @property
    def telling(self) -> bool:
        """Whether a page ready is on its way to the guest."""
        asked = self.state is State.TRAP and self._path is KernelPath.PAGE_READY
        return asked or bool(self._irr or self._again_token) or self._announcing() is State.READY

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
        if state not in ALLOWED[self.state]:
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

    def _go_back(self) -> list[Effect]:
        """To what the guest was at, by way of what is due."""
        self._move(self._at)
        return self._enter()

    def _enter(self) -> list[Effect]:
        """vcpu_enter_guest: deliver what is due, in KVM's order, or let the guest run."""
        now_ns = self.now_ns
        if now_ns >= self._end_ns:
            return self._ask_guest(Stopped(), State.STOPPING)
        if (what := self._injections.due(now_ns)) is not None:
            return self._inject_fault(what)
        if self.async_pf.next_ns <= now_ns:
            self._advance()
        if self._apf_ready or (self.async_pf.done and self._config.mode is ApfMode.PV2010):
            return self._check_completion()
        if self._irr and self.msrs.lapic_enabled:
            return self._take_ready()
        if self._again_token:
            self._ready_token, self._again_token = self._again_token, 0
            self._move(State.READY)
            return [self._inject_ready()]
        if self._interrupt:
            return self._take_interrupt()
        if now_ns >= self._sampler.next_ns and self.state is not State.IDLE:
            # The profile's timer and the tick are hrtimers of one base (hrtimer_interrupt): a sample that is due with
            # the tick, or was missed with it in a stall, sees what that one interrupt has interrupted.
            self._end_halt(ThreadEvent.INTERRUPT)
            if self._at is State.COPY:
                self._sampler.in_kernel(now_ns, KernelPath.SYSCALL)
            else:
                self._sampler.in_task(now_ns, self._dispatch.task, self._rip)
            self._sampled()
            return self._enter()
        if now_ns >= self._next_tick_ns:
            return self._tick()
        if now_ns >= self._dispatch.timer_ns:
            return self._timer()
        return self._run()

    def _run(self) -> list[Effect]:
        """Nothing is due: guest mode, HLT, or the APF halt."""
        done_ns = self.async_pf.next_ns
        until_ns = min(self._next_tick_ns, self._dispatch.timer_ns, self._end_ns, self._injections.next_ns)
        if self._halted or self._at is State.IDLE:
            until_ns = min(until_ns, done_ns)  # __kvm_vcpu_wake_up
        elif done_ns < until_ns and not self.async_pf.done and not self.msrs.pageready_pending:
            until_ns = done_ns  # the kick of kvm_arch_async_page_present_queued (E22)
        if self._halted:
            if self.state is not State.HALTED:
                self._move(State.HALTED)
            return [WaitUntil(min(until_ns, self._sampler.next_ns), interruptible=True)]
        if self.state is State.HALTED:
            self._move(self._at)
        if self._at is State.IDLE:
            if self.thread.state is ThreadState.GUEST:
                self.thread.move(ThreadEvent.HLT)
            return [WaitUntil(until_ns, interruptible=True)]
        if self._at is State.COPY:
            return [self._copies[0]]
        return [EnterGuest(self.now_ns - self._retired_ns(), min(until_ns, self._sampler.next_ns))]

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
        """The end of an idle or halted stretch, of a retry's delay, or of a wait for workers."""
        self._waited(now_ns)
        if self.state is State.RETRY:
            return self._retry_over()
        if self.state is State.DRAIN:
            self._move(State.STEPS)
            return self._do_steps()
        return self._enter()

    def _waited(self, until_ns: int) -> None:
        if self.state is State.HALTED:
            self.counters.halt_ns += until_ns - self.now_ns
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
        self._end_halt(ThreadEvent.INTERRUPT)
        return self._ask_guest(InterruptArrived(), State.TRAP)

    def _timer(self) -> list[Effect]:
        """The local APIC timer: the guest's hrtimers (hrtimer_interrupt)."""
        self.counters.timers += 1
        if self.state is State.RUNNING:
            self._exit("PREEMPTION_TIMER")
        self._end_halt(ThreadEvent.INTERRUPT)
        return self._ask_guest(TimerArrived(), State.TRAP)

    def _tick(self) -> list[Effect]:
        """Apic timer interrupt; what was missed since the last one has coalesced into it."""
        due_ns = self.now_ns
        self.counters.ticks += 1
        self._next_tick_ns = (due_ns // self._tick_period_ns + 1) * self._tick_period_ns
        self._end_halt(ThreadEvent.INTERRUPT)
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
        self._exit(_REASONS[exited.cause, self._config.shadow])
        if self.now_ns >= self._end_ns:  # the run ended under this instruction: it is not executed
            return self._enter()
        match exited.cause:
            case ExitCause.EPT_VIOLATION:
                if not self._config.shadow:
                    return self._page_fault(exited.gfn, exited.access)
                self._fill = FillShadow(exited.gfn, exited.access)
                self._move(State.SHADOW)
                return [self._fill]
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
        return self._start_copies()

    def _shadow_filled(self, done: bool) -> list[Effect]:
        """paging_tmpl.h:page_fault, up to the question whether the host has the page."""
        assert self.state is State.SHADOW, self.story()
        if not done:
            return self._page_fault(self._fill.gfn, self._fill.access)
        self.counters.shadow_faults += 1
        self._spend(self._task_cause(), self.now_ns + self._costs.ept_violation_ns)
        return self._go_back()

    def _page_fault(self, gfn: int, access: Access) -> list[Effect]:
        """A fault of the task's own: kvm_mmu_page_fault."""
        if self._config.mode is ApfMode.OFF:
            self.observed.sync_disabled += 1
        mode = self._try_async(gfn, USER)
        if mode is None:
            return self._go_back_halted()
        work = self.async_pf.next_token() if mode is FaultMode.NOWAIT else 0
        self.observed.raised(gfn, self._dispatch.task, self.retired, self.now_ns)
        place = (self._dispatch.task, self.retired)
        how = (_ACCESSES[access], _MODES[mode])
        self.journal.record(self.now_ns, "page_fault", gfn, *how, work, *place)
        self._fault_gfn = gfn
        self._move(State.FAULT)
        return [self._ask_host(gfn, access, mode, work)]

    def _kernel_fault(self, gpa: int, access: Access, context: Context | None) -> list[Effect]:
        """A fault of the guest kernel's own; ``context`` None: of KVM's, which is the VMM's process and just sleeps."""
        gfn = gpa >> PAGE_SHIFT
        self.counters.kernel_faults += 1
        mode = FaultMode.BLOCKING if context is None else self._try_async(gfn, context)
        if mode is None:
            return self._go_back_halted()
        work = self.async_pf.next_token() if mode is FaultMode.NOWAIT else 0
        self.counters.sync_kernel += mode is FaultMode.BLOCKING
        self._fault_gfn = gfn
        self._resume = self.state
        self._move(State.KERNEL_FAULT)
        return [self._ask_host(gfn, access, mode, work)]

    def _ask_host(self, gfn: int, access: Access, mode: FaultMode, work: int) -> AskHost:
        forgotten = tuple(self._forgotten)
        self._forgotten.clear()
        return AskHost(FaultRaised(gfn, access, mode, work, forgotten))

    def _try_async(self, gfn: int, context: Context) -> FaultMode | None:
        """__kvm_mmu_faultin_pfn: may a worker do it? None: one does already, and the vCPU halts (E07, E08)."""
        counters, user = self.counters, context.cpl > 0
        if self._config.mode is ApfMode.OFF:
            return FaultMode.BLOCKING
        if not self.msrs.can_do(context):
            counters.sync_ineligible += user
            return FaultMode.BLOCKING
        item = self.async_pf.find(gfn)
        if item is not None:
            if item.state is ItemState.DONE:
                return FaultMode.BLOCKING
            counters.repeated += 1
            self.journal.record(self.now_ns, "async_pf_repeated_fault", gfn)
            self._spend(self._task_cause(), self.now_ns + self._costs.ept_violation_ns)
            self._halt()
            return None
        if self.async_pf.full:
            counters.sync_limit += user
            return FaultMode.BLOCKING
        if self._hit(Injected.ALLOC_FAILURE):
            counters.sync_alloc += user
            return FaultMode.BLOCKING
        return FaultMode.NOWAIT

    def _go_back_halted(self) -> list[Effect]:
        if self.state is not self._at:
            self._move(self._at)
        return self._enter()

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
            case Failed():
                return self._failed(reply)
            case _:
                assert_never(reply)

    def _failed(self, reply: Failed) -> list[Effect]:
        """kvm_handle_error_pfn: the page cannot be had."""
        if reply.stall_ns:
            self.counters.stall_ns += reply.stall_ns
            self.thread.move(ThreadEvent.SLEPT)
            self.thread.move(ThreadEvent.IO_DONE)
        self.thread.move(ThreadEvent.FAILED)
        self._spend(Cause.STALL, min(self.now_ns + reply.stall_ns, reply.at_ns))
        self._spend(self._fault_cause(), reply.at_ns)
        self.journal.record(self.now_ns, "failed", reply.gfn, reply.error.name, reply.stall_ns)
        if self.state is State.PREFAULT:
            return self._prefault_failed()
        self.counters.faults_failed += 1
        self.observed.failed()
        if self.state is State.FAULT:
            return self._report(reply, self._rip) if self._config.reports else self._end_vm(reply)
        match self._resume:
            case State.NOT_PRESENT:
                return self._not_present_failed()
            case State.PRESENT:
                return self._token_failed()
            case State.SLOT:
                self._move(State.SLOT)
                return self._checked()
            case State.READY if self._config.mode is ApfMode.PV2010:
                return self._ready_failed()
            case State.COPY if self._config.reports:
                return self._copy_failed(reply)
            case _:
                return self._end_vm(reply)

    def _prefault_failed(self) -> list[Effect]:
        """kvm_arch_async_page_ready does not look at what became of its fault; ready goes out."""
        item = self._item
        assert item is not None
        self.counters.prefault_failed += 1
        item.failed = self._config.reports
        self.observed.prefaulted(item.token, self.now_ns)
        return self._present()

    def _not_present_failed(self) -> list[Effect]:
        """The flags word cannot be written: as if the guest could not be told."""
        item, self._item = self._item, None
        assert item is not None
        item.injected = False
        self._move(State.NOT_PRESENT)
        return self._halt_for(item)

    def _token_failed(self) -> list[Effect]:
        """The token word cannot be written: ready is lost, and nobody hears of it."""
        item = self._item
        assert item is not None
        self._move(State.PRESENT)
        return self._presented(item)

    def _ready_failed(self) -> list[Effect]:
        """The reason word of 2010 cannot be written: likewise."""
        self._move(State.READY)
        if self._item is not None:
            self._leave_queue(self._item)
        return self._checked()

    def _end_vm(self, failed: Failed) -> list[Effect]:
        """KVM_RUN returns to the VMM, which has no answer to -EFAULT."""
        self._steps.clear()
        self._drop_copies()
        return self._ask_guest(RunFailed(failed.gfn, failed.error), State.TRAP)

    def _report(self, failed: Failed, rip: int) -> list[Effect]:
        """A machine check, with the address in MCi_ADDR; the guest's memory_failure kills who used the page."""
        address = failed.gfn << PAGE_SHIFT
        return self._ask_guest(ExceptionRaised(_MACHINE_CHECK, address, rip), State.TRAP)

    def _copy_failed(self, failed: Failed) -> list[Effect]:
        """A copy of the guest kernel's for the task, which recovers by killing the task (EX_TYPE_DEFAULT_MCE_SAFE)."""
        self._drop_copies()
        return self._report(failed, 0)

    def _drop_copies(self) -> None:
        if self._copies:
            self._copies.clear()
            self._fetched.clear()
            self._entering = self._resched = False
            self._at = State.RUNNING

    def _mapped(self, reply: Mapped) -> list[Effect]:
        prefault = self.state is State.PREFAULT
        major = reply.kind is FaultKind.MAJOR
        if major:
            self.counters.stall_ns += reply.stall_ns
            self.thread.move(ThreadEvent.SLEPT)
            self.thread.move(ThreadEvent.IO_DONE)
        else:
            self.thread.move(ThreadEvent.MAPPED)
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
        self.journal.record(self.now_ns, "mapped", reply.gfn, _KINDS[reply.kind], reply.stall_ns)
        if prefault:
            assert self._item is not None
            self.observed.prefaulted(self._item.token, reply.at_ns)
            return [page, *self._present()]
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
        """kvm_setup_async_pf worked: tell the guest that the page is not present, or halt."""
        user = self.state is State.FAULT
        context = USER if user else KERNEL
        self.counters.faults_async += 1
        self.counters.async_wait_ns += reply.ready_at_ns - self.now_ns
        if user:
            self._task_faulted(self._fault_gfn, FaultKind.ASYNC)
        self._spend(self._fault_cause(), reply.at_ns)
        picked_ns = reply.at_ns + self._costs.fault_in_worker_ns
        item = WorkItem(reply.work, self._fault_gfn, picked_ns, reply.ready_at_ns, asid=self._cr3, user=user)
        self.async_pf.setup(item)
        if user:
            self.observed.in_progress(reply.work, reply.at_ns, item.ready_at_ns)
        if self.msrs.can_deliver(context):
            item.injected = True
            self._item = item
            self._move(State.NOT_PRESENT)
            return [self._inject(REASON_NOT_PRESENT)]
        return self._halt_for(item)

    def _halt_for(self, item: WorkItem) -> list[Effect]:
        """The guest is not told: the vCPU halts until the item is done, or something else comes."""
        self.journal.record(self.now_ns, "async_pf_halt", item.token, item.gfn)
        self.async_pf.schedule(item, self.now_ns)
        self._halt()
        return self._go_back()

    def _retry_over(self) -> list[Effect]:
        """The delay of a Retry is over: do again what led to it."""
        self._move(self._resume)
        if self.state is State.RUNNING:
            return self._enter()
        if self.state is State.PREFAULT:
            return self._ask_prefault()
        return [self._again()]

    def _again(self) -> Effect:
        """The page that was needed is there: what it was needed for."""
        match self.state:
            case State.COPY:
                return self._copies[0]
            case State.NOT_PRESENT:
                return self._inject(REASON_NOT_PRESENT)
            case State.READY if self._config.mode is ApfMode.PV2010:
                return self._inject_ready()
            case State.READY:
                return self._read_token()
            case State.SLOT:
                return ReadGuest(self.msrs.token_gpa, _TOKEN_BYTES)
            case State.PRESENT:
                return self._put_token()
            case State.STEPS:
                step = self._steps[0]
                assert isinstance(step, Store)
                return WriteGuest(step.gpa, step.data)
            case _:
                raise AssertionError(f"{self.state} needs no page\n{self.story()}")

    # memory of the guest, as KVM and the guest kernel access it

    def _memory_read(self, data: bytes | None) -> list[Effect]:
        match self.state:
            case State.COPY:
                return self._copied(data is not None, data or b"")
            case State.SLOT:
                if data is None:
                    return self._kernel_fault(self.msrs.token_gpa, Access.READ, None)
                return self._slot_read(int.from_bytes(data, "little"))
            case State.READY:
                if data is None:
                    return self._kernel_fault(self.msrs.guest_token_gpa, Access.READ, INTERRUPTS_OFF)
                token, error = data[:_TOKEN_BYTES], data[_TOKEN_BYTES:]
                return self._tell_ready(int.from_bytes(token, "little"), failed=any(error))
            case _:
                raise AssertionError(f"nothing was to be read\n{self.story()}")

    def _memory_written(self, done: bool) -> list[Effect]:
        match self.state:
            case State.COPY:
                return self._copied(done, b"")
            case State.PRESENT:
                if not done:
                    return self._kernel_fault(self.msrs.token_gpa, Access.WRITE, None)
                return self._token_put()
            case State.STEPS:
                step = self._steps[0]
                assert isinstance(step, Store)
                if not done:
                    return self._kernel_fault(step.gpa, Access.WRITE, INTERRUPTS_OFF)
                self._steps.popleft()
                self._advance()
                if self._interrupt and self._apf_ready:  # an exit that happens to come here (E20)
                    return self._check_completion()
                return self._do_steps()
            case _:
                raise AssertionError(f"nothing was to be written\n{self.story()}")

    # page not present

    def _inject(self, reason: int) -> InjectReason:
        return InjectReason(self.msrs.flags_gpa, reason)

    def _reason_read(self, reason: int | None) -> list[Effect]:
        """The #PF is delivered; the word the guest's entry code read tells which of the two it is."""
        if reason is None:  # the word's page is out: the host's put_user faults it in, synchronously (E45)
            return self._kernel_fault(self.msrs.flags_gpa, Access.WRITE, None)
        if reason & REASON_READY:
            assert self.state is State.READY and self._config.mode is ApfMode.PV2010, self.story()
            self._spend(Cause.APF, self.now_ns + self._costs.apf_inject_ns)
            if self._item is not None:
                self._leave_queue(self._item)
            return self._tell_ready(self._ready_token, failed=bool(reason & REASON_ERROR))
        item = self._item
        assert reason == REASON_NOT_PRESENT and self.state is State.NOT_PRESENT and item is not None, self.story()
        self.thread.move(ThreadEvent.TOLD)
        self.async_pf.schedule(item, self.now_ns)
        self._spend(Cause.APF, self.now_ns + self._costs.apf_inject_ns)
        self._item = None
        self.counters.not_present += 1
        self.observed.injected(item.token, self.now_ns)
        self.journal.record(self.now_ns, "async_pf_not_present", item.token, item.gfn)
        return self._ask_guest(NotPresentArrived(item.token), State.TRAP)

    # page ready

    def _check_completion(self) -> list[Effect]:
        """kvm_check_async_pf_completion: as long as one is done and can be dequeued."""
        self._apf_ready = False
        if not self.async_pf.done:
            return self._checked()
        self._end_halt(ThreadEvent.DONE)
        if self._config.mode is ApfMode.PV and self.msrs.enabled:
            if not self.msrs.lapic_enabled:
                return self._checked()
            self._move(State.SLOT)
            return [ReadGuest(self.msrs.token_gpa, _TOKEN_BYTES)]
        return self._complete()

    def _checked(self) -> list[Effect]:
        """Nothing more to deliver: go on with what the check has interrupted."""
        if self._steps or self._dispatched_steps:
            return self._do_steps()
        if self.state is not self._at and self.state is not State.HALTED:
            self._move(self._at)
        return self._enter()

    def _slot_read(self, token: int) -> list[Effect]:
        """apf_pageready_slot_free."""
        if SLOT.after(self.msrs.slot(token), SlotEvent.DELIVERED) is None:
            return self._checked()
        return self._complete()

    def _complete(self) -> list[Effect]:
        """One item: kicked out of the guest, map the page before the guest is told (kvm_arch_async_page_ready)."""
        item = self._item = self.async_pf.dequeue()
        if not self._dispatched_steps:  # else the write of ACK was the exit
            if self._at is not State.IDLE:
                self._exit("EXTERNAL_INTERRUPT")
            self._spend(Cause.APF, self.now_ns + self._costs.apf_ready_exit_ns)
        self.observed.exited(item.token, self.now_ns)
        if item.wakeup_all:
            return self._present()
        if self._config.shadow and item.asid != self._cr3:
            self.counters.prefault_skipped += 1
            self.journal.record(self.now_ns, "async_pf_prefault_skipped", item.token)
            self._forgotten.append(item.token)
            return self._present()
        self._move(State.PREFAULT)
        return self._ask_prefault()

    def _ask_prefault(self) -> list[Effect]:
        assert self._item is not None
        return [AskHost(PrefaultRaised(self._item.gfn, self._item.token))]

    def _present(self) -> list[Effect]:
        """kvm_arch_async_page_present: an event only for who was told that the page is not present (E18)."""
        item = self._item
        assert item is not None
        if not (self.msrs.enabled and (item.wakeup_all or item.injected)):
            return self._presented(item)
        if self._config.mode is ApfMode.PV:
            self._move(State.PRESENT)
            return [self._put_token()]
        if self._hit(Injected.LOST_READY):
            self._leave_queue(item)
            return self._checked()
        self._ready_token = item.token
        if self._hit(Injected.DUPLICATE_READY):
            self._again_token = item.token
        self._end_halt(ThreadEvent.DONE)
        self._move(State.READY)
        return [self._inject_ready()]

    def _inject_ready(self) -> InjectReason:
        """Page ready of 2010: of the item that is presented, or once more of one that was."""
        failed = self._item is not None and self._item.failed
        return self._inject(REASON_READY | REASON_ERROR if failed else REASON_READY)

    def _put_token(self) -> WriteGuest:
        item = self._item
        assert item is not None
        words = item.token.to_bytes(_TOKEN_BYTES, "little")
        if self._config.reports:
            words += int(item.failed).to_bytes(_ERROR_BYTES, "little")
        return WriteGuest(self.msrs.token_gpa, words)

    def _read_token(self) -> ReadGuest:
        """The guest's handler reads the token, and the word behind it if that means anything."""
        length = _TOKEN_BYTES + (_ERROR_BYTES if self._config.reports else 0)
        return ReadGuest(self.msrs.guest_token_gpa, length)

    def _token_put(self) -> list[Effect]:
        """The token is in its word: raise the interrupt."""
        item = self._item
        assert item is not None
        self.msrs.pageready_pending = True
        if self._hit(Injected.LOST_READY):
            return self._presented(item)
        if self.msrs.delivers_interrupts:
            self._irr += 2 if self._hit(Injected.DUPLICATE_READY) else 1
        return self._presented(item)

    def _presented(self, item: WorkItem) -> list[Effect]:
        """Whether or not the guest is told, the vCPU is runnable again (E23), and the next item is looked at."""
        self.counters.wake_all += item.wakeup_all
        self._leave_queue(item)
        if not item.injected:
            self.observed.delivered(item.token, self.now_ns)
        self._end_halt(ThreadEvent.DONE)
        if self.state is State.PRESENT:  # the slot is filled
            return self._checked()
        return self._check_completion()

    def _leave_queue(self, item: WorkItem) -> None:
        self._item = None
        self.async_pf.present(item)
        self.journal.record(self.now_ns, "async_pf_ready", item.token, item.gfn)

    def _take_ready(self) -> list[Effect]:
        """The interrupt for page ready: sysvec_kvm_asyncpf_interrupt reads the token."""
        self._irr -= 1
        if self.state is State.RUNNING:
            self._exit("EXTERNAL_INTERRUPT")
        self._end_halt(ThreadEvent.INTERRUPT)
        self._spend(Cause.APF, self.now_ns + self._costs.apf_inject_ns)
        self._move(State.READY)
        return [self._read_token()]

    def _tell_ready(self, token: int, failed: bool) -> list[Effect]:
        self.counters.ready += 1
        self.observed.delivered(token, self.now_ns)
        return self._ask_guest(PageReadyArrived(token, failed), State.TRAP)

    # MSRs

    def _do_steps(self) -> list[Effect]:
        """What a handler does with interrupts off, until memory or workers have to be waited for."""
        while self._steps:
            if self.state is not State.STEPS:
                self._move(State.STEPS)
            step = self._steps[0]
            if isinstance(step, Store):
                return [WriteGuest(step.gpa, step.data)]
            self._steps.popleft()
            effects = self._wrmsr(step)
            if effects is not None:
                return effects
        dispatched, self._dispatched_steps = self._dispatched_steps, False
        if not dispatched:
            return self._go_back()
        return self._after_steps()

    def _wrmsr(self, write: MsrWrite) -> list[Effect] | None:
        """Carry out WRMSR; effects if it has to wait for something before the next step."""
        if write.msr == MSR_KVM_ASYNC_PF_ACK:
            self._exit("MSR_WRITE")
            self.counters.acks += 1
            self._spend(Cause.APF, self.now_ns + self._costs.apf_ack_exit_ns)
            if self._hit(Injected.DROPPED_ACK):
                return None
        before = self.msrs.enabled
        outcome = self.msrs.write(write.msr, write.value)
        self.journal.record(self.now_ns, "wrmsr", f"{write.msr:#x}", f"{write.value:#x}", outcome.value)
        match outcome:
            case Outcome.GP:
                self.counters.msr_gp += 1
            case Outcome.ACKNOWLEDGED:
                self._advance()
                return self._check_completion()
            case Outcome.ENABLED:
                if self._config.mode is ApfMode.PV or before or not self._booting:
                    self._apf_ready |= self.async_pf.wakeup_all(self.now_ns)
                self._booting = False
            case Outcome.DISABLED:
                until_ns = self._drop()
                if until_ns > self.now_ns:
                    self._move(State.DRAIN)
                    return [WaitUntil(until_ns)]
            case Outcome.NOTHING:
                pass
        return None

    def _drop(self) -> int:
        """kvm_clear_async_pf_completion_queue; returns when it would return (E36)."""
        self.counters.dropped += len(self.async_pf)
        self.journal.record(self.now_ns, "async_pf_cleared", len(self.async_pf))
        self._apf_ready = False
        self._forgotten += [item.token for item in self.async_pf.queue if not item.wakeup_all]
        return self.async_pf.clear(self.now_ns)

    # injected faults of the protocol

    def _hit(self, what: Injected) -> bool:
        """Whether this event is one that is to be spoiled."""
        hit = self._injections.hits(what, self.now_ns)
        if hit:
            self._note_injected(what)
        return hit

    def _note_injected(self, what: Injected) -> None:
        self.counters.injected += 1
        self.journal.record(self.now_ns, "injected", what.value)

    def _inject_fault(self, what: Injected) -> list[Effect]:
        """One that is bound to this moment; what the VMM does happens while the vCPU is out of the guest."""
        self._note_injected(what)
        msrs, steps = self.msrs, self._steps
        vector, en = msrs.vector, msrs.en
        match what:
            case Injected.TOKEN_LEFT:
                if msrs.enabled and self._config.mode is ApfMode.PV:
                    left = _LEFT_TOKEN << 12 | self._config.vcpu
                    steps.append(Store(msrs.token_gpa, left.to_bytes(_TOKEN_BYTES, "little")))
            case Injected.LAPIC_OFF | Injected.LAPIC_ON:
                msrs.lapic_enabled = what is Injected.LAPIC_ON
                self._apf_ready |= msrs.lapic_enabled  # apic_set_spiv (E24)
            case Injected.PAGING_OFF | Injected.PAGING_ON:
                msrs.paging = what is Injected.PAGING_ON
                self._apf_ready |= msrs.paging  # kvm_post_set_cr0 (E25)
            case Injected.INT_WRITTEN:
                steps.append(MsrWrite(MSR_KVM_ASYNC_PF_INT, self._late_vector))
            case _:
                self._restore(what, vector, en)
        self._end_halt(ThreadEvent.INTERRUPT)
        if self._steps:
            self._move(State.STEPS)
            return self._do_steps()
        return self._enter()

    def _restore(self, what: Injected, vector: int, en: int) -> None:
        """Another KVM takes over: nothing of the old one's is there but what the VMM writes (E33, E34).

        An interrupt that waits to be taken is in the local APIC's state, which goes along.

        Departure: the id of the next token goes on, where another KVM begins at 1 and may give a token to one task
        while another, which nobody will ever wake, still waits for it.
        """
        self._drop()
        self.msrs.reset()
        self.msrs.pageready_pending = False
        if what is Injected.MSR_LOST or not en:  # what the guest has not written is not restored either
            return
        with_vector = self._config.mode is ApfMode.PV and what is Injected.RESTORE
        if with_vector:
            self._steps.append(MsrWrite(MSR_KVM_ASYNC_PF_INT, vector))
        self._steps.append(MsrWrite(MSR_KVM_ASYNC_PF_EN, en))
        if self._config.mode is ApfMode.PV and what is Injected.RESTORE_INT_LATE:
            self._late_vector = vector
            self._injections.follow(self.now_ns + 1, Injected.INT_WRITTEN)

    # guestsched

    def _ask_guest(self, trap: Trap, state: State) -> list[Effect]:
        self.counters.traps += 1
        self._move(state)
        self._path = _PATH_OF_TRAP.get(type(trap))
        self._in_kernel = self._at is State.COPY
        self._resched = self._in_kernel
        asked = AskGuest(
            trap,
            with_registers=self._dispatch.task != 0,
            min_flt=self._min_flt,
            maj_flt=self._maj_flt,
            faults=tuple(self._faults),
            samples=self._sampler.drain(),
            kernel=self._in_kernel,
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
        effects: list[Effect] = [] if self._in_kernel else self._take_dispatch(dispatch)
        if self._in_kernel:
            self._dispatch = replace(self._dispatch, run_until_ns=dispatch.run_until_ns, timer_ns=dispatch.timer_ns)
        if dispatch.shutdown:
            self._end_ns = self.now_ns
            self.account.end(self.now_ns)
        for fault in dispatch.injections:
            self.journal.record(self.now_ns, "inject", fault.what, fault.nth, fault.count, fault.for_ns)
        self._injections.add(
            tuple(
                Injection(Injected(fault.what), self.now_ns, fault.nth, fault.count, fault.for_ns)
                for fault in dispatch.injections
            )
        )
        self._steps.extend(dispatch.steps)
        self._dispatched_steps = True
        return effects + self._do_steps()

    def _take_dispatch(self, dispatch: Dispatch) -> list[Effect]:
        """Another task, or the same one, with all that belongs to it."""
        effects: list[Effect] = [SetSpace(space) for space in dispatch.spaces]
        was_idle = self._dispatch.task == 0
        self._dispatch = dispatch
        if dispatch.task == 0:
            self._next_tick_ns = NEVER_NS
        elif was_idle:
            self._next_tick_ns = (self.now_ns // self._tick_period_ns + 1) * self._tick_period_ns
        if dispatch.registers is not None:
            self._rip = register(dispatch.registers, "rip")
            self._cr3 = dispatch.asid
            effects.append(LoadTask(dispatch.asid, dispatch.registers))
        self._copies.extend(WriteGuest(gpa, data) for gpa, data in dispatch.copies)
        self._copies.extend(ReadGuest(gpa, length) for gpa, length in dispatch.fetch)
        self._at = State.RUNNING if dispatch.task else State.IDLE
        return effects

    def _after_steps(self) -> list[Effect]:
        """The handler is done: back to what it interrupted, or to the task that was chosen."""
        if self._in_kernel:
            self._in_kernel = False
            return self._go_back()
        if self._copies:
            return self._start_copies()
        return self._go_back()

    def _start_copies(self) -> list[Effect]:
        self._at = State.COPY
        self._resched = False
        self._move(State.COPY)
        return [self._copies[0]]

    def _copied(self, done: bool, data: bytes) -> list[Effect]:
        """copy_from_user or copy_to_user got so far."""
        assert self.state is State.COPY, self.story()
        copy = self._copies[0]
        if not done:
            access = Access.READ if isinstance(copy, ReadGuest) else Access.WRITE
            return self._kernel_fault(copy.gpa, access, KERNEL)
        self._copies.popleft()
        self._fetched += data
        if self._copies:
            return [self._copies[0]]
        fetched = bytes(self._fetched)
        self._fetched.clear()
        resched = self._resched
        self._at = State.RUNNING
        if self._entering:
            self._entering = False
            return self._ask_guest(SyscallRaised(fetched), State.TRAP)
        if self._dispatch.fetch:
            return self._ask_guest(Fetched(fetched), State.TRAP)
        self._at = State.RUNNING if self._dispatch.task else State.IDLE
        if resched:
            return self._ask_guest(InterruptArrived(), State.TRAP)
        return self._go_back()
