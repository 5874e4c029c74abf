"""The scheduler class: what the guest kernel asks of a policy (struct sched_class of kernel/sched/sched.h).

Theory. Every vCPU has a RunQueue, and every task an Entity (struct sched_entity). The kernel calls; the policy keeps
its order and answers. One entity is current (``curr``; None while the idle task runs), the others on the queue wait.
The kernel charges time before anything else (``update_curr``), so a policy never sees time pass by itself:

    sched_class           RunQueue                                 the kernel calls it when
    task_fork, enqueue    enqueue_new                              a task that has never run appears
    enqueue (WAKEUP)      enqueue_woken                            a sleeper wakes, here or from another vCPU's queue
    enqueue (MIGRATED)    enqueue_migrated                         a waiting entity comes from another vCPU's queue
    dequeue               dequeue_waiting                          ... and has left that one; or it was killed
    dequeue (SLEEP)       dequeue_curr, then pick_next             current sleeps or dies
    wakeup_preempt        wakeup_preempts, then pick_next if true  after enqueue_new, _woken, _migrated
    task_tick             tick_preempts, then pick_next            the tick at or after run_until_ns
    yield_task            pick_next(skip=True)                     current yields
    pick_next_task        pick_next                                any of the above
    (detach_tasks)        pull_candidate, then dequeue_waiting     another vCPU has nothing to do

Ticks that change nothing never reach a policy: ``run_until_ns`` says from when on one does. That is possible because
between two traps only current's own time moves, and linearly. It must be exact, and ``tick_preempts`` must stay true
from then on. A tick after a long stall is one tick.

A stall is time like any other here: a vCPU that sleeps in the host for a page has no steal, so rq->clock_task goes on
and ``update_curr`` charges all of the stall to the task that faulted. Where nothing is charged to anybody, as with an
APF that puts the task to sleep, it is because another entity, or the idle task, is current.

A policy of one's own is a subclass with the abstract methods; ``Entity`` may be subclassed too (``new_entity``). It
calls ``_account_enqueue`` and ``_account_dequeue`` for whoever joins and leaves, sets ``curr``, and decides with
integers only, from what it is told, so that every run is repeated exactly.

Departures: one class at a time for all tasks of a VM, so no stop, deadline or idle class; ``on_rq`` is false of a
sleeper whose dequeue is delayed (``delayed``), though it weighs on ``load`` and the kernel's on_rq is 1; balancing
takes the entity that would run last, where the kernel's cfs_tasks list gives the one that ran least recently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

NICE_0_LOAD = 1024
# sched_prio_to_weight (kernel/sched/core.c), from nice -20 to 19: about 1.25 from one to the next.
NICE_TO_WEIGHT = (
    *(88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916),
    *(9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277),
    *(1024, 820, 655, 526, 423, 335, 272, 215, 172, 137),
    *(110, 87, 70, 56, 45, 36, 29, 23, 18, 15),
)
NICE_MIN, NICE_MAX = -20, 19


def tuning_factor(cpus: int) -> int:
    """1 + ilog2(min(cpus, 8)), get_update_sysctl_factor's: 1, 2, 3, 4 for 1, 2-3, 4-7, 8 and more CPUs."""
    return min(cpus, 8).bit_length()


class Entity:
    """What any policy knows of one task (struct sched_entity). ``on_rq``: it runs or waits to; ``delayed``: see above.

    ``sum_exec_ns`` is all it was ever charged, ``prev_sum_exec_ns`` the same when it was last picked.
    """

    __slots__ = ("delayed", "id", "nice", "on_rq", "prev_sum_exec_ns", "sum_exec_ns", "weight")

    def __init__(self, task_id: int, nice: int = 0) -> None:
        assert NICE_MIN <= nice <= NICE_MAX, f"task {task_id}: nice {nice}"
        self.id = task_id
        self.nice = nice
        self.weight = NICE_TO_WEIGHT[nice - NICE_MIN]
        self.sum_exec_ns = 0
        self.prev_sum_exec_ns = 0
        self.on_rq = False
        self.delayed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id}, weight={self.weight})"

    def virtual(self, delta_ns: int) -> int:
        """calc_delta_fair: ``delta_ns`` of running, in ns of a nice-0 task."""
        return delta_ns * NICE_0_LOAD // self.weight

    def runtime_for(self, virtual_ns: int) -> int:
        """The shortest time of running that is at least ``virtual_ns`` of a nice-0 task; 0 if that is negative."""
        return max(0, -(-virtual_ns * self.weight // NICE_0_LOAD))


class RunQueue(ABC):
    """One vCPU's queue: the accounting that all policies share, and the decisions that each makes for itself.

    ``load`` is the weight of all that compete, current included; ``nr_running`` counts the same, delayed ones not.
    ``busy_ns`` was charged to entities here and ``idle_ns`` to the idle task, ``clock_ns - start_ns`` in all.
    """

    __slots__ = ("busy_ns", "clock_ns", "curr", "idle_ns", "load", "nr_running", "start_ns")

    curr: Entity | None

    def __init__(self, cpus: int, hz: int) -> None:
        """A queue of a VM with ``cpus`` vCPUs, each with ``hz`` ticks a second."""
        assert cpus > 0 and hz > 0, f"{cpus} vCPUs, {hz} ticks a second"
        self.curr = None
        self.load = 0
        self.nr_running = 0
        self.start_ns = 0
        self.clock_ns = 0
        self.idle_ns = 0
        self.busy_ns = 0

    @staticmethod
    def new_entity(task_id: int, nice: int) -> Entity:
        """The entity of a task that has never run."""
        return Entity(task_id, nice)

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
        self.busy_ns += delta_ns
        self._charge(delta_ns)

    def _charge(self, delta_ns: int) -> None:
        """Current ran for ``delta_ns``. A policy adds what else it keeps of that."""
        assert self.curr is not None
        self.curr.sum_exec_ns += delta_ns

    # Coming and going ------------------------------------------------------------------------------------------

    def _account_enqueue(self, entity: Entity) -> None:
        assert not entity.on_rq, f"{entity} is on a queue already"
        entity.on_rq = True
        self.load += entity.weight
        self.nr_running += 1

    def _account_dequeue(self, entity: Entity) -> None:
        assert entity.on_rq, f"{entity} is on no queue"
        entity.on_rq = False
        self.load -= entity.weight
        self.nr_running -= 1

    @abstractmethod
    def enqueue_new(self, entity: Entity) -> None:
        """An entity that has never run joins the queue."""

    @abstractmethod
    def enqueue_woken(self, entity: Entity) -> None:
        """A sleeper wakes; it may have slept on another vCPU's queue, but not if ``delayed``. update_curr first."""

    @abstractmethod
    def enqueue_migrated(self, entity: Entity) -> None:
        """An entity that ``dequeue_waiting`` took off another vCPU's queue goes on waiting here. update_curr first."""

    @abstractmethod
    def dequeue_waiting(self, entity: Entity) -> None:
        """An entity that waits (or is ``delayed``) leaves: killed, or to another vCPU. update_curr first."""

    @abstractmethod
    def dequeue_curr(self, sleeps: bool = True) -> None:
        """Current sleeps or (not ``sleeps``) dies; ``pick_next`` must follow. update_curr first."""

    # Deciding --------------------------------------------------------------------------------------------------

    @abstractmethod
    def wakeup_preempts(self, woken: Entity) -> bool:
        """Whether ``woken``, just enqueued, takes the CPU at once; ``pick_next`` must follow if so."""

    @abstractmethod
    def tick_preempts(self) -> bool:
        """Whether a tick now reschedules; ``pick_next`` must follow if so. update_curr first.

        That is a switch, but where a delayed sleeper is picked first and leaves: then current may be picked again.
        """

    @abstractmethod
    def run_until_ns(self) -> int:
        """The earliest time at which ``tick_preempts`` becomes true if only current's time moves. update_curr first.

        It stays true from then on. NEVER_NS if no tick can.
        """

    @abstractmethod
    def pick_next(self, preferred: Entity | None = None, skip: bool = False) -> Entity | None:
        """Make the right entity current and return it; None for the idle task.

        ``preferred`` has just preempted by waking; ``skip``: current yields. What either is worth is the policy's.
        """

    @abstractmethod
    def waiting(self) -> Sequence[Entity]:
        """The entities that wait, the one that would run last at the end; delayed ones are not among them."""

    def waiting_ids(self) -> list[int]:
        """Ids of the entities that wait, in the same order."""
        return [entity.id for entity in self.waiting()]

    def pull_candidate(self, allowed: Callable[[int], bool]) -> Entity | None:
        """What a vCPU that becomes idle may take from here: the last that waits and whose id is ``allowed``.

        Follows sched_balance_newidle and detach_tasks: None unless more than one runs or waits here.
        """
        if self.nr_running < 2:
            return None
        return next((entity for entity in reversed(self.waiting()) if allowed(entity.id)), None)

    # Invariants ------------------------------------------------------------------------------------------------

    def _delayed(self) -> Sequence[Entity]:
        """The sleepers that still compete."""
        return ()

    def check(self) -> None:
        """Assert that everyone is in one place, and that weights, counts and times add up."""
        entities = [*self.waiting(), *([] if self.curr is None else [self.curr])]
        delayed = self._delayed()
        ids = [entity.id for entity in (*entities, *delayed)]
        assert len(set(ids)) == len(ids), f"twice on the queue: {ids}"
        assert all(entity.on_rq and not entity.delayed for entity in entities), f"queued, but not on_rq: {entities}"
        assert all(entity.delayed and not entity.on_rq for entity in delayed), f"not delayed sleepers: {delayed}"
        load = sum(entity.weight for entity in (*entities, *delayed))
        assert self.load == load, f"load {self.load}, but {load} of {entities} and {delayed}"
        assert self.nr_running == len(entities), f"{self.nr_running} running, but {entities}"
        passed_ns = self.clock_ns - self.start_ns
        assert self.busy_ns + self.idle_ns == passed_ns, f"{passed_ns} ns, not {self.busy_ns} and {self.idle_ns}"
