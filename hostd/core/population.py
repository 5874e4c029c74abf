"""Bulk loading: what a VM's memory looks like after its guest has written every page of some segments, in order.

As if each page had been faulted in once, on a host with all the time in the world: whatever exceeds the group's limit
was evicted, oldest first, and its writes are done. So the first pages are in slots, in order; the last ones are
resident, dirty, mapped writable in the EPT and on the inactive list in order. Nothing of this takes guest time.

A VM that joins a host that runs is loaded the same way, at the border at which it joins.

A segment that is ``demand_zero`` is only looked at: its pages stay NONE until the guest touches them.

A mapped file holds what exceeds the limit in its places. A VM whose missing pages a userfaultfd's handler fetches has
none of its pages in memory: what it was loaded with is in the snapshot, and all the rest of it is zeros.
"""

from __future__ import annotations

import numpy as np

from apf.core import CoreError
from apf.hostmem import EPT_PRESENT, EPT_WRITE
from apf.messages import PAGE_SHIFT, PAGE_SIZE, Segment
from hostd.core.events import FillPages, HostEffect, SegmentsLoaded
from hostd.core.mm import Mm
from hostd.core.page import DIRTY, PageState


def populate(mm: Mm, event: SegmentsLoaded, now_ns: int) -> list[HostEffect]:
    """Load the segments of one VM; CoreError if it has pages already or a segment does not fit."""
    _verify(mm, event, now_ns)
    mm.left.discard(event.vm)
    group = mm.groups[event.vm]
    if mm.config.vms[event.vm].read_only:
        for segment in event.segments:
            if segment.read_only:
                first = mm.pages.first_key[event.vm] + segment.gfn
                mm.read_only[first : first + segment.pages] = b"\x01" * segment.pages
    loaded = [segment for segment in event.segments if not segment.demand_zero]
    if mm.backings[event.vm].starts_missing:
        return _restore(mm, event.vm, loaded, now_ns)
    room = min(group.limit, max(0, len(mm.frames.free) - mm.watermarks.high))
    excess = max(0, sum(segment.pages for segment in loaded) - room)
    free = mm.swap.total - mm.swap.in_use
    if excess > free and mm.backings[event.vm].swaps:
        raise CoreError(
            f"VM {event.vm}: {excess} pages exceed its share of memory, {room} pages, and would be in swap, which has "
            f"{free} of {mm.swap.total} slots free: swap.size is too small"
        )
    effects: list[HostEffect] = []
    for segment in loaded:
        swapped = min(excess, segment.pages)
        excess -= swapped
        effects.append(_fill(mm, event.vm, segment, swapped))
        mm.journal.record((now_ns, "segment", event.vm, segment.gfn, segment.pages, segment.pages - swapped, swapped))
    return effects


def _fill(mm: Mm, vm: int, segment: Segment, swapped: int) -> FillPages:
    """Put the first ``swapped`` pages into slots and the others into frames."""
    pages, group = mm.pages, mm.groups[vm]
    first = pages.first_key[vm] + segment.gfn
    middle, end = first + swapped, first + segment.pages
    if mm.backings[vm].fixed_place:
        slots = np.arange(first, middle, dtype=np.int64) + mm.swap.total
    else:
        slots = mm.swap.allocate_many(first, swapped)
    pfns = np.array(mm.frames.take_many(middle, end - middle), dtype=np.int64)
    pages.view_i64(pages.slot)[first:middle] = slots
    pages.view_i64(pages.pfn)[middle:end] = pfns
    pages.view_u64(pages.ept)[middle:end] = (pfns << PAGE_SHIFT | EPT_PRESENT | EPT_WRITE).astype(np.uint64)
    pages.view_u8(pages.state)[first:middle] = PageState.SWAPPED
    pages.view_u8(pages.state)[middle:end] = PageState.RESIDENT
    pages.view_u8(pages.flags)[middle:end] = DIRTY
    for key in range(middle, end):
        group.lists.add(key)
    group.usage += end - middle
    pages.view_i64(pages.shadow)[first:middle] = np.arange(group.age, group.age + swapped) << 1
    group.age += swapped
    numbers = np.arange(segment.pages, dtype=np.int64)
    return FillPages(vm, segment, numbers[swapped:], pfns, numbers[:swapped], slots)


def _restore(mm: Mm, vm: int, loaded: list[Segment], now_ns: int) -> list[HostEffect]:
    """Leave all pages of a VM to a handler: those of ``loaded`` are in the snapshot, at their places."""
    pages, total = mm.pages, mm.swap.total
    first, count = pages.first_key[vm], mm.config.vms[vm].guest_pages
    pages.view_u8(pages.state)[first : first + count] = PageState.SWAPPED
    pages.view_i64(pages.slot)[first : first + count] = np.arange(first, first + count) + total
    mm.swap.set_zeros(total + first, count, True)
    effects: list[HostEffect] = []
    nothing = np.empty(0, np.int64)
    for segment in loaded:
        place = total + first + segment.gfn
        mm.swap.set_zeros(place, segment.pages, False)
        numbers = np.arange(segment.pages, dtype=np.int64)
        effects.append(FillPages(vm, segment, nothing, nothing, numbers, numbers + place))
        mm.journal.record((now_ns, "segment", vm, segment.gfn, segment.pages, 0, segment.pages))
    return effects


def _verify(mm: Mm, event: SegmentsLoaded, now_ns: int) -> None:
    if not 0 <= event.vm < len(mm.groups):
        raise CoreError(f"segments for VM {event.vm}: no such VM")
    first = mm.pages.first_key[event.vm]
    if any(mm.pages.state[first : first + mm.config.vms[event.vm].guest_pages]):
        raise CoreError(f"segments for VM {event.vm} at {now_ns}: it has pages already")
    guest_pages = mm.config.vms[event.vm].guest_pages
    end = 0
    for segment in sorted(event.segments, key=lambda one: one.gfn):
        if segment.pages < 1 or segment.gfn < end or segment.gfn + segment.pages > guest_pages:
            raise CoreError(
                f"segment of {segment.pages} pages at gfn {segment.gfn} of VM {event.vm}: empty, overlaps another, "
                f"or ends beyond the guest's {guest_pages} pages"
            )
        if len(segment.data) > segment.pages * PAGE_SIZE:
            raise CoreError(f"segment at gfn {segment.gfn}: {len(segment.data)} bytes for {segment.pages} pages")
        end = segment.gfn + segment.pages
