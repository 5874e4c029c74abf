"""Belady's optimum: the fewest page-ins with which anybody could have served a recorded string of uses.

L. A. Belady, A Study of Replacement Algorithms for a Virtual-Storage Computer, IBM Systems Journal 5(2), 1966: of the
pages in memory, the one whose next use is farthest away goes. No policy without foresight and without prefetching can
bring fewer pages in.

Uses are known to the window: which pages, not in which order. They count as used once, in the order that suits best:
first those that are there, then the others, those that will be missed least first, so that they can go for the rest.
That can only make the optimum smaller, so it stays a bound.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]


def fewest_faults(windows: Sequence[Pages], resident: Collection[int], frames: int) -> int:
    """Page-ins that the optimum needs for ``windows``, the pages used in each; ``resident`` are there at first."""
    never = len(windows)
    following = _next_uses(windows)
    next_use = dict.fromkeys(resident, never)
    for number in range(len(windows) - 1, -1, -1):
        for page in windows[number].tolist():
            if page in next_use:
                next_use[page] = number
    # What is in memory, by next use; entries whose page has another next use by now, or is gone, are stale.
    heap = [(-use, page) for page, use in next_use.items()]
    heap.sort()
    faults = 0
    for number, pages in enumerate(windows):
        missing = []
        for page, use in zip(pages.tolist(), following[number].tolist(), strict=True):
            if page in next_use:
                next_use[page] = use
                heappush(heap, (-use, page))
            else:
                missing.append((-use, page))
        faults += len(missing)
        for entry in sorted(missing):
            while len(next_use) >= frames:
                use, victim = heappop(heap)
                if next_use.get(victim) == -use:
                    del next_use[victim]
            next_use[entry[1]] = -entry[0]
            heappush(heap, entry)
    return faults


def _next_uses(windows: Sequence[Pages]) -> list[Pages]:
    """For each use, the window of the same page's next use; the number of windows if there is none."""
    later: dict[int, int] = {}
    found: list[Pages] = []
    for number in range(len(windows) - 1, -1, -1):
        pages = windows[number].tolist()
        found.append(np.array([later.get(page, len(windows)) for page in pages], dtype=np.int64))
        later.update(dict.fromkeys(pages, number))
    found.reverse()
    return found
