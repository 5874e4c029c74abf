"""A memory group (memcg): its limit, what is charged to it, and the LRU lists reclaim takes pages from.

Follows mm/memcontrol.c:try_charge_memcg (at the limit whoever charges reclaims at least SWAP_CLUSTER_MAX pages
itself) and the classic LRU of mm/vmscan.c: new pages enter the inactive list; at its tail folio_check_references
gives a used page a second chance (first use: PG_referenced and once round again, next use: activate); the active
list's tail is demoted whatever its use while inactive_is_low. Departures: no refault distance (workingset.c), no
priorities: one call scans at most twice as many pages as the lists hold, which is what the kernel's priorities 12
to 0 add up to. A page that is picked is not unmapped here: see ``border``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import isqrt

from hostd.core.page import ACTIVE, LRU, REFERENCED, Pages

SWAP_CLUSTER_MAX = 32
_PAGES_PER_GIB_SHIFT = 18


@dataclass(slots=True)
class Scan:
    """What one reclaim did: the pages picked, oldest first, and how many it looked at or moved."""

    picked: list[int] = field(default_factory=list)
    scanned: int = 0
    refilled: int = 0
    activated: int = 0


class MemoryGroup:
    """One group. ``usage`` and ``limit`` in pages; each list runs from its tail (oldest) to its head."""

    __slots__ = (
        *("_pages", "_young", "active", "fruitless", "inactive", "limit", "pinned", "retry_ns", "usage"),
        *("scanned", "stolen"),
    )

    def __init__(self, limit: int, pages: Pages, young: bytearray) -> None:
        self.limit = limit
        self.usage = 0
        self.inactive: OrderedDict[int, None] = OrderedDict()
        self.active: OrderedDict[int, None] = OrderedDict()
        self.pinned = 0
        """Pins held on the group's pages: while there are any, something will become reclaimable by itself."""
        self.retry_ns = -1
        self.fruitless = 0
        self.scanned = 0
        self.stolen = 0
        """The group's part of pgscan_direct and pgsteal_direct."""
        self._pages = pages
        self._young = young

    def add(self, key: int) -> None:
        """Put a page at the head of the inactive list."""
        self.inactive[key] = None
        self._pages.flags[key] |= LRU

    def inactive_is_low(self) -> bool:
        """Whether the active list has outgrown the inactive one (vmscan.c, same name)."""
        inactive, active = len(self.inactive), len(self.active)
        gib = (inactive + active) >> _PAGES_PER_GIB_SHIFT
        ratio = isqrt(10 * gib) if gib else 1
        return inactive * ratio < active

    def scan(self, want: int) -> Scan:
        """Take up to ``want`` pages off the lists' tails."""
        scan = Scan()
        budget = 2 * (len(self.inactive) + len(self.active))
        while len(scan.picked) < want and scan.scanned + scan.refilled < budget and (self.inactive or self.active):
            if self.inactive_is_low():
                self._shrink_active(scan)
            self._shrink_inactive(scan, want)
        return scan

    def _shrink_active(self, scan: Scan) -> None:
        pages, flags, young = self._pages, self._pages.flags, self._young
        for _ in range(min(SWAP_CLUSTER_MAX, len(self.active))):
            key, _none = self.active.popitem(last=False)
            young[pages.pfn[key]] = 0
            flags[key] &= ~ACTIVE
            self.inactive[key] = None
            scan.refilled += 1

    def _shrink_inactive(self, scan: Scan, want: int) -> None:
        pages, flags, young, inactive = self._pages, self._pages.flags, self._young, self.inactive
        for _ in range(min(SWAP_CLUSTER_MAX, len(inactive))):
            if len(scan.picked) == want:
                return
            key, _none = inactive.popitem(last=False)
            scan.scanned += 1
            pfn = pages.pfn[key]
            if pages.pins[key]:
                inactive[key] = None
            elif not young[pfn]:
                flags[key] &= ~(LRU | REFERENCED)
                scan.picked.append(key)
            elif flags[key] & REFERENCED:
                young[pfn] = 0
                flags[key] |= ACTIVE
                self.active[key] = None
                scan.activated += 1
            else:
                young[pfn] = 0
                flags[key] |= REFERENCED
                inactive[key] = None
