"""Eviction in its two halves: picked within a window, carried out at the border."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apf.hostmem import EPT_WRITE, ept_entry
from apf.messages import FaultKind
from hostd.core.frames import FEW
from hostd.core.page import DIRTY, PageState
from tests.unit.hostd.rig import WINDOW_NS, WRITE, WRITE_NS, Rig

NewRig = Callable[..., Rig]


def evicting(new_rig: NewRig) -> Rig:
    """Pages 0..31 picked, at time 0."""
    rig = new_rig()
    rig.load(64)
    rig.mapped(100, 0)
    return rig


def test_a_fault_on_a_page_being_evicted_cancels_the_eviction(new_rig: NewRig) -> None:
    rig = evicting(new_rig)
    pfn = rig.core._mm.pages.pfn[3]
    usage = rig.core.resident_pages(0)
    reply = rig.mapped(3, 10, WRITE, vcpu=1)
    assert (reply.pfn, reply.kind) == (pfn, FaultKind.MINOR)
    assert rig.core.resident_pages(0) == usage + 1
    rig.border(WINDOW_NS)
    assert rig.entries() == {gfn: 0 for gfn in range(32) if gfn != 3}
    assert rig.state(3) is PageState.RESIDENT


def test_frames_are_quarantined_until_their_write_is_done(new_rig: NewRig) -> None:
    rig = evicting(new_rig)
    free = rig.core.free_frames
    rig.border(WINDOW_NS)
    assert rig.core.free_frames == free
    group = rig.core._mm.groups[0]
    group.usage = group.limit  # others got what the pages that are written were charged
    rig.border(WINDOW_NS + WRITE_NS)
    group.usage -= 31
    assert rig.core.free_frames == free + 1
    assert rig.state(0) is PageState.SWAPPED and rig.state(1) is PageState.WRITEBACK


def test_a_page_that_was_written_is_in_the_swap_cache_until_a_later_scan_frees_it(new_rig: NewRig) -> None:
    rig = evicting(new_rig)
    rig.border(WINDOW_NS)
    usage, free = rig.core.resident_pages(0), rig.core.free_frames
    rig.border(WINDOW_NS + 32 * WRITE_NS)
    assert [rig.state(gfn) for gfn in (0, 30, 31)] == [PageState.CACHED, PageState.CACHED, PageState.SWAPPED]
    assert rig.core.resident_pages(0) == usage + 31 == 64, "no room for the last"
    assert rig.core.free_frames == free + 1
    hit = rig.mapped(5, WINDOW_NS + 32 * WRITE_NS + 1)
    assert hit.kind is FaultKind.MINOR and rig.core.counters["swap_cache_hit"] == 1
    rig.mapped(101, WINDOW_NS + 32 * WRITE_NS + 2)
    counters = rig.core.counters
    assert rig.state(0) is PageState.SWAPPED and rig.state(30) is PageState.SWAPPED, "first in line, without any I/O"
    assert counters["pgsteal_direct"] == 31 and counters["pswpout"] == 32


def test_a_write_to_a_page_in_writeback_frees_the_slot_only_when_the_write_is_done(new_rig: NewRig) -> None:
    rig = evicting(new_rig)
    rig.border(WINDOW_NS)
    rig.mapped(0, WINDOW_NS + 1, WRITE)
    assert rig.slot(0) == 0
    rig.border(WINDOW_NS + WRITE_NS)
    assert rig.slot(0) == -1
    assert rig.core.swap_pages == 31
    assert rig.entries()[0] == ept_entry(0, True)


def test_accessed_pages_get_a_second_chance(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(64)
    rig.border(WINDOW_NS, accessed=list(range(16)))
    rig.mapped(100, WINDOW_NS + 1)
    states = [rig.state(gfn) for gfn in range(64)]
    assert states == [PageState.RESIDENT] * 16 + [PageState.EVICTING] * 32 + [PageState.RESIDENT] * 16
    assert rig.core.counters["pgscan_direct"] == 48


def test_a_dirty_byte_alone_makes_a_clean_page_be_written(new_rig: NewRig) -> None:
    rig = new_rig(limit=1)
    rig.load(4)
    reply = rig.mapped(0, 0)
    rig.border(20 * WINDOW_NS)
    rig.mapped(1, 20 * WINDOW_NS + 1)
    rig.border(21 * WINDOW_NS, dirty=[reply.pfn])
    assert (0, reply.pfn) in rig.written()


def test_a_page_is_not_reclaimed_before_its_promised_mapping_takes_effect(new_rig: NewRig) -> None:
    rig = new_rig(limit=2, reserve=8)
    promised = rig.mapped(0, 0)
    rig.mapped(1, 1)
    retry = rig.fault(2, 2, vcpu=1)
    assert retry.at_ns == WINDOW_NS
    assert rig.state(0) is PageState.RESIDENT
    rig.mapped(2, promised.at_ns, vcpu=1)
    assert rig.state(0) is PageState.EVICTING and rig.state(1) is PageState.RESIDENT


@pytest.mark.parametrize("count", [FEW, FEW + 1])
def test_few_and_many_accessed_and_dirty_frames_do_the_same(new_rig: NewRig, count: int) -> None:
    guest_pages = 2 * count
    rig = new_rig(limit=count + 20, guest_pages=guest_pages)
    rig.load(guest_pages)
    first = guest_pages - (count + 20)
    pages = rig.core._mm.pages
    for gfn in range(first, guest_pages):
        pages.flags[gfn] &= ~DIRTY
        pages.slot[gfn] = rig.core._mm.swap.allocate(gfn)
        pages.ept[gfn] &= ~EPT_WRITE
    rig.border(WINDOW_NS, accessed=list(range(count)), dirty=list(range(count)))
    assert bytes(rig.core._mm.frames.young[: count + 1]) == b"\1" * count + b"\0"
    assert [bool(pages.flags[first + n] & DIRTY) for n in range(count + 1)] == [True] * count + [False]


@pytest.mark.parametrize("more", [0, FEW])
def test_a_write_to_a_frame_that_nobody_can_have_mapped_is_a_bug(new_rig: NewRig, more: int) -> None:
    rig = new_rig(limit=FEW + 64, guest_pages=FEW + 64)
    rig.load(FEW)
    with pytest.raises(AssertionError, match="not mapped anywhere"):
        rig.border(WINDOW_NS, dirty=[*range(more), FEW])
