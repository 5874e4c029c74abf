"""Swap-in: which pages a fault reads, whose frames come first, and what its finding a page tells the readahead policy.

Follows mm/swap_state.c:swapin_readahead, swap_update_readahead, and for a mapped file mm/filemap.c:filemap_fault. Who
starts a read reads ahead too (``readahead``): it allocates and submits those pages before it goes on; a page under such
a read is READING like any other (E10), so an asynchronous fault on it neither reads nor counts a major fault: that is
whose fault starts a read, not who waits for another's. A page that cannot be charged ends the readahead, and nobody is
told.

Departures: the page that faults is charged before those read ahead, so that they never cost it its place; the kernel
goes on behind a page that it cannot charge.
Synchronous devices read nothing ahead (the kernel reads ahead on zswap, whose pages it decompresses one by one). A page
of zeros starts no readahead. What a synchronous device has read keeps its slot until it is written to, as any page does;
the kernel goes past the swap cache for zram, and frees the slot at once (do_swap_page), and a page that comes out of
zswap is dirty (mm/zswap.c:zswap_load): both are swapped out anew also if they were only read.
"""

from __future__ import annotations

from hostd.core.events import HostEffect, ZeroFrame
from hostd.core.memcontrol import REFUSED
from hostd.core.mm import Mm
from hostd.core.page import READAHEAD, SWAPPED
from hostd.core.readahead import SwapFault


class SwapState:
    """Swap-in of one host."""

    __slots__ = ("_background", "_bounds", "_memcontrol", "_mm", "_page_io")

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self._memcontrol, self._page_io = mm.memcontrol, mm.page_io
        self._background = mm.config.profile.background
        self._bounds = mm.pages.bounds

    def _swap_fault(self, vm: int, vcpu: int, key: int) -> SwapFault:
        first, end = self._bounds[vm]
        return SwapFault(key, self._mm.pages.slot[key], vm, vcpu, first, end)

    def found(self, vm: int, vcpu: int, key: int) -> None:
        """The host has found page ``key`` in the swap cache or the page cache (swap_update_readahead)."""
        mm = self._mm
        if mm.is_missing(key, vm):
            return
        first_hit = bool(mm.pages.flags[key] & READAHEAD)
        if first_hit:
            mm.pages.flags[key] &= ~READAHEAD
            mm.groups[vm].stat["swap_ra_hit"] += mm.backings[vm].swaps
        mm.readahead.found(self._swap_fault(vm, vcpu, key), first_hit)

    def allocate_ahead(self, vm: int, vcpu: int, key: int, now_ns: int, by_vcpu: bool) -> tuple[list[int], int]:
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
            took_ns = self._memcontrol.allocate(whose, one, now_ns, by_vcpu and whose == vm)
            refused = took_ns == REFUSED
            if not refused:
                cost_ns += took_ns
                ahead.append(one)
        return ahead, cost_ns

    def read(self, vm: int, key: int, ahead: list[int], arrival_ns: int, now_ns: int) -> list[HostEffect]:
        """Submit the reads of ``ahead``, which all have their frames, page ``key`` among them."""
        mm, pages = self._mm, self._mm.pages
        mm.groups[vm].stat["pgmajfault"] += 1
        submit_read = self._page_io.submit_read
        if len(ahead) == 1:
            moves = submit_read(key, vm, arrival_ns, now_ns)
            return [moves] if moves else []
        effects: list[HostEffect] = []
        for one in ahead:
            if one == key:
                moves = submit_read(one, vm, arrival_ns, now_ns)
            else:
                whose = mm.vm_of(one)
                pages.flags[one] |= READAHEAD
                mm.groups[whose].stat["swap_ra"] += mm.swapping[whose]
                if mm.swap.zero[pages.slot[one]]:
                    effects.append(ZeroFrame(pages.pfn[one]))
                    self._page_io.read_zeros(one, whose, now_ns)
                    continue
                moves = submit_read(one, whose, arrival_ns, now_ns, "readahead")
            if moves:
                effects.append(moves)
        return effects
