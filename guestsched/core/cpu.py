"""One vCPU as the guest kernel sees it: its place in the conversation, its run queue, its timers.

OFF -Booted-> UP -Stopped-> STOPPED. Between Booted and Stopped every trap comes no earlier than the last reply let
the vCPU go on. A peer that breaks this gets a CoreError.

Timers are the vCPU's own hrtimers (struct hrtimer_cpu_base): the earliest goes to the vCPU's local APIC with every
dispatch. One set by another vCPU takes effect with the interrupt that is posted with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush

from apf.core import CoreError
from apf.messages import (
    NEVER_NS,
    Booted,
    ExceptionRaised,
    Fetched,
    ProtocolFault,
    RunFailed,
    Stopped,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    TrapRaised,
)
from apf.registers import FILE_BYTES
from guestsched.core.sched import Entity, RunQueue

_OF_USER_MODE = (Booted, Fetched, SyscallRaised, ExceptionRaised)
MACHINE_CHECK = 18
"""Exception of memory that has failed."""


class Phase(IntEnum):
    """Where the vCPU's conversation with the guest kernel is."""

    OFF = 0
    UP = 1
    STOPPED = 2


class TimerKind(IntEnum):
    """What a timer does to its task."""

    START = 0
    WAKE = 1
    KILL = 2


@dataclass(slots=True)
class Cpu:
    """State of vCPU ``index``. ``resume_ns`` and ``run_until_ns`` are those of the last Dispatch.

    ``need_resched`` with ``preferred``: TIF_NEED_RESCHED and the next buddy. ``known``: versions of address spaces by
    asid that the vCPU was told. ``fetching``: what the current task's system call reads memory for (``fetch``), "" if
    it does not. ``injections``: faults of the protocol, with tickets, that the vCPU will be told with its next Dispatch;
    ``injected``: how many have come for it.
    """

    index: int
    rq: RunQueue
    phase: Phase = Phase.OFF
    resume_ns: int = 0
    run_until_ns: int = NEVER_NS
    timer_ns: int = NEVER_NS
    need_resched: bool = False
    preferred: Entity | None = None
    fetching: str = ""
    fetch: tuple[tuple[int, int], ...] = ()
    known: dict[int, int] = field(default_factory=dict)
    timers: list[tuple[int, int, TimerKind, int, int]] = field(default_factory=list)
    injections: list[tuple[int, ProtocolFault]] = field(default_factory=list)
    injected: int = 0
    ticks: int = 0
    interrupts: int = 0
    not_present: int = 0
    page_ready: int = 0
    nr_switches: int = 0
    pulled: int = 0

    def arm(self, at_ns: int, order: int, kind: TimerKind, task: int, wakes: int) -> None:
        """Set a timer; ``order`` decides between timers of the same time, ``wakes`` tells whether it is still wanted."""
        heappush(self.timers, (at_ns, order, kind, task, wakes))

    def expired(self, now_ns: int) -> list[tuple[TimerKind, int, int]]:
        """Take the timers that are due at ``now_ns``: (kind, task, wakes)."""
        due = []
        while self.timers and self.timers[0][0] <= now_ns:
            _, _, kind, task, wakes = heappop(self.timers)
            due.append((kind, task, wakes))
        return due

    @property
    def next_timer_ns(self) -> int:
        """When the earliest timer is due."""
        return self.timers[0][0] if self.timers else NEVER_NS

    def accept(self, raised: TrapRaised, now_ns: int) -> None:
        """Boot or stop if ``raised`` says so. Raises CoreError, with nothing changed, if it may not come now."""
        fault = self._objection(raised, now_ns)
        if fault:
            raise CoreError(f"vCPU {self.index} at {now_ns} ns: {raised.trap}{fault}")
        if isinstance(raised.trap, Booted):
            self.phase = Phase.UP
            self.rq.start(now_ns)
        elif isinstance(raised.trap, Stopped):
            self.phase = Phase.STOPPED

    def _objection(self, raised: TrapRaised, now_ns: int) -> str:
        """What is wrong with ``raised`` now; empty if nothing is."""
        trap, registers, curr = raised.trap, raised.registers, self.rq.curr
        if now_ns < self.resume_ns:
            return f" before {self.resume_ns} ns, when it was to go on"
        if self.phase is not (Phase.OFF if isinstance(trap, Booted) else Phase.UP):
            return f", but it is {self.phase.name}"
        if curr is None and registers is not None:
            return " with registers, but it is idle"
        if curr is not None and (registers is None or len(registers) != FILE_BYTES):
            given = "no" if registers is None else len(registers)
            return f" with {given} bytes of registers instead of {FILE_BYTES}; it runs task {curr.id}"
        if isinstance(trap, TickArrived) and now_ns < self.run_until_ns:
            return f": ticks before {self.run_until_ns} ns change nothing and are its own"
        if isinstance(trap, TimerArrived) and now_ns < self.timer_ns:
            return f": its timer was to expire at {self.timer_ns} ns"
        if raised.kernel and isinstance(trap, _OF_USER_MODE):
            return " from the kernel"
        if isinstance(trap, Stopped | RunFailed) or raised.kernel:
            return ""
        if isinstance(trap, ExceptionRaised) and trap.vector == MACHINE_CHECK:  # that memory is its task's
            return ""
        if bool(self.fetching) is not isinstance(trap, Fetched):
            return f", but the kernel was {'reading memory' if self.fetching else 'not reading memory'} for its task"
        return ""
