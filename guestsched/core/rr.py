"""The run queue of one vCPU: round robin with a fixed quantum, a baseline without any notion of fairness.

Theory. Whoever comes goes to the tail; the head is next. Current keeps the CPU until it has used up its quantum and
another waits; then it goes to the tail with a new one. Nobody preempts by waking, so a task whose page is ready waits
for all that wait already, and a stall costs its task at most the rest of its quantum: all others wait that long, and
get nothing back. What is left of a quantum is kept by a sleeper, and by one that yields.

Follows SCHED_RR as of Linux 5.10 (kernel/sched/rt.c: task_tick_rt, yield_task_rt, enqueue_task_rt) with all tasks at
one priority: RR_TIMESLICE is 100 ms (include/linux/sched/rt.h). Nice values mean nothing to it, as to SCHED_RR; they
count for ``load`` only.

Departures: the quantum is counted in time charged, not in ticks taken, so that a stall uses it up although the vCPU
takes no ticks meanwhile; no throttling (sched_rt_runtime_us), as these are a user's tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from apf.messages import NEVER_NS
from guestsched.core.sched import Entity, RunQueue

QUANTUM_NS = 100_000_000


class RrEntity(Entity):
    """A task and ``left_ns``, what is left of its quantum: 0 or less if it is over."""

    __slots__ = ("left_ns",)

    def __init__(self, task_id: int, nice: int = 0) -> None:
        super().__init__(task_id, nice)
        self.left_ns = QUANTUM_NS


class RrRunQueue(RunQueue):
    """The queue of one priority (struct rt_prio_array)."""

    __slots__ = ("_waiting",)

    curr: RrEntity | None

    def __init__(self, cpus: int, hz: int) -> None:
        super().__init__(cpus, hz)
        self._waiting: deque[RrEntity] = deque()

    @staticmethod
    def new_entity(task_id: int, nice: int) -> RrEntity:
        """The entity of a task that has never run."""
        return RrEntity(task_id, nice)

    def waiting(self) -> Sequence[RrEntity]:
        """The entities that wait, in their order."""
        return self._waiting

    def _charge(self, delta_ns: int) -> None:
        """Nobody waits: current gets one quantum after the other."""
        super()._charge(delta_ns)
        curr = self.curr
        assert curr is not None
        curr.left_ns -= delta_ns
        if curr.left_ns <= 0 and not self._waiting:
            curr.left_ns = QUANTUM_NS - -curr.left_ns % QUANTUM_NS

    # Coming and going ------------------------------------------------------------------------------------------

    def _enqueue(self, entity: Entity) -> None:
        assert isinstance(entity, RrEntity)
        self._account_enqueue(entity)
        self._waiting.append(entity)

    def enqueue_new(self, entity: Entity) -> None:
        """To the tail."""
        self._enqueue(entity)

    def enqueue_woken(self, entity: Entity) -> None:
        """To the tail, with what it has left."""
        self._enqueue(entity)

    def enqueue_migrated(self, entity: Entity) -> None:
        """To the tail, with what it has left."""
        self._enqueue(entity)

    def dequeue_waiting(self, entity: Entity) -> None:
        """An entity that waits leaves."""
        assert isinstance(entity, RrEntity) and entity in self._waiting, f"{entity} does not wait here"
        self._waiting.remove(entity)
        self._account_dequeue(entity)

    def dequeue_curr(self, sleeps: bool = True) -> None:
        """Current sleeps or dies, which is the same here."""
        curr = self.curr
        assert curr is not None, "no current entity to dequeue"
        self._renew(curr)
        self.curr = None
        self._account_dequeue(curr)

    # Deciding --------------------------------------------------------------------------------------------------

    @staticmethod
    def _renew(entity: RrEntity) -> None:
        if entity.left_ns <= 0:
            entity.left_ns = QUANTUM_NS

    def wakeup_preempts(self, woken: Entity) -> bool:
        """Only the idle task yields."""
        return self.curr is None

    def tick_preempts(self) -> bool:
        """Whether current's quantum is over and another waits. update_curr first."""
        return self.curr is not None and bool(self._waiting) and self.curr.left_ns <= 0

    def run_until_ns(self) -> int:
        """When the quantum is over. update_curr first. NEVER_NS if nothing waits."""
        if self.curr is None or not self._waiting:
            return NEVER_NS
        return self.clock_ns + max(0, self.curr.left_ns)

    def pick_next(self, preferred: Entity | None = None, skip: bool = False) -> Entity | None:
        """Make the right entity current and return it: the head if current is gone, yields or has no quantum left."""
        curr, waiting = self.curr, self._waiting
        if not waiting or (curr is not None and curr.left_ns > 0 and not skip):
            return curr
        if curr is not None:
            self._renew(curr)
            waiting.append(curr)
        chosen = waiting.popleft()
        chosen.prev_sum_exec_ns = chosen.sum_exec_ns
        self.curr = chosen
        return chosen
