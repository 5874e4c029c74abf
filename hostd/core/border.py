"""What happens between two windows, when no vCPU runs and no TLB holds anything.

1. The closed windows' accessed bytes make frames young; their dirty bytes make pages dirty.
2. Every page that reclaim picked since the last border leaves the EPT. If its slot holds its bytes, it is dropped and
   its frame is free at once (pageout -> PAGE_CLEAN); else its write is submitted, and when that is done it is clean in
   the swap cache (mm/vmscan.c:shrink_folio_list, pageout). A page of zeros is not written (mm/page_io.c:swap_writeout).
3. Mappings made since the last border, if still there, are published in the EPT.

A page mapped read-only cannot be written without a fault, so a fault has told the core of every write before dirty
bytes do; they are kept as a second, independent witness: a byte too many only costs a write.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from apf.hostmem import ept_entry
from apf.messages import PAGE_SHIFT
from hostd.core.events import BorderReached, HostEffect, Pfns, RewriteEpt, WriteSlot, WriteSlots
from hostd.core.frames import FEW
from hostd.core.io_faults import IoResult
from hostd.core.mm import Mm
from hostd.core.page import (
    CACHED,
    DIRTY,
    DROPPED,
    EVICTING,
    RESIDENT,
    WRITE_SUBMITTED,
    PageState,
)

_MAPPABLE = np.array([state in (RESIDENT, EVICTING, CACHED) for state in PageState])
_ARE_MAPPABLE: list[bool] = _MAPPABLE.tolist()
_OK, _ERROR = IoResult.OK, IoResult.ERROR
_READ_ONLY, _WRITABLE = ept_entry(0, False), ept_entry(0, True)
_SETTLE_EVERY = 64

Entries = defaultdict[int, dict[int, int]]
"""What a border changes in the EPTs: by VM, the new entries by gfn."""


class Border:
    """Carries out the work of borders."""

    __slots__ = ("_flags", "_mm", "_owner", "_state", "_wants_use")

    def __init__(self, mm: Mm) -> None:
        self._mm = mm
        self._state = mm.pages.view_u8(mm.pages.state)
        self._flags = mm.pages.view_u8(mm.pages.flags)
        self._wants_use = any(group.lists.wants_use for group in mm.groups)
        self._owner = np.frombuffer(mm.frames.owner, dtype=np.int64)

    def step(self, event: BorderReached, now_ns: int) -> list[HostEffect]:
        """Do a border's work at time ``now_ns``."""
        mm, accessed, dirty = self._mm, event.accessed, event.dirty
        mm.frames.mark_young(accessed)
        if self._wants_use:
            self._note_use(accessed)
        if len(dirty):
            self._mark_dirty(dirty, now_ns)
        mm.host_stat["border"] = borders = mm.host_stat["border"] + 1
        mm.journal.record((now_ns, "border", len(accessed), len(dirty), len(mm.evicting), len(mm.publish)))
        effects: list[HostEffect] = []
        entries: Entries = defaultdict(dict)
        if mm.evicting:
            self._evict(event.zero, entries, effects, now_ns)
        if mm.publish:
            self._publish(entries)
        for vm, changed in entries.items():
            effects.append(RewriteEpt(vm, changed))
        if not borders % _SETTLE_EVERY:
            mm.settle_figures(now_ns)
        mm.journal.settle()
        return effects

    def _mark_dirty(self, dirty: Pfns, now_ns: int) -> None:
        if len(dirty) <= FEW:
            owner, state, flags = self._mm.frames.owner, self._mm.pages.state, self._mm.pages.flags
            for pfn in dirty:
                key = owner[pfn]
                assert key >= 0 and _ARE_MAPPABLE[state[key]], _unmapped(now_ns, dirty)
                flags[key] |= DIRTY
        else:
            owners = self._owner[np.asarray(dirty, dtype=np.int64)]
            assert owners.min() >= 0 and _MAPPABLE[self._state[owners]].all(), _unmapped(now_ns, dirty)
            self._flags[owners] |= DIRTY

    def _note_use(self, accessed: Pfns) -> None:
        """Tell the groups' policies which of their pages were used, in the order of frames."""
        mm, used = self._mm, [self._mm.frames.owner[pfn] for pfn in accessed]
        for vm, group in enumerate(mm.groups):
            first, end = mm.pages.bounds[vm]
            group.lists.used([key for key in used if first <= key < end])

    def _evict(self, zeros: Sequence[int], entries: Entries, effects: list[HostEffect], now_ns: int) -> None:
        mm, pages = self._mm, self._mm.pages
        zero = frozenset(zeros)
        pairs: list[int] = []
        gone_wrong: list[HostEffect] = []
        ept, pfns, flags, slots, young = pages.ept, pages.pfn, pages.flags, pages.slot, mm.frames.young
        first_key, submit_write = pages.first_key, mm.page_io.submit_write
        pages.move_all([key for key in mm.evicting if flags[key] & DIRTY], WRITE_SUBMITTED, now_ns)
        for key, vm in mm.evicting.items():
            pfn = pfns[key]
            if ept[key]:
                ept[key] = 0
                entries[vm][key - first_key[vm]] = 0
            young[pfn] = 0
            if not flags[key] & DIRTY:
                self._drop(key, vm, now_ns)
            elif pfn in zero and mm.swapping[vm]:
                mm.page_io.write_zeros(key, vm, now_ns)
            else:
                result = submit_write(key, vm, now_ns)
                if result is _OK:
                    pairs += (slots[key], pfn)
                elif result is not _ERROR:
                    gone_wrong.append(WriteSlot(slots[key], pfn, result))
        mm.evicting.clear()
        mm.vmscan.for_kswapd.clear()
        if pairs:
            effects.append(WriteSlots(pairs))
        effects += gone_wrong

    def _drop(self, key: int, vm: int, now_ns: int) -> None:
        """A page whose slot holds its bytes (pageout -> PAGE_CLEAN)."""
        mm, pages, group = self._mm, self._mm.pages, self._mm.groups[vm]
        pages.move(key, DROPPED, now_ns)
        mm.journal.record((now_ns, "drop", vm, key - pages.first_key[vm], pages.slot[key], pages.pfn[key]))
        mm.forget_frames((key,), group)
        group.stat["swap_dropped_clean"] += 1
        group.stat["pgsteal_kswapd" if key in mm.vmscan.for_kswapd else "pgsteal_direct"] += 1

    def _publish(self, entries: Entries) -> None:
        mm, pages = self._mm, self._mm.pages
        state, ept, pfns, flags, first_key = pages.state, pages.ept, pages.pfn, pages.flags, pages.first_key
        for key, vm in mm.publish.items():
            if state[key] == RESIDENT:
                entry = pfns[key] << PAGE_SHIFT | (_WRITABLE if flags[key] & DIRTY else _READ_ONLY)
                if ept[key] != entry:
                    ept[key] = entries[vm][key - first_key[vm]] = entry
        mm.publish.clear()


def _unmapped(now_ns: int, dirty: Pfns) -> str:
    return f"{now_ns}: a vCPU wrote to a frame that is not mapped anywhere: {dirty}"
