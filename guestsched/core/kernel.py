"""The guest kernel's tables, and what several of its parts do with them: start, wake, switch, balance, end tasks.

Follows kernel/sched/core.c (try_to_wake_up, __schedule, wake_up_new_task), kernel/sched/fair.c (select_task_rq_fair's
search for an idle CPU, sched_balance_newidle) and kernel/exit.c, cut down to one scheduling domain.

What concerns the vCPU that has trapped takes effect in its reply. What concerns another one changes its run queue at
once and its CPU at the next border: ``post`` interrupts it, and whatever it traps for next finds ``need_resched``. An
interrupt is posted for every change of another vCPU's queue, also where the kernel would send no IPI, because that
vCPU has been told how long ticks change nothing (``run_until_ns``); without need_resched it costs nothing.

Departures: no periodic balancing: work moves when it wakes, and when a vCPU has none (newidle); no migration cost or
cache-hot test, and one task a pull; a vCPU that went idle looks again only when it is interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

from apf.costs import Costs
from apf.journal import Journal
from apf.messages import Dispatch
from guestsched.core.access import Work
from guestsched.core.apf_wait import WaitTable
from guestsched.core.arrivals import Answer, ProcessEnded, Refusal, Refused
from guestsched.core.cpu import Cpu, Phase, TimerKind
from guestsched.core.process import Memory, Process, ProcessPlan
from guestsched.core.profile import Profile
from guestsched.core.sched import RunQueue
from guestsched.core.task import Task, TaskEvent, TaskState

TASKS_MAX = 32_768
"""kernel.pid_max's default."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Send ``dispatch`` to ``vcpu``."""

    vcpu: int
    dispatch: Dispatch


@dataclass(frozen=True, slots=True)
class Post:
    """Interrupt ``vcpu`` when the next window opens."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the user ``text``, which happened at ``at_ns``; ``warning``: something went wrong in the guest."""

    at_ns: int
    text: str
    warning: bool = True


Effect = Reply | Post | Log | Answer


class Kernel:
    """State of one guest kernel, which booted at ``boot_ns``. ``effects`` are those of the step under way.

    ``ending``: the VM ends, and each vCPU stops as it traps.
    """

    def __init__(
        self,
        costs: Costs,
        cpus: int,
        hz: int,
        policy: type[RunQueue],
        memory: Memory,
        journal: Journal,
        boot_ns: int,
    ) -> None:
        self.costs = costs
        self.boot_ns = boot_ns
        self.journal = journal
        self.memory = memory
        self.policy = policy
        self.cpus = [Cpu(index, policy(cpus, hz)) for index in range(cpus)]
        self.tasks: dict[int, Task] = {}
        self.processes: dict[int, Process] = {}
        self.waiters = WaitTable()
        self.profile = Profile()
        self.works: dict[int, Work] = {}
        """What access threads do, by task."""
        self.effects: list[Effect] = []
        self.ending = False
        self._timer_order = 0

    # Processes and tasks -------------------------------------------------------------------------------------------

    def make(self, plan: ProcessPlan, now_ns: int) -> Process:
        """A process with its tasks, not started. Raises OutOfMemory, with nothing changed."""
        process = Process(len(self.processes) + 1, plan, self.memory)
        self.processes[process.asid] = process
        for spec in plan.tasks:
            task_id = len(self.tasks) + 1
            entity = self.policy.new_entity(task_id, spec.nice)
            task = Task(task_id, spec, process.asid, plan.name, entity, spec.registers, cpu=0, state=TaskState.NEW)
            task.cpu = next(cpu.index for cpu in self.cpus if task.allowed_on(cpu.index))
            self.tasks[task_id] = task
            if spec.ring:
                self.works[task_id] = Work(own=spec.trace, base=plan.memory[0])
            process.tasks.append(task_id)
            self.journal.record((now_ns, "task_new", task_id, spec.name, process.asid, spec.nice))
        return process

    def start_in_time(self, task: Task, now_ns: int, here: Cpu | None) -> None:
        """Start a task, or set the timer that does."""
        start_ns = self.boot_ns + task.spec.start_ns
        if start_ns > now_ns:
            self.arm(self.cpus[task.cpu], start_ns, TimerKind.START, task, here)
        else:
            self.start(task, now_ns, here)

    def start(self, task: Task, now_ns: int, here: Cpu | None) -> None:
        """wake_up_new_task: on the least loaded vCPU of those it may run on (find_idlest_cpu)."""
        allowed = [cpu for cpu in self.cpus if task.allowed_on(cpu.index) and cpu.phase is not Phase.STOPPED]
        if not allowed:
            return
        cpu = min(allowed, key=lambda cpu: (cpu.rq.nr_running, cpu.rq.load, cpu.index))
        task.move(TaskEvent.STARTED, now_ns)
        self._update(cpu, now_ns)
        task.cpu = cpu.index
        cpu.rq.enqueue_new(task.entity)
        if task.spec.lifetime_ns:
            self.arm(here or cpu, now_ns + task.spec.lifetime_ns, TimerKind.KILL, task, here)
        self.journal.record((now_ns, "start", task.id, cpu.index))
        self._check_preempt(cpu, task, here)

    def wake(self, task: Task, event: TaskEvent, now_ns: int, here: Cpu | None) -> None:
        """try_to_wake_up, by what ``here`` does (None: by something from outside)."""
        cpu = self._select(task, here)
        self._update(cpu, now_ns)
        task.move(event, now_ns)
        task.wakes += 1
        task.cpu = cpu.index
        cpu.rq.enqueue_woken(task.entity)
        self.journal.record((now_ns, "wake", task.id, cpu.index))
        self._check_preempt(cpu, task, here)

    def _select(self, task: Task, here: Cpu | None) -> Cpu:
        """select_idle_sibling: where it ran last if that idles, else the waker's, else any that idles."""
        before = self.cpus[task.cpu]
        if task.entity.delayed:  # it never left that queue
            return before
        usable = [cpu for cpu in self.cpus if task.allowed_on(cpu.index) and cpu.phase is not Phase.STOPPED]
        idle = [cpu for cpu in usable if not cpu.rq.nr_running]
        for cpu in (before, here):
            if cpu is not None and cpu in idle:
                return cpu
        return idle[0] if idle else before

    def _update(self, cpu: Cpu, now_ns: int) -> None:
        if cpu.phase is Phase.UP:
            cpu.rq.update_curr(now_ns)

    def _check_preempt(self, cpu: Cpu, task: Task, here: Cpu | None) -> None:
        """wakeup_preempt: the first that preempts is the one to run, the rest find need_resched set."""
        rq = cpu.rq
        if not cpu.need_resched and rq.wakeup_preempts(task.entity):
            cpu.need_resched = True
            cpu.preferred = task.entity if rq.curr is not None else None
        if cpu is not here:
            self.post(cpu)

    def post(self, cpu: Cpu) -> None:
        """Let ``cpu`` trap when the next window opens."""
        if cpu.phase is Phase.UP:
            posted = Post(cpu.index)
            if posted not in self.effects:
                self.effects.append(posted)

    def arm(self, cpu: Cpu, at_ns: int, kind: TimerKind, task: Task, here: Cpu | None) -> None:
        """Set a timer of ``cpu``."""
        self._timer_order += 1
        cpu.arm(at_ns, self._timer_order, kind, task.id, task.wakes)
        if cpu is not here:
            self.post(cpu)

    # Switching -----------------------------------------------------------------------------------------------------

    def current(self, cpu: Cpu, what: str) -> Task:
        """The task that trapped; the idle task runs no user code and never faults (E46)."""
        assert cpu.rq.curr is not None, f"{what} on vCPU {cpu.index} while it is idle"
        return self.tasks[cpu.rq.curr.id]

    def leave(self, cpu: Cpu, task: Task, event: TaskEvent, now_ns: int) -> None:
        """Current goes to sleep or dies, and another runs."""
        task.move(event, now_ns)
        task.nvcsw += 1
        self.journal.record((now_ns, "leave", task.id, event.name))
        cpu.rq.dequeue_curr(sleeps=task.state is not TaskState.DEAD)
        if task.state is TaskState.DEAD:
            self._ended(task, now_ns)
        self.schedule(cpu, now_ns)

    def leave_for(self, cpu: Cpu, task: Task, until_ns: int, now_ns: int) -> None:
        """Current sleeps until a timer wakes it."""
        self.arm(cpu, until_ns, TimerKind.WAKE, task, cpu)
        self.leave(cpu, task, TaskEvent.SLEPT, now_ns)

    def schedule(self, cpu: Cpu, now_ns: int, skip: bool = False) -> None:
        """__schedule: pick what runs on ``cpu``; if nothing does, look for work elsewhere."""
        preferred, cpu.preferred, cpu.need_resched = cpu.preferred, None, False
        if preferred is not None:
            woken = self.tasks[preferred.id]
            if woken.state is not TaskState.READY or woken.cpu != cpu.index:
                preferred = None
        while True:
            before = cpu.rq.curr
            after = cpu.rq.pick_next(preferred, skip)
            if after is not before:
                self._switched(before.id if before else 0, after.id if after else 0, now_ns)
            if after is None:
                if self._pull(cpu, now_ns):
                    continue
                return
            task = self.tasks[after.id]
            if not task.doomed:
                return
            self._die(cpu, task, now_ns)
            preferred, skip = None, False

    def _switched(self, before: int, after: int, now_ns: int) -> None:
        if before:
            task = self.tasks[before]
            task.move(TaskEvent.PREEMPTED, now_ns)
            task.nivcsw += 1
        if after:
            self.tasks[after].move(TaskEvent.PICKED, now_ns)

    def _pull(self, cpu: Cpu, now_ns: int) -> bool:
        """sched_balance_newidle: take a task from the vCPU that has most."""
        others = [other for other in self.cpus if other is not cpu and other.phase is Phase.UP]
        for busiest in sorted(others, key=lambda other: (-other.rq.nr_running, other.index)):
            entity = busiest.rq.pull_candidate(lambda task_id: self.tasks[task_id].allowed_on(cpu.index))
            if entity is None:
                continue
            self._update(busiest, now_ns)
            busiest.rq.dequeue_waiting(entity)
            cpu.rq.enqueue_migrated(entity)
            self.tasks[entity.id].cpu = cpu.index
            cpu.pulled += 1
            self.journal.record((now_ns, "pull", entity.id, busiest.index, cpu.index))
            return True
        return False

    # Ending --------------------------------------------------------------------------------------------------------

    def kill(self, task: Task, why: str, now_ns: int, here: Cpu | None) -> None:
        """Let ``task`` die: at once if it neither runs nor waits for a page, else when it would run user code."""
        if task.state is TaskState.DEAD or task.doomed:
            return
        task.doomed = why
        if task.state in (TaskState.RUNNING, TaskState.APF_WAIT):
            if task.state is TaskState.RUNNING:
                cpu = self.cpus[task.cpu]
                cpu.need_resched = True
                if cpu is not here:
                    self.post(cpu)
            return
        if task.state is TaskState.READY or task.entity.delayed:
            cpu = self.cpus[task.cpu]
            self._update(cpu, now_ns)
            cpu.rq.dequeue_waiting(task.entity)
        process = self.processes[task.asid]
        for queue in (process.accesses.idle, *(s.waiting for s in process.semaphores.values())):
            if task.id in queue:
                queue.remove(task.id)
        self._bury(task, now_ns)

    def doom(self, cpu: Cpu, task: Task, reason: str, now_ns: int) -> None:
        """``task`` dies, of what it did on ``cpu``, before it runs user code again."""
        task.doomed = reason
        text = f"task {task.id} {task.spec.name} (program {task.spec.program}, vCPU {cpu.index}) killed: {reason}"
        self.effects.append(Log(now_ns, text))

    def reap(self, cpu: Cpu, now_ns: int) -> None:
        """On the way back to user mode: if what is current on ``cpu`` is to die, it does, and another runs."""
        if cpu.rq.curr is not None and self.tasks[cpu.rq.curr.id].doomed:
            self._die(cpu, self.tasks[cpu.rq.curr.id], now_ns)
            self.schedule(cpu, now_ns)

    def _die(self, cpu: Cpu, task: Task, now_ns: int) -> None:
        cpu.rq.dequeue_curr(sleeps=False)
        task.nvcsw += 1
        self._bury(task, now_ns)

    def _bury(self, task: Task, now_ns: int) -> None:
        task.move(TaskEvent.KILLED, now_ns)
        task.killed = task.doomed
        self.journal.record((now_ns, "leave", task.id, TaskEvent.KILLED.name))
        self._ended(task, now_ns)

    def has_access_threads(self, process: Process) -> bool:
        """Whether any task of the process can still perform accesses from outside."""
        tasks = (self.tasks[task_id] for task_id in process.tasks)
        return any(t.spec.ring and t.spec.trace is None and t.state is not TaskState.DEAD for t in tasks)

    def _ended(self, task: Task, now_ns: int) -> None:
        task.copies.clear()
        process = self.processes[task.asid]
        work = self.works.get(task.id)
        if work is not None:
            self._give_up(process, work)
        if process.execing and task.id == process.tasks[0]:
            process.execing = False
            for other in process.tasks[1:]:
                self.kill(self.tasks[other], "its process could not start", now_ns, None)
        ended = ProcessEnded(process.asid)
        if ended not in self.effects and all(self.tasks[other].state is TaskState.DEAD for other in process.tasks):
            self.effects.append(ended)

    def _give_up(self, process: Process, work: Work) -> None:
        """An access thread has died: nobody will perform what it had, and if it was the last, what waits either."""
        tickets = [access.ticket for access in work.batch] if work.outside else [work.ticket] * (work.ticket > 0)
        if not self.has_access_threads(process):
            tickets += [access.ticket for access in process.accesses.waiting]
            tickets += [replay.ticket for replay in process.accesses.replays]
            process.accesses.waiting.clear()
            process.accesses.replays.clear()
        text = f"process {process.asid}: the task that was to perform it has ended"
        self.effects.extend(Refused(ticket, Refusal.FAILED_PRECONDITION, text) for ticket in tickets)

    def end(self, cpu: Cpu, text: str, now_ns: int) -> None:
        """The VM ends, of what ``text`` says has happened on ``cpu``: every vCPU stops."""
        self.effects.append(Log(now_ns, text))
        self.ending = True
        for other in self.cpus:
            if other is not cpu:
                self.post(other)

    # Invariants ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that every task is in exactly one place, no vCPU idles beside work of its own, and no time is lost."""
        self.waiters.check()
        where: dict[int, list[TaskState]] = {number: [] for number in self.tasks}
        for node in self.waiters.nodes():
            if node.task:
                where[node.task].append(TaskState.APF_WAIT)
        for cpu in self.cpus:
            self._check_cpu(cpu, where)
        elsewhere = (TaskState.DEAD, TaskState.NEW, TaskState.SLEEP, TaskState.WAIT)
        for number, task in self.tasks.items():
            expected = [] if task.state in elsewhere else [task.state]
            assert where[number] == expected, f"found as {where[number]}\n{task.story()}"
            assert task.entity.on_rq == (task.state in (TaskState.READY, TaskState.RUNNING)), task.story()
            assert task.allowed_on(task.cpu), task.story()
        for process in self.processes.values():
            for queue in (process.accesses.idle, *(s.waiting for s in process.semaphores.values())):
                assert all(self.tasks[task_id].state is TaskState.WAIT for task_id in queue), (
                    f"{process.name}: {queue}"
                )

    def _check_cpu(self, cpu: Cpu, where: dict[int, list[TaskState]]) -> None:
        rq = cpu.rq
        rq.check()
        waiting = rq.waiting_ids()
        for task_id in waiting:
            where[task_id].append(TaskState.READY)
            assert self.tasks[task_id].cpu == cpu.index, self.tasks[task_id].story()
        if rq.curr is not None:
            where[rq.curr.id].append(TaskState.RUNNING)
        elif cpu.phase is Phase.UP:
            assert not waiting or cpu.need_resched, f"vCPU {cpu.index} idles, but {waiting} wait"
