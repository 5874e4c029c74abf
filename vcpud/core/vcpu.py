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

from typing import assert_never

from apf.core import changed
from apf.journal import Journal
from apf.messages import (
    NEVER_NS,
    Access,
    ApfMode,
    Booted,
    Dispatch,
    ExceptionRaised,
    Fetched,
    InterruptArrived,
    KernelPath,
    NotPresentArrived,
    PageReadyArrived,
    RunFailed,
    Stopped,
    Store,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    Trap,
)
from apf.registers import get as register
from vcpud.core.account import CAUSE_OF_ACCOUNT, Cause
from vcpud.core.apf_msr import INTERRUPTS_OFF, KERNEL
from vcpud.core.effects import (
    AskGuest,
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
    InterruptPosted,
    LoadTask,
    ReadGuest,
    ReasonRead,
    SetSpace,
    ShadowFilled,
    TimeReached,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.faults import Faults
from vcpud.core.injected import Injected, Injection
from vcpud.core.page_ready import TOKEN_BYTES
from vcpud.core.state import TRANSITIONS, State, VcpuConfig, VcpuCounters
from vcpud.core.thread import ThreadEvent, ThreadState

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
    ExitCause.EPT_VIOLATION: "EPT_VIOLATION",
    ExitCause.SYSCALL: "SYSCALL",
    ExitCause.EXCEPTION: "EXCEPTION_NMI",
}
_REASONS_SHADOW = {**_REASONS, ExitCause.EPT_VIOLATION: "EXCEPTION_NMI"}
"""Exit reasons, as arch/x86/include/uapi/asm/vmx.h names them, by cause; likewise if paging is shadowed."""


# Bound once: looked up on its class a member costs 0.06 us on Python 3.11, and a fault uses a score.
_RUNNING, _HALTED, _IDLE, _COPY = State.RUNNING, State.HALTED, State.IDLE, State.COPY
_GUEST = ThreadState.GUEST
_BUDGET, _EPT_VIOLATION = ExitCause.BUDGET, ExitCause.EPT_VIOLATION


class VcpuCore(Faults):
    """See the module's theory of operation. ``now_ns`` is the vCPU's clock as of the last step."""

    def __init__(self, config: VcpuConfig, journal: Journal) -> None:
        super().__init__(config, journal)
        self._reasons = _REASONS_SHADOW if config.shadow else _REASONS

    # the only way in

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event; see ``effects`` for what comes back."""
        assert now_ns >= self.now_ns, f"time went back: {self.now_ns} -> {now_ns}\n{self.story()}"
        if type(event) is GuestExited:  # not match: see ``apf.core.message``
            return self._guest_exited(event, now_ns)
        if type(event) is HostReplied:
            return self._host_replied(event.reply)
        if type(event) is TimeReached:
            return self._time_reached(now_ns)
        match event:
            case GuestReplied():
                return self._dispatched(event.dispatch)
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
        self.account.check(self.now_ns)
        announcing = self._announcing()
        of_item = announcing in (State.NOT_PRESENT, State.PREFAULT, State.PRESENT)
        assert of_item <= (self._item is not None), self.story()
        assert not self._halted or self.thread.state is ThreadState.APF_HALT, self.story()
        assert not self.msrs.pageready_pending or self._config.mode is ApfMode.PV

    def finish(self) -> None:
        """Write the final counters to the journal."""
        counters = self.counters
        self.journal.record((self.now_ns, "final.retired", self.retired))
        for name in counters.__slots__:
            self.journal.record((self.now_ns, f"final.{name}", getattr(counters, name)))
        for cause, spent_ns in self.account.spent_ns.items():
            self.journal.record((self.now_ns, f"final.time.{cause.value}", spent_ns))

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
        if self._injections.next_ns <= now_ns and (what := self._injections.due(now_ns)) is not None:
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
        if now_ns >= self._sampler.next_ns and self.state is not _IDLE:
            # The profile's timer and the tick are hrtimers of one base (hrtimer_interrupt): a sample that is due with
            # the tick, or was missed with it in a stall, sees what that one interrupt has interrupted.
            self._end_halt(ThreadEvent.INTERRUPT)
            if self._at is _COPY:
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
        until_ns, timer_ns, injection_ns = self._next_tick_ns, self._dispatch.timer_ns, self._injections.next_ns
        if timer_ns < until_ns:
            until_ns = timer_ns
        if self._end_ns < until_ns:
            until_ns = self._end_ns
        if injection_ns < until_ns:
            until_ns = injection_ns
        if self._halted or self._at is _IDLE:
            until_ns = min(until_ns, done_ns)  # __kvm_vcpu_wake_up
        elif done_ns < until_ns and not self.async_pf.done and not self.msrs.pageready_pending:
            until_ns = done_ns  # the kick of kvm_arch_async_page_present_queued (E22)
        if self._halted:
            if self.state is not _HALTED:
                self._move(_HALTED)
            return [WaitUntil(min(until_ns, self._sampler.next_ns), interruptible=True)]
        if self.state is _HALTED:
            self._move(self._at)
        if self._at is _IDLE:
            if self.thread.state is _GUEST:
                self.thread.move(ThreadEvent.HLT)
            return [WaitUntil(until_ns, interruptible=True)]
        if self._at is _COPY:
            return [self._copies[0]]
        sample_ns = self._sampler.next_ns
        base_ns = self.now_ns - self.retired * 1000 // self._config.cpu_mips
        return [EnterGuest(base_ns, sample_ns if sample_ns < until_ns else until_ns)]

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
            self._spend(self._cause, now_ns)
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
        self.journal.settle()
        self._next_tick_ns = (due_ns // self._tick_period_ns + 1) * self._tick_period_ns
        self._end_halt(ThreadEvent.INTERRUPT)
        self._spend_in_kernel(Cause.KERNEL, due_ns + self._costs.tick_ns, KernelPath.TICK)
        if due_ns >= self._dispatch.run_until_ns:
            return self._ask_guest(TickArrived(), State.TRAP)
        return self._enter()

    # exits

    def _guest_exited(self, exited: GuestExited, now_ns: int) -> list[Effect]:
        assert self.state is _RUNNING, self.story()
        cause = exited.cause
        self._ran_to(exited.retired)
        self._rip = exited.rip
        self._spend(self._cause, now_ns)
        if cause is _BUDGET:
            return self._enter()
        self._exit(self._reasons[cause])
        if now_ns >= self._end_ns:  # the run ended under this instruction: it is not executed
            return self._enter()
        if cause is _EPT_VIOLATION:
            if not self._config.shadow:
                return self._page_fault(exited.gfn, exited.access)
            self._fill = FillShadow(exited.gfn, exited.access)
            self._move(State.SHADOW)
            return [self._fill]
        if cause is ExitCause.SYSCALL:
            return self._syscall()
        assert cause is ExitCause.EXCEPTION
        return self._ask_guest(ExceptionRaised(exited.vector, exited.address, exited.rip), State.TRAP)

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
        self._spend(self._cause, self.now_ns + self._costs.ept_violation_ns)
        return self._go_back()

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
                token, error = data[:TOKEN_BYTES], data[TOKEN_BYTES:]
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

    # guestsched

    def _ask_guest(self, trap: Trap, state: State) -> list[Effect]:
        self.counters.traps += 1
        self.journal.settle()
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
        self._spend_in_kernel(Cause.APF, self.now_ns + dispatch.apf_ns, self._path)
        self._spend_in_kernel(Cause.KERNEL, dispatch.at_ns, self._path)
        if self.state is State.STOPPING:
            self._move(State.FINISHED)
            return [Finish()]
        effects: list[Effect] = [] if self._in_kernel else self._take_dispatch(dispatch)
        if self._in_kernel:
            self._dispatch = changed(self._dispatch, run_until_ns=dispatch.run_until_ns, timer_ns=dispatch.timer_ns)
        if dispatch.shutdown:
            self._end_ns = self.now_ns
            self.account.end_ns = self.now_ns
        for fault in dispatch.injections:
            self.journal.record((self.now_ns, "inject", fault.what, fault.nth, fault.count, fault.for_ns))
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
        self._cause = CAUSE_OF_ACCOUNT[dispatch.account]
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
