"""Every invariant of the host core, checked against each other. Vectorised."""

from __future__ import annotations

import numpy as np

from apf.hostmem import EPT_WRITE
from apf.messages import PAGE_SHIFT
from hostd.core.mm import Mm
from hostd.core.page import CHARGED, DIRTY, FRAMED, LRU, READAHEAD, WRITING, PageState
from hostd.core.state import Own


def check(mm: Mm) -> None:
    """AssertionError if a frame is shared or lost, or if charge, slot, list or EPT entry are at odds with states."""
    _check_frames(mm)
    _check_slots(mm)
    _check_groups(mm)
    _check_readahead(mm)
    _check_ept(mm)
    _check_damage(mm)
    _check_agenda(mm)


def _check_frames(mm: Mm) -> None:
    pages, frames = mm.pages, mm.frames
    state, pfn = pages.view_u8(pages.state), pages.view_i64(pages.pfn)
    owner = np.frombuffer(frames.owner, dtype=np.int64)
    framed = np.isin(state, FRAMED)
    keys = np.flatnonzero(framed)
    assert (pfn[~framed] == -1).all(), "a page without a frame by state names one"
    assert (pfn[keys] >= 0).all() and (owner[pfn[keys]] == keys).all(), "a frame is shared or owned by another page"
    free = np.fromiter(frames.free, dtype=np.int64, count=len(frames.free))
    assert (owner[free] == -1).all() and len(np.unique(free)) == len(free), "a free frame is owned or free twice"
    assert len(free) + len(keys) == frames.total, "a frame was lost"


def _check_slots(mm: Mm) -> None:
    pages = mm.pages
    state, slot, flags = pages.view_u8(pages.state), pages.view_i64(pages.slot), pages.view_u8(pages.flags)
    slots = slot[(slot >= 0) & (slot < mm.swap.total)]
    assert len(np.unique(slots)) == len(slots) == mm.swap.in_use, "slots shared or lost"
    assert all(mm.swap.page_in(int(one)) == pages.slot.index(int(one)) for one in slots[:4]), (
        "a slot is another page's"
    )
    at_places = np.flatnonzero(slot >= mm.swap.total)
    assert (slot[at_places] == mm.swap.total + at_places).all(), "a page lies in another's place"
    assert all(mm.swap.is_used(int(one)) for one in slots[:64]), "a page's slot is free"
    must = np.isin(state, (PageState.SWAPPED, PageState.READING, PageState.WRITEBACK))
    assert (slot[must] >= 0).all(), "a page in swap has no slot"
    assert (slot[state == PageState.NONE] < 0).all(), "an untouched page has a slot"
    shadow = pages.view_i64(pages.shadow)
    assert (shadow[np.isin(state, FRAMED)] == -1).all(), "a page in a frame has left a shadow"
    dirty = (flags & DIRTY) != 0
    assert dirty[np.isin(state, FRAMED) & (slot < 0)].all(), "a page without a slot is clean: its bytes would be lost"
    assert not dirty[np.isin(state, (PageState.SWAPPED, PageState.READING, PageState.NONE))].any(), "dirty, no frame"


def _check_groups(mm: Mm) -> None:
    pages = mm.pages
    state, flags, pins = pages.view_u8(pages.state), pages.view_u8(pages.flags), np.array(pages.pins)
    charged = np.isin(state, CHARGED)
    listed = np.zeros(pages.total, dtype=np.int64)
    for vm, group in enumerate(mm.groups):
        own = slice(*pages.bounds[vm])
        assert charged[own].sum() == group.usage <= group.limit, f"group {vm}: charge {group.usage} is wrong"
        assert pins[own].sum() == group.pinned, f"group {vm}: pins"
        for keys in group.lists.lists():
            listed[np.fromiter(keys, dtype=np.int64)] += 1
    assert listed.max(initial=0) <= 1, "a page is on two lists"
    assert ((listed == 1) == ((flags & LRU) != 0)).all(), "LRU flag and lists disagree"
    listable = np.isin(state, (PageState.RESIDENT, PageState.CACHED))
    assert listable[listed == 1].all(), "a page on an LRU list is neither resident nor in the swap cache"
    assert (listed[listable & (pins == 0)] == 1).all(), "a page that nobody needs where it is is on no list"
    for vm in mm.left:
        own = slice(*pages.bounds[vm])
        kept = (state[own] == PageState.NONE) | (pins[own] > 0) | (state[own] == PageState.READING)
        assert kept.all(), f"VM {vm} has left, and pages of it are in nobody's hands"
    evicting = np.flatnonzero(state == PageState.EVICTING)
    assert sorted(mm.evicting) == evicting.tolist(), "pages picked and pages in state EVICTING differ"
    assert (pins[evicting] == 0).all(), "a pinned page was picked"


def _check_readahead(mm: Mm) -> None:
    pages = mm.pages
    state, flags = pages.view_u8(pages.state), pages.view_u8(pages.flags)
    ahead = (flags & READAHEAD) != 0
    cached = np.isin(state, (PageState.READING, PageState.CACHED))
    assert cached[ahead].all(), "a page was read ahead, and is not in the swap cache"
    assert not (flags[ahead] & DIRTY).any(), "a page was read ahead and is dirty already"


def _check_ept(mm: Mm) -> None:
    pages = mm.pages
    state, pfn, flags = pages.view_u8(pages.state), pages.view_i64(pages.pfn), pages.view_u8(pages.flags)
    ept = pages.view_u64(pages.ept).astype(np.int64)
    mapped = ept != 0
    usable = np.isin(state, (PageState.RESIDENT, PageState.EVICTING, PageState.CACHED))
    assert usable[mapped].all(), "the EPT maps a page that is not in memory"
    assert (ept[mapped] >> PAGE_SHIFT == pfn[mapped]).all(), "the EPT maps another frame than the page's"
    assert (flags[(ept & EPT_WRITE) != 0] & DIRTY).all(), "a clean page is writable in the EPT"


def _check_damage(mm: Mm) -> None:
    pages, damage = mm.pages, mm.damage
    for key in damage.pages:
        state = PageState(pages.state[key])
        assert state in (PageState.READING, PageState.CACHED), f"page {key} is {state.name}, and not uptodate"
        assert pages.slot[key] >= 0 and not pages.flags[key] & DIRTY, f"page {key} is not uptodate, and nowhere else"
        assert not pages.ept[key], f"page {key} is mapped, and not uptodate"
    assert all(mm.swap.is_used(slot) and not mm.swap.is_zero(slot) for slot in damage.slots), "a damaged slot is free"
    assert all(pages.flags[key] & WRITING for key in mm.page_io.write_failed), (
        "a write that will fail is not under way"
    )


def _check_agenda(mm: Mm) -> None:
    pages = mm.pages
    state, flags = pages.view_u8(pages.state), pages.view_u8(pages.flags)
    kinds = [what for _at, _order, what, _key, _vm, _write in mm.agenda]
    unpinned = kinds.count(Own.READ_DONE) + kinds.count(Own.KSWAPD)
    assert kinds.count(Own.KSWAPD) == (mm.vmscan.kswapd_ns is not None), "kswapd runs twice, or has been forgotten"
    assert len(kinds) - unpinned == sum(pages.pins), "pins and events under way differ"
    assert sorted(mm.reads) == np.flatnonzero(state == PageState.READING).tolist(), "reads and READING pages differ"
    writing = np.flatnonzero((flags & WRITING) != 0)
    assert len(writing) == kinds.count(Own.WRITE_DONE), "writes under way and WRITING pages differ"
    assert (flags[state == PageState.WRITEBACK] & WRITING).all(), "a page in WRITEBACK is not being written"
