"""Swap slots: which are in use and for which page, and which stand for a page of zeros.

Follows mm/swapfile.c in that slots are handed out in ascending order from where the last one was, so that pages which
leave together lie together; departure: no clusters, a plain next fit that wraps. A page of zeros keeps its slot, but is
neither written nor read (the zeromap of mm/page_io.c:swap_writeout). When more than half of the area is in use
(vm_swap_full), a page that comes back gives its slot up even if it is only read (mm/memory.c:should_try_to_free_swap).

Numbers from ``total`` on are no slots but places for good, one for each guest page of the host: where its bytes lie in a
file that the VM has mapped, or in the snapshot it is restored from (``hostd.core.backing``).
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

NO_SLOT = -1


class SwapArea:
    """``total`` slots, numbered from 0, and behind them ``places``."""

    __slots__ = ("_cursor", "_page", "_used", "in_use", "total", "zero")

    def __init__(self, total: int, places: int = 0) -> None:
        self.total = total
        self.in_use = 0
        self._used = bytearray(total)
        self._page = array("q", [-1]) * total
        self.zero = bytearray(total + places)
        """Which numbers stand for a page of zeros; not 0: that one does."""
        self._cursor = 0

    @property
    def is_full(self) -> bool:
        """Whether slots are so scarce that pages in memory should not keep theirs (vm_swap_full)."""
        return 2 * self.in_use > self.total

    def allocate(self, key: int) -> int:
        """The next free slot, for page ``key``; NO_SLOT if there is none."""
        used = self._used
        slot = used.find(0, self._cursor)
        if slot < 0:
            slot = used.find(0)
            if slot < 0:
                return NO_SLOT
        used[slot] = 1
        self._page[slot] = key
        self._cursor = slot + 1
        self.in_use += 1
        return slot

    def allocate_many(self, first_key: int, count: int) -> npt.NDArray[np.int64]:
        """The next ``count`` free slots, as ``allocate`` would give them to pages in order; there must be so many."""
        free = np.flatnonzero(np.frombuffer(self._used, dtype=np.uint8) == 0)
        assert len(free) >= count, f"{count} slots wanted, {len(free)} are free"
        slots = np.roll(free, -int(np.searchsorted(free, self._cursor)))[:count].astype(np.int64)
        np.frombuffer(self._used, dtype=np.uint8)[slots] = 1
        np.frombuffer(self._page, dtype=np.int64)[slots] = np.arange(first_key, first_key + count)
        if count:
            self._cursor = int(slots[-1]) + 1
        self.in_use += count
        return slots

    def free(self, slot: int) -> None:
        """Give ``slot`` back; it must be in use."""
        assert self._used[slot], f"slot {slot} freed twice"
        self._used[slot] = 0
        self._page[slot] = -1
        self.zero[slot] = 0
        self.in_use -= 1

    def page_in(self, slot: int) -> int:
        """The page whose slot that is, -1 if nobody's."""
        return self._page[slot]

    def set_zero(self, slot: int, zero: bool) -> None:
        """Note whether ``slot`` stands for a page of zeros."""
        self.zero[slot] = zero

    def set_zeros(self, first: int, count: int, zero: bool) -> None:
        """``set_zero`` of ``count`` numbers from ``first`` on."""
        np.frombuffer(self.zero, dtype=np.uint8)[first : first + count] = zero

    def is_zero(self, slot: int) -> bool:
        """Whether ``slot`` stands for a page of zeros."""
        return bool(self.zero[slot])

    def are_zero(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """``is_zero`` of many; False for numbers below 0."""
        zero: npt.NDArray[np.bool_] = np.frombuffer(self.zero, dtype=np.bool_)[slots]
        return zero & (slots >= 0)

    def is_used(self, slot: int) -> bool:
        """Whether ``slot`` is in use; a page's own place always is."""
        return slot >= self.total or bool(self._used[slot])
