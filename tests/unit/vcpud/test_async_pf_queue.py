"""The async_pf queue: states, tokens, limit, order."""

from __future__ import annotations

import pytest

from vcpud.core.async_pf import (
    ASYNC_PF_PER_VCPU,
    NO_GFN,
    TABLE,
    WAKE_ALL,
    AsyncPfQueue,
    ItemEvent,
    ItemState,
    WorkItem,
)


def put(queue: AsyncPfQueue, gfn: int, ready_ns: int, picked_ns: int = 0) -> WorkItem:
    """Set an item up and schedule it, at time 0."""
    item = WorkItem(queue.next_token(), gfn, picked_ns, ready_ns)
    queue.setup(item)
    queue.schedule(item, 0)
    return item


@pytest.mark.parametrize("state", list(ItemState))
@pytest.mark.parametrize("event", list(ItemEvent))
def test_transitions(state: ItemState, event: ItemEvent) -> None:
    item = WorkItem(1, 2, 3, 4, state=state)
    after = TABLE.after(state, event)
    if after is not None:
        item.move(event)
        assert item.state is after
    else:
        with pytest.raises(AssertionError, match=r"0x1 \(gfn 0x2\)"):
            item.move(event)


def test_the_life_of_an_item() -> None:
    state, seen = ItemState.FREE, []
    events = ("SETUP", "SCHEDULED", "PICKED", "RETURNED", "DEQUEUED", "MAPPED", "DELIVERED")
    for event in events:
        after = TABLE.after(state, ItemEvent[event])
        assert after is not None
        seen.append(after)
        state = after
    assert state is ItemState.FREE and set(seen) == set(ItemState)


def test_every_live_state_but_listed_can_be_cleared() -> None:
    cleared = {rule.state for rule in TABLE.rules if rule.event is ItemEvent.CLEARED}
    assert cleared == set(ItemState) - {ItemState.FREE, ItemState.LISTED}


def test_tokens_are_never_zero_and_name_the_vcpu() -> None:
    queue = AsyncPfQueue(5)
    tokens = [queue.next_token() for _ in range(1000)]
    assert tokens == [number << 12 | 5 for number in range(1, 1001)]
    queue._id = (1 << 20) - 1
    assert queue.next_token() == 1 << 12 | 5, "the id wraps past 0"


def test_first_done_first_delivered() -> None:
    queue = AsyncPfQueue(0)
    for gfn, ready_ns in ((1, 300), (2, 100), (3, 200), (4, 100)):
        put(queue, gfn, ready_ns)
    assert queue.next_done_ns() == 100
    assert not queue.advance(99) and not queue.done
    assert queue.advance(100), "the first into an empty list"
    assert not queue.advance(300), "the list was not empty"
    order = []
    while queue.done:
        item = queue.dequeue()
        assert item.state is ItemState.PREFAULT
        order.append(item.gfn)
        queue.present(item)
        assert item.state is ItemState.FREE and queue.find(item.gfn) is None
    assert order == [2, 4, 3, 1]
    assert queue.next_done_ns() is None


def test_limit_and_dedupe() -> None:
    queue = AsyncPfQueue(0)
    for gfn in range(ASYNC_PF_PER_VCPU):
        assert not queue.full
        put(queue, gfn, 10)
    assert queue.full and len(queue) == 64
    with pytest.raises(AssertionError):
        put(queue, 999, 10)
    queue.advance(10)
    item = queue.dequeue()
    assert queue.full, "done but undelivered counts"
    queue.present(item)
    assert not queue.full
    with pytest.raises(AssertionError):
        put(queue, 5, 10)
    queue.check()


def test_a_wake_all_is_done_from_the_start_and_counts() -> None:
    queue = AsyncPfQueue(0)
    put(queue, 7, 100)
    assert queue.wakeup_all(5)
    (item,) = queue.done
    assert (item.token, item.gfn, item.state) == (WAKE_ALL, NO_GFN, ItemState.DONE) and len(queue) == 2
    queue.check()


def test_clearing_waits_for_workers_that_run() -> None:
    queue = AsyncPfQueue(0)
    waits = put(queue, 1, ready_ns=500, picked_ns=10)
    later = put(queue, 2, ready_ns=900, picked_ns=60)
    put(queue, 3, ready_ns=40, picked_ns=10)
    queue.advance(50)
    assert queue.clear(50) == 500, "item 2's worker had not begun: cancelled"
    assert waits.state is later.state is ItemState.FREE and len(queue) == 0 and not queue.done
    queue.check()
