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

The worker may not write to a page that its VMM may not write (``vm.read_only``), and returns at once, so that the
prefault waits for the page; a read that the vCPU has started goes on meanwhile.

A device is synchronous (``background = false``) if whoever faults reads the page itself before do_swap_page goes on:
zram and zswap decompress it (mm/page_io.c:swap_read_folio, SWP_SYNCHRONOUS_IO). There is no I/O to wait for, so both
NOWAIT and NOIO get the page, unless another thread holds it locked at the time, which is READING (E13). FAST does not:
get_user_pages_fast walks the page tables and never enters handle_mm_fault, so to it every device is the same, and even a
page of zeros is the worker's.

MEMFD memory sleeps in the NOWAIT column where others start a read or leave it to the worker (``hostd.core.backing``). A
page is missing if a userfaultfd's handler is to fetch it. Who starts a read reads ahead too (``readahead``): it
allocates and submits those pages before it goes on; a page under such a read is READING like any other (E10), so an
asynchronous fault on it neither reads nor counts a major fault. A page that cannot be charged ends the readahead, and
nobody is told.

Charging may reclaim; whoever charges pays: the vCPU, or the worker for what FAST and NOIO leave to it. If no frame is
free or nothing can be reclaimed, the answer is Retry at the next border. A vCPU whose group is above memory.high is
held back before it enters the guest again; a worker never is.

Departures: frame and charge are taken, and the read is submitted, when the request is handled, also where the worker
will do it a little later (the arrival at the device is the worker's): so the time of completion is settled at once. A
mapping present but read-only is fixed up in all variants. NOIO is taken at its word: the proposal of 2010 was for "no
major fault" (FAULT_FLAG_MINOR), which a page that the faulting thread decompresses counts as too. Synchronous devices
read nothing ahead (the kernel reads ahead on zswap, whose pages it decompresses one by one). pgmajfault counts who
starts a read, not who waits for another's. The page that faults is charged before those read ahead, so that they never
cost it its place; the kernel goes on behind a page that it cannot charge. A page of zeros starts no readahead.
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
    Retry,
)
from hostd.core import workingset
from hostd.core.events import HostEffect, ReadSlot, Reply, ZeroFrame
from hostd.core.io_faults import IoResult
from hostd.core.kernel_log import HUNG_NS
from hostd.core.mm import KILLED, REFUSED, Mm, Own
from hostd.core.page import (
    CACHED,
    DIRTY,
    EVICTING,
    FOUND_BY_WORKER,
    NONE,
    READ_DONE,
    READ_SUBMITTED,
    READAHEAD,
    READING,
    RESIDENT,
    SWAPPED,
    WORKINGSET,
    WRITEBACK,
    ZERO_FILLED,
    ZERO_FILLED_BY_WORKER,
)
from hostd.core.readahead import SwapFault

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
_ERROR, _CHECKSUM = IoResult.ERROR, IoResult.CHECKSUM


class FaultPath:
    """Handles the requests of all vCPUs."""

    __slots__ = ("_background", "_bounds", "_costs", "_guest_pages", "_gup", "_mm", "_works")

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self._gup = mm.config.gup
        self._costs = mm.config.costs
        self._background = mm.config.profile.background
        self._guest_pages = [vm.guest_pages for vm in mm.config.vms]
        self._bounds = [
            (first, first + pages) for first, pages in zip(mm.pages.first_key, self._guest_pages, strict=True)
        ]
        """Keys of each VM's first page, and behind its last one."""
        self._works: dict[tuple[int, int, int], tuple[int, int, bool]] = {}
        """(vm, vcpu, work) -> (gfn, ready_ns, write) of work items not yet prefaulted."""

    def fault(self, vm: int, vcpu: int, request: FaultRaised, now_ns: int) -> list[HostEffect]:
        """Handle an EPT violation at ``now_ns``."""
        mm = self._mm
        key = self._key(vm, request.gfn)
        group, state = mm.groups[vm], mm.pages.state[key]
        writes = request.access is _WRITE
        write = writes or mm.backings[vm].map_frees_slot
        if writes and mm.read_only[key]:
            raise CoreError(f"VM {vm} writes to gfn {request.gfn:#x}, which its VMM has mapped read-only: -EFAULT")
        group.stat["pf_taken"] += 1
        for token in request.forgotten:
            self._works.pop((vm, vcpu, token), None)
        if state in _IN_CACHE and mm.pages.slot[key] >= 0:
            self._found(vm, vcpu, key)
        if group.killed:
            effects = self._killed(vm, vcpu, key, now_ns)
        elif key in mm.damage.pages:
            effects = self._not_uptodate(vm, vcpu, key, request, now_ns)
        elif request.mode is _BLOCKING or self._gup_succeeds(vm, key):
            effects = self._map(vm, vcpu, key, write, now_ns, now_ns + self._costs.ept_violation_ns)
            if request.mode is _NOWAIT and self._is_unheard(_reply_of(effects)):
                effects[-1:] = self._start_work(vm, vcpu, key, request.work, now_ns)
        else:
            effects = self._start_work(vm, vcpu, key, request.work, now_ns)
        reply = _reply_of(effects)
        if isinstance(reply, InProgress):
            self._works[vm, vcpu, request.work] = (request.gfn, reply.ready_at_ns, write)
        self._record("fault", vm, vcpu, request.gfn, _HOW[request.access][request.mode], reply, now_ns)
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
            effects = self._killed(vm, vcpu, key, now_ns)
        elif key in mm.damage.pages:
            effects = self._failed(vm, vcpu, key, at_ns, now_ns)
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
        if not 0 <= vm < len(self._bounds) or not 0 <= gfn < self._guest_pages[vm]:
            raise CoreError(f"VM {vm}, gfn {gfn}: no such guest page")
        return self._bounds[vm][0] + gfn

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

    def _not_uptodate(self, vm: int, vcpu: int, key: int, request: FaultRaised, now_ns: int) -> list[HostEffect]:
        """The page's read has failed, or will: VM_FAULT_SIGBUS, if not from this get_user_pages then from the worker's.

        To a vCPU that would leave it to the worker that looks like any page that needs I/O (hva_to_pfn); with
        ``swap.errors = "report"`` it hears at once of what is known already.
        """
        mm = self._mm
        mm.damage.in_vain(key)
        known = key not in mm.reads
        if request.mode is _BLOCKING or (known and mm.config.reports):
            return self._failed(vm, vcpu, key, now_ns + self._costs.ept_violation_ns, now_ns)
        mm.groups[vm].stat["page_error_again"] += known
        return self._start_work(vm, vcpu, key, request.work, now_ns)

    def _failed(self, vm: int, vcpu: int, key: int, at_ns: int, now_ns: int) -> list[HostEffect]:
        """-EFAULT at ``at_ns``, or when the page's read is done."""
        mm = self._mm
        stall_ns = max(0, mm.reads.get(key, 0) - at_ns)
        mm.pressure[vm].waits(at_ns, at_ns + stall_ns)
        mm.log.sleeps(vm, vcpu, at_ns, at_ns + stall_ns, mm.config.end_ns)
        gfn = key - mm.pages.first_key[vm]
        return [Reply(vm, vcpu, Failed(at_ns + stall_ns, gfn, mm.damage.pages[key], stall_ns))]

    def _map(self, vm: int, vcpu: int, key: int, write: bool, now_ns: int, at_ns: int) -> list[HostEffect]:
        """Get the page, sleeping if need be; ``at_ns`` is when a page that is there already can be mapped."""
        state = self._mm.pages.state[key]
        if state == READING or (state == SWAPPED and (not self._is_zero(key) or self._mm.is_missing(key, vm))):
            return self._map_after_read(vm, vcpu, key, write, now_ns, at_ns)
        mm, pages, costs = self._mm, self._mm.pages, self._costs
        stat = mm.groups[vm].stat
        effects: list[HostEffect] = []
        if state in _NOWHERE:
            cost_ns = self._allocate(vm, key, now_ns, True)
            if cost_ns == REFUSED:
                return self._retry(vm, vcpu, key, now_ns)
            mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + costs.zero_fill_ns + costs.host_fault_ns
            effects.append(self._zero_fill(vm, key, ZERO_FILLED, now_ns))
            stat["pgfault"] += 1
        elif state != RESIDENT:
            cost_ns = self._take_back(vm, key, now_ns, True)
            if cost_ns == REFUSED:
                return self._retry(vm, vcpu, key, now_ns)
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
        mm, stat = self._mm, self._mm.groups[vm].stat
        effects: list[HostEffect] = []
        missing = mm.starts_missing[vm] and mm.is_missing(key, vm)
        if missing:
            stat["userfault_event"] += 1
        if mm.pages.state[key] != SWAPPED:
            stat["read_wait"] += 1
        elif missing:
            cost_ns = self._allocate(vm, key, now_ns, False)
            if cost_ns == REFUSED:
                return self._retry(vm, vcpu, key, now_ns)
            effects.append(self._fetch(vm, key, at_ns, cost_ns, now_ns))
        else:
            cost_ns = self._allocate(vm, key, now_ns, True)
            if cost_ns == REFUSED:
                return self._retry(vm, vcpu, key, now_ns)
            ahead, ahead_ns = self._allocate_ahead(vm, vcpu, key, now_ns, True)
            cost_ns += ahead_ns
            if cost_ns:
                mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + len(ahead) * self._costs.swap_submit_ns
            effects = self._read(vm, key, ahead, at_ns, now_ns)
            if key in mm.damage.pages:
                mm.damage.in_vain(key)
                return effects + self._failed(vm, vcpu, key, at_ns, now_ns)
        stat["pgfault"] += 1
        stall_ns = mm.reads[key] - at_ns
        if stall_ns < 0:
            stall_ns = 0
        if mm.pages.flags[key] & WORKINGSET:
            mm.pressure[vm].waits(at_ns, at_ns + stall_ns)
        if stall_ns > HUNG_NS:
            mm.log.sleeps(vm, vcpu, at_ns, at_ns + stall_ns, mm.config.end_ns)
        at_ns += stall_ns + self._costs.host_fault_ns
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
            at_ns += mm.throttle_ns(vm, at_ns, now_ns)
            pages.pins[key] -= 1
        mm.schedule(at_ns, _ON_MAPPING, key, vm, write)
        group.stat["pf_fixed"] += 1
        kind = _MAJOR if stall_ns else _MINOR
        writable = write or bool(pages.flags[key] & DIRTY)
        gfn = key - pages.first_key[vm]
        return Reply(vm, vcpu, Mapped(at_ns, gfn, pages.pfn[key], writable, kind, stall_ns))

    def _start_work(self, vm: int, vcpu: int, key: int, work: int, now_ns: int) -> list[HostEffect]:
        """Leave the page to the fault-in worker (kvm_setup_async_pf) and settle when it will be done."""
        mm, costs, state = self._mm, self._costs, self._mm.pages.state[key]
        at_ns = now_ns + costs.ept_violation_ns
        cost_ns = 0
        missing = mm.is_missing(key, vm)
        zeros = state == NONE or (state == SWAPPED and not missing and self._is_zero(key))
        by_vcpu = self._gup is _GUP_NOWAIT and not zeros and not missing
        if mm.read_only[key] and (not by_vcpu or state == READING):
            return self._refused_work(vm, vcpu, key, work, at_ns, now_ns)
        if state != READING:
            get = self._take_back if mm.pages.pfn[key] >= 0 else self._allocate
            cost_ns = get(vm, key, now_ns, by_vcpu)
            if cost_ns == REFUSED:
                return self._retry(vm, vcpu, key, now_ns)
        effects: list[HostEffect] = []
        reclaims_ns = 0  # of the worker
        ahead = [key]
        if state == SWAPPED and not zeros and not missing:
            ahead, ahead_ns = self._allocate_ahead(vm, vcpu, key, now_ns, by_vcpu)
            cost_ns += ahead_ns
        submits_ns = len(ahead) * costs.swap_submit_ns
        if state == SWAPPED and by_vcpu:
            mm.pressure[vm].waits(at_ns, at_ns + cost_ns)
            at_ns += cost_ns + submits_ns
            effects += self._read(vm, key, ahead, at_ns, now_ns)
            ready_ns = at_ns + costs.fault_in_worker_ns
            if mm.read_only[key]:
                return effects + self._refused_work(vm, vcpu, key, work, at_ns, now_ns)
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
                effects += self._read(vm, key, ahead, ready_ns, now_ns)
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
            at_ns += mm.throttle_ns(vm, at_ns, now_ns)
        effects.append(Reply(vm, vcpu, InProgress(at_ns, work, ready_ns)))
        return effects

    def _refused_work(self, vm: int, vcpu: int, key: int, work: int, at_ns: int, now_ns: int) -> list[HostEffect]:
        """The worker may not write the page, and returns at once (check_vma_flags); the prefault waits (E40)."""
        mm = self._mm
        comes_ns = at_ns + self._costs.fault_in_worker_ns
        ready_ns = comes_ns + max(1, self._costs.host_fault_ns)
        mm.root_pressure.comes_and_waits((), comes_ns, ready_ns)
        mm.schedule(ready_ns, Own.WORKER_REFUSED, key, vm)
        mm.groups[vm].stat["kvm_try_async_get_page"] += 1
        if mm.groups[vm].over_high:
            at_ns += mm.throttle_ns(vm, at_ns, now_ns)
        return [Reply(vm, vcpu, InProgress(at_ns, work, ready_ns))]

    def _allocate(self, vm: int, key: int, now_ns: int, by_vcpu: bool) -> int:
        """Charge and take a frame for a page that has none; the ns that took, or REFUSED."""
        mm = self._mm
        free = mm.frames.free
        spared_ns = 0 if len(free) >= mm.watermarks.low else mm.spare(now_ns)
        if not free:
            return REFUSED
        cost_ns = mm.charge(vm, now_ns, by_vcpu)
        if cost_ns == REFUSED:
            return REFUSED
        pages = mm.pages
        pages.pfn[key] = mm.frames.take(key)
        if pages.shadow[key] != workingset.NONE:
            workingset.refault(pages, mm.groups[vm], key)
        return spared_ns + cost_ns

    def _take_back(self, vm: int, key: int, now_ns: int, by_vcpu: bool) -> int:
        """Charge a page that was picked or is being written again; the ns that took, or REFUSED."""
        mm, pages = self._mm, self._mm.pages
        if pages.state[key] == CACHED:
            return 0
        cost_ns = mm.charge(vm, now_ns, by_vcpu)
        if cost_ns != REFUSED and pages.state[key] == EVICTING:
            del mm.evicting[key]
            if pages.flags[key] & DIRTY and pages.slot[key] >= 0:
                mm.free_slot(key, vm)
            mm.groups[vm].stat["eviction_cancelled"] += 1
        return cost_ns

    def _swap_fault(self, vm: int, vcpu: int, key: int) -> SwapFault:
        first, end = self._bounds[vm]
        return SwapFault(key, self._mm.pages.slot[key], vm, vcpu, first, end)

    def _found(self, vm: int, vcpu: int, key: int) -> None:
        """The host has found page ``key`` in the swap cache or the page cache (swap_update_readahead)."""
        mm = self._mm
        if mm.is_missing(key, vm):
            return
        first_hit = bool(mm.pages.flags[key] & READAHEAD)
        if first_hit:
            mm.pages.flags[key] &= ~READAHEAD
            mm.groups[vm].stat["swap_ra_hit"] += mm.backings[vm].swaps
        mm.readahead.found(self._swap_fault(vm, vcpu, key), first_hit)

    def _allocate_ahead(self, vm: int, vcpu: int, key: int, now_ns: int, by_vcpu: bool) -> tuple[list[int], int]:
        """The pages to read with page ``key``, which has its frame, in order and itself among them, with frames too.

        And the ns that took.
        """
        mm, pages, cost_ns = self._mm, self._mm.pages, 0
        if not self._background:
            return [key], 0
        wanted = mm.readahead.window(self._swap_fault(vm, vcpu, key))
        assert list(wanted).count(key) == 1, f"{type(mm.readahead).__name__}: {wanted} for a fault on {key}"
        if len(wanted) == 1:
            return [key], 0
        ahead: list[int] = []
        refused = False
        for one in wanted:
            if one == key:
                ahead.append(one)
                continue
            if refused or not 0 <= one < pages.total or pages.state[one] != SWAPPED or pages.pfn[one] >= 0:
                continue
            whose = mm.vm_of(one)
            if mm.is_missing(one, whose) or whose in mm.left:
                continue
            took_ns = self._allocate(whose, one, now_ns, by_vcpu and whose == vm)
            refused = took_ns == REFUSED
            if not refused:
                cost_ns += took_ns
                ahead.append(one)
        return ahead, cost_ns

    def _read(self, vm: int, key: int, ahead: list[int], arrival_ns: int, now_ns: int) -> list[HostEffect]:
        """Submit the reads of ``ahead``, which all have their frames, page ``key`` among them."""
        mm, pages = self._mm, self._mm.pages
        mm.groups[vm].stat["pgmajfault"] += 1
        if len(ahead) == 1:
            return self._submit_read(vm, key, arrival_ns, now_ns, "read")
        effects: list[HostEffect] = []
        for one in ahead:
            if one == key:
                effects += self._submit_read(vm, one, arrival_ns, now_ns, "read")
                continue
            whose = mm.vm_of(one)
            pages.flags[one] |= READAHEAD
            mm.groups[whose].stat["swap_ra"] += mm.backings[whose].swaps
            if self._is_zero(one):
                effects.append(ZeroFrame(pages.pfn[one]))
                mm.find_zeros(one, whose, now_ns)
            else:
                effects += self._submit_read(whose, one, arrival_ns, now_ns, "readahead")
        return effects

    def _submit_read(self, vm: int, key: int, arrival_ns: int, now_ns: int, what: str) -> list[HostEffect]:
        result, pages = self._mm.submit_read(key, vm, arrival_ns, now_ns, what), self._mm.pages
        if result is _ERROR:  # the device moves nothing
            return []
        return [ReadSlot(pages.slot[key], pages.pfn[key], result is _CHECKSUM)]

    def _fetch(self, vm: int, key: int, event_ns: int, reclaim_ns: int, now_ns: int) -> HostEffect:
        """Have a missing page, which has its frame, fetched; a handler pays for the frame."""
        mm, pages = self._mm, self._mm.pages
        pfn, place = pages.pfn[key], pages.slot[key]
        mm.fetch(key, vm, event_ns, reclaim_ns, now_ns)
        return ZeroFrame(pfn) if mm.swap.is_zero(place) else ReadSlot(place, pfn)

    def _retry(self, vm: int, vcpu: int, key: int, now_ns: int) -> list[HostEffect]:
        at_ns = self._mm.retry_ns(vm, now_ns)
        if at_ns == KILLED:
            return self._killed(vm, vcpu, key, now_ns)
        self._mm.pressure[vm].waits(now_ns, at_ns)
        return [Reply(vm, vcpu, Retry(at_ns))]

    def _killed(self, vm: int, vcpu: int, key: int, now_ns: int) -> list[HostEffect]:
        """No page for a vCPU whose VMM has been killed: KVM_RUN is left (fatal_signal_pending)."""
        gfn = key - self._mm.pages.first_key[vm]
        at_ns = now_ns + self._costs.ept_violation_ns
        return [Reply(vm, vcpu, Failed(at_ns, gfn, PageError.OUT_OF_MEMORY, 0))]

    def _is_unheard(self, reply: HostReply) -> bool:
        """Whether a page that cannot be had looks to KVM like any that needs I/O (hva_to_pfn)."""
        failed = isinstance(reply, Failed) and reply.error is not PageError.OUT_OF_MEMORY
        return failed and not self._mm.config.reports

    def _record(self, what: str, vm: int, vcpu: int, gfn: int, how: str | int, reply: HostReply, now_ns: int) -> None:
        record = self._mm.journal.record
        if isinstance(reply, Mapped):
            kind, writable = _KINDS[reply.kind], int(reply.writable)
            record(now_ns, what, vm, vcpu, gfn, how, kind, reply.at_ns, reply.pfn, writable, reply.stall_ns)
        elif isinstance(reply, InProgress):
            record(now_ns, what, vm, vcpu, gfn, how, "async", reply.at_ns, reply.work, reply.ready_at_ns)
        elif isinstance(reply, Failed):
            self._mm.groups[vm].stat["page_error"] += reply.error is not PageError.OUT_OF_MEMORY
            record(now_ns, what, vm, vcpu, gfn, how, "failed", reply.at_ns, reply.error.name, reply.stall_ns)
        else:
            record(now_ns, what, vm, vcpu, gfn, how, "retry", reply.at_ns)


def _reply_of(effects: list[HostEffect]) -> HostReply:
    """The reply of a request step, which is its last effect."""
    last = effects[-1]
    assert isinstance(last, Reply)
    return last.reply
