"""The host's frames: which are free, who owns the others, and which were used since they were last looked at.

Free frames are handed out oldest first, so that the real write of a frame's old bytes has had time to return. The
pool holds every group's limit plus a reserve; the reserve carries pages that are uncharged but still in a frame
(being evicted, being written). ``young`` is the accessed bit as reclaim sees it: set at borders from the closed
windows' accessed bytes, cleared by the scan that reads it (mm/rmap.c:folio_referenced).
"""

from __future__ import annotations

from array import array
from collections import deque

import numpy as np

from hostd.core.events import Pfns

FEW = 256
"""Up to so many numbers a plain loop beats numpy, whose code is not in the cache when a border comes."""


class Frames:
    """``total`` frames, numbered from 0. ``owner[pfn]`` is the key of the page in it, -1 if free."""

    __slots__ = ("_young", "free", "owner", "total", "young")

    def __init__(self, total: int) -> None:
        self.total = total
        self.free: deque[int] = deque(range(total))
        self.owner = array("q", [-1]) * total
        self.young = bytearray(total)
        self._young = np.frombuffer(self.young, dtype=np.uint8)

    def take(self, key: int) -> int:
        """A free frame for page ``key``; there must be one."""
        pfn = self.free.popleft()
        self.owner[pfn] = key
        self.young[pfn] = 0
        return pfn

    def take_many(self, first_key: int, count: int) -> list[int]:
        """Frames for pages ``first_key`` to ``first_key + count - 1``, in that order."""
        return [self.take(key) for key in range(first_key, first_key + count)]

    def release(self, pfn: int) -> None:
        """Give ``pfn`` back; it must be owned."""
        assert self.owner[pfn] >= 0, f"frame {pfn} released twice"
        self.owner[pfn] = -1
        self.free.append(pfn)

    def mark_young(self, accessed: Pfns) -> None:
        """Note that the frames ``accessed`` were used."""
        if len(accessed) <= FEW:
            young = self.young
            for pfn in accessed:
                young[pfn] = 1
        else:
            self._young[np.asarray(accessed, dtype=np.int64)] = 1
