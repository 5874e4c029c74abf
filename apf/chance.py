"""Chance without state: a counter-based integer generator and draws through integer quantile tables.

A draw is a function of (seed, stream name, index) alone, so neither the order of calls nor the process they happen
in can change it. No float reaches a result: the last bit of a math library's result differs between machines.
The mixing function is SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    """SplitMix64's output function: a bijection on 64-bit integers."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of stream ``name`` under ``seed``."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Stream:
    """The draws of one named stream, in order. ``index`` is the number of the next draw."""

    __slots__ = ("_key", "index")

    def __init__(self, seed: int, name: str) -> None:
        self._key = stream_key(seed, name)
        self.index = 0

    def next_u64(self) -> int:
        """A uniform 64-bit integer."""
        value = mix64(self._key + (self.index + 1) * _GOLDEN)
        self.index += 1
        return value

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound); bias below bound / 2**64."""
        assert bound > 0
        return (self.next_u64() * bound) >> 64

    def quantile(self, table: Sequence[int]) -> int:
        """A draw from the distribution whose quantiles at i/(len-1) are ``table``, linear in between (integer)."""
        position = self.next_u64() * (len(table) - 1)
        index, fraction = position >> 64, (position & _MASK) >> 32
        low, high = table[index], table[index + 1]
        return low + (((high - low) * fraction) >> 32)
