"""A guest task: its registers while it does not run, its scheduling entity, and the life it may lead.

Follows struct task_struct. States, with the kernel's own:

    READY     TASK_RUNNING, on the run queue, not on the CPU
    RUNNING   TASK_RUNNING, current on its vCPU, or believed to be while the vCPU stalls in the host
    APF_WAIT  TASK_UNINTERRUPTIBLE in kvm_async_pf_task_wait: cannot be killed, never times out
    DEAD      TASK_DEAD

Departures: a dead task keeps its row for the result; there are no signals, so killing means dying at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from apf import registers as register_file
from apf.messages import Account
from guestsched.core.cfs import CfsRunQueue
from guestsched.core.sched import Entity

STORY_LINES = 24


class TaskState(IntEnum):
    """Where a task is; see the module's text."""

    READY = 0
    RUNNING = 1
    APF_WAIT = 2
    DEAD = 3


class TaskEvent(IntEnum):
    """What moves a task from state to state."""

    PICKED = 0
    PREEMPTED = 1
    NOT_PRESENT = 2
    PAGE_READY = 3
    EXITED = 4
    KILLED = 5


TRANSITIONS: dict[tuple[TaskState, TaskEvent], TaskState] = {
    (TaskState.READY, TaskEvent.PICKED): TaskState.RUNNING,
    (TaskState.RUNNING, TaskEvent.PREEMPTED): TaskState.READY,
    (TaskState.RUNNING, TaskEvent.NOT_PRESENT): TaskState.APF_WAIT,
    (TaskState.APF_WAIT, TaskEvent.PAGE_READY): TaskState.READY,
    (TaskState.RUNNING, TaskEvent.EXITED): TaskState.DEAD,
    (TaskState.RUNNING, TaskEvent.KILLED): TaskState.DEAD,
}
"""Every legal transition. A not-present whose dummy exists moves nothing: the task stays RUNNING."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as the image describes it. ``results``: (name, register) pairs worth reporting at the end."""

    name: str
    program: str
    vcpu: int
    asid: int
    account: Account
    registers: bytes
    results: tuple[tuple[str, str], ...] = ()
    nice: int = 0


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one task came to. ``values`` are its result registers by name; ``killed`` is empty unless it was."""

    id: int
    name: str
    program: str
    vcpu: int
    nice: int
    state: str
    sum_exec_ns: int
    nvcsw: int
    nivcsw: int
    killed: str
    values: tuple[tuple[str, int], ...]

    @property
    def nr_switches(self) -> int:
        """Times the task left the CPU, of its own will or not."""
        return self.nvcsw + self.nivcsw


@dataclass(slots=True)
class Task:
    """One task. ``id`` > 0 is its pid; ``nvcsw`` and ``nivcsw`` count its voluntary and other switches."""

    id: int
    spec: TaskSpec
    entity: Entity
    registers: bytes
    state: TaskState = TaskState.READY
    nvcsw: int = 0
    nivcsw: int = 0
    killed: str = ""
    _story: deque[tuple[int, TaskState, TaskEvent]] = field(default_factory=lambda: deque(maxlen=STORY_LINES))

    @classmethod
    def new(cls, task_id: int, spec: TaskSpec) -> Task:
        """A task that has not run yet."""
        return cls(task_id, spec, CfsRunQueue.new_entity(task_id, spec.nice), spec.registers)

    def move(self, event: TaskEvent, now_ns: int) -> None:
        """Take ``event``; AssertionError with the task's story if its state does not allow it."""
        after = TRANSITIONS.get((self.state, event))
        assert after is not None, f"{event.name} at {now_ns} ns is illegal\n{self.story()}"
        self._story.append((now_ns, self.state, event))
        self.state = after

    def story(self) -> str:
        """The task's state and its last transitions, a line each."""
        lines = [f"task {self.id} {self.spec.name} on vCPU {self.spec.vcpu} is {self.state.name}; before:"]
        lines += [f"  {at_ns} ns: {state.name}, {event.name}" for at_ns, state, event in self._story]
        return "\n".join(lines)

    def result(self) -> TaskResult:
        """The task's row of the run's result."""
        spec, entity = self.spec, self.entity
        return TaskResult(
            id=self.id,
            name=spec.name,
            program=spec.program,
            vcpu=spec.vcpu,
            nice=spec.nice,
            state=self.state.name,
            sum_exec_ns=entity.sum_exec_ns,
            nvcsw=self.nvcsw,
            nivcsw=self.nivcsw,
            killed=self.killed,
            values=tuple((name, register_file.get(self.registers, register)) for name, register in spec.results),
        )
