"""The life of an anonymous guest page in the host: its state, frame, slot and flags.

NONE      never touched: no frame, no slot
RESIDENT  in a frame and mapped by the host; mapped in the EPT too once a border published it
EVICTING  picked by reclaim and uncharged, but usable by all until the border
WRITEBACK out of the EPT, in the swap cache, being written to its slot; uncharged
CACHED    in a frame with the right bytes, unlocked, but not mapped by the host (the swap cache)
READING   in a frame that is locked until the read from its slot completes
SWAPPED   in its slot only

Follows mm/vmscan.c:shrink_folio_list and mm/memory.c:do_swap_page. Swap-out takes two phases: a page picked dirty is
written, and is then clean in the swap cache, first in line for the next scan, which frees it; a fault before that finds
it there. Departures: the kernel unmaps a page as soon as it is picked, here EVICTING lasts until the border, since no
other vCPU may lose a mapping within a window. The kernel charges a page until it is freed, and whoever charges waits
for writes; here a page is uncharged when it is picked, and charged again when its write is done, if there is room for it
in the group; if there is none, somebody was given its charge meanwhile, and it is freed at once. One whose write failed
cannot be: if there is no room for it, it is written again at the next border (WRITE_PUT_OFF). A page that the
fault-in worker is about to map is CACHED also if it is a zero page and never was in swap.

``pins`` counts who still needs the page where it is: each Mapped reply until its time, each work item until its
get_user_pages is over, and a running write. Reclaim passes over pinned pages, as over raised reference counts.
A page is dirty (``DIRTY``) if its slot does not hold its bytes; a page without a slot always is, if it has a frame.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from apf.rules import Rule, Table

STORY_LENGTH = 1024


class PageState(IntEnum):
    """Where a guest page is."""

    NONE = 0
    RESIDENT = 1
    EVICTING = 2
    WRITEBACK = 3
    CACHED = 4
    READING = 5
    SWAPPED = 6


class PageEvent(IntEnum):
    """What happens to a guest page."""

    ZERO_FILLED = 0
    ZERO_FILLED_BY_WORKER = 1
    MAPPED = 2
    FOUND_BY_WORKER = 3
    PICKED = 4
    WRITE_SUBMITTED = 5
    DROPPED = 6
    WRITE_DONE = 7
    RELEASED = 8
    READ_SUBMITTED = 9
    READ_DONE = 10
    FREED = 11
    READ_FAILED = 12
    WRITE_FAILED = 13
    WRITE_PUT_OFF = 14


_S, _E = PageState, PageEvent
_ZAP = "mm/memory.c:zap_pte_range"
TABLE: Table[PageState, PageEvent] = Table(
    "guest page",
    Rule(_S.NONE, _E.ZERO_FILLED, _S.RESIDENT, "mm/memory.c:do_anonymous_page"),
    Rule(_S.NONE, _E.ZERO_FILLED_BY_WORKER, _S.CACHED, "mm/memory.c:do_anonymous_page"),
    Rule(_S.RESIDENT, _E.PICKED, _S.EVICTING, "mm/vmscan.c:shrink_folio_list, mm/rmap.c:try_to_unmap"),
    # Its VM has left: at once, or as soon as no I/O or worker has the page any more.
    Rule(_S.RESIDENT, _E.FREED, _S.NONE, _ZAP),
    Rule(_S.EVICTING, _E.MAPPED, _S.RESIDENT, "mm/memory.c:do_swap_page (a swap-cache hit)"),
    Rule(_S.EVICTING, _E.FOUND_BY_WORKER, _S.CACHED, "mm/memory.c:do_swap_page (a swap-cache hit)"),
    Rule(_S.EVICTING, _E.WRITE_SUBMITTED, _S.WRITEBACK, "mm/vmscan.c:pageout, mm/page_io.c:swap_writeout"),
    Rule(_S.EVICTING, _E.DROPPED, _S.SWAPPED, "mm/vmscan.c:__remove_mapping (PAGE_CLEAN)"),
    Rule(_S.WRITEBACK, _E.MAPPED, _S.RESIDENT, "mm/memory.c:do_swap_page (a swap-cache hit)"),
    Rule(_S.WRITEBACK, _E.FOUND_BY_WORKER, _S.CACHED, "mm/memory.c:do_swap_page (a swap-cache hit)"),
    Rule(
        _S.WRITEBACK, _E.WRITE_DONE, _S.CACHED, "mm/page_io.c:end_swap_bio_write, mm/swap.c:folio_rotate_reclaimable"
    ),
    # Dirty again, and kept; the next scan that finds it has it written again.
    Rule(_S.WRITEBACK, _E.WRITE_FAILED, _S.CACHED, "mm/page_io.c:end_swap_bio_write (bi_status)"),
    Rule(_S.WRITEBACK, _E.WRITE_PUT_OFF, _S.EVICTING, "mm/page_io.c:end_swap_bio_write (bi_status)"),
    Rule(_S.CACHED, _E.MAPPED, _S.RESIDENT, "mm/memory.c:do_swap_page"),
    Rule(_S.CACHED, _E.PICKED, _S.EVICTING, "mm/vmscan.c:shrink_folio_list (dirty again)"),
    Rule(_S.CACHED, _E.RELEASED, _S.SWAPPED, "mm/vmscan.c:__remove_mapping"),
    Rule(_S.CACHED, _E.FREED, _S.NONE, _ZAP),
    Rule(_S.READING, _E.READ_DONE, _S.CACHED, "mm/page_io.c:__end_swap_bio_read"),
    # Not uptodate; see ``damage``.
    Rule(_S.READING, _E.READ_FAILED, _S.CACHED, "mm/page_io.c:__end_swap_bio_read (bi_status)"),
    Rule(
        _S.SWAPPED,
        _E.READ_SUBMITTED,
        _S.READING,
        "mm/swap_state.c:__read_swap_cache_async, mm/page_io.c:swap_read_folio",
    ),
    Rule(_S.SWAPPED, _E.FREED, _S.NONE, _ZAP),
)

# What faults use, bound once and as plain integers: on Python 3.11 looking up a member on its class costs 0.06 us, and
# comparing with one half as much again as with an integer. A fault has some 40 of them.
NONE, RESIDENT, EVICTING, WRITEBACK, CACHED, READING, SWAPPED = map(int, PageState)
ZERO_FILLED, ZERO_FILLED_BY_WORKER, MAPPED, FOUND_BY_WORKER, PICKED, WRITE_SUBMITTED, DROPPED = map(
    int, tuple(PageEvent)[:7]
)
WRITE_DONE, RELEASED, READ_SUBMITTED, READ_DONE, FREED, READ_FAILED, WRITE_FAILED, WRITE_PUT_OFF = map(
    int, tuple(PageEvent)[7:]
)

CHARGED = (RESIDENT, CACHED, READING)
FRAMED = (*CHARGED, EVICTING, WRITEBACK)

DIRTY = 1
REFERENCED = 2
ACTIVE = 4
LRU = 8
WRITING = 16
WORKINGSET = 32
READAHEAD = 64
"""Read ahead of any fault, and not used yet (PG_readahead)."""

_ILLEGAL = 256
"""No byte, so it cannot be stored as a state."""
_NEXT = tuple([_ILLEGAL] * len(PageState) for _ in PageEvent)
"""``TABLE`` by event and state."""
for (_state, _event), _next in TABLE.transitions.items():
    _NEXT[_event][_state] = _next


class Pages:
    """All guest pages of a host as parallel arrays, indexed by ``key`` = first key of the VM + gfn.

    ``bounds`` are the keys of each VM's first page, and behind its last one.

    ``slot`` and ``pfn`` are -1 where there is none; ``ept`` is the shadow copy of the EPT entry, 0 if not present;
    ``shadow`` is what an evicted page left behind (``hostd.core.workingset``), -1 if none.
    """

    __slots__ = ("_past", "bounds", "ept", "first_key", "flags", "pfn", "pins", "shadow", "slot", "state", "total")

    def __init__(self, guest_pages: tuple[int, ...]) -> None:
        self.first_key: list[int] = []
        self.total = 0
        self.bounds: list[tuple[int, int]] = []
        for pages in guest_pages:
            self.first_key.append(self.total)
            self.bounds.append((self.total, self.total + pages))
            self.total += pages
        self.state = bytearray(self.total)
        self.flags = bytearray(self.total)
        self.pfn = array("q", [-1]) * self.total
        self.slot = array("q", [-1]) * self.total
        self.shadow = array("q", [-1]) * self.total
        self.pins = array("i", [0]) * self.total
        self.ept = array("Q", [0]) * self.total
        self._past: deque[tuple[int, int, int, int]] = deque(maxlen=STORY_LENGTH)

    def move(self, key: int, event: int, now_ns: int) -> None:
        """Take page ``key`` to the state ``event`` leads to; AssertionError with its story if there is none."""
        states = self.state
        state = states[key]
        try:
            states[key] = _NEXT[event][state]
        except ValueError:
            raise self._illegal(key, event) from None
        if __debug__:  # for whoever looks for the reason of a failed assertion
            self._past.append((now_ns, key, event, state))

    def move_all(self, keys: Iterable[int], event: int, now_ns: int) -> None:
        """``move`` each of them."""
        states, after = self.state, _NEXT[event]
        for key in keys:
            state = states[key]
            try:
                states[key] = after[state]
            except ValueError:
                raise self._illegal(key, event) from None
            if __debug__:
                self._past.append((now_ns, key, event, state))

    def _illegal(self, key: int, event: int) -> AssertionError:
        state = PageState(self.state[key])
        return AssertionError(f"page {key}: {PageEvent(event).name} in state {state.name}\n{self.story(key)}")

    def story(self, key: int) -> str:
        """What happened to page ``key`` lately, a line each."""
        return "\n".join(
            f"{at_ns} {PageState(state).name} {PageEvent(event).name}"
            for at_ns, page, event, state in self._past
            if page == key
        )

    def view_u8(self, column: bytearray) -> npt.NDArray[np.uint8]:
        """A numpy view of ``state`` or ``flags``."""
        return np.frombuffer(column, dtype=np.uint8)

    def view_i64(self, column: array[int]) -> npt.NDArray[np.int64]:
        """A numpy view of ``pfn`` or ``slot``."""
        return np.frombuffer(column, dtype=np.int64)

    def view_u64(self, column: array[int]) -> npt.NDArray[np.uint64]:
        """A numpy view of ``ept``."""
        return np.frombuffer(column, dtype=np.uint64)
