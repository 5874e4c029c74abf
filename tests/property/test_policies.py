"""Whatever happens to a few queues of any policy: nobody is lost, all adds up, and ``run_until_ns`` is exact."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apf.messages import NEVER_NS
from guestsched.core.eevdf import EevdfEntity, EevdfRunQueue
from guestsched.core.sched import Entity, RunQueue
from guestsched.schedulers import BUILT_IN

NICES = st.one_of(st.just(0), st.integers(-20, 19))
GAPS_NS = st.one_of(st.integers(0, 1_000_000), st.integers(0, 30_000_000), st.integers(0, 300_000_000))
ACTIONS = ("run", "tick", "sleep", "wake", "wake_elsewhere", "die", "yield", "new", "kill", "pull", "pick")
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7), GAPS_NS), max_size=40)
SLICES_NS = (None, 3_000_000, 100_000, None, 10_000_000)
POLICIES = pytest.mark.parametrize("policy", BUILT_IN)


def reschedules(rq: RunQueue, now_ns: int) -> bool:
    """Whether a tick at ``now_ns`` puts another entity on the CPU, or takes a delayed one off, tried on a copy."""
    trial = copy.deepcopy(rq)
    trial.update_curr(now_ns)
    before = (trial.curr, len(trial._delayed()))
    said = trial.tick_preempts()
    changed = said and (trial.pick_next(), len(trial._delayed())) != before
    assert changed == said, "a tick that preempts must change something"
    trial.check()
    return changed


@dataclass
class World:
    """Two vCPUs' queues and the tasks of a VM: what a guest kernel does with them, by chance."""

    policy: str
    cpus: int
    nices: list[int]
    queues: list[RunQueue] = field(init=False)
    asleep: list[tuple[int, Entity]] = field(default_factory=list)
    alive: set[int] = field(default_factory=set)
    exec_ns: dict[int, int] = field(default_factory=dict)
    entities: list[Entity] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = BUILT_IN[self.policy]
        self.queues = [kind(self.cpus, 250) for _ in range(2)]
        for nice in self.nices:
            self.create(len(self.entities) % 2, nice)
        for rq in self.queues:
            rq.pick_next()

    def create(self, where: int, nice: int) -> Entity:
        entity = BUILT_IN[self.policy].new_entity(len(self.entities) + 1, nice)
        if isinstance(entity, EevdfEntity):
            entity.custom_slice_ns = SLICES_NS[nice % len(SLICES_NS)]
        self.entities.append(entity)
        self.alive.add(entity.id)
        self.queues[where].enqueue_new(entity)
        return entity

    def wakes(self, rq: RunQueue, woken: Entity) -> None:
        if rq.wakeup_preempts(woken):
            rq.pick_next(preferred=woken)

    def take(self, action: str, number: int, gap_ns: int) -> None:
        """Let time pass and do one thing on one vCPU, if it can be done there."""
        where = number % 2
        rq, other = self.queues[where], self.queues[1 - where]
        now_ns = max(queue.clock_ns for queue in self.queues) + gap_ns
        for queue in self.queues:
            queue.update_curr(now_ns)
        match action:
            case "run":
                pass
            case "tick":
                if rq.tick_preempts():
                    rq.pick_next()
            case "sleep" | "die" if rq.curr is not None:
                gone = rq.curr
                rq.dequeue_curr(sleeps=action == "sleep")
                if action == "sleep":
                    self.asleep.append((where, gone))
                else:
                    self.alive.discard(gone.id)
                rq.pick_next()
            case "wake" | "wake_elsewhere" if self.asleep:
                home, woken = self.asleep.pop(number % len(self.asleep))
                to = home if action == "wake" or woken.delayed else 1 - home
                self.queues[to].enqueue_woken(woken)
                self.wakes(self.queues[to], woken)
            case "yield" if rq.curr is not None:
                rq.pick_next(skip=True)
            case "new" if len(self.entities) < 12:
                self.wakes(rq, self.create(where, number * 2 - 7))
            case "kill":
                self.kill(where, number)
            case "pull":
                candidate = rq.pull_candidate(lambda task_id: task_id % 3 != number % 3)
                if candidate is not None:
                    assert candidate.id % 3 != number % 3 and candidate is not rq.curr
                    rq.dequeue_waiting(candidate)
                    other.enqueue_migrated(candidate)
                    self.wakes(other, candidate)
            case "pick":
                rq.pick_next()
            case _:
                pass
        self.check()

    def kill(self, where: int, number: int) -> None:
        """One that waits, or one that sleeps."""
        rq = self.queues[where]
        waiting = rq.waiting()
        if number % 3 and waiting:
            victim = waiting[number % len(waiting)]
            rq.dequeue_waiting(victim)
            self.alive.discard(victim.id)
        elif self.asleep:
            home, victim = self.asleep.pop(number % len(self.asleep))
            if victim.delayed:
                self.queues[home].dequeue_waiting(victim)
            self.alive.discard(victim.id)

    def check(self) -> None:
        """Everyone alive is in one place, weights add up, and every ns was somebody's."""
        places: list[int] = [entity.id for _, entity in self.asleep]
        for rq in self.queues:
            rq.check()
            here = [*rq.waiting_ids(), *([] if rq.curr is None else [rq.curr.id])]
            assert len(here) == rq.nr_running
            assert (rq.curr is not None) or not here, "a vCPU idles beside work"
            places += here
        assert sorted(places) == sorted(self.alive)
        weights = {entity.id: entity.weight for entity in self.entities}
        runnable = sum(weights[entity.id] for entity in self.entities if entity.on_rq or entity.delayed)
        assert sum(rq.load for rq in self.queues) == runnable
        assert sum(rq.busy_ns for rq in self.queues) == sum(entity.sum_exec_ns for entity in self.entities)


def world(policy: str, cpus: int, nices: list[int], steps: Iterable[tuple[str, int, int]]) -> World:
    made = World(policy, cpus, nices)
    for action, number, gap_ns in steps:
        made.take(action, number, gap_ns)
    return made


CPUS = st.sampled_from([1, 2, 4, 8])
CROWD = st.lists(NICES, min_size=1, max_size=8)


@POLICIES
@settings(max_examples=150, deadline=None)
@given(cpus=CPUS, nices=CROWD, steps=STEPS)
def test_nobody_is_lost_and_all_adds_up(
    policy: str, cpus: int, nices: list[int], steps: list[tuple[str, int, int]]
) -> None:
    made = world(policy, cpus, nices, steps)
    for _, sleeper in made.asleep:
        home = next((rq for rq in made.queues if sleeper in rq._delayed()), made.queues[0])
        home.enqueue_woken(sleeper)
    made.asleep.clear()
    seen: set[int] = set()
    for rq in made.queues:
        while rq.pick_next() is not None:
            assert rq.curr is not None
            seen.add(rq.curr.id)
            rq.dequeue_curr(sleeps=False)
        rq.check()
        assert rq.load == rq.nr_running == 0
    assert seen == made.alive


@POLICIES
@settings(max_examples=150, deadline=None)
@given(cpus=CPUS, nices=CROWD, steps=STEPS, part=st.integers(0, 999), later_ns=st.integers(1, 10**9))
def test_run_until_is_the_first_tick_that_reschedules(
    policy: str, cpus: int, nices: list[int], steps: list[tuple[str, int, int]], part: int, later_ns: int
) -> None:
    for rq in world(policy, cpus, nices, steps).queues:
        threshold_ns = rq.run_until_ns()
        if threshold_ns == NEVER_NS:
            assert not reschedules(rq, rq.clock_ns + later_ns)
            continue
        assert threshold_ns >= rq.clock_ns
        assert reschedules(rq, threshold_ns)
        assert reschedules(rq, threshold_ns + later_ns), "and so does every later one"
        if threshold_ns > rq.clock_ns:
            assert not reschedules(rq, threshold_ns - 1)
            assert not reschedules(rq, rq.clock_ns + (threshold_ns - 1 - rq.clock_ns) * part // 1000)


# EEVDF against a model without sums, orders or integers ----------------------------------------------------------------


def competing(rq: EevdfRunQueue) -> list[EevdfEntity]:
    """In the tree's order, current last."""
    return [*(row[2] for row in rq._queued), *([] if rq.curr is None else [rq.curr])]


def average(entities: list[EevdfEntity]) -> Fraction:
    return Fraction(sum(e.weight * e.vruntime for e in entities), sum(e.weight for e in entities))


def naive_pick(rq: EevdfRunQueue, protect: bool) -> EevdfEntity | None:
    entities = competing(rq)
    if not entities:
        return None
    v = average(entities)
    eligible = [entity for entity in entities if v - entity.vruntime >= 0]
    assert eligible
    if rq.curr in eligible and protect and rq.curr.vruntime < rq.curr.vprot:
        return rq.curr
    # Of equal deadlines the first in the tree, and current only if its own is earlier: it is last in the list.
    return min(eligible, key=lambda entity: entity.deadline)


@settings(max_examples=200, deadline=None)
@given(cpus=CPUS, nices=CROWD, steps=STEPS)
def test_eevdf_picks_what_the_model_picks(cpus: int, nices: list[int], steps: list[tuple[str, int, int]]) -> None:
    made = World("eevdf", cpus, nices)
    for action, number, gap_ns in steps:
        made.take(action, number, gap_ns)
        for rq in made.queues:
            assert isinstance(rq, EevdfRunQueue)
            entities = competing(rq)
            for protect in (False, True):
                assert rq._pick(protect) is naive_pick(rq, protect)
            if not entities:
                continue
            v = average(entities)
            assert rq.avg_vruntime() == v.numerator // v.denominator
            assert sum(entity.weight * (v - entity.vruntime) for entity in entities) == 0, "lags cancel out"
            for entity in entities:
                assert rq.eligible(entity) == (v - entity.vruntime >= 0)
                assert entity.vruntime < entity.deadline or entity.slice_ns == 0
            if rq.curr is not None:
                expected = rq.curr.vruntime >= rq.curr.vprot and naive_pick(rq, protect=True) is not rq.curr
                assert rq.tick_preempts() == expected


NEAR_NS = st.one_of(st.integers(-10, 10), st.integers(-5_000_000, 5_000_000))


@st.composite
def eevdf_queues(draw: st.DrawFn) -> EevdfRunQueue:
    """Anything that could be: vruntimes and deadlines near each other, current's protection over or not."""
    rq = EevdfRunQueue(1, 250)
    for number, nice in enumerate(draw(st.lists(NICES, min_size=2, max_size=6)), start=1):
        entity = EevdfEntity(number, nice)
        entity.custom_slice_ns = draw(st.sampled_from(SLICES_NS))
        rq.enqueue_new(entity)
        if number == 1:
            assert rq.pick_next() is entity
            continue
        rq._remove(entity)
        entity.vruntime = 10**9 + draw(NEAR_NS)
        entity.deadline = entity.vruntime + max(1, entity.virtual(entity.slice_ns) + draw(NEAR_NS))
        if draw(st.booleans()):
            entity.delayed, entity.on_rq = True, False
            rq.nr_running -= 1
        rq._insert(entity)
    curr = rq.curr
    assert curr is not None
    curr.vruntime = 10**9 + draw(NEAR_NS)
    curr.deadline = curr.vruntime + draw(st.integers(1, max(1, curr.virtual(curr.slice_ns))))
    curr.vprot = draw(st.sampled_from([curr.vruntime, curr.deadline, curr.vruntime - 1]))
    rq.check()
    return rq


@settings(max_examples=400, deadline=None)
@given(eevdf_queues(), st.integers(0, 999), st.integers(1, 10**8))
def test_eevdf_run_until_is_exact_anywhere(rq: EevdfRunQueue, part: int, later_ns: int) -> None:
    threshold_ns = rq.run_until_ns()
    assert 0 <= threshold_ns < NEVER_NS
    for after_ns in (0, 1, later_ns):
        assert reschedules(rq, threshold_ns + after_ns)
    if threshold_ns > 0:
        for now_ns in (0, threshold_ns * part // 1000, threshold_ns - 1):
            assert now_ns >= threshold_ns or not reschedules(rq, now_ns)


@settings(max_examples=200, deadline=None)
@given(
    nices=CROWD, nice=NICES, lag=st.integers(-4_000_000, 4_000_000), spread=st.lists(GAPS_NS, min_size=8, max_size=8)
)
def test_eevdf_placement_gives_the_lag_back(nices: list[int], nice: int, lag: int, spread: list[int]) -> None:
    """(W + w) / W undoes what coming does to V, but for a ns or two of rounding at each of the divisions."""
    rq = EevdfRunQueue(1, 250)
    for number, each in enumerate(nices, start=1):
        entity = EevdfEntity(number, each)
        rq.enqueue_new(entity)
        rq._remove(entity)
        entity.vruntime += spread[number - 1]
        entity.deadline += spread[number - 1]
        rq._insert(entity)
    woken = EevdfEntity(99, nice)
    woken.vlag = lag
    rq.enqueue_woken(woken)
    assert abs(average(competing(rq)) - woken.vruntime - lag) <= 2


@settings(max_examples=100, deadline=None)
@given(nices=CROWD, steps=STEPS)
def test_eevdf_lag_of_those_that_left_is_within_its_limit(
    nices: list[int], steps: list[tuple[str, int, int]]
) -> None:
    """And a sleeper whose dequeue was delayed is not owed anything."""
    made = World("eevdf", 1, nices)
    for action, number, gap_ns in steps:
        before = {entity.id for entity in made.entities if entity.delayed}
        made.take(action, number, gap_ns)
        for entity in made.entities:
            assert isinstance(entity, EevdfEntity)
            limit = entity.virtual(max(2 * entity.slice_ns, 4_000_000))
            assert -limit <= entity.vlag <= limit
            if entity.id in before and not entity.delayed and not entity.on_rq:
                assert entity.vlag <= 0
