"""What has come to a guest from outside, written down so that the run can be repeated.

A JSON document a line: first the scenario, then every group of arrivals with the time it was granted, then, if the run
came to its end, the digest of the guest's journal.

    {"scenario": {...}, "vm": 0, "boot_ns": 0}
    {"at_ns": 40000, "arrivals": [["access", 1, 1, 4096, 1, false], ...]}
    {"digest": "..."}
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, assert_never

from apf.messages import ProtocolFault
from apf.scenario import Scenario, ScenarioError
from guestsched.core.arrivals import (
    AccessArrived,
    AccessCancelled,
    Arrival,
    InjectArrived,
    KillArrived,
    ReplayArrived,
    ShutdownArrived,
    SpawnArrived,
)
from guestsched.core.task import AccessList, TraceAccess
from guestsched.inject import InjectWish
from guestsched.plan import vm_seed
from guestsched.spawn import SpawnWish

Arrivals = deque[tuple[int, tuple[Arrival, ...]]]


class ArrivalLog:
    """Writes the log. ``wishes``: what the plans of SpawnArrived were made from, by ticket."""

    def __init__(self, sink: TextIO, scenario: Scenario, vm: int, boot_ns: int = 0) -> None:
        self._sink = sink
        self._write({"scenario": scenario.model_dump(mode="json"), "vm": vm, "boot_ns": boot_ns})

    def _write(self, line: dict[str, Any]) -> None:
        self._sink.write(json.dumps(line, separators=(",", ":")) + "\n")

    def take(self, at_ns: int, arrivals: Iterable[Arrival], wishes: dict[int, SpawnWish]) -> None:
        """Note a group of arrivals."""
        self._write({"at_ns": at_ns, "arrivals": [_out(arrival, wishes) for arrival in arrivals]})

    def close(self, digest: str | None) -> None:
        """The run is over; ``digest`` is the guest core's."""
        if digest is not None:
            self._write({"digest": digest})
        self._sink.close()


def _out(arrival: Arrival, wishes: dict[int, SpawnWish]) -> list[Any]:
    match arrival:
        case AccessArrived(ticket, process, offset, words, write):
            return ["access", ticket, process, offset, words, write]
        case AccessCancelled(ticket, process):
            return ["cancel", ticket, process]
        case ReplayArrived(ticket, process, accesses):
            items = [accesses[index] for index in range(len(accesses))]
            return ["replay", ticket, process, [[a.address, a.words, a.write, a.think] for a in items]]
        case SpawnArrived(ticket, _):
            return ["spawn", ticket, wishes[ticket].model_dump(mode="json")]
        case KillArrived(ticket, process, task):
            return ["kill", ticket, process, task]
        case InjectArrived(ticket, vcpu, ProtocolFault(what, nth, count, for_ns)):
            return ["inject", ticket, vcpu, what, nth, count, for_ns]
        case ShutdownArrived():
            return ["shutdown"]
        case _:
            assert_never(arrival)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A log that was read. ``digest``: of the guest's journal, None if the run was cut short.

    ``boot_ns``: when the VM joined its host, 0 if it was there from the start.
    """

    scenario: Scenario
    vm: int
    arrivals: Arrivals
    digest: str | None
    boot_ns: int = 0


def read(path: Path) -> Recorded:
    """Read a log. Raises ScenarioError."""
    scenario: Scenario | None = None
    vm = boot_ns = 0
    arrivals: Arrivals = deque()
    digest = None
    try:
        with path.open() as lines:
            for number, text in enumerate(lines, start=1):
                try:
                    line = json.loads(text)
                    if "scenario" in line:
                        scenario, vm = Scenario.model_validate(line["scenario"]), int(line["vm"])
                        boot_ns = int(line.get("boot_ns", 0))
                    elif "digest" in line:
                        digest = str(line["digest"])
                    else:
                        assert scenario is not None
                        group = tuple(_in(fields, scenario, vm) for fields in line["arrivals"])
                        arrivals.append((int(line["at_ns"]), group))
                except (ValueError, KeyError, TypeError, AssertionError) as error:
                    raise ScenarioError(f"{path}: line {number}: not of a log of arrivals: {error}") from error
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    if scenario is None:
        raise ScenarioError(f"{path}: not a log of arrivals: its first line names no scenario")
    return Recorded(scenario, vm, arrivals, digest, boot_ns)


def _in(fields: list[Any], scenario: Scenario, vm: int) -> Arrival:
    match fields:
        case ["access", ticket, process, offset, words, write]:
            return AccessArrived(ticket, process, offset, words, write)
        case ["cancel", ticket, process]:
            return AccessCancelled(ticket, process)
        case ["replay", ticket, process, items]:
            accesses = tuple(TraceAccess(address, words, write, think) for address, words, write, think in items)
            return ReplayArrived(ticket, process, AccessList(accesses))
        case ["spawn", ticket, wish]:
            made = SpawnWish.model_validate_json(json.dumps(wish))
            return SpawnArrived(ticket, made.plan(vm_seed(scenario.seed, vm), scenario.vm.vcpus))
        case ["kill", ticket, process, task]:
            return KillArrived(ticket, process, task)
        case ["inject", ticket, vcpu, what, nth, count, for_ns]:
            return InjectArrived(ticket, vcpu, InjectWish(what=what, nth=nth, count=count, for_ns=for_ns).fault())
        case ["shutdown"]:
            return ShutdownArrived()
    raise ValueError(f"no such arrival: {fields}")
