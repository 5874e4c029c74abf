"""The run queue does what EEVDF of Linux 6.18 does, fact by fact."""

from __future__ import annotations

import copy

import pytest

from apf.messages import NEVER_NS
from guestsched.core.eevdf import BASE_SLICE_NS, EevdfEntity, EevdfRunQueue

MS = 1_000_000
SLICE_NS = 700_000


def queue(*nices: int, cpus: int = 1, hz: int = 250) -> tuple[EevdfRunQueue, list[EevdfEntity]]:
    """A queue with one new entity for each nice value; the first is current."""
    rq = EevdfRunQueue(cpus, hz)
    entities = [EevdfRunQueue.new_entity(number, nice) for number, nice in enumerate(nices, start=1)]
    for entity in entities:
        rq.enqueue_new(entity)
    assert rq.pick_next() is entities[0]
    rq.check()
    return rq, entities


def run(rq: EevdfRunQueue, delta_ns: int) -> None:
    rq.update_curr(rq.clock_ns + delta_ns)
    rq.check()


@pytest.mark.parametrize(("cpus", "slice_ns"), [(1, 700_000), (2, 1_400_000), (4, 2_100_000), (8, 2_800_000)])
def test_base_slice_is_0_7_ms_times_the_factor(cpus: int, slice_ns: int) -> None:
    assert EevdfRunQueue(cpus, 250).base_slice_ns == slice_ns == BASE_SLICE_NS * cpus.bit_length()


def test_new_entity_starts_at_v_with_half_a_slice() -> None:
    rq, (first, _) = queue(0, 0)
    run(rq, 300_000)
    third = EevdfEntity(3, 5)
    rq.enqueue_new(third)
    assert third.vruntime == 150_000
    assert third.deadline == 150_000 + SLICE_NS * 1024 // 335 // 2
    assert first.deadline == SLICE_NS // 2


def test_protected_up_to_its_deadline_then_the_other_runs() -> None:
    """RUN_TO_PARITY: not eligible from the first ns on, current still has its slice as far as ticks go."""
    rq, (first, second) = queue(0, 0)
    assert rq.run_until_ns() == SLICE_NS // 2
    run(rq, SLICE_NS // 2 - 1)
    assert not rq.eligible(first) and not rq.tick_preempts()
    run(rq, 1)
    assert rq.tick_preempts() and rq.pick_next() is second
    assert first.deadline == SLICE_NS // 2 + SLICE_NS


def test_stall_is_one_renewal_of_the_deadline() -> None:
    """E50: S of stall is S of vruntime and one slice more of deadline, however many slices S is."""
    rq, (faulting, _) = queue(0, 0)
    run(rq, 30 * MS)
    assert (faulting.vruntime, faulting.sum_exec_ns) == (30 * MS, 30 * MS)
    assert faulting.deadline == 30 * MS + SLICE_NS


def test_after_a_stall_the_others_run_until_they_have_caught_up() -> None:
    rq, (faulting, counting) = queue(0, 0)
    run(rq, 8 * MS)
    while True:
        assert rq.pick_next() is counting
        run(rq, rq.run_until_ns() - rq.clock_ns)
        if rq.pick_next() is faulting:
            break
    assert 8 * MS <= counting.sum_exec_ns <= 8 * MS + SLICE_NS


def test_earliest_eligible_deadline_first() -> None:
    """The heavy one asks for the same slice, but its deadline is sooner in virtual time."""
    rq, (_, light) = queue(0, 5)
    run(rq, SLICE_NS)
    heavy = EevdfEntity(3, -5)
    rq.enqueue_new(heavy)
    assert heavy.deadline < light.deadline and rq.eligible(light)
    assert rq.pick_next() is heavy


def test_earliest_deadline_does_not_help_who_is_not_eligible() -> None:
    rq, (current,) = queue(0)
    run(rq, 2 * MS)
    ahead, behind = EevdfEntity(2), EevdfEntity(3)
    ahead.vlag, ahead.custom_slice_ns = -MS, 100_000
    behind.vlag, behind.custom_slice_ns = MS, 10 * MS
    for entity in (ahead, behind):
        rq.enqueue_woken(entity)
    assert ahead.deadline < behind.deadline and not rq.eligible(ahead) and rq.eligible(behind)
    current.deadline = current.vprot = current.vruntime + 20 * MS
    assert rq._pick(protect=False) is behind


def test_nothing_waits_so_no_tick_matters() -> None:
    rq, _ = queue(0)
    assert rq.run_until_ns() == NEVER_NS
    run(rq, 10_000 * MS)
    assert not rq.tick_preempts()


def test_current_picked_again_is_not_protected_anew() -> None:
    """Its slice over, current is still the pick; from the ns on at which another is, a tick switches."""
    rq, (first, second) = queue(0, 0)
    run(rq, 10 * MS)
    assert rq.pick_next() is second
    run(rq, 2 * MS)
    assert not rq.tick_preempts() and rq.pick_next() is second and not second.protected
    # The first is eligible again once both have run the same.
    assert rq.run_until_ns() == 20 * MS
    early = copy.deepcopy(rq)
    run(early, 8 * MS - 1)
    assert not early.tick_preempts()
    run(rq, 8 * MS)
    assert rq.tick_preempts() and rq.pick_next() is first


@pytest.mark.parametrize("owed", [300_000, 0])
def test_lag_outlasts_sleep(owed: int) -> None:
    """PLACE_LAG: inflated on placement, so that it is the same once the sleeper is back."""
    rq, (sleeper, other) = queue(0, 0)
    rq.dequeue_curr()
    sleeper.vlag = owed
    assert rq.pick_next() is other
    run(rq, 50 * MS)
    rq.enqueue_woken(sleeper)
    assert rq.avg_vruntime() - sleeper.vruntime == owed
    assert sleeper.deadline == sleeper.vruntime + SLICE_NS


@pytest.mark.parametrize(("hz", "limit_ns"), [(250, 4 * MS), (1000, 1_400_000)])
def test_lag_is_clamped_to_two_slices_or_a_tick(hz: int, limit_ns: int) -> None:
    rq, (first, second, third) = queue(0, 0, 0, hz=hz)
    run(rq, 100 * MS)
    rq.dequeue_waiting(second)
    assert second.vlag == limit_ns
    rq.dequeue_curr(sleeps=False)
    assert first.vlag == -limit_ns
    assert rq.pick_next() is third


def test_sleeper_that_owes_time_competes_on_until_it_is_picked() -> None:
    """DELAY_DEQUEUE, and DELAY_ZERO: it comes back owing nothing and owed nothing."""
    rq, (sleeper, other) = queue(0, 0)
    run(rq, 2 * MS)
    rq.dequeue_curr()
    assert sleeper.delayed and not sleeper.on_rq
    assert rq.pick_next() is other
    rq.check()
    assert (rq.nr_running, rq.load, rq.waiting_ids()) == (1, 2048, [])
    assert rq.run_until_ns() == 4 * MS
    run(rq, 2 * MS)
    assert rq.tick_preempts() and rq.pick_next() is other
    assert not sleeper.delayed and sleeper.vlag == 0 and rq.load == 1024
    assert rq.run_until_ns() == NEVER_NS
    run(rq, 5 * MS)
    rq.enqueue_woken(sleeper)
    assert sleeper.vruntime == other.vruntime
    rq.check()


def test_sleeper_that_is_owed_time_leaves_at_once() -> None:
    rq, (first, second) = queue(0, 0)
    run(rq, 2 * MS)
    assert rq.pick_next() is second
    run(rq, 500_000)
    rq.dequeue_curr()
    assert not second.delayed and second.vlag == 750_000
    assert rq.pick_next() is first


def test_dying_is_never_delayed() -> None:
    rq, (dying, other) = queue(0, 0)
    run(rq, 2 * MS)
    rq.dequeue_curr(sleeps=False)
    assert not dying.delayed and rq.pick_next() is other
    rq.check()
    assert rq.load == 1024


def queue_with_delayed() -> tuple[EevdfRunQueue, EevdfEntity, EevdfEntity]:
    """A queue, one that sleeps and owes what it ran in excess, and one that runs."""
    rq, (sleeper, other) = queue(0, 0)
    run(rq, 2 * MS)
    rq.dequeue_curr()
    assert sleeper.delayed and rq.pick_next() is other
    return rq, sleeper, other


def test_delayed_sleeper_that_still_owes_wakes_where_it_is() -> None:
    rq, sleeper, _ = queue_with_delayed()
    run(rq, MS)
    rq.enqueue_woken(sleeper)
    assert (sleeper.vruntime, sleeper.deadline) == (2 * MS, 2 * MS + SLICE_NS)
    assert not sleeper.delayed and sleeper.on_rq and not rq.wakeup_preempts(sleeper)
    rq.check()


def test_delayed_sleeper_that_wakes_late_is_placed_at_v() -> None:
    rq, sleeper, other = queue_with_delayed()
    run(rq, 12 * MS)
    rq.enqueue_woken(sleeper)
    assert sleeper.vruntime == other.vruntime == 12 * MS
    assert sleeper.deadline == 12 * MS + SLICE_NS
    rq.check()


def test_delayed_sleeper_can_be_killed() -> None:
    rq, sleeper, _ = queue_with_delayed()
    rq.dequeue_waiting(sleeper)
    assert not sleeper.delayed and sleeper.vlag < 0
    rq.check()
    assert rq.load == 1024 and rq.run_until_ns() == NEVER_NS


def test_vcpu_with_delayed_sleepers_only_is_idle() -> None:
    rq, (first, second) = queue(0, 0)
    run(rq, 2 * MS)
    rq.dequeue_curr()
    assert rq.pick_next() is second
    run(rq, 5 * MS)
    rq.dequeue_curr()
    assert first.delayed and second.delayed
    assert rq.pick_next() is None
    assert not first.delayed and not second.delayed and rq.load == 0
    rq.check()


def test_woken_waits_while_current_is_eligible_and_protected() -> None:
    """Section 5: at once under CFS, but here after up to a slice."""
    rq, (current, waker) = queue(0, 0)
    rq.dequeue_curr()
    assert rq.pick_next() is waker
    run(rq, SLICE_NS)
    waker.deadline = waker.vprot = waker.vruntime + SLICE_NS
    current.vlag = 0
    rq.enqueue_woken(current)
    assert rq.eligible(waker) and not rq.wakeup_preempts(current)
    assert rq.run_until_ns() == rq.clock_ns + SLICE_NS


def test_woken_runs_at_once_if_current_is_not_eligible() -> None:
    rq, (sleeper, current) = queue(0, 0)
    sleeper.vlag = 0
    rq.dequeue_curr()
    assert rq.pick_next() is current
    run(rq, 100_000)
    sleeper.vlag = 200_000
    rq.enqueue_woken(sleeper)
    assert current.protected and not rq.eligible(current)
    assert rq.wakeup_preempts(sleeper) and rq.pick_next() is sleeper


def test_wake_up_after_the_slice_reschedules_whoever_is_next() -> None:
    """update_curr finds the slice over before any tick does; check_preempt_wakeup_fair finds need_resched set."""
    rq, (current, waits) = queue(0, 0)
    run(rq, SLICE_NS)
    woken = EevdfEntity(3)
    woken.vlag = -MS
    rq.enqueue_woken(woken)
    assert not rq.eligible(woken) and rq.wakeup_preempts(woken)
    assert rq.pick_next() is waits and not rq.need_resched
    assert not rq.wakeup_preempts(current)


def test_shorter_slice_breaks_protection() -> None:
    """PREEMPT_SHORT: a woken entity that asks for less runs first."""
    rq, (sleeper, current) = queue(0, 0)
    rq.dequeue_curr()
    assert rq.pick_next() is current
    sleeper.vlag = 0
    sleeper.custom_slice_ns = 100_000
    rq.enqueue_woken(sleeper)
    assert rq.eligible(current) and current.protected and sleeper.deadline < current.deadline
    assert rq.wakeup_preempts(sleeper)
    assert not current.protected and rq.pick_next() is sleeper


def test_shortest_slice_limits_protection() -> None:
    rq, (sleeper, first, second) = queue(0, 0, 0)
    rq.dequeue_curr()
    sleeper.vlag = -MS
    sleeper.custom_slice_ns = 100_000
    rq.enqueue_woken(sleeper)
    assert rq.pick_next() is first
    assert first.vprot == first.vruntime + 100_000
    assert rq.run_until_ns() == rq.clock_ns + 100_000
    run(rq, 100_000)
    assert rq.tick_preempts() and rq.pick_next() is second


def test_yield_forfeits_the_slice_of_an_eligible_current() -> None:
    rq, (first, second) = queue(0, 0)
    assert rq.pick_next(skip=True) is second
    assert (first.vruntime, first.deadline) == (SLICE_NS // 2, SLICE_NS // 2 + SLICE_NS)
    rq.check()


def test_yield_of_an_ineligible_current_costs_it_nothing_more() -> None:
    rq, (first, second) = queue(0, 0)
    run(rq, 200_000)
    assert rq.pick_next(skip=True) is second
    assert (first.vruntime, first.deadline) == (200_000, SLICE_NS // 2)


def test_yield_alone_changes_nothing() -> None:
    rq, (only,) = queue(0)
    assert rq.pick_next(skip=True) is only
    assert (only.vruntime, only.deadline) == (0, SLICE_NS // 2)


def test_migration_keeps_lag_and_distance_from_the_deadline() -> None:
    here, _ = queue(0, 0)
    run(here, 30 * MS)
    moved = EevdfEntity(9)
    here.enqueue_new(moved)
    run(here, 1_500_000)
    assert moved.vruntime == 15 * MS
    lag, left = here.avg_vruntime() - moved.vruntime, moved.deadline - moved.vruntime
    there, _ = queue(0, 0)
    there.update_curr(70 * MS)
    here.dequeue_waiting(moved)
    there.enqueue_migrated(moved)
    assert abs(there.avg_vruntime() - moved.vruntime - lag) <= 1
    assert moved.deadline - moved.vruntime == left
    for rq in (here, there):
        rq.check()


def test_sleeper_wakes_on_another_queue_with_its_lag() -> None:
    here, (_, sleeper) = queue(0, 0)
    run(here, 900_000)
    assert here.pick_next() is sleeper
    here.dequeue_curr()
    assert not sleeper.delayed and sleeper.vlag == 450_000
    there, _ = queue(0, 0)
    there.update_curr(90 * MS)
    there.enqueue_woken(sleeper)
    assert abs(there.avg_vruntime() - sleeper.vruntime - 450_000) <= 1


def test_delayed_sleeper_cannot_wake_elsewhere() -> None:
    here, (sleeper, _) = queue(0, 0)
    run(here, 2 * MS)
    here.dequeue_curr()
    there, _ = queue(0)
    with pytest.raises(AssertionError, match="does not wait here"):
        there.enqueue_woken(sleeper)
