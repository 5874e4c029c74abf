"""Refaults: whether a page that comes back was thrown out too early (mm/workingset.c).

A page that is evicted leaves a shadow: the group's nonresident_age then, and whether it was part of the working set. The
age advances with each eviction and activation. If it comes back within a distance that the group's active pages could
have spared it (workingset_test_recent), it is active at once, and part of the working set again if it had been before.

Which lists that distance is measured against depends on the kind of page: for anonymous memory, with no file pages in
the group, the active list alone. Departure: the kernel leaves it out while no swap slot is free, and activates nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from hostd.core.group import MemoryGroup
from hostd.core.page import ACTIVE, READAHEAD, WORKINGSET, Pages

_STAYS = 0xFF & ~(WORKINGSET | ACTIVE | READAHEAD)
NONE = -1
"""No shadow."""


def eviction(pages: Pages, group: MemoryGroup, keys: Iterable[int]) -> None:
    """Each page loses its frame, and what is known of its use, and leaves a shadow (workingset_eviction)."""
    flags, shadow, age = pages.flags, pages.shadow, group.age
    for key in keys:
        was = flags[key]
        shadow[key] = age << 1 | (was & WORKINGSET == WORKINGSET)
        flags[key] = was & _STAYS
        age += 1
    group.age = age


def refault(pages: Pages, group: MemoryGroup, key: int) -> None:
    """Page ``key``, which has left a shadow, gets a frame again (workingset_refault)."""
    shadow = pages.shadow[key]
    pages.shadow[key] = NONE
    stat = group.stat
    refaulted, activated, restored = group.refaults
    stat[refaulted] += 1
    if group.age - (shadow >> 1) > group.lists.sizes()[1]:
        return
    pages.flags[key] |= ACTIVE
    group.age += 1
    stat[activated] += 1
    if shadow & 1:
        pages.flags[key] |= WORKINGSET
        stat[restored] += 1
