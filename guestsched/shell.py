"""Carries out what the guest kernel's core decides. Used by the daemon and by the twin alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from apf.histogram import Histogram
from apf.journal import Journal
from apf.messages import Dispatch, FaultKind, Stopped, TrapRaised
from apf.scenario import Scenario
from guestsched.build import guest_core
from guestsched.core.arrivals import AccessDone, Answer, Arrival, ReplayDone
from guestsched.core.core import ArrivalsTaken, Effect, GuestCore, Log, Post, Reply, TrapTaken
from guestsched.core.task import TaskResult

log = logging.getLogger(__name__)
_TOLD_MAX = 10_000


class GuestShell:
    """The core and what it has told. Not thread-safe: the caller holds a lock or has one thread.

    ``post(vcpu, at_ns)`` interrupts a vCPU: at the time granted for arrivals, or (None) when the next window opens.
    ``answered`` is told what became of arrivals.
    """

    def __init__(
        self,
        scenario: Scenario,
        journal: Journal,
        post: Callable[[int, int | None], None],
        answered: Callable[[Answer], None] | None = None,
        vm: int = 0,
        boot_ns: int = 0,
    ) -> None:
        self._vcpus = scenario.vm.vcpus
        self._journal = journal
        self._post = post
        self._answered = answered
        self._stopped = 0
        self.core: GuestCore = guest_core(scenario, journal, vm, boot_ns)
        self.told: list[str] = []
        self._untold = 0
        # Counted for whoever watches: accesses from outside by what they met (None: a hit), replays' included.
        self.accesses: dict[FaultKind | None, int] = dict.fromkeys((None, *FaultKind), 0)
        self.access_latency = Histogram()
        """From arrival to done, of those that arrived one by one."""

    @property
    def all_stopped(self) -> bool:
        """Whether every vCPU has taken its last trap."""
        return self._stopped == self._vcpus

    def take(self, vcpu: int, raised: TrapRaised, now_ns: int) -> Dispatch:
        """Answer a vCPU's trap, whose turn it is."""
        effects = self.core.step(TrapTaken(vcpu, raised), now_ns)
        reply = effects.pop()
        assert isinstance(reply, Reply)
        self._carry_out(effects, None)
        self._stopped += isinstance(raised.trap, Stopped)
        return reply.dispatch

    def arrive(self, arrivals: tuple[Arrival, ...], now_ns: int) -> None:
        """Take what has arrived from outside, at the time that was granted for it."""
        self._carry_out(self.core.step(ArrivalsTaken(arrivals), now_ns), now_ns)

    def _carry_out(self, effects: list[Effect], at_ns: int | None) -> None:
        for effect in effects:
            match effect:
                case Post(vcpu=vcpu):
                    self._post(vcpu, at_ns)
                case Log():
                    self._tell(effect)
                case Reply():
                    raise AssertionError(f"a second reply: {effect}")
                case _:
                    self._count(effect)
                    if self._answered is not None:
                        self._answered(effect)

    def _count(self, answer: Answer) -> None:
        if isinstance(answer, AccessDone):
            self.accesses[answer.met] += 1
            self.access_latency.observe(answer.done_ns - answer.arrived_ns)
        elif isinstance(answer, ReplayDone):
            for kind, count in answer.met:
                self.accesses[kind] += count

    def _tell(self, line: Log) -> None:
        log.log(logging.WARNING if line.warning else logging.INFO, "at %d ns: %s", line.at_ns, line.text)
        if len(self.told) < _TOLD_MAX:
            self.told.append(f"at {line.at_ns} ns: {line.text}")
        else:
            self._untold += 1

    def all_told(self) -> list[str]:
        """What the guest has told, and how much of it was not kept."""
        return self.told + ([f"and {self._untold} lines more"] if self._untold else [])

    def counters(self) -> dict[str, int]:
        """Counters of all vCPUs together."""
        cpus = [self.core.cpu(vcpu) for vcpu in range(self._vcpus)]
        names = ("nr_switches", "not_present", "page_ready", "ticks", "interrupts", "pulled")
        return {name: sum(getattr(cpu, name) for cpu in cpus) for name in names}

    def core_digest(self) -> str:
        """Digest of the core's journal so far."""
        return self._journal.digest()


def guest_report(shell: GuestShell) -> dict[str, Any]:
    """Finish the core, at the time of its last step, and say what became of every task."""
    core = shell.core
    tasks = [_row(task) for task in core.finish(core.now_ns)]
    profile = [{"symbol": row.symbol, "program": row.program, "samples": row.samples} for row in core.profile.rows()]
    return {
        "tasks": tasks,
        "told": shell.all_told(),
        "counters": shell.counters(),
        "profile": profile,
        "folded": core.profile.folded(),
        "boot_ns": core.boot_ns,
        "end_ns": core.now_ns,
        "failed": core.failed,
    }


def _row(task: TaskResult) -> dict[str, Any]:
    """A task's row of the JSON document."""
    return {
        "id": task.id,
        "name": task.name,
        "process": task.process,
        "program": task.program,
        "vcpu": task.vcpu,
        "nice": task.nice,
        "state": task.state,
        "sum_exec_ns": task.sum_exec_ns,
        "switches": task.nr_switches,
        "min_flt": task.min_flt,
        "maj_flt": task.maj_flt,
        "counted": task.counted,
        "status": task.status,
        "killed": task.killed,
        "values": dict(task.values),
    }
