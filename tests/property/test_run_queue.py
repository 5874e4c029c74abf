"""``run_until_ns`` names exactly the tick that switches, and tasks that never sleep stay close in vruntime."""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from apf.messages import NEVER_NS
from guestsched.core.cfs import CfsEntity as Entity
from guestsched.core.cfs import CfsRunQueue as RunQueue

NICES = st.integers(-20, 19)
NEAR_NS = st.integers(-20_000_000, 20_000_000)


def make_queue(nices: list[int], offsets: list[int], cpus: int) -> RunQueue:
    rq = RunQueue(cpus, 250)
    for number, (nice, offset) in enumerate(zip(nices, offsets, strict=True), start=1):
        entity = Entity(number, nice)
        entity.vruntime = 10**9 + offset
        rq.enqueue_new(entity)
    rq.pick_next()
    return rq


def switches_at(rq: RunQueue, now_ns: int) -> bool:
    """Whether a tick at ``now_ns`` puts another task on the CPU, found by trying on a copy."""
    trial = copy.deepcopy(rq)
    trial.update_curr(now_ns)
    before = trial.curr
    said = trial.tick_preempts()
    changed = said and trial.pick_next() is not before
    assert changed == said, "a tick that preempts must find another task"
    trial.check()
    return changed


@st.composite
def queues(draw: st.DrawFn) -> RunQueue:
    size = draw(st.integers(2, 12))
    nices = draw(st.lists(NICES, min_size=size, max_size=size))
    offsets = draw(st.lists(NEAR_NS, min_size=size, max_size=size))
    rq = make_queue(nices, offsets, draw(st.sampled_from([1, 2, 4, 8])))
    assert rq.curr is not None
    rq.update_curr(draw(st.integers(0, 20_000_000)))
    # A wake-up that does not preempt leaves current anywhere, with part of its slice used up.
    rq.curr.vruntime += draw(NEAR_NS)
    return rq


@settings(max_examples=300, deadline=None)
@given(queues(), st.integers(1, 10**9))
def test_run_until_is_the_first_tick_that_switches(rq: RunQueue, later_ns: int) -> None:
    threshold_ns = rq.run_until_ns()
    assert rq.clock_ns <= threshold_ns < NEVER_NS
    assert switches_at(rq, threshold_ns)
    assert switches_at(rq, threshold_ns + later_ns), "and so does every later one"
    if threshold_ns > rq.clock_ns:
        assert not switches_at(rq, threshold_ns - 1)
        assert not switches_at(rq, (rq.clock_ns + threshold_ns) // 2) or rq.clock_ns + 1 >= threshold_ns


@settings(max_examples=100, deadline=None)
@given(queues(), st.lists(st.integers(0, 10**7), min_size=1, max_size=4))
def test_ticks_that_change_nothing_do_not_move_run_until(rq: RunQueue, gaps: list[int]) -> None:
    """Handling them or not gives the same threshold, but for a ns of rounding for each at most."""
    assert rq.curr is not None
    threshold_ns = rq.run_until_ns()
    for count, gap_ns in enumerate(gaps, start=1):
        now_ns = min(rq.clock_ns + gap_ns, threshold_ns)
        rq.update_curr(now_ns)
        slack_ns = count * rq.curr.runtime_for(1)
        assert threshold_ns <= rq.run_until_ns() <= threshold_ns + slack_ns


@settings(max_examples=60, deadline=None)
@given(
    st.lists(NICES, min_size=2, max_size=6),
    st.lists(st.integers(0, 20_000_000), min_size=1, max_size=60),
    st.sampled_from([1, 4]),
)
def test_vruntimes_of_always_runnable_tasks_stay_together(nices: list[int], late_ns: list[int], cpus: int) -> None:
    """However late ticks are: none gets ahead by more than its slice and the longest delay."""
    rq = make_queue(nices, [0] * len(nices), cpus)
    entities = [entity for entity in (rq.curr, *(row[2] for row in rq._waiting)) if entity is not None]
    bound = max(entity.virtual(rq.slice_ns(entity) + max(late_ns) + 1) + 2 for entity in entities)
    for delay_ns in late_ns:
        rq.update_curr(rq.run_until_ns() + delay_ns)
        assert rq.tick_preempts()
        rq.pick_next()
        rq.check()
        vruntimes = [entity.vruntime for entity in entities]
        assert max(vruntimes) - min(vruntimes) <= bound
    assert sum(entity.sum_exec_ns for entity in entities) == rq.clock_ns
