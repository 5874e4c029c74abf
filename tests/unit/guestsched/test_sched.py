"""What holds of every policy, or tells them apart: shares, how long a woken task waits, and moving between vCPUs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from apf.messages import NEVER_NS
from guestsched.core.cfs import CfsEntity, CfsRunQueue
from guestsched.core.eevdf import EevdfRunQueue
from guestsched.core.sched import NICE_MIN, NICE_TO_WEIGHT, Entity, RunQueue, tuning_factor
from guestsched.schedulers import BUILT_IN

MS = 1_000_000
TOUCH_NS = 10_000
APF_NS = 5_000
ALL = pytest.mark.parametrize("policy", BUILT_IN)
FAIR = pytest.mark.parametrize("policy", ["cfs", "eevdf"])


class TimeOnlyVcpu:
    """One vCPU of ``cpus``, made of nothing but time, with all tasks from the start.

    The first ``stalling`` tasks run TOUCH_NS, then touch an absent page, all the time; the others only run. Without
    APF the vCPU stands still for the stall, then takes one tick, and the queue sees nothing but time passing.
    """

    def __init__(self, policy: str, nices: Sequence[int], stalling: int, cpus: int = 1, hz: int = 250) -> None:
        self.rq = BUILT_IN[policy](cpus, hz)
        self.tick_ns = 1_000_000_000 // hz
        self.stalling = stalling
        self.entities = [self.rq.new_entity(number, nice) for number, nice in enumerate(nices, start=1)]
        for entity in self.entities:
            self.rq.enqueue_new(entity)
        self.rq.pick_next()
        self.executed_ns = {entity.id: 0 for entity in self.entities}
        self.waits_ns: list[int] = []

    def run_stalling(self, stall_ns: int, end_ns: int) -> None:
        """As without APF."""
        rq, now_ns = self.rq, 0
        next_tick_ns, due_ns = self.tick_ns, rq.run_until_ns()
        while now_ns < end_ns:
            assert rq.curr is not None
            stalls = rq.curr.id <= self.stalling
            until_ns = now_ns + TOUCH_NS if stalls else max(now_ns, next_tick_ns)
            self.executed_ns[rq.curr.id] += until_ns - now_ns
            now_ns = until_ns + (stall_ns if stalls else 0)
            if now_ns >= next_tick_ns:
                next_tick_ns = (now_ns // self.tick_ns + 1) * self.tick_ns
                if now_ns >= due_ns:
                    rq.update_curr(now_ns)
                    assert rq.tick_preempts()
                    rq.pick_next()
                    due_ns = rq.run_until_ns()
        rq.update_curr(now_ns)
        rq.check()

    def run_apf(self, io_ns: int, end_ns: int) -> None:
        """As with APF: a task that touches an absent page sleeps for ``io_ns``; its waits from then on are noted."""
        rq, now_ns, left_ns = self.rq, 0, dict.fromkeys(self.executed_ns, TOUCH_NS)
        next_tick_ns = self.tick_ns
        ready: list[tuple[int, Entity]] = []
        woken_ns: dict[int, int] = {}
        while now_ns < end_ns:
            curr = rq.curr
            if curr is not None and curr.id in woken_ns:
                self.waits_ns.append(now_ns - woken_ns.pop(curr.id))
            touch_ns = now_ns + left_ns[curr.id] if curr is not None and curr.id <= self.stalling else NEVER_NS
            event_ns = min(touch_ns, max(now_ns, next_tick_ns), ready[0][0] if ready else NEVER_NS)
            if curr is not None:
                left_ns[curr.id] -= event_ns - now_ns
                self.executed_ns[curr.id] += event_ns - now_ns
            now_ns = event_ns
            rq.update_curr(now_ns)
            if ready and ready[0][0] <= now_ns:
                woken = ready.pop(0)[1]
                rq.enqueue_woken(woken)
                woken_ns[woken.id] = now_ns
                if rq.wakeup_preempts(woken):
                    rq.pick_next(preferred=woken)
                now_ns += APF_NS
            elif now_ns == touch_ns:
                assert curr is not None
                left_ns[curr.id] = TOUCH_NS
                ready.append((now_ns + io_ns, curr))
                rq.dequeue_curr()
                rq.pick_next()
                now_ns += APF_NS
            else:
                next_tick_ns += self.tick_ns
                if rq.tick_preempts():
                    rq.pick_next()
            rq.check()

    def counting_share(self) -> tuple[int, int]:
        """ns in which the counting tasks counted, and ns in all."""
        counted_ns = sum(self.executed_ns[entity.id] for entity in self.entities[self.stalling :])
        return counted_ns, self.rq.clock_ns


def weight(nices: Sequence[int]) -> int:
    return sum(NICE_TO_WEIGHT[nice - NICE_MIN] for nice in nices)


@pytest.mark.parametrize(("cpus", "factor"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (64, 4)])
def test_tuning_factor(cpus: int, factor: int) -> None:
    assert tuning_factor(cpus) == factor


# Shares ----------------------------------------------------------------------------------------------------------


@FAIR
@pytest.mark.parametrize("stall_ns", [200_000, 8 * MS])
@pytest.mark.parametrize(("stalling", "counting"), [(1, 1), (1, 3), (3, 1), (2, 2), (4, 1), (2, 5), (1, 9)])
def test_counting_tasks_get_their_fair_share(policy: str, stalling: int, counting: int, stall_ns: int) -> None:
    """M/(N+M) within 3 %, for the stall is charged to the task that faulted (E50)."""
    vcpu = TimeOnlyVcpu(policy, [0] * (stalling + counting), stalling)
    vcpu.run_stalling(stall_ns, 20_000 * MS)
    counted_ns, all_ns = vcpu.counting_share()
    assert counted_ns / all_ns == pytest.approx(counting / (stalling + counting), rel=0.03)


@FAIR
@pytest.mark.parametrize("cpus", [1, 8])
@pytest.mark.parametrize(
    ("stalling", "counting"), [([0], [5]), ([5], [0]), ([0], [-5]), ([-3], [3]), ([0, 5], [0, -2, 3]), ([2, -2], [1])]
)
def test_shares_go_by_weight(policy: str, stalling: list[int], counting: list[int], cpus: int) -> None:
    vcpu = TimeOnlyVcpu(policy, [*stalling, *counting], len(stalling), cpus=cpus)
    vcpu.run_stalling(2 * MS, 60_000 * MS)
    for entity in vcpu.entities:
        expected = entity.weight / weight([*stalling, *counting])
        assert entity.sum_exec_ns / vcpu.rq.clock_ns == pytest.approx(expected, rel=0.03)


@FAIR
@pytest.mark.parametrize(("stalling", "counting"), [(1, 1), (3, 1), (4, 1), (1, 3)])
def test_with_apf_counting_tasks_get_nearly_all(policy: str, stalling: int, counting: int) -> None:
    """1 - N * (c + o) / (S + c + o) at least: less is faulted the longer a woken task waits."""
    vcpu = TimeOnlyVcpu(policy, [0] * (stalling + counting), stalling)
    vcpu.run_apf(8 * MS, 2_000 * MS)
    counted_ns, all_ns = vcpu.counting_share()
    busy_ns = TOUCH_NS + 2 * APF_NS
    assert 1 - stalling * busy_ns / (8 * MS + busy_ns) - 0.005 <= counted_ns / all_ns < 1


def test_round_robin_has_no_idea_of_shares() -> None:
    """A quantum each, whatever the weights are; a stall beyond the quantum is nobody's gain."""
    vcpu = TimeOnlyVcpu("rr", [5, -5], 1)
    vcpu.run_stalling(8 * MS, 20_000 * MS)
    counted_ns, all_ns = vcpu.counting_share()
    assert counted_ns / all_ns == pytest.approx(0.5, rel=0.05)
    vcpu = TimeOnlyVcpu("rr", [0, 0], 1)
    vcpu.run_stalling(300 * MS, 20_000 * MS)
    counted_ns, all_ns = vcpu.counting_share()
    assert counted_ns / all_ns == pytest.approx(0.25, rel=0.05)


# How long a woken task waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 4])
def test_under_cfs_a_task_whose_page_is_ready_runs_at_once(cpus: int) -> None:
    """Section 5: sleepers are far behind the counting task, which is always further ahead than the granularity."""
    vcpu = TimeOnlyVcpu("cfs", [0, 0], 1, cpus=cpus)
    vcpu.run_apf(8 * MS, 3_000 * MS)
    later = vcpu.waits_ns[len(vcpu.waits_ns) // 2 :]
    assert later and set(later) == {APF_NS}


@pytest.mark.parametrize("cpus", [1, 8])
def test_under_eevdf_a_task_whose_page_is_ready_waits_up_to_a_slice_and_a_tick(cpus: int) -> None:
    """Section 5: while it is owed time it preempts, for current is not eligible then; else current has its slice."""
    vcpu = TimeOnlyVcpu("eevdf", [0, 0], 1, cpus=cpus, hz=1000)
    vcpu.run_apf(8 * MS, 3_000 * MS)
    assert isinstance(vcpu.rq, EevdfRunQueue)
    waited = [wait_ns for wait_ns in vcpu.waits_ns if wait_ns > APF_NS]
    assert 2 < len(waited) < len(vcpu.waits_ns) // 10
    assert max(waited) <= vcpu.rq.base_slice_ns + vcpu.tick_ns


def test_in_a_crowd_most_woken_tasks_wait_under_eevdf_and_none_under_cfs() -> None:
    """Those that wait already have earlier deadlines; at 250 Hz each of them takes a tick's time."""
    waited = {}
    for policy in ("cfs", "eevdf"):
        vcpu = TimeOnlyVcpu(policy, [0] * 5, 1)
        vcpu.run_apf(8 * MS, 3_000 * MS)
        # The first round is the start's.
        waited[policy] = sum(wait_ns > APF_NS for wait_ns in vcpu.waits_ns[1:]) * 100 // len(vcpu.waits_ns)
    assert waited["cfs"] == 0 and waited["eevdf"] > 50


def test_under_round_robin_it_waits_for_a_quantum() -> None:
    vcpu = TimeOnlyVcpu("rr", [0, 0], 1)
    vcpu.run_apf(8 * MS, 3_000 * MS)
    assert 88 * MS < max(vcpu.waits_ns) <= 104 * MS


# From one vCPU to another ----------------------------------------------------------------------------------------------


def pair(policy: str, here: int, there: int) -> tuple[RunQueue, RunQueue, list[Entity]]:
    """Two queues of one VM, one 50 ms ahead in all, with so many tasks; the entities of the first."""
    kind = BUILT_IN[policy]
    queues, entities = (kind(2, 250), kind(2, 250)), []
    for number in range(1, here + there + 1):
        entities.append(kind.new_entity(number, 0))
        queues[number > here].enqueue_new(entities[-1])
    for rq in queues:
        rq.pick_next()
    queues[1].update_curr(50 * MS)
    return *queues, entities[:here]


@ALL
def test_what_waits_last_is_pulled_and_goes_on_elsewhere(policy: str) -> None:
    here, there, entities = pair(policy, 4, 0)
    assert there.pick_next() is None
    candidate = here.pull_candidate(lambda task_id: True)
    assert candidate is not None and candidate.id == here.waiting_ids()[-1] == 4
    here.dequeue_waiting(candidate)
    there.enqueue_migrated(candidate)
    assert there.wakeup_preempts(candidate) and there.pick_next() is candidate
    for rq in (here, there):
        rq.check()
    assert (here.nr_running, there.nr_running, here.load, there.load) == (3, 1, 3072, 1024)
    assert candidate.on_rq and here.curr is entities[0]


@ALL
def test_only_allowed_ones_are_pulled(policy: str) -> None:
    here, _, _ = pair(policy, 4, 0)
    found = here.pull_candidate(lambda task_id: task_id in (1, 3))
    assert found is not None and found.id == 3
    assert here.pull_candidate(lambda task_id: task_id == 1) is None, "current is not pulled"


@ALL
def test_nothing_is_pulled_from_a_vcpu_with_one_task(policy: str) -> None:
    here, there, _ = pair(policy, 1, 0)
    assert here.pull_candidate(lambda task_id: True) is None
    assert there.pull_candidate(lambda task_id: True) is None


@ALL
def test_what_is_about_to_run_where_it_is_is_not_pulled(policy: str) -> None:
    rq = BUILT_IN[policy](1, 250)
    for number in (1, 2):
        assert rq.pull_candidate(lambda task_id: True) is None
        rq.enqueue_new(rq.new_entity(number, 0))
    found = rq.pull_candidate(lambda task_id: True)
    assert found is not None and found.id == 2


@ALL
def test_killed_while_it_waits(policy: str) -> None:
    here, _, (_, victim) = pair(policy, 2, 0)
    here.dequeue_waiting(victim)
    here.check()
    assert not victim.on_rq and here.waiting_ids() == [] and here.run_until_ns() == NEVER_NS


@ALL
def test_nobody_joins_twice(policy: str) -> None:
    _, there, (_, waits) = pair(policy, 2, 0)
    with pytest.raises(AssertionError):
        there.enqueue_woken(waits)


@ALL
def test_current_is_no_one_that_waits(policy: str) -> None:
    here, _, (current, _) = pair(policy, 2, 0)
    with pytest.raises(AssertionError, match="does not wait here"):
        here.dequeue_waiting(current)


def test_cfs_vruntime_goes_along_as_distance_from_min_vruntime() -> None:
    here, there = CfsRunQueue(1, 250), CfsRunQueue(1, 250)
    here.min_vruntime, there.min_vruntime = 20 * MS, 70 * MS
    moved = CfsEntity(1)
    moved.vruntime = 23 * MS
    here.enqueue_new(moved)
    here.dequeue_waiting(moved)
    assert moved.vruntime == 3 * MS
    there.enqueue_migrated(moved)
    assert moved.vruntime == 73 * MS
    assert there.pick_next() is moved


@pytest.mark.parametrize(("slept_ns", "placed_ns"), [(18 * MS, 68 * MS), (10 * MS, 67 * MS), (24 * MS, 74 * MS)])
def test_cfs_sleeper_wakes_elsewhere_no_further_behind_than_a_sleeper_may_be(slept_ns: int, placed_ns: int) -> None:
    """migrate_task_rq_fair, then place_entity: by the old queue's min_vruntime as it is when the task wakes."""
    here, there = CfsRunQueue(1, 250), CfsRunQueue(1, 250)
    sleeper = CfsEntity(1)
    sleeper.vruntime = slept_ns
    here.enqueue_new(sleeper)
    here.pick_next()
    here.dequeue_curr()
    assert here.pick_next() is None
    here.min_vruntime, there.min_vruntime = 20 * MS, 70 * MS
    there.enqueue_woken(sleeper)
    assert sleeper.vruntime == placed_ns
    assert there.pick_next() is sleeper
    there.dequeue_curr()
    there.enqueue_woken(sleeper)
    assert sleeper.vruntime == placed_ns, "at home there now"


# Accounting ------------------------------------------------------------------------------------------------------------


@ALL
def test_time_is_somebodys_from_start_on(policy: str) -> None:
    rq = BUILT_IN[policy](1, 250)
    only = rq.new_entity(1, 3)
    rq.enqueue_new(only)
    rq.start(1_000)
    rq.pick_next()
    rq.update_curr(1_600)
    rq.dequeue_curr(sleeps=False)
    assert rq.pick_next() is None
    rq.update_curr(2_000)
    assert (rq.busy_ns, rq.idle_ns, only.sum_exec_ns, only.prev_sum_exec_ns) == (600, 400, 600, 0)
    rq.check()


def test_check_sees_what_does_not_add_up() -> None:
    rq, _, (_, waits) = pair("cfs", 2, 0)
    rq.load += 1
    with pytest.raises(AssertionError, match="load 2049"):
        rq.check()
    rq.load -= 1
    waits.on_rq = False
    with pytest.raises(AssertionError, match="not on_rq"):
        rq.check()
    waits.on_rq = True
    rq.idle_ns += 1
    with pytest.raises(AssertionError, match="0 ns, not 0 and 1"):
        rq.check()


@pytest.mark.parametrize("nice", [-21, 20])
def test_nice_value_out_of_range_is_an_own_bug(nice: int) -> None:
    with pytest.raises(AssertionError, match=f"nice {nice}"):
        Entity(1, nice)
