"""Reclaim: of a group's pages, and of the host's, if it has less memory than its groups may have.

Follows mm/vmscan.c. Which of a group's pages go is its policy's decision (``lru``); what becomes of those that it gives
up is shrink_folio_list's: clean in the swap cache, they are free at once (__remove_mapping); others are uncharged, get
a slot, and leave their frames at the border, or when they have been written (``page``, ``border``). Whoever charges a
page to a group that is at its limit reclaims first (``memcontrol``).

Frames of the host: who takes one wakes kswapd below the low watermark, and reclaims itself below min
(mm/page_alloc.c:__alloc_pages_slowpath). kswapd takes a cluster of each group, in turn, until free pages reach high
(balance_pgdat). When it is done it naps before it sleeps (kswapd_try_to_sleep): woken from that, it was needed again
quickly.

Departures: groups are scanned by equal shares, not by their sizes; what is on its way out counts as free where it is
asked whether there is enough; the CPU that kswapd runs on is no vCPU's.
"""

from __future__ import annotations

from functools import partial
from heapq import heappush
from itertools import islice

from hostd.core.group import MemoryGroup
from hostd.core.lru import SWAP_CLUSTER_MAX
from hostd.core.page import CACHED, DIRTY, LRU, PICKED, REFERENCED, RELEASED
from hostd.core.state import MmState, Own

_NAP_NS = 100_000_000
"""HZ / 10."""
_LISTED_NO_MORE = 0xFF & ~(LRU | REFERENCED)
_ON_KSWAPD = Own.KSWAPD


class Vmscan:
    """Reclaim of one host."""

    __slots__ = ("_mm", "_naps_ns", "for_kswapd", "kswapd_ns")

    def __init__(self, mm: MmState) -> None:
        self._mm = mm
        self.for_kswapd: set[int] = set()
        """Those of the pages picked since the last border that kswapd picked."""
        self.kswapd_ns: int | None = None
        """When kswapd goes on; None: it sleeps."""
        self._naps_ns = 0
        """Until when kswapd naps, or has."""

    def reclaim(self, vm: int, want: int, now_ns: int, kswapd: bool = False) -> tuple[int, int]:
        """Reclaim ``want`` pages of a group; returns the ns that took and how many pages are free by it at once.

        The others that were taken leave their frames at the border, or when they have been written.
        """
        mm = self._mm
        group, evicting, costs = mm.groups[vm], mm.evicting, mm.config.costs
        before, usage = len(evicting), group.usage
        scan = group.lists.scan(want, partial(self._shrink, vm, group, now_ns))
        picked = len(evicting) - before
        freed = usage - group.usage - picked
        if kswapd:
            self.for_kswapd.update(islice(reversed(evicting), picked))
        stat = group.stat
        stat["pgscan_kswapd" if kswapd else "pgscan_direct"] += scan.scanned
        stat["pgsteal_kswapd" if kswapd else "pgsteal_direct"] += freed
        stat["pgrefill"] += scan.refilled
        stat["pgdeactivate"] += scan.refilled
        stat["pgactivate"] += scan.activated
        group.age += scan.activated
        mm.journal.record((now_ns, "reclaim", vm, scan.scanned, scan.refilled, scan.activated, picked, freed))
        cost_ns = (scan.scanned + scan.refilled) * costs.reclaim_scan_ns + scan.taken * costs.reclaim_unmap_ns
        return cost_ns, freed

    def _shrink(self, vm: int, group: MemoryGroup, now_ns: int, victims: list[int]) -> list[int]:
        """shrink_folio_list: uncharge ``victims``; those that are clean in the swap cache are free at once.

        Returns those that stay, for they need a slot and there is none.
        """
        mm = self._mm
        pages = mm.pages
        state, flags, slot = pages.state, pages.flags, pages.slot
        released: list[int] = []
        picked: list[int] = []
        staying: list[int] = []
        for key in victims:
            was = flags[key]
            if state[key] == CACHED and not was & DIRTY:
                released.append(key)
            elif slot[key] >= 0 or mm.give_slot(key, vm, now_ns):
                picked.append(key)
            else:
                staying.append(key)
                continue
            flags[key] = was & _LISTED_NO_MORE
        pages.move_all(released, RELEASED, now_ns)
        mm.forget_frames(released, group)
        pages.move_all(picked, PICKED, now_ns)
        for key in picked:
            mm.evicting[key] = vm
        group.usage -= len(released) + len(picked)
        return staying

    # The host's memory. ------------------------------------------------------------------------------------------------

    def _coming(self) -> int:
        """Frames that are free, or will be when what is on its way out is out."""
        mm = self._mm
        return mm.frames.total - sum(group.usage for group in mm.groups)

    def spare(self, now_ns: int) -> int:
        """Before a frame is taken: wake kswapd below the low watermark, reclaim below min; the ns that took.

        Follows mm/page_alloc.c:__alloc_pages_slowpath.
        """
        mm = self._mm
        free, marks = len(mm.frames.free), mm.watermarks
        if free >= marks.low:
            return 0
        if self.kswapd_ns is None:
            mm.host_stat["kswapd_wake"] += 1
            mm.host_stat["pageoutrun"] += 1
            mm.host_stat["kswapd_low_wmark_hit_quickly"] += now_ns < self._naps_ns
            self._kswapd_goes_on(now_ns + mm.config.costs.fault_in_worker_ns)
        if free > marks.min:
            return 0
        cost_ns = 0
        for vm, group in enumerate(mm.groups):
            if self._coming() >= marks.low:
                break
            if vm not in mm.left and any(group.lists.sizes()):
                group.stat["allocstall"] += 1
                cost_ns += self.reclaim(vm, SWAP_CLUSTER_MAX, now_ns)[0]
        return cost_ns

    def kswapd(self, now_ns: int) -> None:
        """A round of mm/vmscan.c:balance_pgdat: a cluster of each group, in turn, until free pages reach high."""
        mm, marks = self._mm, self._mm.watermarks
        self.kswapd_ns = None
        self._naps_ns = now_ns + _NAP_NS
        cost_ns = progress = 0
        for vm in range(len(mm.groups)):
            if self._coming() >= marks.high:
                return
            before = mm.groups[vm].usage
            cost_ns += self.reclaim(vm, SWAP_CLUSTER_MAX, now_ns, kswapd=True)[0]
            progress += before - mm.groups[vm].usage
        if progress and self._coming() < marks.high:
            self._kswapd_goes_on(now_ns + max(1, cost_ns))

    def _kswapd_goes_on(self, at_ns: int) -> None:
        self.kswapd_ns = at_ns
        # Before all else of that time: a page whose mapping takes effect at a border, for the window that opens there,
        # is pinned until then, and must not be picked at that very border.
        heappush(self._mm.agenda, (at_ns, 0, _ON_KSWAPD, -1, -1, False))
