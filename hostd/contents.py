"""What guest pages hold at first, and whether they still hold what they must: segments and their stamps.

See ``apf.messages.Stamp``: a stamp word with a tag of its page and a count of writes, behind it its product with a
constant, a third word for the writer, and nothing else in the page. In a demand-zero segment a stamp word and its
product may both be zero: nobody has written that stamp yet. A page that lost its bytes to zeros looks the same there;
it shows in the sum of writes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba import njit

from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE, Segment, Stamp

_WORD = 8
_COUNT_BITS = np.uint64(0xFFFFFFFF)
_TAG_BITS = np.uint64(0xFFFFFFFF00000000)
_MULTIPLIER = np.uint64(CHECK_MULTIPLIER)

Pages = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


def fill(segment: Segment, numbers: Numbers, pages: Pages) -> None:
    """Write the first contents of the segment's pages ``numbers`` into ``pages``, shape (n, 4096)."""
    pages[:] = 0
    if segment.data:
        data = np.frombuffer(segment.data, np.uint8)
        for row, number in enumerate(numbers.tolist()):
            part = data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
            pages[row, : len(part)] = part
    words = pages.view(np.uint64)
    for stamp in segment.stamps:
        first = _first_words(stamp, numbers)
        words[:, stamp.offset // _WORD] = first
        words[:, stamp.offset // _WORD + 1] = first * _MULTIPLIER


def _first_words(stamp: Stamp, numbers: Numbers) -> npt.NDArray[np.uint64]:
    return np.uint64(stamp.base) + np.uint64(stamp.stride) * numbers.astype(np.uint64)


@njit("void(uint64[:, ::1], int64[::1], boolean[::1])", cache=True, nogil=True)
def _find_nonzero(words: npt.NDArray[np.uint64], columns: Numbers, bad: npt.NDArray[np.bool_]) -> None:
    """Mark the rows that have anything in one of ``columns``, which ascend."""
    for row in range(len(words)):
        found = np.uint64(0)
        page = words[row]
        for column in columns:
            found |= page[column]
        bad[row] |= found != 0


@dataclass(slots=True)
class Audit:
    """What an audit of stamped pages found."""

    pages: int = 0
    corrupt: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    """Pages that cannot be had, by reason; they are among ``pages``, and in no other count."""
    writes: dict[int, int] = field(default_factory=dict)
    """Stamp offset -> writes counted in memory, all pages together."""

    def take(
        self, segment: Segment, numbers: Numbers, pages: Pages, wrong: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Look at the segment's pages ``numbers``, whose bytes are ``pages``; ``wrong``: whose checksums are."""
        if not segment.stamps:
            return
        words = pages.view(np.uint64)
        bad = np.zeros(len(numbers), bool) if wrong is None else wrong.copy()
        rest = np.ones(PAGE_SIZE // _WORD, bool)
        for stamp in segment.stamps:
            column = stamp.offset // _WORD
            word = words[:, column]
            other = (word & _TAG_BITS) != _first_words(stamp, numbers)
            other |= words[:, column + 1] != word * _MULTIPLIER
            if segment.demand_zero:
                other &= (word | words[:, column + 1]) != 0
            bad |= other
            rest[column : column + 3] = False
            writes = int((word & _COUNT_BITS).sum())
            self.writes[stamp.offset] = self.writes.get(stamp.offset, 0) + writes
        _find_nonzero(words, np.flatnonzero(rest), bad)
        self.pages += len(numbers)
        self.corrupt += int(bad.sum())
