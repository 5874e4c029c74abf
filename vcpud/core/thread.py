"""Where the vCPU's thread is on its host, from its own point of view.

Follows virt/kvm/kvm_main.c (K), virt/kvm/async_pf.c (A), arch/x86/kvm/x86.c (X) and mmu/mmu.c (M). A sleep that a reply
of hostd has settled (``Mapped.stall_ns``) is entered and left when the reply comes: nothing happens in between.

Departures: HLT blocks at once; halt-polling burns host CPU and shortens nothing that is modelled. No signals: nobody
takes the thread out of SYNC_SLEEP or APF_HALT to the VMM (E57). The host has a CPU for every vCPU thread, so none is
ever RUNNABLE and waiting: steal is 0 (E49).
"""

from __future__ import annotations

from apf.core import Kind
from apf.rules import Rule, Table


class ThreadState(Kind):
    """Where the thread is."""

    GUEST = "GUEST"  # in guest mode, or in an exit on its way back
    SYNC_SLEEP = "SYNC_SLEEP"  # in mm/, uninterruptible: only the I/O ends it
    APF_HALT = "APF_HALT"  # in kvm_vcpu_block: interrupts and completions end it
    HLT = "HLT"  # the guest has nothing to do


class ThreadEvent(Kind):
    """What moves it."""

    MAPPED = "fault, mapped quickly"
    FAILED = "fault, page cannot be had"
    TOLD = "NEEDS_IO, PV deliverable"
    HALTED = "NEEDS_IO, not deliverable or gfn repeated"
    SLEPT = "NEEDS_IO, not eligible, limit or no memory"
    IO_DONE = "I/O done"
    DONE = "item done"
    INTERRUPT = "interrupt or timer"
    HLT = "HLT"
    CLEARED = "queue cleared"


_S, _E = ThreadState, ThreadEvent
TABLE: Table[ThreadState, ThreadEvent] = Table(
    "vCPU thread",
    Rule(_S.GUEST, _E.MAPPED, _S.GUEST, "M:direct_page_fault"),
    Rule(_S.GUEST, _E.FAILED, _S.GUEST, "M:kvm_handle_error_pfn"),
    Rule(_S.GUEST, _E.TOLD, _S.GUEST, "X:kvm_arch_async_page_not_present (#PF queued)"),
    Rule(_S.GUEST, _E.HALTED, _S.APF_HALT, "X:kvm_arch_async_page_not_present, M:__kvm_mmu_faultin_pfn"),
    Rule(_S.GUEST, _E.SLEPT, _S.SYNC_SLEEP, "M:__kvm_mmu_faultin_pfn, K:hva_to_pfn_slow"),
    Rule(_S.GUEST, _E.HLT, _S.HLT, "K:kvm_vcpu_halt"),
    Rule(_S.SYNC_SLEEP, _E.IO_DONE, _S.GUEST, "M:kvm_handle_error_pfn, kvm_mmu_finish_page_fault"),
    Rule(_S.APF_HALT, _E.DONE, _S.GUEST, "X:vcpu_block (halted = false)"),
    Rule(_S.APF_HALT, _E.INTERRUPT, _S.GUEST, "X:vcpu_block (halted = false)"),
    Rule(_S.APF_HALT, _E.CLEARED, _S.GUEST, "X:kvm_vcpu_reset (halted = false)"),
    Rule(_S.HLT, _E.INTERRUPT, _S.GUEST, "X:vcpu_block (mp_state RUNNABLE)"),
    Rule(_S.HLT, _E.DONE, _S.GUEST, "X:kvm_arch_async_page_present (mp_state RUNNABLE)"),
)

_AFTER = TABLE.transitions
_GUEST = ThreadState.GUEST
assert _AFTER[_AFTER[_GUEST, ThreadEvent.SLEPT], ThreadEvent.IO_DONE] is _GUEST
assert _AFTER[_GUEST, ThreadEvent.MAPPED] is _GUEST


class Thread:
    """One vCPU thread."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = ThreadState.GUEST

    def move(self, event: ThreadEvent) -> None:
        """Take one transition of the table."""
        after = _AFTER.get((self.state, event))
        if after is None:
            raise AssertionError(f"vCPU thread: {event} while {self.state}")
        self.state = after

    def mapped(self) -> None:
        """MAPPED, which every fault ends with that was no sleep."""
        if self.state is not _GUEST:
            self.move(ThreadEvent.MAPPED)

    def slept(self) -> None:
        """Two transitions at once, of a sleep that is over when it is heard of: SLEPT and IO_DONE."""
        if self.state is not _GUEST:
            self.move(ThreadEvent.SLEPT)
            self.move(ThreadEvent.IO_DONE)
