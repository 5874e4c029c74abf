"""The wait table: not-present and ready in either order, wake-all, hash collisions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guestsched.core.apf_wait import DUMMY, TOKEN_MAX, Node, WaitTable, bucket_of


@pytest.fixture
def table() -> Iterator[WaitTable]:
    made = WaitTable()
    yield made
    made.check()


def collides_with(token: int) -> int:
    return next(other for other in range(token + 1, token + 100_000) if bucket_of(other) == bucket_of(token))


def test_hash_is_the_kernels() -> None:
    """hash_32: multiply by 0x61C88647 mod 2**32, keep the upper 8 bits."""
    assert [bucket_of(token) for token in (0, 1, 2, 0x1000, TOKEN_MAX)] == [0, 0x61, 0xC3, 0x88, 0x9E]
    assert {bucket_of(token << 12) for token in range(5000)} == set(range(256))


def test_ready_wakes_the_waiter_once(table: WaitTable) -> None:
    assert table.wait(0x1000, 0, 5)
    assert table.wake(0x1000, 0) == 5
    assert table.wake(0x1000, 0) == DUMMY


def test_ready_before_not_present_means_no_sleep(table: WaitTable) -> None:
    """E29."""
    assert table.wake(0x1000, 0) == DUMMY
    assert not table.wait(0x1000, 0, 5)
    assert table.nodes() == []


def test_ready_for_an_unknown_token_is_stored_until_its_not_present(table: WaitTable) -> None:
    """E30."""
    table.wake(0x1000, 0)
    assert table.wait(0x2000, 0, 5)
    assert table.find(0x1000) == Node(0x1000, 0, DUMMY)
    assert not table.wait(0x1000, 0, 6)


def test_second_ready_for_an_unknown_token_removes_the_first_ones_dummy(table: WaitTable) -> None:
    table.wake(0x1000, 0)
    assert table.wake(0x1000, 0) == DUMMY
    assert table.find(0x1000) is None


def test_wake_all_is_for_this_cpu_only(table: WaitTable) -> None:
    """E31."""
    for number in range(1, 9):
        table.wait(number << 12 | number % 2, number % 2, number)
    assert sorted(table.wake_all(1)) == [1, 3, 5, 7]
    assert sorted(node.task for node in table.nodes()) == [2, 4, 6, 8]
    assert table.wake_all(1) == []


def test_wake_all_takes_this_cpus_dummies_with_it(table: WaitTable) -> None:
    table.wake(0x1000, 0)
    table.wake(0x2001, 1)
    assert table.wake_all(0) == []
    assert table.nodes() == [Node(0x2001, 1, DUMMY)]


def test_one_bucket_holds_many_tokens_youngest_first(table: WaitTable) -> None:
    first, second = 0x1000, collides_with(0x1000)
    table.wait(first, 0, 1)
    table.wait(second, 0, 2)
    assert [node.task for node in table.nodes()] == [2, 1]
    assert table.wake(first, 0) == 1
    assert table.wake(second, 0) == 2


def test_live_token_is_never_reused(table: WaitTable) -> None:
    table.wait(0x1000, 0, 1)
    with pytest.raises(AssertionError, match="0x1000 of task 2"):
        table.wait(0x1000, 0, 2)
