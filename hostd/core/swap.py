"""Swap slots: which are in use.

Follows mm/swapfile.c in that slots are handed out in ascending order from where the last one was, so that pages which
leave together lie together; departure: no clusters, a plain next fit that wraps. A page has at most one slot and the
area has at least one for every guest page, so it never runs full.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class SwapArea:
    """``total`` slots, numbered from 0."""

    __slots__ = ("_cursor", "_used", "in_use", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.in_use = 0
        self._used = bytearray(total)
        self._cursor = 0

    def allocate(self) -> int:
        """The next free slot."""
        slot = self._used.find(0, self._cursor)
        if slot < 0:
            slot = self._used.find(0)
        assert slot >= 0, "swap area full, though it has a slot for every page"
        self._used[slot] = 1
        self._cursor = slot + 1
        self.in_use += 1
        return slot

    def allocate_many(self, count: int) -> npt.NDArray[np.int64]:
        """The next ``count`` free slots, in the order in which ``allocate`` would give them."""
        free = np.flatnonzero(np.frombuffer(self._used, dtype=np.uint8) == 0)
        assert len(free) >= count, "swap area full, though it has a slot for every page"
        slots = np.roll(free, -int(np.searchsorted(free, self._cursor)))[:count].astype(np.int64)
        np.frombuffer(self._used, dtype=np.uint8)[slots] = 1
        if count:
            self._cursor = int(slots[-1]) + 1
        self.in_use += count
        return slots

    def free(self, slot: int) -> None:
        """Give ``slot`` back; it must be in use."""
        assert self._used[slot], f"slot {slot} freed twice"
        self._used[slot] = 0
        self.in_use -= 1

    def is_used(self, slot: int) -> bool:
        """Whether ``slot`` is in use."""
        return bool(self._used[slot])
