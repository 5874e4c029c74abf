"""Readahead policies by themselves: the kernel's windows against figures worked out by hand, and strides."""

from __future__ import annotations

import pytest

from apf.scenario import ScenarioError
from hostd import readaheads
from hostd.core.readahead import (
    FILE_PAGES,
    HITS_MAX,
    LOTS_OF_MISSES,
    TRUST,
    KernelReadahead,
    NoReadahead,
    Readahead,
    Settings,
    StrideReadahead,
    SwapFault,
    Trust,
    Way,
    address_window,
    pages_to_read,
)

PAGES = 2048


def settings(way: Way = Way.ADDRESS, cluster: int = 3, slots: int = 4096) -> Settings:
    """Two VMs of PAGES pages; page k of the host lies in slot k + 5."""
    return Settings((way, way), cluster, slots, lambda slot: slot - 5 if 0 <= slot - 5 < 2 * PAGES else -1)


def at(key: int, vcpu: int = 0) -> SwapFault:
    vm = key // PAGES
    return SwapFault(key, key + 5, vm, vcpu, vm * PAGES, (vm + 1) * PAGES)


@pytest.mark.parametrize(
    ("previous", "offset", "hits", "pages_max", "last_window", "pages"),
    [
        (100, 200, 0, 8, 0, 1),  # no hits, elsewhere: the page alone
        (100, 101, 0, 8, 0, 2),  # no hits, but next to the last
        (100, 99, 0, 8, 1, 2),
        (100, 200, 1, 8, 0, 4),  # hits + 2, rounded up, at least 4
        (100, 200, 2, 8, 0, 4),
        (100, 200, 3, 8, 0, 8),
        (100, 200, 6, 8, 0, 8),
        (100, 200, 7, 8, 0, 8),  # at most the maximum
        (100, 200, 7, 16, 0, 16),
        (100, 200, HITS_MAX, 256, 0, 128),
        (100, 200, 0, 8, 8, 4),  # no faster than by half
        (100, 200, 0, 8, 4, 2),
        (100, 200, 0, 8, 2, 1),
        (100, 200, 0, 8, 1, 1),
        (100, 101, 0, 8, 8, 4),
        (100, 200, 1, 2, 0, 2),
    ],
)
def test_length_of_the_window(
    previous: int, offset: int, hits: int, pages_max: int, last_window: int, pages: int
) -> None:
    assert pages_to_read(previous, offset, hits, pages_max, last_window) == pages


@pytest.mark.parametrize(
    ("previous", "offset", "length", "window"),
    [
        (99, 100, 4, (100, 104)),  # forward: starts at the fault
        (101, 100, 4, (97, 101)),  # backward: ends at it
        (7, 100, 8, (97, 105)),  # else centred
        (7, 100, 4, (99, 103)),
        (7, 1, 8, (0, 6)),  # not before the VMA
        (7, PAGES - 1, 8, (PAGES - 4, PAGES)),  # nor behind it
        (7, 511, 8, (508, 512)),  # nor across a PMD
        (511, 512, 8, (512, 520)),
        (513, 512, 8, (512, 513)),
    ],
)
def test_place_of_the_window(previous: int, offset: int, length: int, window: tuple[int, int]) -> None:
    assert address_window(previous, offset, length, 0, PAGES) == window


def test_a_window_stays_in_its_vm() -> None:
    assert address_window(7, PAGES, 8, PAGES, 2 * PAGES) == (PAGES, PAGES + 5)


def test_windows_by_address_shrink_without_hits_and_grow_with_them() -> None:
    policy = KernelReadahead(settings())
    assert list(policy.window(at(1000))) == list(range(997, 1005))  # as if there had been four hits before
    assert [len(policy.window(at(key))) for key in (100, 300, 700, 900)] == [4, 2, 1, 1]
    assert list(policy.window(at(901))) == [901, 902]
    policy.found(at(902), first_hit=True)
    assert list(policy.window(at(903))) == [903, 904, 905, 906]
    for key in (904, 905, 906):
        policy.found(at(key), first_hit=True)
    assert list(policy.window(at(907))) == list(range(907, 915))


def test_a_page_found_again_moves_the_window_but_is_no_hit() -> None:
    policy = KernelReadahead(settings())
    for key in (100, 300, 700, 900, 100):
        policy.window(at(key))
    policy.found(at(500), first_hit=False)
    assert list(policy.window(at(499))) == [498, 499]


def test_each_vm_has_a_window_of_its_own_and_a_new_vm_a_new_one() -> None:
    policy = KernelReadahead(settings())
    for key in (100, 300, 700, 900):
        policy.window(at(key))
    assert len(policy.window(at(PAGES + 100))) == 8
    assert len(policy.window(at(1500))) == 1
    policy.forget(0)
    assert len(policy.window(at(1500))) == 8


def test_windows_by_slot_are_aligned_blocks_whosesoever_the_pages_are() -> None:
    policy = KernelReadahead(settings(Way.SLOT))
    assert list(policy.window(at(PAGES))) == list(range(PAGES - 2 - 3, PAGES + 3))  # slots 2048 .. 2055
    for length in (4, 2, 1, 1):
        assert len(policy.window(at(300))) == length
    policy.found(at(301), first_hit=True)
    policy.found(at(302), first_hit=False)
    assert list(policy.window(at(303))) == [303, 304, 305, 306]  # slots 308 .. 311


def test_a_block_of_slots_ends_with_the_swap_area_and_leaves_out_free_slots() -> None:
    policy = KernelReadahead(settings(Way.SLOT, slots=1006))
    assert list(policy.window(at(1000))) == [995, 996, 997, 998, 999, 1000]
    assert list(KernelReadahead(settings(Way.SLOT)).window(at(1))) == [0, 1, 2]


@pytest.mark.parametrize("way", [Way.ADDRESS, Way.SLOT])
def test_cluster_of_one_page_reads_nothing_ahead(way: Way) -> None:
    policy = KernelReadahead(settings(way, cluster=0))
    assert [list(policy.window(at(key))) for key in (10, 11, 12)] == [[10], [11], [12]]


def test_windows_by_address_are_no_larger_than_the_kernel_has_them() -> None:
    assert len(KernelReadahead(settings(cluster=9)).window(at(1200))) == 8
    policy = KernelReadahead(settings(cluster=9))
    for key in range(1000, 1100):
        policy.found(at(key), first_hit=True)
    assert len(policy.window(at(1100))) == 32


def test_a_file_is_read_around_the_page_whatever_page_cluster_says() -> None:
    policy = KernelReadahead(settings(Way.FILE, cluster=0))
    assert policy.window(at(1000)) == range(984, 1016)
    assert policy.window(at(3)) == range(32)
    assert policy.window(at(PAGES - 1)) == range(PAGES - 17, PAGES)
    assert policy.window(at(PAGES)) == range(PAGES, PAGES + FILE_PAGES)


def test_a_file_that_misses_a_lot_is_no_longer_read_around_until_it_hits_again() -> None:
    policy = KernelReadahead(settings(Way.FILE))
    for _ in range(LOTS_OF_MISSES):
        assert len(policy.window(at(1000))) == FILE_PAGES
    assert list(policy.window(at(1000))) == [1000]
    assert len(policy.window(at(PAGES + 1000))) == FILE_PAGES
    for _ in range(2):
        policy.found(at(1001), first_hit=True)
    assert len(policy.window(at(1000))) == FILE_PAGES
    assert list(policy.window(at(1000))) == [1000]
    policy.forget(0)
    assert len(policy.window(at(1000))) == FILE_PAGES


def test_a_file_that_has_missed_for_ever_comes_back_after_a_thousand_hits() -> None:
    policy = KernelReadahead(settings(Way.FILE))
    for _ in range(5000):
        policy.window(at(1000))
    for _ in range(10 * LOTS_OF_MISSES - LOTS_OF_MISSES):
        policy.found(at(1000), first_hit=False)
    assert list(policy.window(at(1000))) == [1000]
    for _ in range(2):
        policy.found(at(1000), first_hit=False)
    assert len(policy.window(at(1000))) == FILE_PAGES


def test_none_reads_the_page_alone() -> None:
    policy = NoReadahead(settings())
    assert [list(policy.window(at(key))) for key in (10, 11, 12)] == [[10], [11], [12]]


def test_a_stride_is_followed_once_it_has_held() -> None:
    policy = StrideReadahead(settings())
    assert [list(policy.window(at(key))) for key in (10, 17)] == [[10], [17]]
    assert list(policy.window(at(24))) == [24, 31, 38, 45, 52, 59, 66, 73]
    for key in (31, 38, 45, 52, 59, 66, 73):
        policy.found(at(key), first_hit=True)
    assert list(policy.window(at(80)))[:2] == [80, 87]


def test_strides_are_those_of_each_vcpu_backwards_too_and_end_with_the_vm() -> None:
    policy = StrideReadahead(settings())
    for step in range(3):
        forward = policy.window(at(PAGES - 40 + 10 * step, vcpu=0))
        backward = policy.window(at(28 - 8 * step, vcpu=1))
    assert list(forward) == [PAGES - 20, PAGES - 10]
    assert list(backward) == [12, 4]


def test_random_pages_are_no_stride_and_the_same_page_again_is_none_either() -> None:
    policy = StrideReadahead(settings())
    assert [list(policy.window(at(key))) for key in (10, 500, 3, 77, 77, 77)] == [[10], [500], [3], [77], [77], [77]]


def test_a_stride_that_fails_once_is_kept_and_one_that_fails_again_is_not() -> None:
    policy = StrideReadahead(settings())
    for key in (0, 10, 20, 30):
        policy.found(at(key), first_hit=True)
    assert list(policy.window(at(500))) == [500]
    assert list(policy.window(at(510)))[:2] == [510, 520]
    policy.found(at(900), first_hit=True)
    policy.found(at(1000), first_hit=True)
    assert list(policy.window(at(1010))) == [1010]
    policy.forget(0)
    assert list(policy.window(at(1110))) == [1110]


def test_table_of_trust_is_complete_and_only_a_right_stride_leads_to_trust() -> None:
    assert set(TRUST) == {(trust, right) for trust in Trust for right in (False, True)}
    assert {
        trust for (trust, right), (after, _takes) in TRUST.items() if after is Trust.STEADY and not right
    } == set()
    assert not any(takes for (_trust, right), (_after, takes) in TRUST.items() if right)


def test_policies_by_name() -> None:
    assert readaheads.load("kernel") is KernelReadahead
    assert readaheads.load("none") is NoReadahead
    assert readaheads.load("stride") is StrideReadahead
    assert issubclass(StrideReadahead, Readahead)
    with pytest.raises(ScenarioError, match=r"swap.readahead = 'psychic': allowed: kernel, none, stride"):
        readaheads.load("psychic")
