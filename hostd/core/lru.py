"""Which page of a memory group goes next: what a reclaim policy is, and the kernel's.

A policy keeps the pages that reclaim may take, in lists, and scans them from their tails (oldest). Those that it wants
to give up it takes off its lists, a batch at a time (isolate_lru_folios), and hands them to ``evict``, which returns
those that stay: a page without a slot does if the swap area is full (mm/swap.c:add_to_swap fails). The policy puts them
back (move_folios_to_lru), the kernel's as activated pages.

``Kernel`` is the classic LRU of mm/vmscan.c. New pages enter the inactive list; at its tail folio_check_references gives
a used page a second chance (first use: PG_referenced and once round again, next use: activate); while inactive_is_low,
the active list's tail is demoted whatever its use, and marked PG_workingset (shrink_active_list). Departure: no
priorities: one call looks at no more than twice as many pages as the lists hold, which is what the kernel's priorities
12 to 0 add up to; no swappiness, for a group's pages are of one kind; no MGLRU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

from hostd.core.page import ACTIVE, LRU, REFERENCED, WORKINGSET, Pages

SWAP_CLUSTER_MAX = 32
_PAGES_PER_GIB_SHIFT = 18

Evict = Callable[[list[int]], list[int]]


@dataclass(slots=True)
class Scan:
    """What one scan did: pages given up, looked at, demoted, and activated."""

    taken: int = 0
    scanned: int = 0
    refilled: int = 0
    activated: int = 0


class Policy(ABC):
    """The pages of one group that reclaim may take, as a policy orders them.

    A page that is put in is flagged LRU by the policy; ``evict`` takes that flag, and REFERENCED, from what it takes.
    """

    __slots__ = ()

    wants_use: ClassVar[bool] = False
    """Whether ``used`` is to be called; the core then has work at every border."""

    @abstractmethod
    def __init__(self, pages: Pages, young: bytearray) -> None:
        """``young``: by frame, whether it was used since reclaim last looked, who may clear it."""

    @abstractmethod
    def add(self, key: int) -> None:
        """Put a page in, the newest; one that is flagged ACTIVE as a used one."""

    @abstractmethod
    def add_tail(self, key: int) -> None:
        """Put a page in, to be looked at next (folio_rotate_reclaimable)."""

    def used(self, keys: Iterable[int]) -> None:  # noqa: B027 - most policies do not want it
        """These pages were used since the last call, in the order of their frames."""

    @abstractmethod
    def scan(self, want: int, evict: Evict) -> Scan:
        """Give up to ``want`` pages up; it must pass over pages that are pinned."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all pages."""

    @abstractmethod
    def lists(self) -> tuple[Iterable[int], Iterable[int]]:
        """Pages that are inactive, and active ones; oldest first."""

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """How many are inactive, and active."""


class Kernel(Policy):
    """Active and inactive list with a second chance."""

    __slots__ = ("_pages", "_young", "active", "inactive")

    def __init__(self, pages: Pages, young: bytearray) -> None:
        self.inactive: OrderedDict[int, None] = OrderedDict()
        self.active: OrderedDict[int, None] = OrderedDict()
        self._pages = pages
        self._young = young

    def add(self, key: int) -> None:
        """Put a page at the head of the list its flag says."""
        flags = self._pages.flags
        (self.active if flags[key] & ACTIVE else self.inactive)[key] = None
        flags[key] |= LRU

    def add_tail(self, key: int) -> None:
        """Put a page at the tail of the inactive list."""
        inactive, flags = self.inactive, self._pages.flags
        inactive[key] = None
        inactive.move_to_end(key, False)
        flags[key] = flags[key] & ~ACTIVE | LRU

    def clear(self) -> None:
        """Forget all pages."""
        self.inactive.clear()
        self.active.clear()

    def lists(self) -> tuple[Iterable[int], Iterable[int]]:
        """Inactive and active pages."""
        return self.inactive, self.active

    def sizes(self) -> tuple[int, int]:
        """Lengths of both lists."""
        return len(self.inactive), len(self.active)

    def inactive_is_low(self) -> bool:
        """Whether the active list has outgrown the inactive one (vmscan.c, same name)."""
        inactive, active = len(self.inactive), len(self.active)
        gib = (inactive + active) >> _PAGES_PER_GIB_SHIFT
        ratio = isqrt(10 * gib) if gib else 1
        return inactive * ratio < active

    def scan(self, want: int, evict: Evict) -> Scan:
        """Take up to ``want`` pages off the lists' tails."""
        scan = Scan()
        budget = 2 * (len(self.inactive) + len(self.active))
        while scan.taken < want and scan.scanned + scan.refilled < budget and (self.inactive or self.active):
            if self.inactive_is_low():
                self._shrink_active(scan)
            self._shrink_inactive(scan, want, evict)
        return scan

    def _shrink_active(self, scan: Scan) -> None:
        pages, flags, young = self._pages, self._pages.flags, self._young
        for _ in range(min(SWAP_CLUSTER_MAX, len(self.active))):
            key, _none = self.active.popitem(last=False)
            young[pages.pfn[key]] = 0
            flags[key] = flags[key] & ~ACTIVE | WORKINGSET
            self.inactive[key] = None
            scan.refilled += 1

    def _shrink_inactive(self, scan: Scan, want: int, evict: Evict) -> None:
        flags, young, inactive = self._pages.flags, self._young, self.inactive
        pfns, pins, oldest = self._pages.pfn, self._pages.pins, inactive.popitem
        victims: list[int] = []
        room, left = want - scan.taken, min(SWAP_CLUSTER_MAX, len(inactive))
        scan.scanned += left
        while left and room:
            left -= 1
            key, _none = oldest(False)
            if pins[key]:
                inactive[key] = None
            elif not young[pfns[key]]:
                victims.append(key)
                room -= 1
            elif flags[key] & REFERENCED:
                young[pfns[key]] = 0
                self._activate(key, scan)
            else:
                young[pfns[key]] = 0
                flags[key] |= REFERENCED
                inactive[key] = None
        scan.scanned -= left
        staying = evict(victims)
        scan.taken += len(victims) - len(staying)
        for key in staying:
            self._activate(key, scan)

    def _activate(self, key: int, scan: Scan) -> None:
        self._pages.flags[key] |= ACTIVE
        self.active[key] = None
        scan.activated += 1
