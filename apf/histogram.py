"""A distribution of guest times in fixed buckets of plain int64 cells: what a core counts and a collector exports.

Theory. A histogram is a row of cells: one a bucket, one for what is above the last bound, one for the sum in ns. A
cell is only ever added to by its one writer and read by others whenever they like, so the cells may lie in shared
memory (``apf.stats``): a reader sees each cell whole, though not all of them at one moment. The number of values is
therefore not kept but added up from the buckets, so that ``le="+Inf"`` and the count always agree.

Bounds are the same for all: 1-2-5 steps from 1 us to 1 s of virtual time, compared as integers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, MutableSequence

import numpy as np
import numpy.typing as npt

BOUNDS_NS = (*(step * 10**power for power in range(3, 9) for step in (1, 2, 5)), 10**9)
"""Upper bounds of the buckets, inclusive, in ns."""
_BOUNDS = np.array(BOUNDS_NS, np.int64)
_MANY = 16
_SUM = len(BOUNDS_NS) + 1
CELLS = _SUM + 1
"""Cells of one histogram."""

Cells = MutableSequence[int] | memoryview
"""Zeroed cells: a list, or a memoryview of format ``q``."""


class Histogram:
    """One distribution over ``cells``; over cells of its own without."""

    __slots__ = ("cells",)

    def __init__(self, cells: Cells | None = None) -> None:
        self.cells: Cells = [0] * CELLS if cells is None else cells
        assert len(self.cells) == CELLS

    def observe(self, value_ns: int) -> None:
        """Count a time of 0 ns or more."""
        cells = self.cells
        cells[bisect_left(BOUNDS_NS, value_ns)] += 1
        cells[_SUM] += value_ns

    def observe_all(self, values_ns: list[int] | npt.NDArray[np.int64]) -> None:
        """``observe`` each of them, at a fraction of the cost if they are many."""
        if len(values_ns) < _MANY:
            for value_ns in values_ns:
                self.observe(int(value_ns))
            return
        cells, values = self.cells, np.asarray(values_ns, np.int64)
        for place, times in enumerate(np.bincount(_BOUNDS.searchsorted(values)).tolist()):
            if times:
                cells[place] += times
        cells[_SUM] += int(values.sum())

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self.cells[:_SUM])

    @property
    def sum_ns(self) -> int:
        """All values together."""
        return int(self.cells[_SUM])

    def buckets(self) -> list[int]:
        """How many there are in each bucket, the last one for what is above all bounds; not cumulative."""
        return [int(cell) for cell in self.cells[:_SUM]]


def added(rows: Iterable[Iterable[int]]) -> Histogram:
    """The histogram of what several have counted; each row is the cells of one."""
    return Histogram([sum(cells) for cells in zip(*rows, strict=True)])
