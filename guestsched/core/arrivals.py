"""What comes from outside the run, and what the kernel answers.

Arrivals take effect together, at one time, when no vCPU runs (see ``apf.clockpage``). ``ticket`` is the asker's number
for one; every arrival with a ticket gets exactly one final answer with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from apf.messages import FaultKind, ProtocolFault
from guestsched.core.process import ProcessPlan
from guestsched.core.task import AccessList


class Refusal(Enum):
    """Why an arrival was refused, in the words of gRPC's status codes."""

    NOT_FOUND = "NOT_FOUND"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class AccessArrived:
    """Perform an access in ``process`` (asid). ``offset``: bytes from the start of its memory."""

    ticket: int
    process: int
    offset: int
    words: int
    write: bool


@dataclass(frozen=True, slots=True)
class AccessCancelled:
    """Nobody waits for this access any more: forget it, unless a thread has taken it."""

    ticket: int
    process: int


@dataclass(frozen=True, slots=True)
class ReplayArrived:
    """Perform a list of accesses, whose addresses are offsets into the process's memory."""

    ticket: int
    process: int
    accesses: AccessList


@dataclass(frozen=True, slots=True)
class SpawnArrived:
    """Make a process."""

    ticket: int
    plan: ProcessPlan


@dataclass(frozen=True, slots=True)
class KillArrived:
    """End a process, or with ``task`` one task of it."""

    ticket: int
    process: int
    task: int


@dataclass(frozen=True, slots=True)
class InjectArrived:
    """Spoil the APF protocol of a vCPU."""

    ticket: int
    vcpu: int
    fault: ProtocolFault


@dataclass(frozen=True, slots=True)
class ShutdownArrived:
    """End the run."""


Arrival = (
    AccessArrived | AccessCancelled | ReplayArrived | SpawnArrived | KillArrived | InjectArrived | ShutdownArrived
)


@dataclass(frozen=True, slots=True)
class AccessDone:
    """The access retired."""

    ticket: int
    arrived_ns: int
    done_ns: int
    met: FaultKind | None
    task: int


@dataclass(frozen=True, slots=True)
class ReplayDone:
    """The list was performed; of its accesses ``met`` says how many met what (None: a hit)."""

    ticket: int
    arrived_ns: int
    done_ns: int
    met: tuple[tuple[FaultKind | None, int], ...]
    task: int


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process exists."""

    ticket: int
    process: int
    tasks: tuple[int, ...]
    at_ns: int


@dataclass(frozen=True, slots=True)
class KillTaken:
    """These tasks die, or will when they would next run."""

    ticket: int
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InjectTaken:
    """The vCPU has been told; the fault is in force from ``at_ns`` on."""

    ticket: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The arrival changed nothing."""

    ticket: int
    why: Refusal
    text: str


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """The last task of a process is dead."""

    process: int


Answer = AccessDone | ReplayDone | Spawned | KillTaken | InjectTaken | Refused | ProcessEnded
