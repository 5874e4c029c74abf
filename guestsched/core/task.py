"""A guest task: its registers while it does not run, its scheduling entity, and the life it may lead.

Follows struct task_struct. States, with the kernel's own:

    NEW       not started yet
    READY     TASK_RUNNING, on the run queue, not on the CPU
    RUNNING   TASK_RUNNING, current on its vCPU, or believed to be while the vCPU stalls in the host
    APF_WAIT  TASK_UNINTERRUPTIBLE in kvm_async_pf_task_wait: cannot be killed, never times out (E47)
    SLEEP     TASK_INTERRUPTIBLE until a timer
    WAIT      TASK_INTERRUPTIBLE on a semaphore, or an access thread without work
    DEAD      TASK_DEAD

Departures: a dead task keeps its row for the result; there are no signals: a kill takes effect when the task would
next run user code, as with SIGKILL, and at once if it does not run and can be interrupted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from apf import registers as register_file
from apf.messages import Account
from apf.rules import Rule, Table
from guestsched.core.sched import Entity

STORY_LINES = 24


class TaskState(IntEnum):
    """Where a task is; see the module's text."""

    READY = 0
    RUNNING = 1
    APF_WAIT = 2
    DEAD = 3
    NEW = 4
    SLEEP = 5
    WAIT = 6


class TaskEvent(IntEnum):
    """What moves a task from state to state."""

    PICKED = 0
    PREEMPTED = 1
    NOT_PRESENT = 2
    PAGE_READY = 3
    EXITED = 4
    KILLED = 5
    STARTED = 6
    SLEPT = 7
    TIMER = 8
    WAITED = 9
    WOKEN = 10


_S, _E = TaskState, TaskEvent
_KILLABLE = (_S.NEW, _S.READY, _S.RUNNING, _S.SLEEP, _S.WAIT)
TABLE: Table[TaskState, TaskEvent] = Table(
    "guest task",
    Rule(_S.NEW, _E.STARTED, _S.READY, "kernel/sched/core.c:wake_up_new_task"),
    Rule(_S.READY, _E.PICKED, _S.RUNNING, "kernel/sched/core.c:__schedule"),
    Rule(_S.RUNNING, _E.PREEMPTED, _S.READY, "kernel/sched/core.c:__schedule (preempted, or yields)"),
    Rule(_S.RUNNING, _E.NOT_PRESENT, _S.APF_WAIT, "arch/x86/kernel/kvm.c:kvm_async_pf_task_wait_schedule"),
    Rule(_S.APF_WAIT, _E.PAGE_READY, _S.READY, "arch/x86/kernel/kvm.c:kvm_async_pf_task_wake, apf_task_wake_all"),
    Rule(_S.RUNNING, _E.SLEPT, _S.SLEEP, "kernel/time/hrtimer.c:do_nanosleep"),
    Rule(_S.SLEEP, _E.TIMER, _S.READY, "kernel/time/hrtimer.c:hrtimer_wakeup"),
    Rule(_S.RUNNING, _E.WAITED, _S.WAIT, "kernel/futex/waitwake.c:futex_wait_queue"),
    Rule(_S.WAIT, _E.WOKEN, _S.READY, "kernel/sched/core.c:try_to_wake_up"),
    Rule(_S.RUNNING, _E.EXITED, _S.DEAD, "kernel/exit.c:do_exit"),
    *(Rule(state, _E.KILLED, _S.DEAD, "kernel/signal.c:get_signal, then do_exit") for state in _KILLABLE),
)
"""Every legal transition. A not-present whose dummy exists moves nothing: the task stays RUNNING.

RUNNING is what the guest believes of a task whose vCPU sleeps in the host or halts in KVM, and charges (E50).
"""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as a process's plan describes it.

    ``results``: (name, register) pairs worth reporting at the end. ``vcpus``: those it may run on, empty: all.
    ``ring``: gva of the page through which an access thread gets its work, 0 for any other task. ``trace``: the accesses
    of an access thread that are its own, None if they come from outside.
    """

    name: str
    program: str
    account: Account
    registers: bytes
    results: tuple[tuple[str, str], ...] = ()
    nice: int = 0
    vcpus: tuple[int, ...] = ()
    start_ns: int = 0
    lifetime_ns: int = 0
    ring: int = 0
    trace: AccessList | None = None


@dataclass(frozen=True, slots=True)
class TraceAccess:
    """One access of a list: its place and kind, what to compute before, and when to start (0: at once)."""

    address: int
    words: int
    write: bool
    think: int = 0
    at_ns: int = 0


class AccessList:
    """Accesses in order; a trace of many millions implements the same with arrays."""

    def __init__(self, accesses: tuple[TraceAccess, ...]) -> None:
        self._accesses = accesses

    def __len__(self) -> int:
        return len(self._accesses)

    def __getitem__(self, index: int) -> TraceAccess:
        return self._accesses[index]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one task came to. ``values`` are its result registers by name; ``killed`` is empty unless it was."""

    id: int
    name: str
    process: str
    program: str
    vcpu: int
    nice: int
    state: str
    sum_exec_ns: int
    nvcsw: int
    nivcsw: int
    min_flt: int
    maj_flt: int
    counted: int
    status: int
    killed: str
    values: tuple[tuple[str, int], ...]

    @property
    def nr_switches(self) -> int:
        """Times the task left the CPU, of its own will or not."""
        return self.nvcsw + self.nivcsw


@dataclass(slots=True)
class Task:
    """One task. ``id`` > 0 is its pid; ``nvcsw`` and ``nivcsw`` count its voluntary and other switches.

    ``cpu``: the vCPU whose run queue it is or was last on. ``copies``: what the kernel writes to memory before the task
    runs again. ``doomed``: why it is to die when it would run user code next.
    """

    id: int
    spec: TaskSpec
    asid: int
    process: str
    entity: Entity
    registers: bytes
    cpu: int
    state: TaskState = TaskState.READY
    nvcsw: int = 0
    nivcsw: int = 0
    min_flt: int = 0
    maj_flt: int = 0
    counted: int = 0
    status: int = 0
    doomed: str = ""
    killed: str = ""
    wakes: int = 0
    copies: list[tuple[int, bytes]] = field(default_factory=list)
    _story: deque[tuple[int, TaskState, TaskEvent]] = field(default_factory=lambda: deque(maxlen=STORY_LINES))

    def move(self, event: TaskEvent, now_ns: int) -> None:
        """Take ``event``; AssertionError with the task's story if its state does not allow it."""
        after = TABLE.after(self.state, event)
        assert after is not None, f"{event.name} at {now_ns} ns is illegal\n{self.story()}"
        self._story.append((now_ns, self.state, event))
        self.state = after

    @property
    def since_ns(self) -> int:
        """When it came into its state; 0 if that was before the run."""
        return self._story[-1][0] if self._story else 0

    def story(self) -> str:
        """The task's state and its last transitions, a line each."""
        lines = [f"task {self.id} {self.spec.name} on vCPU {self.cpu} is {self.state.name}; before:"]
        lines += [f"  {at_ns} ns: {state.name}, {event.name}" for at_ns, state, event in self._story]
        return "\n".join(lines)

    def allowed_on(self, vcpu: int) -> bool:
        """Its affinity (cpumask_test_cpu of cpus_mask)."""
        return not self.spec.vcpus or vcpu in self.spec.vcpus

    def value(self, name: str) -> int | None:
        """A result register by name, as of the last trap; None if the program has no such result."""
        register = dict(self.spec.results).get(name)
        return None if register is None else register_file.get(self.registers, register)

    def result(self) -> TaskResult:
        """The task's row of the run's result."""
        spec, entity = self.spec, self.entity
        return TaskResult(
            id=self.id,
            name=spec.name,
            process=self.process,
            program=spec.program,
            vcpu=self.cpu,
            nice=spec.nice,
            state=self.state.name,
            sum_exec_ns=entity.sum_exec_ns,
            nvcsw=self.nvcsw,
            nivcsw=self.nivcsw,
            min_flt=self.min_flt,
            maj_flt=self.maj_flt,
            counted=self.counted,
            status=self.status,
            killed=self.killed,
            values=tuple((name, register_file.get(self.registers, register)) for name, register in spec.results),
        )
