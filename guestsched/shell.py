"""Carries out what the guest kernel's core decides. Used by the daemon and by the twin alike."""

from __future__ import annotations

import logging
from typing import Any, assert_never

from apf.journal import Journal
from apf.messages import Dispatch, Stopped, TrapRaised
from apf.scenario import Scenario
from guestsched.core.core import GuestCore, Log, Reply, TrapTaken
from guestsched.core.image import Image

log = logging.getLogger(__name__)


class GuestShell:
    """The core and what it has told. Not thread-safe: the caller holds a lock or has one thread."""

    def __init__(self, scenario: Scenario, image: Image, journal: Journal) -> None:
        self._vcpus = scenario.vm.vcpus
        self._journal = journal
        self._stopped = 0
        self.core = GuestCore(scenario, image, journal)
        self.told: list[str] = []

    @property
    def all_stopped(self) -> bool:
        """Whether every vCPU has taken its last trap."""
        return self._stopped == self._vcpus

    def take(self, vcpu: int, raised: TrapRaised, now_ns: int) -> Dispatch:
        """Answer a vCPU's trap, whose turn it is."""
        dispatch = None
        for effect in self.core.step(TrapTaken(vcpu, raised), now_ns):
            match effect:
                case Reply():
                    dispatch = effect.dispatch
                case Log(at_ns=at_ns, text=text):
                    self.told.append(f"at {at_ns} ns: {text}")
                    log.warning("at %d ns: %s", at_ns, text)
                case _:
                    assert_never(effect)
        assert dispatch is not None
        self._stopped += isinstance(raised.trap, Stopped)
        return dispatch

    def counters(self) -> dict[str, int]:
        """Counters of all vCPUs together."""
        cpus = [self.core.cpu(vcpu) for vcpu in range(self._vcpus)]
        names = ("nr_switches", "not_present", "page_ready", "ticks")
        return {name: sum(getattr(cpu, name) for cpu in cpus) for name in names}

    def core_digest(self) -> str:
        """Digest of the core's journal so far."""
        return self._journal.digest()


def guest_report(shell: GuestShell, end_ns: int) -> dict[str, Any]:
    """Finish the core at ``end_ns`` and say what became of every task."""
    tasks = [
        {
            "id": task.id,
            "name": task.name,
            "program": task.program,
            "vcpu": task.vcpu,
            "state": task.state,
            "sum_exec_ns": task.sum_exec_ns,
            "switches": task.nr_switches,
            "killed": task.killed,
            "values": dict(task.values),
        }
        for task in shell.core.finish(end_ns)
    ]
    return {"tasks": tasks, "told": shell.told, "counters": shell.counters()}
