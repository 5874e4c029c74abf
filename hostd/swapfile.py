"""The swap file: real bytes in a real file, a page a slot. What the device costs is the core's business, not this one's.

Reads and writes are synchronous and go through the page cache, so rules (1) to (3) of ``hostd.core.events`` hold by
themselves: the bytes have moved when the call returns.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apf.messages import PAGE_SIZE

Frames = npt.NDArray[np.uint8]
_BATCH_SLOTS = 4096


class SwapFile:
    """The file at ``path``, made empty; it grows as slots are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def read(self, slot: int, frame: Frames) -> None:
        """Fill ``frame`` (one page) from ``slot``."""
        done = os.preadv(self._fd, [frame.data], slot * PAGE_SIZE)
        if done != PAGE_SIZE:
            raise OSError(f"{self.path}: slot {slot}: read {done} of {PAGE_SIZE} bytes")

    def write(self, slot: int, frame: Frames) -> None:
        """Store ``frame`` (one page) in ``slot``."""
        done = os.pwritev(self._fd, [frame.data], slot * PAGE_SIZE)
        if done != PAGE_SIZE:
            raise OSError(f"{self.path}: slot {slot}: wrote {done} of {PAGE_SIZE} bytes")

    def write_run(self, slot: int, pages: Frames) -> None:
        """Store consecutive pages, shape (n, 4096), from ``slot`` on."""
        data = np.ascontiguousarray(pages).data.cast("B")
        offset = slot * PAGE_SIZE
        while data:
            done = os.pwrite(self._fd, data, offset)
            data, offset = data[done:], offset + done

    def read_many(self, slots: npt.NDArray[np.int64]) -> Frames:
        """The pages in ``slots``, shape (n, 4096); runs of consecutive slots are read at once."""
        pages = np.empty((len(slots), PAGE_SIZE), np.uint8)
        breaks = np.flatnonzero(np.diff(slots) != 1) + 1
        for run in np.split(np.arange(len(slots)), breaks):
            if len(run):
                target = pages[run[0] : run[-1] + 1]
                done = os.preadv(self._fd, [target.data], int(slots[run[0]]) * PAGE_SIZE)
                if done != target.nbytes:
                    raise OSError(f"{self.path}: slots from {slots[run[0]]}: read {done} of {target.nbytes} bytes")
        return pages

    def close(self) -> None:
        """Close the file; whoever made its directory removes it."""
        os.close(self._fd)
