"""Faults: what the vCPU asks hostd, and what it makes of the answer.

Follows arch/x86/kvm/mmu/mmu.c:kvm_mmu_page_fault to __kvm_mmu_faultin_pfn, virt/kvm/async_pf.c:kvm_setup_async_pf.
"""

from __future__ import annotations

from typing import assert_never

from apf.messages import (
    FAULTS_LOGGED_MAX,
    PAGE_SHIFT,
    Access,
    ApfMode,
    ExceptionRaised,
    Failed,
    FaultKind,
    FaultMet,
    FaultMode,
    FaultRaised,
    HostReply,
    InProgress,
    Mapped,
    PageError,
    Retry,
    RunFailed,
    Store,
)
from vcpud.core.account import Cause
from vcpud.core.apf_msr import KERNEL, USER, Context
from vcpud.core.async_pf import ItemState, WorkItem
from vcpud.core.effects import (
    AskHost,
    Effect,
    MapPage,
    ReadGuest,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.injected import Injected
from vcpud.core.msr_steps import MsrSteps
from vcpud.core.page_ready import REASON_NOT_PRESENT, TOKEN_BYTES
from vcpud.core.state import State
from vcpud.core.thread import ThreadEvent

_MACHINE_CHECK = 18
_ACCESSES, _MODES, _KINDS = (tuple(one.name for one in kind) for kind in (Access, FaultMode, FaultKind))
"""Names by number: asking a member of an enum for its name is a call."""


# Bound once: looked up on its class a member costs 0.06 us on Python 3.11, and a fault uses a score.
_OFF = ApfMode.OFF
_STALL = Cause.STALL
_MAJOR, _MINOR = FaultKind.MAJOR, FaultKind.MINOR
_BLOCKING, _NOWAIT = FaultMode.BLOCKING, FaultMode.NOWAIT
_RUNNING, _FAULT = State.RUNNING, State.FAULT
_PREFAULT, _KERNEL_FAULT = State.PREFAULT, State.KERNEL_FAULT


class Faults(MsrSteps):
    """From the exit to the page, or to the worker that has it."""

    def _page_fault(self, gfn: int, access: Access) -> list[Effect]:
        """A fault of the task's own: kvm_mmu_page_fault."""
        mode: FaultMode | None = _BLOCKING
        if self._config.mode is _OFF:
            self.observed.sync_disabled += 1
        else:
            mode = self._try_async(gfn, USER)
        if mode is None:
            return self._go_back_halted()
        work = self.async_pf.next_token() if mode is _NOWAIT else 0
        now_ns, task, retired = self.now_ns, self._dispatch.task, self.retired
        self.observed.raised(gfn, task, retired, now_ns)
        self.journal.record((now_ns, "page_fault", gfn, _ACCESSES[access], _MODES[mode], work, task, retired))
        self._fault_gfn = gfn
        self._move(_FAULT)
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
        forgotten: tuple[int, ...] = ()
        if self._forgotten:
            forgotten = tuple(self._forgotten)
            self._forgotten.clear()
        return AskHost(FaultRaised(gfn, access, mode, work, forgotten))

    def _try_async(self, gfn: int, context: Context) -> FaultMode | None:
        """__kvm_mmu_faultin_pfn: may a worker do it? None: one does already, and the vCPU halts (E07, E08)."""
        counters, user = self.counters, context.cpl > 0
        if self._config.mode is _OFF:
            return _BLOCKING
        if not self.msrs.can_do(context):
            counters.sync_ineligible += user
            return _BLOCKING
        item = self.async_pf.find(gfn)
        if item is not None:
            if item.state is ItemState.DONE:
                return _BLOCKING
            counters.repeated += 1
            self.journal.record((self.now_ns, "async_pf_repeated_fault", gfn))
            self._spend(self._cause, self.now_ns + self._costs.ept_violation_ns)
            self._halt()
            return None
        if self.async_pf.full:
            counters.sync_limit += user
            return _BLOCKING
        if self._hit(Injected.ALLOC_FAILURE):
            counters.sync_alloc += user
            return _BLOCKING
        return _NOWAIT

    def _go_back_halted(self) -> list[Effect]:
        if self.state is not self._at:
            self._move(self._at)
        return self._enter()

    def _host_replied(self, reply: HostReply) -> list[Effect]:
        if type(reply) is Mapped:
            return self._mapped(reply)
        match reply:
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
            self.thread.slept()
        self.thread.move(ThreadEvent.FAILED)
        self._spend(Cause.STALL, min(self.now_ns + reply.stall_ns, reply.at_ns))
        self._spend(self._fault_cause(), reply.at_ns)
        self.journal.record((self.now_ns, "failed", reply.gfn, reply.error.name, reply.stall_ns))
        if reply.error is PageError.OUT_OF_MEMORY:
            self._item = None
            return self._end_vm(reply)
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
        """KVM_RUN returns to the VMM, which has no answer to -EFAULT, or is killed itself."""
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
        state, counters = self.state, self.counters
        at_ns, gfn, kind, stall_ns = reply.at_ns, reply.gfn, reply.kind, reply.stall_ns
        cause = self._cause if state is _FAULT else self._fault_cause()
        if state is _FAULT:
            self._task_faulted(gfn, kind)
            self.observed.mapped(kind, stall_ns, at_ns)
        if kind is _MAJOR:
            counters.stall_ns += stall_ns
            self.thread.slept()
            slept_ns = self.now_ns + stall_ns
            self._spend(_STALL, slept_ns if slept_ns < at_ns else at_ns)
            if state is _PREFAULT:
                counters.prefault_again += 1
            else:
                counters.faults_major += 1
        else:
            self.thread.mapped()
            counters.faults_minor += state is not _PREFAULT
        self._spend(cause, at_ns)
        page = MapPage(gfn, reply.pfn, reply.writable)
        self.journal.record((self.now_ns, "mapped", gfn, _KINDS[kind], stall_ns))
        if state is _PREFAULT:
            assert self._item is not None
            self.observed.prefaulted(self._item.token, at_ns)
            return [page, *self._present()]
        if state is _KERNEL_FAULT:
            self._move(self._resume)
            return [page, self._again()]
        self._move(_RUNNING)
        return [page, *self._enter()]

    def _fault_cause(self) -> Cause:
        """Whose time the part of a fault is in which the vCPU does not sleep."""
        if self.state is _FAULT:
            return self._cause
        return Cause.KERNEL if self._announcing() is State.COPY else Cause.APF

    def _task_faulted(self, gfn: int, kind: FaultKind) -> None:
        """mm_account_fault, for the guest's task: what its next trap will tell."""
        if kind is _MINOR:
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
        self.journal.record((self.now_ns, "async_pf_halt", item.token, item.gfn))
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
                return ReadGuest(self.msrs.token_gpa, TOKEN_BYTES)
            case State.PRESENT:
                return self._put_token()
            case State.STEPS:
                step = self._steps[0]
                assert isinstance(step, Store)
                return WriteGuest(step.gpa, step.data)
            case _:
                raise AssertionError(f"{self.state} needs no page\n{self.story()}")
