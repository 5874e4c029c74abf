"""Telling the guest: page not present, and page ready.

Follows virt/kvm/async_pf.c:kvm_check_async_pf_completion and arch/x86/kvm/x86.c:kvm_arch_async_page_not_present,
kvm_arch_async_page_ready, kvm_arch_async_page_present; see ``vcpu`` for how that goes in each protocol.
"""

from __future__ import annotations

from apf.messages import (
    Access,
    ApfMode,
    NotPresentArrived,
    PageReadyArrived,
    PrefaultRaised,
)
from vcpud.core.account import Cause
from vcpud.core.apf_msr import SLOT, SlotEvent
from vcpud.core.async_pf import WorkItem
from vcpud.core.base import Vcpu
from vcpud.core.effects import (
    AskHost,
    Effect,
    InjectReason,
    ReadGuest,
    WriteGuest,
)
from vcpud.core.injected import Injected
from vcpud.core.state import State
from vcpud.core.thread import ThreadEvent

REASON_NOT_PRESENT = 1
REASON_READY = 2
REASON_ERROR = 4
"""With REASON_READY: KVM_PV_REASON_PAGE_ERROR."""
TOKEN_BYTES = 4
_ERROR_BYTES = 4
"""Of the word behind the token, which is there with ``swap.errors = "report"``."""


class PageReady(Vcpu):
    """From a work item that is done to the trap that tells the guest."""

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
        self.journal.record((self.now_ns, "async_pf_not_present", item.token, item.gfn))
        return self._ask_guest(NotPresentArrived(item.token), State.TRAP)

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
            return [ReadGuest(self.msrs.token_gpa, TOKEN_BYTES)]
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
            self.journal.record((self.now_ns, "async_pf_prefault_skipped", item.token))
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
        words = item.token.to_bytes(TOKEN_BYTES, "little")
        if self._config.reports:
            words += int(item.failed).to_bytes(_ERROR_BYTES, "little")
        return WriteGuest(self.msrs.token_gpa, words)

    def _read_token(self) -> ReadGuest:
        """The guest's handler reads the token, and the word behind it if that means anything."""
        length = TOKEN_BYTES + (_ERROR_BYTES if self._config.reports else 0)
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
        self.journal.record((self.now_ns, "async_pf_ready", item.token, item.gfn))

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
