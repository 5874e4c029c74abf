"""The run queue of one vCPU: CFS as of Linux 5.10 (kernel/sched/fair.c).

Theory. Every entity has a vruntime: the time it ran, divided by its weight. Current runs; the others wait in order
of vruntime, and the leftmost is next. A tick takes the CPU from current once it has run its slice, or is far ahead
of the leftmost. ``clock_ns`` is rq->clock_task. It subtracts steal only, and a vCPU that sleeps in the host for a
page has none, so ``update_curr`` charges a stall to the task that faulted, all of it, as it charges any other time
(switches and handlers too: they run on the account of the task that runs next). Nothing else here knows of stalls.

Ticks that change nothing never reach this file: ``run_until_ns`` says from when on a tick takes the CPU away. That is
exact, for between two traps only current's own time moves, and linearly. A tick after a long stall is one tick.

Functions followed: update_curr, update_min_vruntime, place_entity (GENTLE_FAIR_SLEEPERS), __sched_period,
sched_slice (BASE_SLICE), check_preempt_tick, wakeup_preempt_entity, check_preempt_wakeup, pick_next_entity,
yield_task_fair. As in pick_next_task_fair with CONFIG_FAIR_GROUP_SCHED, picking current again does not end its slice
(prev_sum_exec stays), so after a slice is over the first tick that finds another task leftmost switches.

Departures: one flat queue (no groups, no bandwidth); vruntime is divided exactly, not by a 32-bit reciprocal; no
LAST_BUDDY, and a next or skip buddy that is not honoured at once is forgotten; no START_DEBIT, as all tasks exist
before time 0; min_vruntime is brought up to date at traps, not at every tick.
"""

from __future__ import annotations

from bisect import insort

from apf.messages import NEVER_NS

NICE_0_LOAD = 1024
# sched_prio_to_weight (kernel/sched/core.c), from nice -20 to 19: about 1.25 from one to the next.
NICE_TO_WEIGHT = (
    *(88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916),
    *(9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277),
    *(1024, 820, 655, 526, 423, 335, 272, 215, 172, 137),
    *(110, 87, 70, 56, 45, 36, 29, 23, 18, 15),
)
NICE_MIN, NICE_MAX = -20, 19

# The normalized sysctl_sched_* of 5.10; a vCPU's are these times tuning_factor().
LATENCY_NS = 6_000_000
MIN_GRANULARITY_NS = 750_000
WAKEUP_GRANULARITY_NS = 1_000_000
NR_LATENCY = 8


def tuning_factor(cpus: int) -> int:
    """1 + ilog2(min(cpus, 8)), get_update_sysctl_factor's: 1, 2, 3, 4 for 1, 2-3, 4-7, 8 and more CPUs."""
    return min(cpus, 8).bit_length()


class Entity:
    """What CFS knows of one task (struct sched_entity). Times in ns; ``vruntime`` in ns of a nice-0 task."""

    __slots__ = ("id", "on_rq", "prev_sum_exec_ns", "sum_exec_ns", "vruntime", "weight")

    def __init__(self, task_id: int, nice: int = 0) -> None:
        assert NICE_MIN <= nice <= NICE_MAX, f"task {task_id}: nice {nice}"
        self.id = task_id
        self.weight = NICE_TO_WEIGHT[nice - NICE_MIN]
        self.vruntime = 0
        self.sum_exec_ns = 0
        self.prev_sum_exec_ns = 0
        self.on_rq = False

    def __repr__(self) -> str:
        return f"Entity({self.id}, vruntime={self.vruntime}, weight={self.weight})"

    def virtual(self, delta_ns: int) -> int:
        """calc_delta_fair: what ``delta_ns`` of running adds to vruntime."""
        return delta_ns * NICE_0_LOAD // self.weight

    def runtime_for(self, virtual_ns: int) -> int:
        """The shortest time of running that adds at least ``virtual_ns`` to vruntime; 0 if that is negative."""
        return max(0, -(-virtual_ns * self.weight // NICE_0_LOAD))


class RunQueue:
    """struct cfs_rq and what of struct rq CFS needs. ``curr`` is None while the idle task runs."""

    __slots__ = (
        *("clock_ns", "curr", "idle_ns", "latency_ns", "load", "min_granularity_ns", "min_vruntime", "start_ns"),
        *("wakeup_granularity_ns", "_checked_min_vruntime", "_order", "_waiting"),
    )

    def __init__(self, cpus: int) -> None:
        factor = tuning_factor(cpus)
        self.latency_ns = LATENCY_NS * factor
        self.min_granularity_ns = MIN_GRANULARITY_NS * factor
        self.wakeup_granularity_ns = WAKEUP_GRANULARITY_NS * factor
        self.curr: Entity | None = None
        self.load = 0
        self.min_vruntime = 0
        self.start_ns = 0
        self.clock_ns = 0
        self.idle_ns = 0
        # Sorted by vruntime; equal ones in order of arrival, as in the kernel's tree.
        self._waiting: list[tuple[int, int, Entity]] = []
        self._order = 0
        self._checked_min_vruntime = 0

    @property
    def nr_running(self) -> int:
        """Entities on the queue, current included."""
        return len(self._waiting) + (self.curr is not None)

    def waiting_ids(self) -> list[int]:
        """Ids of the entities that wait, leftmost first."""
        return [entity.id for _, _, entity in self._waiting]

    # Time ------------------------------------------------------------------------------------------------------

    def start(self, now_ns: int) -> None:
        """The vCPU is up: its time counts from here."""
        self.start_ns = self.clock_ns = now_ns

    def update_curr(self, now_ns: int) -> None:
        """Charge all time since the last call to current, or to the idle task."""
        delta_ns = now_ns - self.clock_ns
        assert delta_ns >= 0, f"time went back from {self.clock_ns} to {now_ns} ns"
        self.clock_ns = now_ns
        curr = self.curr
        if curr is None:
            self.idle_ns += delta_ns
            return
        curr.sum_exec_ns += delta_ns
        curr.vruntime += curr.virtual(delta_ns)
        self._update_min_vruntime()

    def _update_min_vruntime(self) -> None:
        curr, waiting = self.curr, self._waiting
        if curr is not None:
            lowest = min(curr.vruntime, waiting[0][0]) if waiting else curr.vruntime
        elif waiting:
            lowest = waiting[0][0]
        else:
            return
        self.min_vruntime = max(self.min_vruntime, lowest)

    # Coming and going ------------------------------------------------------------------------------------------

    def _insert(self, entity: Entity) -> None:
        self._order += 1
        insort(self._waiting, (entity.vruntime, self._order, entity))

    def _enqueue(self, entity: Entity) -> None:
        assert not entity.on_rq, f"{entity} is on the queue already"
        entity.on_rq = True
        self.load += entity.weight
        self._insert(entity)

    def enqueue_new(self, entity: Entity) -> None:
        """An entity that has never run joins the queue."""
        entity.vruntime = max(entity.vruntime, self.min_vruntime)
        self._enqueue(entity)

    def enqueue_woken(self, entity: Entity) -> None:
        """A sleeper wakes: half a latency of credit, but vruntime never falls. update_curr first."""
        entity.vruntime = max(entity.vruntime, self.min_vruntime - (self.latency_ns >> 1))
        self._enqueue(entity)

    def dequeue_curr(self) -> None:
        """Current sleeps or dies; ``pick_next`` must follow. update_curr first."""
        curr = self.curr
        assert curr is not None and curr.on_rq, "no current entity to dequeue"
        self.curr = None
        curr.on_rq = False
        self.load -= curr.weight
        self._update_min_vruntime()

    # Deciding --------------------------------------------------------------------------------------------------

    def slice_ns(self, entity: Entity) -> int:
        """The time ``entity`` may run in one period: its weight's share, at least the minimum granularity."""
        running = self.nr_running
        period_ns = running * self.min_granularity_ns if running > NR_LATENCY else self.latency_ns
        return max(period_ns * entity.weight // self.load, self.min_granularity_ns)

    def _ahead(self, entity: Entity, other: Entity) -> int:
        """wakeup_preempt_entity: 1 if ``entity`` is further ahead of ``other`` than the granularity, 0 or -1."""
        gap = entity.vruntime - other.vruntime
        if gap <= 0:
            return -1
        return 1 if gap > other.virtual(self.wakeup_granularity_ns) else 0

    def wakeup_preempts(self, woken: Entity) -> bool:
        """Whether ``woken``, just enqueued, takes the CPU at once. The idle task always yields it."""
        return self.curr is None or self._ahead(self.curr, woken) == 1

    def tick_preempts(self) -> bool:
        """Whether a tick now takes the CPU from current: check_preempt_tick, then the pick. update_curr first."""
        curr, waiting = self.curr, self._waiting
        if curr is None or not waiting:
            return False
        ran_ns = curr.sum_exec_ns - curr.prev_sum_exec_ns
        ideal_ns = self.slice_ns(curr)
        gap = curr.vruntime - waiting[0][0]
        if ran_ns > ideal_ns:
            return gap >= 0
        return ran_ns >= self.min_granularity_ns and gap > ideal_ns

    def run_until_ns(self) -> int:
        """The earliest time at which ``tick_preempts`` becomes true if only current's time moves. update_curr first.

        It stays true from then on. NEVER_NS if nothing waits.
        """
        curr, waiting = self.curr, self._waiting
        if curr is None or not waiting:
            return NEVER_NS
        ran_ns = curr.sum_exec_ns - curr.prev_sum_exec_ns
        ideal_ns = self.slice_ns(curr)
        behind = waiting[0][0] - curr.vruntime
        slice_over_ns = max(ideal_ns + 1 - ran_ns, curr.runtime_for(behind))
        far_ahead_ns = max(self.min_granularity_ns - ran_ns, curr.runtime_for(behind + ideal_ns + 1))
        return self.clock_ns + max(0, min(slice_over_ns, far_ahead_ns))

    def pick_next(self, preferred: Entity | None = None, skip: bool = False) -> Entity | None:
        """Make the right entity current and return it; None for the idle task.

        ``preferred`` (the next buddy) and ``skip`` (current yields) are honoured unless that is unfair by more than
        the wakeup granularity.
        """
        curr, waiting = self.curr, self._waiting
        if not waiting:
            return curr
        chosen = left = waiting[0][2]
        if curr is not None and curr.vruntime < left.vruntime:
            chosen = left if skip and self._ahead(left, curr) < 1 else curr
            left = curr
        if preferred is not None and self._ahead(preferred, left) < 1:
            chosen = preferred
        if chosen is not curr:
            self._switch(chosen)
        return chosen

    def _switch(self, entity: Entity) -> None:
        """put_prev_entity and set_next_entity."""
        if self.curr is not None:
            self._insert(self.curr)
        for position, (_, _, candidate) in enumerate(self._waiting):
            if candidate is entity:
                del self._waiting[position]
                break
        else:
            raise AssertionError(f"{entity} does not wait here")
        entity.prev_sum_exec_ns = entity.sum_exec_ns
        self.curr = entity

    # Invariants ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert order, load, and that min_vruntime never falls."""
        entities = [entity for _, _, entity in self._waiting]
        assert [row[:2] for row in self._waiting] == sorted(row[:2] for row in self._waiting), "queue out of order"
        for vruntime, _, entity in self._waiting:
            assert vruntime == entity.vruntime, f"{entity} moved while it waited at {vruntime}"
        assert self.curr not in entities, f"{self.curr} is current and waits"
        if self.curr is not None:
            entities.append(self.curr)
        assert all(entity.on_rq for entity in entities), f"on the queue, but not on_rq: {entities}"
        assert self.load == sum(entity.weight for entity in entities), f"load {self.load} of {entities}"
        assert self.min_vruntime >= self._checked_min_vruntime, "min_vruntime fell"
        self._checked_min_vruntime = self.min_vruntime
