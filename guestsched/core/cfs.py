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
yield_task_fair; dequeue_entity, enqueue_entity and migrate_task_rq_fair, which carry a vruntime from one queue to
another as its distance from min_vruntime. As in pick_next_task_fair with CONFIG_FAIR_GROUP_SCHED, picking current
again does not end its slice (prev_sum_exec stays), so after a slice is over the first tick that finds another task
leftmost switches.

Departures: one flat queue (no groups, no bandwidth); vruntime is divided exactly, not by a 32-bit reciprocal; no
LAST_BUDDY, and a next or skip buddy that is not honoured at once is forgotten; no START_DEBIT, as all tasks exist
before time 0; min_vruntime is brought up to date at traps, not at every tick.
"""

from __future__ import annotations

from bisect import insort

from apf.messages import NEVER_NS
from guestsched.core.sched import Entity, RunQueue, tuning_factor

# The normalized sysctl_sched_* of 5.10; a vCPU's are these times tuning_factor().
LATENCY_NS = 6_000_000
MIN_GRANULARITY_NS = 750_000
WAKEUP_GRANULARITY_NS = 1_000_000
NR_LATENCY = 8


class CfsEntity(Entity):
    """What CFS knows of one task. ``vruntime`` in ns of a nice-0 task.

    ``home`` is the queue it is on, or sleeps on; between two queues it is None, and vruntime relative.
    """

    __slots__ = ("home", "vruntime")

    def __init__(self, task_id: int, nice: int = 0) -> None:
        super().__init__(task_id, nice)
        self.vruntime = 0
        self.home: CfsRunQueue | None = None

    def __repr__(self) -> str:
        return f"CfsEntity({self.id}, vruntime={self.vruntime}, weight={self.weight})"


class CfsRunQueue(RunQueue):
    """struct cfs_rq and what of struct rq CFS needs."""

    __slots__ = (
        *("latency_ns", "min_granularity_ns", "min_vruntime", "wakeup_granularity_ns"),
        *("_checked_min_vruntime", "_order", "_waiting"),
    )

    curr: CfsEntity | None

    def __init__(self, cpus: int, hz: int) -> None:
        super().__init__(cpus, hz)
        factor = tuning_factor(cpus)
        self.latency_ns = LATENCY_NS * factor
        self.min_granularity_ns = MIN_GRANULARITY_NS * factor
        self.wakeup_granularity_ns = WAKEUP_GRANULARITY_NS * factor
        self.min_vruntime = 0
        # Sorted by vruntime; equal ones in order of arrival, as in the kernel's tree.
        self._waiting: list[tuple[int, int, CfsEntity]] = []
        self._order = 0
        self._checked_min_vruntime = 0

    @staticmethod
    def new_entity(task_id: int, nice: int) -> CfsEntity:
        """The entity of a task that has never run."""
        return CfsEntity(task_id, nice)

    def waiting(self) -> list[CfsEntity]:
        """The entities that wait, leftmost first."""
        return [entity for _, _, entity in self._waiting]

    # Time ------------------------------------------------------------------------------------------------------

    def _charge(self, delta_ns: int) -> None:
        super()._charge(delta_ns)
        assert self.curr is not None
        self.curr.vruntime += self.curr.virtual(delta_ns)
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

    def _insert(self, entity: CfsEntity) -> None:
        self._order += 1
        insort(self._waiting, (entity.vruntime, self._order, entity))

    def _remove(self, entity: Entity) -> None:
        for position, (_, _, candidate) in enumerate(self._waiting):
            if candidate is entity:
                del self._waiting[position]
                return
        raise AssertionError(f"{entity} does not wait here")

    def _enqueue(self, entity: CfsEntity) -> None:
        self._account_enqueue(entity)
        entity.home = self
        self._insert(entity)

    def enqueue_new(self, entity: Entity) -> None:
        """An entity that has never run joins the queue."""
        assert isinstance(entity, CfsEntity)
        entity.vruntime = max(entity.vruntime, self.min_vruntime)
        self._enqueue(entity)

    def enqueue_woken(self, entity: Entity) -> None:
        """A sleeper wakes: half a latency of credit, but vruntime never falls, as seen from min_vruntime."""
        assert isinstance(entity, CfsEntity)
        if entity.home is not None and entity.home is not self:
            entity.vruntime += self.min_vruntime - entity.home.min_vruntime
        entity.vruntime = max(entity.vruntime, self.min_vruntime - (self.latency_ns >> 1))
        self._enqueue(entity)

    def enqueue_migrated(self, entity: Entity) -> None:
        """An entity comes from another queue, as far from min_vruntime here as it was there."""
        assert isinstance(entity, CfsEntity) and entity.home is None, f"{entity} did not leave a queue"
        entity.vruntime += self.min_vruntime
        self._enqueue(entity)

    def dequeue_waiting(self, entity: Entity) -> None:
        """An entity that waits leaves; its vruntime becomes relative to min_vruntime."""
        assert isinstance(entity, CfsEntity)
        self._remove(entity)
        self._account_dequeue(entity)
        entity.vruntime -= self.min_vruntime
        entity.home = None
        self._update_min_vruntime()

    def dequeue_curr(self, sleeps: bool = True) -> None:
        """Current sleeps or dies, which is the same here."""
        curr = self.curr
        assert curr is not None, "no current entity to dequeue"
        self.curr = None
        self._account_dequeue(curr)
        self._update_min_vruntime()

    # Deciding --------------------------------------------------------------------------------------------------

    def slice_ns(self, entity: CfsEntity) -> int:
        """The time ``entity`` may run in one period: its weight's share, at least the minimum granularity."""
        running = self.nr_running
        period_ns = running * self.min_granularity_ns if running > NR_LATENCY else self.latency_ns
        return max(period_ns * entity.weight // self.load, self.min_granularity_ns)

    def _ahead(self, entity: CfsEntity, other: CfsEntity) -> int:
        """wakeup_preempt_entity: 1 if ``entity`` is further ahead of ``other`` than the granularity, 0 or -1."""
        gap = entity.vruntime - other.vruntime
        if gap <= 0:
            return -1
        return 1 if gap > other.virtual(self.wakeup_granularity_ns) else 0

    def wakeup_preempts(self, woken: Entity) -> bool:
        """Whether ``woken``, just enqueued, takes the CPU at once. The idle task always yields it."""
        assert isinstance(woken, CfsEntity)
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
        assert preferred is None or isinstance(preferred, CfsEntity)
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

    def _switch(self, entity: CfsEntity) -> None:
        """put_prev_entity and set_next_entity."""
        if self.curr is not None:
            self._insert(self.curr)
        self._remove(entity)
        entity.prev_sum_exec_ns = entity.sum_exec_ns
        self.curr = entity

    # Invariants ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the order too, and that min_vruntime never falls."""
        super().check()
        assert [row[:2] for row in self._waiting] == sorted(row[:2] for row in self._waiting), "queue out of order"
        for vruntime, _, entity in self._waiting:
            assert vruntime == entity.vruntime, f"{entity} moved while it waited at {vruntime}"
            assert entity.home is self, f"{entity} waits here, but its home is {entity.home}"
        assert self.min_vruntime >= self._checked_min_vruntime, "min_vruntime fell"
        self._checked_min_vruntime = self.min_vruntime
