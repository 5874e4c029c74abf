"""The run queue of one vCPU: EEVDF as of Linux 6.18 (kernel/sched/fair.c).

Theory. Every entity has a vruntime v, the time it ran divided by its weight, and asks for a slice at a time: with
v it gets a deadline, v + slice / weight. V is the average of all v by weight; what an entity is owed is its lag,
V - v. Whoever is owed nothing or more is eligible (v <= V), and of those the one with the earliest deadline runs. Sums
are kept exactly, so eligibility is decided without dividing: v * load <= sum of weight * v.

Once picked, an entity keeps the CPU up to ``vprot``, its deadline or, if somebody's slice is shorter, as long as that
(RUN_TO_PARITY): only from then on does a tick pick again, and a wake-up too unless current is not eligible any more.
At its deadline current gets the next one, however late that is noticed: a stall is one renewal. But all of a stall
is vruntime, so the task that faulted owes it, and the others run until V has caught up.

Lag outlasts sleep and migration (PLACE_LAG). A woken entity is placed so that its lag is what it was when it left:
as its coming moves V, the lag is inflated by (W + w) / W. It cannot save up: lag is clamped when it leaves, and a
sleeper that owes time stays on the queue, ``delayed``, without running, until it is picked, or wakes (DELAY_DEQUEUE);
what it is owed by then is forgotten (DELAY_ZERO).

Functions followed: update_curr, update_deadline, avg_vruntime, update_entity_lag, entity_eligible, place_entity
(PLACE_DEADLINE_INITIAL, PLACE_REL_DEADLINE), __pick_eevdf, pick_next_entity, set_protect_slice, update_protect_slice,
cancel_protect_slice, check_preempt_wakeup_fair, do_preempt_short, dequeue_entity, requeue_delayed_entity,
finish_delayed_dequeue_entity, yield_task_fair (79104becf42b: an eligible current forfeits the rest of its slice). As
in pick_next_task_fair with CONFIG_FAIR_GROUP_SCHED, picking current again does not protect it anew.

``run_until_ns``: while only current runs, its deadline and V only rise, others only become eligible and current only
ceases to be, so a tick that finds another than current to pick goes on to. What it finds may be a delayed sleeper;
then ``tick_preempts`` is true as well, the pick takes it off the queue, and current may be the one to go on.

Departures: one flat queue (no groups, no bandwidth); NEXT_BUDDY is off as in the kernel, so a pick has no preferred
one; rescheduling is never lazy beyond the trap, as the interrupted context is a user's; vruntime is divided exactly
and unbounded, so zero_vruntime is needed for an empty queue only, and no key is clamped; ticks that change nothing do
not come here, so a deadline that passes while nobody else can be picked is renewed at the next trap, from there; an
entity whose dequeue is delayed waits as all others do from the moment it sleeps.
"""

from __future__ import annotations

from bisect import insort

from apf.messages import NEVER_NS
from guestsched.core.sched import Entity, RunQueue, tuning_factor

# normalized_sysctl_sched_base_slice since 6.15; a vCPU's is this times tuning_factor().
BASE_SLICE_NS = 700_000
_SECOND_NS = 1_000_000_000


def _divide(dividend: int, divisor: int) -> int:
    """div_s64: towards zero."""
    return dividend // divisor if dividend >= 0 else -(-dividend // divisor)


class EevdfEntity(Entity):
    """What EEVDF knows of one task. ``vruntime``, ``deadline``, ``vprot`` and ``vlag`` in ns of a nice-0 task.

    ``vlag`` counts while it is off the queue. If ``rel_deadline``, the deadline is relative to vruntime, which is so
    between two queues. ``custom_slice_ns``: what sched_setattr asked for, or None for the queue's.
    """

    __slots__ = ("custom_slice_ns", "deadline", "rel_deadline", "slice_ns", "vlag", "vprot", "vruntime")

    def __init__(self, task_id: int, nice: int = 0) -> None:
        super().__init__(task_id, nice)
        self.vruntime = 0
        self.deadline = 0
        self.vprot = 0
        self.vlag = 0
        self.rel_deadline = False
        self.slice_ns = 0
        self.custom_slice_ns: int | None = None

    def __repr__(self) -> str:
        return (
            f"EevdfEntity({self.id}, vruntime={self.vruntime}, deadline={self.deadline}, weight={self.weight}"
            f"{', delayed' if self.delayed else ''})"
        )

    @property
    def protected(self) -> bool:
        """protect_slice: whether current may go on if it is eligible."""
        return self.vruntime < self.vprot


class EevdfRunQueue(RunQueue):
    """struct cfs_rq and what of struct rq EEVDF needs."""

    __slots__ = (
        *("base_slice_ns", "need_resched", "tick_ns"),
        *("_order", "_queued", "_queued_load", "_queued_sum", "_zero_vruntime"),
    )

    curr: EevdfEntity | None

    def __init__(self, cpus: int, hz: int) -> None:
        super().__init__(cpus, hz)
        self.base_slice_ns = BASE_SLICE_NS * tuning_factor(cpus)
        self.tick_ns = (_SECOND_NS + hz // 2) // hz
        # What update_curr has found: the slice's protection is over and somebody else is queued.
        self.need_resched = False
        # All but current, delayed ones too, sorted by deadline; equal ones in order of arrival, as in the kernel's
        # tree. _queued_load is their weight, _queued_sum the sum of weight * vruntime.
        self._queued: list[tuple[int, int, EevdfEntity]] = []
        self._queued_load = 0
        self._queued_sum = 0
        self._order = 0
        self._zero_vruntime = 0

    @staticmethod
    def new_entity(task_id: int, nice: int) -> EevdfEntity:
        """The entity of a task that has never run."""
        return EevdfEntity(task_id, nice)

    def waiting(self) -> list[EevdfEntity]:
        """The entities that wait, earliest deadline first."""
        return [entity for _, _, entity in self._queued if not entity.delayed]

    def _delayed(self) -> list[EevdfEntity]:
        return [entity for _, _, entity in self._queued if entity.delayed]

    # V, lag and deadlines --------------------------------------------------------------------------------------

    def _sums(self) -> tuple[int, int]:
        """The sum of weight * vruntime and of weight over all that compete."""
        curr = self.curr
        if curr is None:
            return self._queued_sum, self._queued_load
        return self._queued_sum + curr.weight * curr.vruntime, self._queued_load + curr.weight

    def avg_vruntime(self) -> int:
        """V, rounded down; of an empty queue, the last vruntime there was."""
        total, load = self._sums()
        return total // load if load else self._zero_vruntime

    def eligible(self, entity: EevdfEntity) -> bool:
        """Whether ``entity``, which competes here, has got no more than its share: its lag is not negative."""
        total, load = self._sums()
        return entity.vruntime * load <= total

    def _update_lag(self, entity: EevdfEntity) -> None:
        """Of an entity that still competes."""
        limit = entity.virtual(max(2 * entity.slice_ns, self.tick_ns))
        entity.vlag = max(-limit, min(limit, self.avg_vruntime() - entity.vruntime))

    def _place(self, entity: EevdfEntity, initial: bool = False) -> None:
        """place_entity: vruntime and deadline of an entity that is about to compete."""
        load = self._sums()[1]
        entity.slice_ns = self.base_slice_ns if entity.custom_slice_ns is None else entity.custom_slice_ns
        lag = _divide(entity.vlag * (load + entity.weight), load) if load else 0
        entity.vruntime = self.avg_vruntime() - lag
        if entity.rel_deadline:
            entity.rel_deadline = False
            entity.deadline += entity.vruntime
            return
        vslice = entity.virtual(entity.slice_ns)
        entity.deadline = entity.vruntime + (vslice // 2 if initial else vslice)

    def _charge(self, delta_ns: int) -> None:
        """update_curr after the accounting: renew the deadline if it is over, and see whether to pick again."""
        super()._charge(delta_ns)
        curr = self.curr
        assert curr is not None
        if delta_ns == 0:
            return
        curr.vruntime += curr.virtual(delta_ns)
        if curr.vruntime >= curr.deadline:
            curr.deadline = curr.vruntime + curr.virtual(curr.slice_ns)
        self.need_resched = bool(self._queued) and not curr.protected

    # The queue itself ------------------------------------------------------------------------------------------

    def _insert(self, entity: EevdfEntity) -> None:
        self._order += 1
        insort(self._queued, (entity.deadline, self._order, entity))
        self._queued_load += entity.weight
        self._queued_sum += entity.weight * entity.vruntime

    def _remove(self, entity: EevdfEntity) -> None:
        for position, (_, _, candidate) in enumerate(self._queued):
            if candidate is entity:
                del self._queued[position]
                self._queued_load -= entity.weight
                self._queued_sum -= entity.weight * entity.vruntime
                self._zero_vruntime = entity.vruntime
                return
        raise AssertionError(f"{entity} does not wait here")

    def _enqueue(self, entity: EevdfEntity, initial: bool = False) -> None:
        assert not entity.delayed, f"{entity} is on a queue already"
        self._place(entity, initial)
        self._account_enqueue(entity)
        self._insert(entity)

    # Coming and going ------------------------------------------------------------------------------------------

    def enqueue_new(self, entity: Entity) -> None:
        """An entity that has never run joins the queue, at V, with half a slice to its first deadline."""
        assert isinstance(entity, EevdfEntity)
        self._enqueue(entity, initial=True)

    def enqueue_woken(self, entity: Entity) -> None:
        """A sleeper wakes, with the lag it left with, anywhere; a ``delayed`` one only where it slept."""
        assert isinstance(entity, EevdfEntity)
        if not entity.delayed:
            self._enqueue(entity)
            return
        self._update_lag(entity)
        self._remove(entity)
        self._undelay(entity)
        if entity.vlag > 0:
            entity.vlag = 0
            self._place(entity)
        self._account_enqueue(entity)
        self._insert(entity)

    def enqueue_migrated(self, entity: Entity) -> None:
        """An entity comes from another queue, with its lag there and as far from its deadline."""
        assert isinstance(entity, EevdfEntity)
        self._enqueue(entity)

    def _undelay(self, entity: EevdfEntity) -> None:
        """``entity``, off the tree, does not compete as a delayed sleeper any more."""
        entity.delayed = False
        self.load -= entity.weight

    def _finish_delayed(self, entity: EevdfEntity) -> None:
        """A delayed sleeper leaves at last."""
        self._update_lag(entity)
        entity.vlag = min(entity.vlag, 0)
        self._remove(entity)
        self._undelay(entity)

    def dequeue_waiting(self, entity: Entity) -> None:
        """An entity that waits leaves, its deadline relative; or a ``delayed`` one sleeps on without competing."""
        assert isinstance(entity, EevdfEntity)
        if entity.delayed:
            self._finish_delayed(entity)
            return
        self._update_lag(entity)
        self._remove(entity)
        self._account_dequeue(entity)
        entity.deadline -= entity.vruntime
        entity.rel_deadline = True

    def dequeue_curr(self, sleeps: bool = True) -> None:
        """Current sleeps or dies. If it sleeps and owes time, it competes on, ``delayed``."""
        curr = self.curr
        assert curr is not None, "no current entity to dequeue"
        delayed = sleeps and not self.eligible(curr)
        if not delayed:
            self._update_lag(curr)
            self._zero_vruntime = curr.vruntime
        self.curr = None
        self._account_dequeue(curr)
        if delayed:
            curr.delayed = True
            self.load += curr.weight
            self._insert(curr)

    # Deciding --------------------------------------------------------------------------------------------------

    def _min_slice_ns(self) -> int:
        """cfs_rq_min_slice: the shortest of all that compete."""
        slices = [entity.slice_ns for _, _, entity in self._queued]
        return min(slices) if self.curr is None else min(self.curr.slice_ns, *slices)

    def _pick(self, protect: bool = True) -> EevdfEntity | None:
        """__pick_eevdf: the eligible entity with the earliest deadline, or current while it is eligible and protected.

        It may be delayed.
        """
        curr, queued = self.curr, self._queued
        if not queued:
            return curr
        total, load = self._sums()
        if curr is not None and curr.vruntime * load > total:
            curr = None
        if curr is not None and protect and curr.protected:
            return curr
        for deadline, _, entity in queued:
            if curr is not None and curr.deadline < deadline:
                return curr
            if entity.vruntime * load <= total:
                return entity
        assert curr is not None, f"nobody is eligible: {queued}"
        return curr

    def _preempts_short(self, woken: EevdfEntity, curr: EevdfEntity) -> bool:
        """do_preempt_short: ``woken`` asks for less at a time, and may run now or sooner than current."""
        if woken.slice_ns >= curr.slice_ns or not self.eligible(woken):
            return False
        return woken.deadline < curr.deadline or not self.eligible(curr)

    def wakeup_preempts(self, woken: Entity) -> bool:
        """Whether ``woken`` is the pick, or the pick is due anyway and not current. The idle task always yields."""
        assert isinstance(woken, EevdfEntity)
        curr = self.curr
        if curr is None:
            return True
        if self.need_resched:
            return self._pick() is not curr
        short = self._preempts_short(woken, curr)
        if self._pick(protect=not short) is woken:
            if short and curr.protected:
                curr.vprot = curr.vruntime
            return True
        if short:
            curr.vprot = min(curr.vprot, curr.vruntime + curr.virtual(self._min_slice_ns()))
        return False

    def tick_preempts(self) -> bool:
        """Whether current's protection is over and the pick is another one. update_curr first."""
        curr = self.curr
        return curr is not None and not curr.protected and self._pick() is not curr

    def run_until_ns(self) -> int:
        """The earliest time at which ``tick_preempts`` becomes true if only current's time moves. update_curr first.

        It stays true from then on. NEVER_NS if nothing waits and nobody is delayed.
        """
        curr = self.curr
        if curr is None or not self._queued:
            return NEVER_NS
        vslice = curr.virtual(curr.slice_ns)
        # From here on current is not eligible: load * v > sum over the others, who then include an eligible one.
        at = self._queued_sum // self._queued_load + 1
        for deadline, _, entity in self._queued:
            # From here on this one is: current's weight * (v - its vruntime) makes up for what the others lack.
            lacking = self._queued_load * entity.vruntime - self._queued_sum
            eligible = entity.vruntime - (-lacking // curr.weight)
            # And from here on its deadline is no later than current's, which is renewed once it is reached.
            earlier = curr.vruntime if deadline <= curr.deadline else max(curr.deadline, deadline - vslice)
            at = min(at, max(eligible, earlier))
        return self.clock_ns + curr.runtime_for(max(at, curr.vprot) - curr.vruntime)

    def pick_next(self, preferred: Entity | None = None, skip: bool = False) -> Entity | None:
        """Make the right entity current and return it; None for the idle task. ``preferred`` is nothing special.

        ``skip``, yield_task_fair: an eligible current forfeits what is left of its slice, and is asked to go on only
        if it is still the pick. Delayed sleepers that are picked leave the queue.
        """
        curr = self.curr
        self.need_resched = False
        if skip and curr is not None and self.nr_running > 1 and self.eligible(curr):
            curr.vruntime = curr.deadline
            curr.deadline += curr.virtual(curr.slice_ns)
        chosen = self._pick()
        while chosen is not None and chosen.delayed:
            self._finish_delayed(chosen)
            chosen = self._pick()
        if chosen is not None and chosen is not curr:
            self._switch(chosen)
        return chosen

    def _switch(self, entity: EevdfEntity) -> None:
        """put_prev_entity and set_next_entity, with set_protect_slice."""
        if self.curr is not None:
            self._insert(self.curr)
            self.curr = None
        slice_ns = self._min_slice_ns()
        self._remove(entity)
        entity.vprot = entity.deadline
        if slice_ns != entity.slice_ns:
            entity.vprot = min(entity.vprot, entity.vruntime + entity.virtual(slice_ns))
        entity.prev_sum_exec_ns = entity.sum_exec_ns
        self.curr = entity

    # Invariants ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the order and the sums too, that protection ends by the deadline, and that somebody is eligible."""
        super().check()
        keys = [row[:2] for row in self._queued]
        assert keys == sorted(keys), "queue out of order"
        entities = [entity for _, _, entity in self._queued]
        for deadline, _, entity in self._queued:
            assert deadline == entity.deadline, f"{entity} moved while it waited at {deadline}"
            assert not entity.rel_deadline, f"{entity} is between two queues, and on one"
        assert self._queued_load == sum(entity.weight for entity in entities), "load of the waiting"
        assert self._queued_sum == sum(entity.weight * entity.vruntime for entity in entities), "sum of the waiting"
        if self.curr is not None:
            entities.append(self.curr)
            assert self.curr.vprot <= self.curr.deadline, f"{self.curr} is protected up to {self.curr.vprot}"
        assert not entities or any(self.eligible(entity) for entity in entities), f"nobody is eligible: {entities}"
