"""The run queue does what CFS of Linux 5.10 does, fact by fact."""

from __future__ import annotations

import pytest

from apf.messages import NEVER_NS
from guestsched.core.cfs import CfsEntity as Entity
from guestsched.core.cfs import CfsRunQueue as RunQueue
from guestsched.core.sched import NICE_TO_WEIGHT, tuning_factor

MS = 1_000_000


def queue(*nices: int, cpus: int = 1) -> tuple[RunQueue, list[Entity]]:
    """A queue with one new entity for each nice value; the first is current."""
    rq = RunQueue(cpus, 250)
    entities = [Entity(number, nice) for number, nice in enumerate(nices, start=1)]
    for entity in entities:
        rq.enqueue_new(entity)
    assert rq.pick_next() is entities[0]
    return rq, entities


@pytest.mark.parametrize(("cpus", "factor"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (9, 4), (64, 4)])
def test_tuning_factor(cpus: int, factor: int) -> None:
    assert tuning_factor(cpus) == factor


def test_weights_span_forty_nice_values_with_1024_at_0() -> None:
    assert len(NICE_TO_WEIGHT) == 40
    assert NICE_TO_WEIGHT[0] == 88761 and NICE_TO_WEIGHT[20] == 1024 and NICE_TO_WEIGHT[39] == 15
    assert list(NICE_TO_WEIGHT) == sorted(NICE_TO_WEIGHT, reverse=True)


@pytest.mark.parametrize(
    ("running", "cpus", "slice_ns"),
    [
        (2, 1, 3 * MS),
        (2, 4, 9 * MS),
        (8, 1, 750_000),
        (9, 1, 750_000),
        (8, 4, 2_250_000),
        (20, 4, 2_250_000),
    ],
)
def test_slice_of_equals(running: int, cpus: int, slice_ns: int) -> None:
    """Period 6 ms x f up to 8 runnable, then n x 0.75 ms x f."""
    rq, entities = queue(*[0] * running, cpus=cpus)
    assert rq.slice_ns(entities[0]) == slice_ns


def test_slice_is_the_weights_share_but_never_below_the_granularity() -> None:
    rq, (heavy, light) = queue(-5, 5)
    assert rq.slice_ns(heavy) == 6 * MS * 3121 // (3121 + 335)
    assert rq.slice_ns(light) == 750_000


def test_stall_of_current_is_charged_to_current() -> None:
    """E50: S of stall is S of vruntime, whatever the vCPU did meanwhile."""
    rq, (faulting, counting) = queue(0, 0)
    rq.update_curr(8_500_000)
    assert (faulting.vruntime, faulting.sum_exec_ns) == (8_500_000, 8_500_000)
    assert (counting.vruntime, counting.sum_exec_ns) == (0, 0)


def test_vruntime_is_time_over_weight() -> None:
    rq, (light, _) = queue(10, 0)
    rq.update_curr(1_100_000)
    assert light.vruntime == 1_100_000 * 1024 // 110


def test_idle_time_is_nobodys() -> None:
    rq, (only,) = queue(0)
    rq.update_curr(100)
    rq.dequeue_curr()
    assert rq.pick_next() is None
    rq.update_curr(350)
    assert (only.sum_exec_ns, rq.idle_ns) == (100, 250)


def test_nothing_waits_so_no_tick_matters() -> None:
    rq, _ = queue(0)
    assert rq.run_until_ns() == NEVER_NS
    rq.update_curr(10_000 * MS)
    assert not rq.tick_preempts()


def test_slice_over_at_the_first_ns_beyond_it() -> None:
    rq, (first, second) = queue(0, 0)
    assert rq.run_until_ns() == 3 * MS + 1
    rq.update_curr(3 * MS)
    assert not rq.tick_preempts()
    rq.update_curr(3 * MS + 1)
    assert rq.tick_preempts()
    assert rq.pick_next() is second
    assert first.on_rq and rq.waiting_ids() == [1]


def test_current_still_leftmost_keeps_the_cpu_after_its_slice() -> None:
    """The slice is not renewed by that: the first tick that finds another task leftmost switches."""
    rq, (_, second) = queue(0, 0)
    second_vruntime = 5 * MS
    rq._waiting[0] = (second_vruntime, rq._waiting[0][1], second)
    second.vruntime = second_vruntime
    assert rq.run_until_ns() == 5 * MS
    rq.update_curr(4 * MS)
    assert not rq.tick_preempts()
    assert rq.run_until_ns() == 5 * MS
    rq.update_curr(5 * MS)
    assert rq.tick_preempts() and rq.pick_next() is second


def test_slice_starts_anew_at_every_switch() -> None:
    rq, (first, _) = queue(0, 0)
    for now_ns in (4 * MS, 8 * MS):
        rq.update_curr(now_ns)
        rq.pick_next()
    assert rq.curr is first
    assert rq.run_until_ns() == 11 * MS + 1


def test_far_behind_leader_takes_over_before_the_slice_is_over() -> None:
    """Leader ahead by more than a slice, and current ran the minimum granularity."""
    rq, (first, _) = queue(0, 0)
    first.vruntime = 3 * MS
    assert rq.run_until_ns() == 750_000
    rq.update_curr(749_999)
    assert not rq.tick_preempts()
    rq.update_curr(750_000)
    assert rq.tick_preempts()


def test_woken_sleeper_is_placed_half_a_latency_back() -> None:
    rq, (sleeper, _) = queue(0, 0)
    rq.dequeue_curr()
    rq.pick_next()
    rq.update_curr(100 * MS)
    rq.enqueue_woken(sleeper)
    assert sleeper.vruntime == 97 * MS


def test_short_sleep_does_not_give_vruntime_back() -> None:
    rq, (sleeper, _) = queue(0, 0)
    rq.update_curr(2 * MS)
    rq.dequeue_curr()
    rq.pick_next()
    rq.update_curr(3 * MS)
    rq.enqueue_woken(sleeper)
    assert sleeper.vruntime == 2 * MS


@pytest.mark.parametrize(("gap", "preempts"), [(MS, False), (MS + 1, True), (0, False), (-5, False)])
def test_wakeup_preempts_beyond_the_granularity_only(gap: int, preempts: bool) -> None:
    rq, (_, woken) = queue(0, 0)
    rq.update_curr(50 * MS)
    rq.pick_next()
    current = rq.curr
    assert current is woken
    other = Entity(3)
    other.vruntime = current.vruntime - gap
    rq.enqueue_new(other) if gap < 0 else rq._enqueue(other)
    assert rq.wakeup_preempts(other) is preempts


def test_granularity_is_that_of_the_woken_ones_weight() -> None:
    rq, (current,) = queue(0)
    current.vruntime = 50 * MS
    light, heavy = Entity(2, 5), Entity(3, -5)
    light.vruntime = heavy.vruntime = 48 * MS
    assert light.virtual(MS) > 2 * MS > heavy.virtual(MS)
    rq._enqueue(light)
    rq._enqueue(heavy)
    assert not rq.wakeup_preempts(light)
    assert rq.wakeup_preempts(heavy)


def test_idle_always_yields_to_a_woken_task() -> None:
    rq, (only,) = queue(0)
    rq.update_curr(5)
    rq.dequeue_curr()
    rq.pick_next()
    rq.enqueue_woken(only)
    assert rq.wakeup_preempts(only) and rq.pick_next() is only


def test_preferred_is_picked_unless_that_is_unfair() -> None:
    rq, (current, left, woken) = queue(0, 0, 0)
    current.vruntime = 10 * MS
    near, far = left.vruntime + MS, left.vruntime + MS + 1
    for vruntime, expected in ((far, left), (near, woken)):
        rq._waiting = [(0, 1, left), (vruntime, 2, woken)]
        woken.vruntime = vruntime
        rq.curr = current
        assert rq.pick_next(preferred=woken) is expected


def test_yield_gives_way_unless_that_is_unfair() -> None:
    rq, (current, other) = queue(0, 0)
    rq._waiting = [(MS + 1, 1, other)]
    other.vruntime = MS + 1
    assert rq.pick_next(skip=True) is current
    rq._waiting = [(MS, 1, other)]
    other.vruntime = MS
    assert rq.pick_next(skip=True) is other


def test_min_vruntime_follows_the_lowest_and_never_falls() -> None:
    rq, (first, second) = queue(0, 0)
    rq.update_curr(4 * MS)
    assert rq.min_vruntime == 0
    rq.pick_next()
    rq.update_curr(6 * MS)
    assert (first.vruntime, second.vruntime, rq.min_vruntime) == (4 * MS, 2 * MS, 2 * MS)
    rq.dequeue_curr()
    rq.pick_next()
    assert rq.min_vruntime == 4 * MS
    rq.enqueue_woken(second)
    rq.check()
    rq.update_curr(6 * MS)
    assert rq.min_vruntime == 4 * MS


def test_equals_take_turns_in_order_of_arrival() -> None:
    rq, _ = queue(0, 0, 0)
    order = []
    for turn in range(1, 7):
        rq.update_curr(turn * 4 * MS)
        assert rq.tick_preempts()
        chosen = rq.pick_next()
        assert chosen is not None
        order.append(chosen.id)
    assert order == [2, 3, 1, 2, 3, 1]


def test_time_going_back_is_an_own_bug() -> None:
    rq, _ = queue(0)
    rq.update_curr(10)
    with pytest.raises(AssertionError, match="time went back"):
        rq.update_curr(9)


def test_check_sees_a_changed_vruntime() -> None:
    rq, (_, second) = queue(0, 0)
    second.vruntime += 1
    with pytest.raises(AssertionError, match="moved while it waited"):
        rq.check()
