"""Chance without state: a counter-based integer generator and draws through integer quantile tables.

A draw is a function of (seed, stream name, index) alone, so neither the order of calls nor the process they happen
in can change it. No float reaches a result: the last bit of a math library's result differs between machines.
The mixing function is SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, pairwise, repeat

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_BLOCK_SHIFT = 10
_BLOCK = 1 << _BLOCK_SHIFT
"""Draws that a stream makes at once: then one costs a look into a list, not a dozen operations on long integers."""


def mix64(value: int) -> int:
    """SplitMix64's output function: a bijection on 64-bit integers."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_block(key: int, block: int) -> npt.NDArray[np.uint64]:
    """``mix64`` of a stream's draws ``block * _BLOCK`` and following, in arithmetic of 64 bits that wraps."""
    golden = np.uint64(_GOLDEN)
    value = np.arange(1, _BLOCK + 1, dtype=np.uint64) * golden + np.uint64((key + (block * _BLOCK) * _GOLDEN) & _MASK)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _quantiles(draws: npt.NDArray[np.uint64], table: npt.NDArray[np.uint64]) -> list[int]:
    """The value of each draw, see ``quantiles``, in arithmetic of 64 bits: products of 96 by way of halves."""
    half, low_half = np.uint64(32), np.uint64(0xFFFFFFFF)
    steps = np.uint64(len(table) - 1)
    position = (draws >> half) * steps + ((draws & low_half) * steps >> half)
    index, fraction = (position >> half).astype(np.int64), position & low_half
    low, rise = table[index], table[index + 1] - table[index]
    part = np.uint64(16)
    risen = (rise >> part) * fraction + ((rise & np.uint64(0xFFFF)) * fraction >> part) >> part
    return (low + risen).tolist()  # type: ignore[no-any-return]  # numpy has Any


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of stream ``name`` under ``seed``."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Stream:
    """The draws of one named stream, in order. ``index`` is the number of the next draw."""

    __slots__ = ("_block", "_draws", "_key", "index")

    def __init__(self, seed: int, name: str) -> None:
        self._key = stream_key(seed, name)
        self.index = 0
        self._block = -1
        self._draws: list[int] = []

    def next_u64(self) -> int:
        """A uniform 64-bit integer."""
        index = self.index
        self.index = index + 1
        if index >> _BLOCK_SHIFT != self._block:
            self._block = index >> _BLOCK_SHIFT
            self._draws = _mix_block(self._key, self._block).tolist()
        return self._draws[index & _BLOCK - 1]

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound); bias below bound / 2**64."""
        assert bound > 0
        return (self.next_u64() * bound) >> 64


def quantiles(seed: int, name: str, table: Sequence[int]) -> Callable[[], int]:
    """Draws of stream ``name`` from the distribution whose quantiles at i/(len-1) are ``table``, one a call.

    Linear in between (integer). ``table`` ascends, and ends below 2**47. Draws are made many at once.
    """
    assert all(low <= high for low, high in pairwise(table)) and table[0] >= 0 and table[-1] < 1 << 47, table
    key, rows = stream_key(seed, name), np.array(table, np.uint64)

    def blocks() -> Iterator[list[int]]:
        for block in count():
            yield _quantiles(_mix_block(key, block), rows)

    return chain.from_iterable(blocks()).__next__


def events(seed: int, name: str, share: int, of: int) -> Callable[[], bool]:
    """Draws of stream ``name``: whether something happens that does in ``share`` of ``of`` cases, one a call."""
    assert 0 <= share <= of, f"{share} of {of}"
    if not share:
        return repeat(False).__next__
    key, last = stream_key(seed, name), np.uint64(-(-(share << 64) // of) - 1)

    def blocks() -> Iterator[list[bool]]:
        for block in count():
            yield (_mix_block(key, block) <= last).tolist()

    return chain.from_iterable(blocks()).__next__
