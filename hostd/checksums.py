"""What belongs to every slot of the swap file besides its bytes: a checksum a half, and of which write it is.

As on a device formatted with protection information (T10 DIF, NVMe PI) the checksums lie beside the bytes and are
written with them: a torn write leaves one half's old, a lost write both, even if the bytes happen to be the same. The
host remembers which write of a slot was its last. So a read tells which half of a page is not of that write, nor of
another slot.

The checksum is 64 bits: four lanes of multiply and xor-shift. A change within 64 bits that are aligned is found for
sure, any other with all but 2**-64. A page takes 1.7 us, of which a third is the way there; zlib.crc32 takes 1.6.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import carray, njit

from apf.messages import PAGE_SIZE
from apf.native import pointer_u64, read_fd_at, write_fd_vector

HALF = PAGE_SIZE // 2
_WORDS = HALF // 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_VECTOR_MAX = 64
"""Pages written at once."""
BOTH, FIRST, NEITHER = 0b11, 0b01, 0b00
"""Halves of a page: which of them a write reaches, or are wrong."""

Words = npt.NDArray[np.uint64]


@njit("uint64(uint64[::1], int64)", cache=True, nogil=True)
def _sum(words: Words, first: int) -> np.uint64:
    """Of one half, which begins at word ``first``."""
    a, b, c, d = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    for at in range(first, first + _WORDS, 4):
        a = (a ^ words[at]) * _MULTIPLIER
        b = (b ^ words[at + 1]) * _MULTIPLIER
        c = (c ^ words[at + 2]) * _MULTIPLIER
        d = (d ^ words[at + 3]) * _MULTIPLIER
        a ^= a >> _SHIFT
        b ^= b >> _SHIFT
        c ^= c >> _SHIFT
        d ^= d >> _SHIFT
    return np.uint64((((a * _MULTIPLIER ^ b) * _MULTIPLIER ^ c) * _MULTIPLIER ^ d) * _MULTIPLIER)


@njit("uint64(uint64[::1], int64)", cache=True, nogil=True)
def _tag(writes: Words, slot: int) -> np.uint64:
    """Of the last write of a slot, so that those of another write, or of another slot, are not right here."""
    return np.uint64(((np.uint64(slot) << _SHIFT) + writes[slot]) * _MULTIPLIER)


@njit("void(uint64[::1], uint64[:, ::1], uint64[::1], int64, int64)", cache=True, nogil=True)
def _written(words: Words, sums: Words, writes: Words, slot: int, halves: int) -> None:
    writes[slot] += np.uint64(1)
    for half in range(2):
        if halves >> half & 1:
            sums[slot, half] = _sum(words, half * _WORDS) + _tag(writes, slot)


@njit("int64(uint64[::1], uint64[:, ::1], uint64[::1], int64)", cache=True, nogil=True)
def _wrong(words: Words, sums: Words, writes: Words, slot: int) -> int:
    wrong = 0
    for half in range(2):
        if sums[slot, half] != _sum(words, half * _WORDS) + _tag(writes, slot):
            wrong |= 1 << half
    return wrong


@njit("void(uint64[:, ::1], uint64[:, ::1], uint64[::1], int64)", cache=True, nogil=True)
def _run_written(pages: Words, sums: Words, writes: Words, slot: int) -> None:
    for row in range(len(pages)):
        _written(pages[row], sums, writes, slot + row, 3)


@njit("void(uint64[:, ::1], uint64[:, ::1], uint64[::1], int64[::1], boolean[::1])", cache=True, nogil=True)
def _find_wrong(
    pages: Words, sums: Words, writes: Words, slots: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_]
) -> None:
    for row in range(len(pages)):
        wrong[row] = _wrong(pages[row], sums, writes, slots[row]) != 0


# Of the two below the checksums come as addresses and slots, for an array costs half a microsecond to hand over, and
# before the rest, for they are always the same.


@njit("int64(int64, int64, int64, int64, int64, int64)", cache=True, nogil=True)
def read_page(descriptor: int, sums_at: int, writes_at: int, slots: int, slot: int, address: int) -> int:
    """Read ``slot`` to ``address``: which halves are wrong; -1 if not a whole page came."""
    if read_fd_at(descriptor, address, PAGE_SIZE, slot * PAGE_SIZE) != PAGE_SIZE:
        return -1
    sums, writes = carray(pointer_u64(sums_at), (slots, 2)), carray(pointer_u64(writes_at), slots)
    wrong: int = _wrong(carray(pointer_u64(address), 2 * _WORDS), sums, writes, slot)
    return wrong


@njit("int64(int64, int64, int64, int64, int64, int64, int64)", cache=True, nogil=True)
def write_pages(
    descriptor: int, sums_at: int, writes_at: int, slots: int, table: int, count: int, frames_at: int
) -> int:
    """Write ``count`` pages, of each of which ``table`` has slot and frame; consecutive slots at once.

    Returns the first slot of those that were not written whole, -1 if all were.
    """
    sums, writes = carray(pointer_u64(sums_at), (slots, 2)), carray(pointer_u64(writes_at), slots)
    pairs = carray(pointer_u64(table), (count, 2))
    vector = np.empty((_VECTOR_MAX, 2), np.uint64)
    first = 0
    while first < count:
        length = 0
        while length < _VECTOR_MAX and first + length < count:
            if length and pairs[first + length, 0] != pairs[first, 0] + np.uint64(length):
                break
            vector[length, 0] = np.uint64(frames_at) + pairs[first + length, 1] * np.uint64(PAGE_SIZE)
            vector[length, 1] = np.uint64(PAGE_SIZE)
            length += 1
        slot = np.int64(pairs[first, 0])
        wanted = length * PAGE_SIZE
        if write_fd_vector(descriptor, vector.ctypes.data, length, slot * PAGE_SIZE) != wanted:
            return int(slot)
        for nth in range(length):
            page = carray(pointer_u64(np.int64(vector[nth, 0])), 2 * _WORDS)
            _written(page, sums, writes, slot + nth, 3)
        first += length
    return -1


class Checksums:
    """Of ``slots`` slots, none of which was written yet. Pages are ``(4096,)`` or ``(n, 4096)`` bytes, contiguous."""

    __slots__ = ("sums", "where", "writes")

    def __init__(self, slots: int) -> None:
        self.sums: Words = np.zeros((slots, 2), np.uint64)
        self.writes: Words = np.zeros(slots, np.uint64)
        self.where = (int(self.sums.ctypes.data), int(self.writes.ctypes.data), slots)
        """The addresses of both, and how many slots there are: as native functions want to have them."""

    def written(self, slot: int, page: npt.NDArray[np.uint8], halves: int = BOTH) -> None:
        """``page`` was to be written to ``slot``, and ``halves`` of it reached it."""
        _written(page.view(np.uint64), self.sums, self.writes, slot, halves)

    def run_written(self, slot: int, pages: npt.NDArray[np.uint8]) -> None:
        """``pages`` were written from ``slot`` on."""
        _run_written(pages.view(np.uint64), self.sums, self.writes, slot)

    def wrong(self, slot: int, page: npt.NDArray[np.uint8]) -> int:
        """Which halves of ``page``, read from ``slot``, are not those of the last write."""
        return int(_wrong(page.view(np.uint64), self.sums, self.writes, slot))

    def find_wrong(self, slots: npt.NDArray[np.int64], pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which of ``pages``, read from ``slots``, have a wrong half."""
        wrong = np.zeros(len(slots), np.bool_)
        _find_wrong(pages.view(np.uint64), self.sums, self.writes, np.ascontiguousarray(slots, np.int64), wrong)
        return wrong

    def describe(self, slot: int, wrong: int) -> str:
        """In words."""
        last = f"write {self.writes[slot]} of this slot, its last"
        if wrong == BOTH:
            return f"none of its bytes are those of {last}"
        first = 0 if wrong == FIRST else HALF
        return f"bytes {first} to {first + HALF - 1} are not those of {last}"
