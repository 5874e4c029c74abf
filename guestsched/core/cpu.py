"""One vCPU as the guest kernel sees it: its place in the conversation and its run queue.

OFF -Booted-> UP -Stopped-> STOPPED. Between Booted and Stopped every trap comes no earlier than the last reply let
the vCPU go on. A peer that breaks this gets a CoreError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from apf.core import CoreError
from apf.messages import NEVER_NS, Booted, Stopped, TickArrived, TrapRaised
from apf.registers import FILE_BYTES
from guestsched.core.sched import RunQueue


class Phase(IntEnum):
    """Where the vCPU's conversation with the guest kernel is."""

    OFF = 0
    UP = 1
    STOPPED = 2


@dataclass(slots=True)
class Cpu:
    """State of vCPU ``index``. ``resume_ns`` and ``run_until_ns`` are those of the last Dispatch."""

    index: int
    rq: RunQueue
    phase: Phase = Phase.OFF
    resume_ns: int = 0
    run_until_ns: int = NEVER_NS
    ticks: int = 0
    not_present: int = 0
    page_ready: int = 0
    nr_switches: int = 0

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
        return ""
