"""The async_pf queue: states, tokens, limit, order."""

from __future__ import annotations

import pytest

from vcpud.core.async_pf import ASYNC_PF_PER_VCPU, TRANSITIONS, AsyncPfQueue, ItemState, WorkItem


@pytest.mark.parametrize("before", list(ItemState))
@pytest.mark.parametrize("after", list(ItemState))
def test_transitions(before: ItemState, after: ItemState) -> None:
    item = WorkItem(1, 2, 3, before)
    if (before, after) in TRANSITIONS:
        item.move(after)
        assert item.state is after
    else:
        with pytest.raises(AssertionError, match=r"0x1 \(gfn 0x2\)"):
            item.move(after)


def test_the_table_is_one_circle() -> None:
    state, seen = ItemState.FREE, []
    for _ in ItemState:
        seen.append(state)
        (state,) = (after for before, after in TRANSITIONS if before is state)
    assert state is ItemState.FREE and set(seen) == set(ItemState)


def test_tokens_are_never_zero_and_name_the_vcpu() -> None:
    queue = AsyncPfQueue(5)
    tokens = [queue.next_token() for _ in range(1000)]
    assert tokens == [number << 12 | 5 for number in range(1, 1001)]
    queue._id = (1 << 20) - 1
    assert queue.next_token() == 1 << 12 | 5, "the id wraps past 0"


def test_first_done_first_delivered() -> None:
    queue = AsyncPfQueue(0)
    for gfn, ready_ns in ((1, 300), (2, 100), (3, 200), (4, 100)):
        queue.setup(queue.next_token(), gfn, ready_ns)
    assert queue.next_ready_ns() == 100 and queue.pop_done(99) is None
    order = []
    while (item := queue.pop_done(300)) is not None:
        assert item.state is ItemState.PREFAULT
        order.append(item.gfn)
        queue.present(item)
        assert item.state is ItemState.FREE and not queue.has_gfn(item.gfn)
    assert order == [2, 4, 3, 1]
    assert queue.next_ready_ns() is None


def test_limit_and_dedupe() -> None:
    queue = AsyncPfQueue(0)
    for gfn in range(ASYNC_PF_PER_VCPU):
        assert not queue.full
        queue.setup(queue.next_token(), gfn, 10)
    assert queue.full and len(queue) == 64
    with pytest.raises(AssertionError):
        queue.setup(queue.next_token(), 999, 10)
    item = queue.pop_done(10)
    assert item is not None and queue.full, "done but undelivered counts"
    queue.present(item)
    assert not queue.full
    with pytest.raises(AssertionError):
        queue.setup(queue.next_token(), 5, 10)
    queue.check()
