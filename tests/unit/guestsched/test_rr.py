"""Round robin goes by quantum and by order of arrival, and by nothing else."""

from __future__ import annotations

import pytest

from apf.messages import NEVER_NS
from guestsched.core.rr import QUANTUM_NS, RrEntity, RrRunQueue

MS = 1_000_000


def queue(count: int) -> tuple[RrRunQueue, list[RrEntity]]:
    rq = RrRunQueue(1, 250)
    entities = [RrRunQueue.new_entity(number, 0) for number in range(1, count + 1)]
    for entity in entities:
        rq.enqueue_new(entity)
    assert rq.pick_next() is entities[0]
    return rq, entities


def test_quantum_is_that_of_sched_rr() -> None:
    assert QUANTUM_NS == 100 * MS


def test_all_take_turns_a_quantum_each() -> None:
    rq, _ = queue(3)
    order = []
    for _ in range(6):
        assert rq.run_until_ns() == rq.clock_ns + QUANTUM_NS
        rq.update_curr(rq.run_until_ns())
        assert rq.tick_preempts()
        chosen = rq.pick_next()
        assert chosen is not None
        order.append(chosen.id)
    assert order == [2, 3, 1, 2, 3, 1]
    rq.check()


def test_nice_values_mean_nothing() -> None:
    rq = RrRunQueue(1, 250)
    for number, nice in ((1, -20), (2, 19)):
        rq.enqueue_new(rq.new_entity(number, nice))
    rq.pick_next()
    for _ in range(10):
        rq.update_curr(rq.run_until_ns())
        rq.pick_next()
    assert rq.curr is not None
    assert {entity.sum_exec_ns for entity in (rq.curr, *rq.waiting())} == {5 * QUANTUM_NS}


def test_alone_it_gets_one_quantum_after_the_other() -> None:
    rq, (first,) = queue(1)
    assert rq.run_until_ns() == NEVER_NS
    rq.update_curr(230 * MS)
    assert first.left_ns == 70 * MS
    rq.update_curr(300 * MS)
    assert first.left_ns == QUANTUM_NS
    rq.update_curr(301 * MS)
    rq.enqueue_new(RrEntity(2))
    assert rq.run_until_ns() == 400 * MS


def test_stall_costs_no_more_than_the_rest_of_the_quantum() -> None:
    rq, (stalls, other) = queue(2)
    rq.update_curr(90 * MS)
    rq.update_curr(500 * MS)
    assert rq.tick_preempts() and rq.pick_next() is other
    assert stalls.left_ns == QUANTUM_NS


def test_sleeper_and_yielder_keep_the_rest_of_their_quantum_and_go_to_the_tail() -> None:
    rq, (first, second, third) = queue(3)
    rq.update_curr(30 * MS)
    rq.dequeue_curr()
    assert rq.pick_next() is second
    rq.enqueue_woken(first)
    assert not rq.wakeup_preempts(first)
    assert (rq.waiting_ids(), first.left_ns) == ([3, 1], 70 * MS)
    rq.update_curr(50 * MS)
    assert rq.pick_next(skip=True) is third
    assert (rq.waiting_ids(), second.left_ns) == ([1, 2], 80 * MS)


def test_quantum_that_was_over_is_renewed_for_a_sleeper() -> None:
    rq, (first, second) = queue(2)
    rq.update_curr(QUANTUM_NS + MS)
    rq.dequeue_curr()
    assert rq.pick_next() is second
    rq.enqueue_woken(first)
    assert first.left_ns == QUANTUM_NS


def test_idle_yields_to_a_woken_task() -> None:
    rq, (only,) = queue(1)
    rq.dequeue_curr()
    assert rq.pick_next() is None
    rq.enqueue_woken(only)
    assert rq.wakeup_preempts(only) and rq.pick_next() is only


def test_who_does_not_wait_cannot_leave() -> None:
    rq, (first, _) = queue(2)
    with pytest.raises(AssertionError, match="does not wait here"):
        rq.dequeue_waiting(first)
