"""Swap slots: which are in use.

Follows mm/swapfile.c in that slots are handed out in ascending order from where the last one was, so that pages which
leave together lie together; departure: no clusters, a plain next fit that wraps. A page has at most one slot and the
area has at least one for every guest page, so it never runs full.
"""

from __future__ import annotations


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

    def allocate_run(self, count: int) -> int:
        """``count`` adjacent slots from the cursor on, which must be free; returns the first."""
        first = self._cursor
        assert first + count <= self.total and self._used.find(1, first, first + count) < 0, "no such run of slots"
        self._used[first : first + count] = b"\1" * count
        self._cursor = first + count
        self.in_use += count
        return first

    def free(self, slot: int) -> None:
        """Give ``slot`` back; it must be in use."""
        assert self._used[slot], f"slot {slot} freed twice"
        self._used[slot] = 0
        self.in_use -= 1

    def is_used(self, slot: int) -> bool:
        """Whether ``slot`` is in use."""
        return bool(self._used[slot])
