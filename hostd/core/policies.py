"""Reclaim policies besides the kernel's (see ``hostd.core.lru``), each from its textbook.

``clock``: pages stand in a circle; the hand passes over a used page and takes its mark away, and evicts one that has
none (Corbato, A Paging Experiment with the Multics System, 1968). ``fifo``: the page that came first goes first, used or
not. ``lru``: the page whose last use is longest ago goes first; uses are known to the window, and pages used in the same
window count as used in the order of their frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from hostd.core.lru import Evict, Policy, Scan
from hostd.core.page import ACTIVE, LRU, Pages


class Fifo(Policy):
    """A queue."""

    __slots__ = ("_pages", "_queue", "_young")

    def __init__(self, pages: Pages, young: bytearray) -> None:
        self._queue: OrderedDict[int, None] = OrderedDict()
        self._pages = pages
        self._young = young

    def add(self, key: int) -> None:
        """Put a page in, the newest."""
        self._queue[key] = None
        self._pages.flags[key] = self._pages.flags[key] & ~ACTIVE | LRU

    def add_tail(self, key: int) -> None:
        """Put a page in, the next to go."""
        self.add(key)
        self._queue.move_to_end(key, last=False)

    def clear(self) -> None:
        """Forget all pages."""
        self._queue.clear()

    def lists(self) -> tuple[Iterable[int], Iterable[int]]:
        """All pages are inactive."""
        return self._queue, ()

    def sizes(self) -> tuple[int, int]:
        """All pages are inactive."""
        return len(self._queue), 0

    def scan(self, want: int, evict: Evict) -> Scan:
        """Give up to ``want`` pages up; one that cannot go now goes to the end."""
        scan, queue, pins = Scan(), self._queue, self._pages.pins
        budget = 2 * len(queue)
        while scan.taken < want and scan.scanned < budget and queue:
            victims: list[int] = []
            while len(victims) < want - scan.taken and scan.scanned < budget and queue:
                key, _none = queue.popitem(last=False)
                scan.scanned += 1
                if pins[key] or self._spares(key):
                    queue[key] = None
                else:
                    victims.append(key)
            staying = evict(victims)
            scan.taken += len(victims) - len(staying)
            queue.update(dict.fromkeys(staying))
        return scan

    def _spares(self, key: int) -> bool:
        return False


class Clock(Fifo):
    """A circle with a hand: a queue whose used pages go round once more."""

    __slots__ = ()

    def _spares(self, key: int) -> bool:
        pfn = self._pages.pfn[key]
        used = bool(self._young[pfn])
        self._young[pfn] = 0
        return used


class Lru(Fifo):
    """A queue in the order of the last use."""

    __slots__ = ()

    wants_use = True

    def used(self, keys: Iterable[int]) -> None:
        """Move these pages to the queue's end."""
        queue = self._queue
        for key in keys:
            if key in queue:
                queue.move_to_end(key)
