"""The LRU lists of a memory group."""

from __future__ import annotations

from hostd.core.group import MemoryGroup
from hostd.core.page import Pages


def group_of(count: int) -> tuple[MemoryGroup, Pages, bytearray]:
    pages, young = Pages((count,)), bytearray(count)
    group = MemoryGroup(count, pages, young)
    for key in range(count):
        pages.pfn[key] = key
        group.add(key)
    return group, pages, young


def test_unused_pages_are_picked_oldest_first_and_no_more_than_wanted() -> None:
    group, _pages, _young = group_of(6)
    scan = group.scan(4)
    assert (scan.picked, scan.scanned) == ([0, 1, 2, 3], 4)
    assert list(group.inactive) == [4, 5]


def test_first_use_goes_round_again_second_use_activates() -> None:
    group, _pages, young = group_of(4)
    young[0] = 1
    assert group.scan(1).picked == [1]
    assert list(group.inactive) == [2, 3, 0]
    assert not young[0]
    young[0] = 1
    group.inactive.move_to_end(2)
    group.inactive.move_to_end(3)
    scan = group.scan(1)
    assert (scan.picked, scan.activated) == ([2], 1)
    assert list(group.active) == [0]


def test_a_used_page_that_is_not_used_again_is_picked_at_its_second_turn() -> None:
    group, _pages, young = group_of(2)
    young[0] = young[1] = 1
    assert group.scan(2).picked == [0, 1]


def test_pinned_pages_are_passed_over_and_a_scan_of_only_those_ends() -> None:
    group, pages, _young = group_of(3)
    pages.pins[0] = 1
    assert group.scan(2).picked == [1, 2]
    scan = group.scan(2)
    assert scan.picked == [] and scan.scanned == 2
    assert list(group.inactive) == [0]


def test_active_pages_are_demoted_whatever_their_use_when_inactive_is_low() -> None:
    group, pages, young = group_of(4)
    for key in (0, 1, 2):
        del group.inactive[key]
        group.active[key] = None
        young[key] = 1
    assert group.inactive_is_low()
    scan = group.scan(2)
    assert scan.refilled == 3
    assert scan.picked == [3, 0]
    assert list(group.inactive) == [1, 2] and not group.active
    assert not any(young)
    assert pages.flags[3] == 0
