"""Belady's optimum: found by an independent search, and never above what any policy needs."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.optimum import fewest_faults


def windows_of(*uses: list[int]) -> list[np.ndarray]:
    return [np.array(sorted(pages), dtype=np.int64) for pages in uses]


def by_search(string: tuple[int, ...], resident: frozenset[int], frames: int) -> int:
    """All ways to choose victims, one use at a time."""

    @cache
    def fewest(place: int, there: frozenset[int]) -> int:
        if place == len(string):
            return 0
        page = string[place]
        if page in there:
            return fewest(place + 1, there)
        if len(there) < frames:
            return 1 + fewest(place + 1, there | {page})
        return 1 + min(fewest(place + 1, there - {victim} | {page}) for victim in there)

    return fewest(0, resident)


def test_the_string_of_the_textbooks() -> None:
    """Silberschatz's reference string with three frames: 9 faults by the optimum."""
    string = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1]
    assert fewest_faults(windows_of(*([page] for page in string)), (), 3) == 9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    string=st.lists(st.integers(0, 5), max_size=14),
    resident=st.sets(st.integers(0, 5), max_size=3),
    frames=st.integers(1, 4),
)
def test_it_is_what_a_search_of_all_ways_finds(string: list[int], resident: set[int], frames: int) -> None:
    resident = set(sorted(resident)[:frames])
    found = fewest_faults(windows_of(*([page] for page in string)), resident, frames)
    assert found == by_search(tuple(string), frozenset(resident), frames)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(uses=st.lists(st.sets(st.integers(0, 7), max_size=4), max_size=8), frames=st.integers(4, 6), data=st.data())
def test_windows_bound_every_order_of_their_uses(uses: list[set[int]], frames: int, data: st.DataObject) -> None:
    string = [page for pages in uses for page in data.draw(st.permutations(sorted(pages)))]
    assert fewest_faults(windows_of(*map(sorted, uses)), (), frames) <= by_search(tuple(string), frozenset(), frames)
