"""The swap file: real bytes in a real file, a page a slot. What the device costs is the core's business.

Reads and writes are synchronous, so rules (1) to (3) of ``hostd.core.events`` hold by themselves: the bytes have moved
when the call returns. They go through the page cache; not so those of a ``direct`` file, if its file system allows it.
Every slot has checksums (``hostd.checksums``), which every read looks at.
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apf.messages import PAGE_SIZE
from hostd.checksums import FIRST, HALF, NEITHER, Checksums, read_page, write_pages

Frames = npt.NDArray[np.uint8]


class SwapFile:
    """The file at ``path``, made with ``slots`` slots of zeros, which take up room as they are written.

    ``direct``: single pages pass by the page cache; they must lie at multiples of the page size, as frames do. Whether
    that works is in ``is_direct``.
    """

    def __init__(self, path: Path, slots: int, *, direct: bool = False) -> None:
        self.path = path
        self._checksums = Checksums(slots)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, slots * PAGE_SIZE)
        self._page_fd = self._open_direct() if direct else self._fd
        self._read_page = partial(read_page, self._page_fd, *self._checksums.where)
        self._write_pages = partial(write_pages, self._page_fd, *self._checksums.where)

    def _open_direct(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # open(2): the file system does not support O_DIRECT
                raise
            return self._fd

    @property
    def is_direct(self) -> bool:
        """Whether single pages pass by the page cache."""
        return self._page_fd != self._fd

    def read(self, slot: int, frame: Frames) -> str:
        """Fill ``frame`` (one page) from ``slot``; says what is wrong with it, empty if it is what was written last."""
        return self.read_to(slot, frame.ctypes.data)

    def read_to(self, slot: int, address: int) -> str:
        """The same for the frame at ``address``: the file's bytes and their checksums in one native call."""
        wrong = self._read_page(slot, address)
        if wrong < 0:
            done = len(os.pread(self._fd, PAGE_SIZE, slot * PAGE_SIZE))  # which says why
            raise OSError(f"{self.path}: slot {slot}: read {done} of {PAGE_SIZE} bytes")
        return self._checksums.describe(slot, wrong) if wrong else ""

    def write(self, slot: int, frame: Frames) -> None:
        """Store ``frame`` (one page) in ``slot``."""
        self.write_from(slot, frame.ctypes.data)

    def write_from(self, slot: int, address: int) -> None:
        """The same for the frame at ``address``."""
        self.write_all([slot, 0], address)

    def write_all(self, pairs: list[int], frames_at: int) -> None:
        """The same for many: slot, frame, slot, frame ..., of the frames at ``frames_at``.

        Natively, and consecutive slots at once.
        """
        table = array("q", pairs)
        first = self._write_pages(table.buffer_info()[0], len(pairs) // 2, frames_at)
        if first >= 0:
            address = frames_at + pairs[2 * pairs[::2].index(first) + 1] * PAGE_SIZE
            done = os.pwrite(self._fd, ctypes.string_at(address, PAGE_SIZE), first * PAGE_SIZE)  # which says why
            raise OSError(f"{self.path}: slots from {first}: not written whole, and {done} bytes when tried again")

    def tear(self, slot: int, frame: Frames) -> None:
        """A write of ``frame`` to ``slot`` of which only the first half gets there."""
        done = os.pwrite(self._fd, frame.data[:HALF], slot * PAGE_SIZE)
        if done != HALF:
            raise OSError(f"{self.path}: slot {slot}: wrote {done} of {HALF} bytes")
        self._checksums.written(slot, frame, FIRST)

    def lose(self, slot: int, frame: Frames) -> None:
        """A write of ``frame`` to ``slot`` of which nothing gets there."""
        self._checksums.written(slot, frame, NEITHER)

    def write_run(self, slot: int, pages: Frames) -> None:
        """Store consecutive pages, shape (n, 4096), from ``slot`` on."""
        pages = np.ascontiguousarray(pages)
        data = pages.data.cast("B")
        offset = slot * PAGE_SIZE
        while data:
            done = os.pwrite(self._fd, data, offset)
            data, offset = data[done:], offset + done
        self._checksums.run_written(slot, pages)

    def settle(self) -> None:
        """Have what ``write_run`` wrote on the device, and of a direct file nowhere else."""
        if self.is_direct:
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_many(self, slots: npt.NDArray[np.int64]) -> tuple[Frames, npt.NDArray[np.bool_]]:
        """The pages in ``slots``, shape (n, 4096), and which of them are wrong; runs of consecutive slots at once."""
        pages = np.empty((len(slots), PAGE_SIZE), np.uint8)
        breaks = np.flatnonzero(np.diff(slots) != 1) + 1
        for run in np.split(np.arange(len(slots)), breaks):
            if len(run):
                target = pages[run[0] : run[-1] + 1]
                done = os.preadv(self._fd, [target.data], int(slots[run[0]]) * PAGE_SIZE)
                if done != target.nbytes:
                    raise OSError(f"{self.path}: slots from {slots[run[0]]}: read {done} of {target.nbytes} bytes")
        return pages, self._checksums.find_wrong(slots, pages)

    def told(self) -> list[str]:
        """What a user should know of how its I/O was done."""
        return []

    def close(self) -> None:
        """Close the file; whoever made its directory removes it."""
        if self.is_direct:
            os.close(self._page_fd)
        os.close(self._fd)
