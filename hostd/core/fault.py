"""What an EPT violation does: find or make the page, and say when the vCPU may go on.

Follows mmu/mmu.c:__kvm_mmu_faultin_pfn and virt/kvm/kvm_main.c:hva_to_pfn, with mm/memory.c:do_swap_page and
do_anonymous_page below. A vCPU that allows sleeping (``BLOCKING``, and every prefault) gets the page, at the end of
the read if there is one. One that does not (``NOWAIT``) first tries the scenario's ``get_user_pages`` variant;
where that fails, the dedicated worker does the blocking one, always as a write fault
(virt/kvm/async_pf.c:async_pf_execute).

| page state         | FAST       | NOIO   | NOWAIT                          | blocking                 |
|--------------------|------------|--------|---------------------------------|--------------------------|
| RESIDENT           | mapped     | mapped | mapped                          | mapped                   |
| NONE               | worker     | mapped | mapped                          | mapped                   |
| EVICTING, WRITEBACK, CACHED | worker | mapped | mapped                     | mapped                   |
| READING            | worker     | worker | worker                          | waits for that read      |
| SWAPPED            | worker     | worker | starts the read, worker waits   | reads and waits          |
| SWAPPED, its device synchronous | worker | reads | reads              | reads                    |
| SWAPPED, all zeros | worker     | mapped | mapped                          | mapped                   |
| SWAPPED, missing   | worker     | worker | worker                          | queues an event, waits   |
| not uptodate       | worker     | worker | worker                          | fails                    |

A device is synchronous (``background = false``) if whoever faults reads the page itself before do_swap_page goes on:
zram and zswap decompress it (mm/page_io.c:swap_read_folio, SWP_SYNCHRONOUS_IO). There is no I/O to wait for, so both
NOWAIT and NOIO get the page, unless another thread holds it locked at the time, which is READING (E13). FAST does not:
get_user_pages_fast walks the page tables and never enters handle_mm_fault, so to it every device is the same, and even a
page of zeros is the worker's.

MEMFD memory sleeps in the NOWAIT column where others start a read or leave it to the worker (``hostd.core.backing``). A
page is missing if a userfaultfd's handler is to fetch it. What is read, and what with it, is ``swap_state``'s; what
cannot be had, ``error_pfn``'s.

Charging may reclaim; whoever charges pays: the vCPU, or the worker for what FAST and NOIO leave to it. A vCPU whose
group is above memory.high is held back before it enters the guest again; a worker never is (``memcontrol``).

Departures: frame and charge are taken, and the read is submitted, when the request is handled, also where the worker
will do it a little later (the arrival at the device is the worker's): so the time of completion is settled at once. A
mapping present but read-only is fixed up in all variants. NOIO is taken at its word: the proposal of 2010 was for "no
major fault" (FAULT_FLAG_MINOR), which a page that the faulting thread decompresses counts as too. A first touch that
only reads gets a page of its own, where do_anonymous_page maps the shared zero page and the first write copies it.
Nobody holds mmap_lock for writing, and no memory goes bad (KVM_PFN_ERR_HWPOISON).

A read maps the page writable only if it is dirty already; the first write to a clean one is an EPT violation more
(``wp_fault``). KVM asks for a writable page on a read too (map_writable, hva_to_pfn_slow), and mostly gets one, for
do_swap_page lets the host write to an anonymous page that is nobody else's. In 6.18 it then marks it dirty at once
(kvm_release_faultin_page), so that a page which its guest only reads is written again when it goes; before 6.13 it did
so when the EPT's dirty bit was set, which comes to the same as here but for the violation.
"""

from __future__ import annotations

from apf.core import CoreError
from apf.messages import (
    Access,
    Failed,
    FaultKind,
    FaultMode,
    FaultRaised,
    GupVariant,
    HostReply,
    InProgress,
    Mapped,
    PageError,
    PrefaultRaised,
)
from hostd.core.error_pfn import ErrorPfn
from hostd.core.events import HostEffect, ReadSlot, Reply, ZeroFrame
from hostd.core.kernel_log import HUNG_NS
from hostd.core.memcontrol import REFUSED
from hostd.core.mm import Mm
from hostd.core.page import (
    CACHED,
    DIRTY,
    EVICTING,
    FOUND_BY_WORKER,
    NONE,
    READ_DONE,
    READ_SUBMITTED,
    READING,
    RESIDENT,
    SWAPPED,
    WORKINGSET,
    WRITEBACK,
    ZERO_FILLED,
    ZERO_FILLED_BY_WORKER,
)
from hostd.core.state import Own
from hostd.core.swap_state import SwapState

_IN_CACHE = (READING, CACHED, WRITEBACK)
_NOWHERE = (NONE, SWAPPED)
"""In no frame."""
_KINDS = ("minor", "major")
_HOW = tuple(tuple(f"{access.name}/{mode.name}" for mode in FaultMode) for access in Access)
# Bound once, as in ``page``.
_WRITE = Access.WRITE
_BLOCKING, _NOWAIT = FaultMode.BLOCKING, FaultMode.NOWAIT
_MINOR, _MAJOR = FaultKind.MINOR, FaultKind.MAJOR
_GUP_FAST, _GUP_NOWAIT = GupVariant.FAST, GupVariant.NOWAIT
_ON_MAPPING, _ON_WORKER = Own.MAPPING_MADE, Own.WORKER_DONE


class FaultPath:
    """Handles the requests of all vCPUs."""

    __slots__ = (
        *("_background", "_bounds", "_costs", "_error_pfn", "_gup", "_memcontrol", "_mm"),
        *("_map_frees_slot", "_swap_state", "_works"),
    )

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self._memcontrol = mm.memcontrol
        self._swap_state = SwapState(mm)
        self._error_pfn = ErrorPfn(mm)
        self._gup = mm.config.gup
        self._costs = mm.config.costs
        self._background = mm.config.profile.background
        self._map_frees_slot = [backing.map_frees_slot for backing in mm.backings]
        self._bounds = mm.pages.bounds
        self._works: dict[tuple[int, int, int], tuple[int, int, bool]] = {}
        """(vm, vcpu, work) -> (gfn, ready_ns, write) of work items not yet prefaulted."""

    def fault(self, vm: int, vcpu: int, request: FaultRaised, now_ns: int) -> list[HostEffect]:
        """Handle an EPT violation at ``now_ns``."""
        mm, gfn, access, mode = self._mm, request.gfn, request.access, request.mode
        key = self._key(vm, gfn)
        group, state = mm.groups[vm], mm.pages.state[key]
        write = access is _WRITE
        if write and mm.read_only[key]:
            raise CoreError(f"VM {vm} writes to gfn {gfn:#x}, which its VMM has mapped read-only: -EFAULT")
        write = write or self._map_frees_slot[vm]
        group.stat["pf_taken"] += 1
        for token in request.forgotten:
            self._works.pop((vm, vcpu, token), None)
        if state in _IN_CACHE and mm.pages.slot[key] >= 0:
            self._swap_state.found(vm, vcpu, key)
        if group.killed:
            effects = self._error_pfn.killed(vm, vcpu, key, now_ns)
        elif key in mm.damage.pages:
            failed = self._error_pfn.not_uptodate(vm, vcpu, key, request, now_ns)
            effects = failed or self._start_work(vm, vcpu, key, request.work, now_ns)
        elif mode is _BLOCKING or self._gup_succeeds(vm, key):
            effects = self._map(vm, vcpu, key, write, now_ns, now_ns + self._costs.ept_violation_ns)
            if mode is _NOWAIT and self._error_pfn.is_unheard(_reply_of(effects)):
                effects[-1:] = self._start_work(vm, vcpu, key, request.work, now_ns)
        else:
            effects = self._start_work(vm, vcpu, key, request.work, now_ns)
        reply = _reply_of(effects)
        if type(reply) is InProgress:
            self._works[vm, vcpu, request.work] = (gfn, reply.ready_at_ns, write)
        self._record("fault", vm, vcpu, gfn, _HOW[access][mode], reply, now_ns)
        return effects

    def prefault(self, vm: int, vcpu: int, request: PrefaultRaised, now_ns: int) -> list[HostEffect]:
        """Map the page of a finished work item; sleeps if it was evicted again (E37)."""
        mm = self._mm
        work = self._works.get((vm, vcpu, request.work))
        if work is None or work[0] != request.gfn or now_ns < work[1]:
            raise CoreError(
                f"vCPU {vcpu} of VM {vm} at {now_ns}: {request}, but work items (gfn, ready, write) known: {work}"
            )
        key = self._key(vm, request.gfn)
        mm.groups[vm].stat["prefault"] += 1
        at_ns = now_ns + max(1, self._costs.host_fault_ns)
        if mm.groups[vm].killed:
            effects = self._error_pfn.killed(vm, vcpu, key, now_ns)
        elif key in mm.damage.pages:
            effects = self._error_pfn.failed(vm, vcpu, key, at_ns, now_ns)
        else:
            effects = self._map(vm, vcpu, key, work[2], now_ns, at_ns)
        reply = _reply_of(effects)
        if isinstance(reply, Mapped | Failed):
            del self._works[vm, vcpu, request.work]
        if isinstance(reply, Mapped):
            mm.groups[vm].stat["prefault_sync"] += reply.kind is FaultKind.MAJOR
        self._record("prefault", vm, vcpu, request.gfn, request.work, reply, now_ns)
        return effects

    def forget(self, vm: int) -> None:
        """The work items of a VM that has left."""
        self._works = {work: told for work, told in self._works.items() if work[0] != vm}

    def _key(self, vm: int, gfn: int) -> int:
        if 0 <= vm < len(self._bounds):
            first, end = self._bounds[vm]
            key = first + gfn
            if first <= key < end:
                return key
        raise CoreError(f"VM {vm}, gfn {gfn}: no such guest page")

    def _gup_succeeds(self, vm: int, key: int) -> bool:
        """Whether the first, non-sleeping get_user_pages gets the page."""
        state = self._mm.pages.state[key]
        if state == RESIDENT:
            return True
        if self._gup is _GUP_FAST:
            return False
        sleeps = self._gup is _GUP_NOWAIT and self._mm.backings[vm].nowait_sleeps
        if state == READING:
            return sleeps
        if state != SWAPPED:
            return True
        if self._mm.is_missing(key, vm):
            return False
        return sleeps or not self._background or self._is_zero(key)

    def _is_zero(self, key: int) -> bool:
        """Whether a page that is SWAPPED needs no I/O, being all zeros."""
        mm = self._mm
        return mm.swap.zero[mm.pages.slot[key]] != 0

    def _map(self, vm: int, vcpu: int, key: int, write: bool, now_ns: int, at_ns: int) -> list[HostEffect]:
        """Get the page, sleeping if need be; ``at_ns`` is when a page that is there already can be mapped."""
        mm, pages, costs = self._mm, self._mm.pages, self._costs
        state = pages.state[key]
        if state == READING or (state == SWAPPED and (not mm.swap.zero[pages.slot[key]] or mm.is_missing(key, vm))):
            return self._map_after_read(vm, vcpu, key, write, now_ns, at_ns)
        stat = mm.groups[vm].stat
        effects: list[HostEffect] = []
        if state in _NOWHERE:
            cost_ns = self._memcontrol.allocate(vm, key, now_ns, True)
            if cost_ns == REFUSED:
                return self._error_pfn.retry(vm, vcpu, key, now_ns)
            mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + costs.zero_fill_ns + costs.host_fault_ns
            effects.append(self._zero_fill(vm, key, ZERO_FILLED, now_ns))
            stat["pgfault"] += 1
        elif state != RESIDENT:
            cost_ns = self._memcontrol.take_back(vm, key, now_ns, True)
            if cost_ns == REFUSED:
                return self._error_pfn.retry(vm, vcpu, key, now_ns)
            mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + costs.host_fault_ns
            stat["swap_cache_hit"] += mm.backings[vm].swaps
            stat["pgfault"] += 1
        elif write and not pages.flags[key] & DIRTY:
            at_ns += costs.host_fault_ns
            stat["wp_fault"] += 1
            stat["pgfault"] += 1
        mm.map_page(key, vm, write, now_ns)
        effects.append(self._mapped(vm, vcpu, key, write, at_ns, 0, now_ns))
        return effects

    def _map_after_read(self, vm: int, vcpu: int, key: int, write: bool, now_ns: int, at_ns: int) -> list[HostEffect]:
        """Wait for the page's read, which is submitted here if nobody has."""
        mm, costs, stat = self._mm, self._costs, self._mm.groups[vm].stat
        effects: list[HostEffect] = []
        missing = mm.starts_missing[vm] and mm.is_missing(key, vm)
        if missing:
            stat["userfault_event"] += 1
        if mm.pages.state[key] != SWAPPED:
            stat["read_wait"] += 1
        elif missing:
            cost_ns = self._memcontrol.allocate(vm, key, now_ns, False)
            if cost_ns == REFUSED:
                return self._error_pfn.retry(vm, vcpu, key, now_ns)
            effects.append(self._fetch(vm, key, at_ns, cost_ns, now_ns))
        else:
            cost_ns = self._memcontrol.allocate(vm, key, now_ns, True)
            if cost_ns == REFUSED:
                return self._error_pfn.retry(vm, vcpu, key, now_ns)
            ahead, ahead_ns = self._swap_state.allocate_ahead(vm, vcpu, key, now_ns, True)
            cost_ns += ahead_ns
            if cost_ns:
                mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + len(ahead) * costs.swap_submit_ns
            effects = self._swap_state.read(vm, key, ahead, at_ns, now_ns)
            if key in mm.damage.pages:
                mm.damage.in_vain(key)
                return effects + self._error_pfn.failed(vm, vcpu, key, at_ns, now_ns)
        stat["pgfault"] += 1
        stall_ns = mm.reads[key] - at_ns
        if stall_ns < 0:
            stall_ns = 0
        if mm.pages.flags[key] & WORKINGSET:
            mm.pressure[vm].waits(at_ns, at_ns + stall_ns)
        if stall_ns > HUNG_NS:
            mm.log.sleeps(vm, vcpu, at_ns, at_ns + stall_ns, mm.config.end_ns)
        at_ns += stall_ns + costs.host_fault_ns
        effects.append(self._mapped(vm, vcpu, key, write, at_ns, stall_ns, now_ns))
        return effects

    def _zero_fill(self, vm: int, key: int, event: int, now_ns: int) -> ZeroFrame:
        """Give a page that was never touched, or that is all zeros in swap, its zeros; it has its frame."""
        pages, stat = self._mm.pages, self._mm.groups[vm].stat
        if pages.state[key] == NONE:
            pages.flags[key] |= DIRTY
            pages.move(key, event, now_ns)
            stat["zero_fill"] += 1
        else:
            pages.move(key, READ_SUBMITTED, now_ns)
            pages.move(key, READ_DONE, now_ns)
            stat["swpin_zero"] += 1
            stat["pgmajfault"] += 1
        return ZeroFrame(pages.pfn[key])

    def _mapped(self, vm: int, vcpu: int, key: int, write: bool, at_ns: int, stall_ns: int, now_ns: int) -> Reply:
        """The reply that maps the page from ``at_ns`` on; until then the page is pinned."""
        mm, pages, group = self._mm, self._mm.pages, self._mm.groups[vm]
        if group.over_high:
            pages.pins[key] += 1
            at_ns += self._memcontrol.throttle_ns(vm, at_ns, now_ns)
            pages.pins[key] -= 1
        mm.schedule(at_ns, _ON_MAPPING, key, vm, write)
        group.stat["pf_fixed"] += 1
        kind = _MAJOR if stall_ns else _MINOR
        writable = write or bool(pages.flags[key] & DIRTY)
        gfn = key - pages.first_key[vm]
        return Reply(vm, vcpu, Mapped(at_ns, gfn, pages.pfn[key], writable, kind, stall_ns))

    def _start_work(self, vm: int, vcpu: int, key: int, work: int, now_ns: int) -> list[HostEffect]:
        """Leave the page to the fault-in worker (kvm_setup_async_pf) and settle when it will be done."""
        mm, memcontrol, costs = self._mm, self._memcontrol, self._costs
        state = mm.pages.state[key]
        at_ns = now_ns + costs.ept_violation_ns
        cost_ns = 0
        missing = mm.is_missing(key, vm)
        zeros = state == NONE or (state == SWAPPED and not missing and self._is_zero(key))
        by_vcpu = self._gup is _GUP_NOWAIT and not zeros and not missing
        if mm.read_only[key] and (not by_vcpu or state == READING):
            return self._error_pfn.refused_work(vm, vcpu, key, work, at_ns, now_ns)
        if state != READING:
            get = memcontrol.take_back if mm.pages.pfn[key] >= 0 else memcontrol.allocate
            cost_ns = get(vm, key, now_ns, by_vcpu)
            if cost_ns == REFUSED:
                return self._error_pfn.retry(vm, vcpu, key, now_ns)
        effects: list[HostEffect] = []
        reclaims_ns = 0  # of the worker
        ahead = [key]
        if state == SWAPPED and not zeros and not missing:
            ahead, ahead_ns = self._swap_state.allocate_ahead(vm, vcpu, key, now_ns, by_vcpu)
            cost_ns += ahead_ns
        submits_ns = len(ahead) * costs.swap_submit_ns
        if state == SWAPPED and by_vcpu:
            mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + submits_ns
            effects += self._swap_state.read(vm, key, ahead, at_ns, now_ns)
            ready_ns = at_ns + costs.fault_in_worker_ns
            if mm.read_only[key]:
                return effects + self._error_pfn.refused_work(vm, vcpu, key, work, at_ns, now_ns)
        elif missing:
            ready_ns = at_ns + costs.fault_in_worker_ns
            mm.groups[vm].stat["userfault_event"] += 1
            if state == SWAPPED:
                effects.append(self._fetch(vm, key, ready_ns, cost_ns, now_ns))
        else:
            reclaims_ns = cost_ns
            ready_ns = at_ns + costs.fault_in_worker_ns + cost_ns
            if zeros:
                ready_ns += costs.zero_fill_ns
                effects.append(self._zero_fill(vm, key, ZERO_FILLED_BY_WORKER, now_ns))
            elif state == SWAPPED:
                ready_ns += submits_ns
                effects += self._swap_state.read(vm, key, ahead, ready_ns, now_ns)
            elif state in (EVICTING, WRITEBACK):
                mm.pages.move(key, FOUND_BY_WORKER, now_ns)
        read_ns = max(ready_ns, mm.reads.get(key, 0))
        comes_ns, waits_ns = at_ns + costs.fault_in_worker_ns, ready_ns
        ready_ns = read_ns + costs.host_fault_ns
        if not mm.pages.flags[key] & WORKINGSET:
            waits_ns = read_ns
        spans = ((comes_ns, comes_ns + reclaims_ns), (waits_ns, read_ns))
        mm.root_pressure.comes_and_waits(spans, comes_ns, ready_ns)
        mm.schedule(ready_ns, _ON_WORKER, key, vm)
        mm.groups[vm].stat["kvm_try_async_get_page"] += 1
        if mm.groups[vm].over_high:
            at_ns += self._memcontrol.throttle_ns(vm, at_ns, now_ns)
        effects.append(Reply(vm, vcpu, InProgress(at_ns, work, ready_ns)))
        return effects

    def _fetch(self, vm: int, key: int, event_ns: int, reclaim_ns: int, now_ns: int) -> HostEffect:
        """Have a missing page, which has its frame, fetched; a handler pays for the frame."""
        mm, pages = self._mm, self._mm.pages
        pfn, place = pages.pfn[key], pages.slot[key]
        mm.fetch(key, vm, event_ns, reclaim_ns, now_ns)
        return ZeroFrame(pfn) if mm.swap.is_zero(place) else ReadSlot(place, pfn)

    def _record(self, what: str, vm: int, vcpu: int, gfn: int, how: str | int, reply: HostReply, now_ns: int) -> None:
        record = self._mm.journal.record
        if type(reply) is Mapped:
            kind, writable = _KINDS[reply.kind], int(reply.writable)
            record((now_ns, what, vm, vcpu, gfn, how, kind, reply.at_ns, reply.pfn, writable, reply.stall_ns))
        elif type(reply) is InProgress:
            record((now_ns, what, vm, vcpu, gfn, how, "async", reply.at_ns, reply.work, reply.ready_at_ns))
        elif type(reply) is Failed:
            self._mm.groups[vm].stat["page_error"] += reply.error is not PageError.OUT_OF_MEMORY
            record((now_ns, what, vm, vcpu, gfn, how, "failed", reply.at_ns, reply.error.name, reply.stall_ns))
        else:
            record((now_ns, what, vm, vcpu, gfn, how, "retry", reply.at_ns))


def _reply_of(effects: list[HostEffect]) -> HostReply:
    """The reply of a request step, which is its last effect."""
    last = effects[-1]
    assert isinstance(last, Reply)
    return last.reply
