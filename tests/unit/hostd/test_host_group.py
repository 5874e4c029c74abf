"""The LRU lists of a memory group."""

from __future__ import annotations

from hostd.core.lru import Kernel, Scan
from hostd.core.page import LRU, WORKINGSET, Pages
from tests.unit.hostd.rig import filled


class Lists(Kernel):
    """The kernel's lists, and what they gave up."""

    def __init__(self, pages: Pages, young: bytearray) -> None:
        super().__init__(pages, young)
        self.picked: list[int] = []
        self.refuses: set[int] = set()

    def reclaim(self, want: int) -> Scan:
        self.picked = []
        return self.scan(want, self._evict)

    def _evict(self, victims: list[int]) -> list[int]:
        self.picked += [key for key in victims if key not in self.refuses]
        return [key for key in victims if key in self.refuses]


def test_unused_pages_are_picked_oldest_first_and_no_more_than_wanted() -> None:
    group, _pages, _young = filled(Lists, 6)
    scan = group.reclaim(4)
    assert (group.picked, scan.taken, scan.scanned) == ([0, 1, 2, 3], 4, 4)
    assert list(group.inactive) == [4, 5]


def test_first_use_goes_round_again_second_use_activates() -> None:
    group, _pages, young = filled(Lists, 4)
    young[0] = 1
    group.reclaim(1)
    assert group.picked == [1]
    assert list(group.inactive) == [2, 3, 0]
    assert not young[0]
    young[0] = 1
    group.inactive.move_to_end(2)
    group.inactive.move_to_end(3)
    scan = group.reclaim(1)
    assert (group.picked, scan.activated) == ([2], 1)
    assert list(group.active) == [0]


def test_a_used_page_that_is_not_used_again_is_picked_at_its_second_turn() -> None:
    group, _pages, young = filled(Lists, 2)
    young[0] = young[1] = 1
    group.reclaim(2)
    assert group.picked == [0, 1]


def test_pinned_pages_are_passed_over_and_a_scan_of_only_those_ends() -> None:
    group, pages, _young = filled(Lists, 3)
    pages.pins[0] = 1
    group.reclaim(2)
    assert group.picked == [1, 2]
    scan = group.reclaim(2)
    assert group.picked == [] and scan.scanned == 2
    assert list(group.inactive) == [0]


def test_active_pages_are_demoted_whatever_their_use_when_inactive_is_low() -> None:
    group, pages, young = filled(Lists, 4)
    for key in (0, 1, 2):
        del group.inactive[key]
        group.active[key] = None
        young[key] = 1
    assert group.inactive_is_low()
    scan = group.reclaim(2)
    assert scan.refilled == 3
    assert group.picked == [3, 0]
    assert list(group.inactive) == [1, 2] and not group.active
    assert not any(young)
    assert not pages.flags[3] & ~LRU
    assert pages.flags[1] & WORKINGSET, "shrink_active_list marks what was in use"


def test_a_page_that_cannot_go_is_activated() -> None:
    group, _pages, _young = filled(Lists, 3)
    group.refuses = {0, 1, 2}
    scan = group.reclaim(1)
    assert scan.taken == 0 and scan.activated == scan.scanned
    assert scan.scanned + scan.refilled == 6, "looked at twice, as often as there are priorities"
    assert group.picked == []


def test_a_page_put_at_the_tail_is_the_next_to_go() -> None:
    group, _pages, _young = filled(Lists, 3)
    del group.inactive[2]
    group.add_tail(2)
    group.reclaim(1)
    assert group.picked == [2]
