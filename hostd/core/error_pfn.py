"""Pages that cannot be had: now (Retry), or at all (Failed).

Follows virt/kvm/kvm_main.c:hva_to_pfn and mmu/mmu.c:kvm_handle_error_pfn. Of a page whose read has failed (``damage``)
do_swap_page says VM_FAULT_SIGBUS, which hva_to_pfn does not tell from a page that needs I/O unless it may sleep: so the
worker is asked, in vain, and the prefault hears of it.

The worker may not write to a page that its VMM may not write (``Mm.read_only``), and returns at once, so that the
prefault waits for the page; a read that the vCPU has started goes on meanwhile.

If no frame is free or nothing can be reclaimed, the answer is Retry at the next border (``memcontrol``); of a VMM that
has been killed no vCPU gets a page any more.
"""

from __future__ import annotations

from apf.messages import Failed, FaultMode, FaultRaised, GupVariant, HostReply, InProgress, PageError, Retry
from hostd.core.events import HostEffect, Reply
from hostd.core.memcontrol import KILLED
from hostd.core.mm import Mm
from hostd.core.page import WORKINGSET
from hostd.core.state import Own

_BLOCKING = FaultMode.BLOCKING


class ErrorPfn:
    """Answers for pages that cannot be had."""

    __slots__ = ("_costs", "_mm")

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self._costs = mm.config.costs

    def not_uptodate(
        self, vm: int, vcpu: int, key: int, request: FaultRaised, now_ns: int
    ) -> list[HostEffect] | None:
        """The page's read has failed, or will: VM_FAULT_SIGBUS, if not from this get_user_pages then from the worker's.

        None: the worker is to try, for all that this one can tell.
        To a vCPU that would leave it to the worker that looks like any page that needs I/O (hva_to_pfn); with
        ``swap.errors = "report"`` it hears at once of what is known already.
        """
        mm = self._mm
        mm.damage.in_vain(key)
        known = key not in mm.reads
        if request.mode is _BLOCKING or (known and mm.config.reports):
            return self.failed(vm, vcpu, key, now_ns + self._costs.ept_violation_ns, now_ns)
        mm.groups[vm].stat["page_error_again"] += known
        mm.groups[vm].stat["pgfault"] += known and mm.config.gup is not GupVariant.FAST
        return None

    def failed(self, vm: int, vcpu: int, key: int, at_ns: int, now_ns: int) -> list[HostEffect]:
        """-EFAULT at ``at_ns``, or when the page's read is done. A fault that fails counts as one (mm_account_fault)."""
        mm = self._mm
        mm.groups[vm].stat["pgfault"] += 1
        stall_ns = max(0, mm.reads.get(key, 0) - at_ns)
        if mm.pages.flags[key] & WORKINGSET:
            mm.pressure[vm].waits(at_ns, at_ns + stall_ns)
        mm.log.sleeps(vm, vcpu, at_ns, at_ns + stall_ns, mm.config.end_ns)
        gfn = key - mm.pages.first_key[vm]
        return [Reply(vm, vcpu, Failed(at_ns + stall_ns, gfn, mm.damage.pages[key], stall_ns))]

    def refused_work(self, vm: int, vcpu: int, key: int, work: int, at_ns: int, now_ns: int) -> list[HostEffect]:
        """The worker may not write the page, and returns at once (check_vma_flags); the prefault waits (E40)."""
        mm = self._mm
        comes_ns = at_ns + self._costs.fault_in_worker_ns
        ready_ns = comes_ns + max(1, self._costs.host_fault_ns)
        mm.root_pressure.comes_and_waits((), comes_ns, ready_ns)
        mm.schedule(ready_ns, Own.WORKER_REFUSED, key, vm)
        mm.groups[vm].stat["kvm_try_async_get_page"] += 1
        if mm.groups[vm].over_high:
            at_ns += mm.memcontrol.throttle_ns(vm, at_ns, now_ns)
        return [Reply(vm, vcpu, InProgress(at_ns, work, ready_ns))]

    def retry(self, vm: int, vcpu: int, key: int, now_ns: int) -> list[HostEffect]:
        """Ask again at the next border, if that is not hopeless."""
        at_ns = self._mm.memcontrol.retry_ns(vm, now_ns)
        if at_ns == KILLED:
            return self.killed(vm, vcpu, key, now_ns)
        self._mm.pressure[vm].waits(now_ns, at_ns)
        return [Reply(vm, vcpu, Retry(at_ns))]

    def killed(self, vm: int, vcpu: int, key: int, now_ns: int) -> list[HostEffect]:
        """No page for a vCPU whose VMM has been killed: KVM_RUN is left (fatal_signal_pending)."""
        gfn = key - self._mm.pages.first_key[vm]
        at_ns = now_ns + self._costs.ept_violation_ns
        return [Reply(vm, vcpu, Failed(at_ns, gfn, PageError.OUT_OF_MEMORY, 0))]

    def is_unheard(self, reply: HostReply) -> bool:
        """Whether a page that cannot be had looks to KVM like any that needs I/O (hva_to_pfn)."""
        failed = isinstance(reply, Failed) and reply.error is not PageError.OUT_OF_MEMORY
        return failed and not self._mm.config.reports
