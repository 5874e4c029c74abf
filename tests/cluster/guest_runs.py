"""Runs of guests made of process tables: on the twin and on real processes, with their journals, and alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apf.scenario import Scenario, load
from deploy import twin
from deploy.journals import first_difference
from deploy.local import LocalCluster
from deploy.result import RunResult

Table = dict[str, Any]
"""A ``[[process]]`` or ``[[process.thread]]`` of a scenario."""


def guests(apf: str, *processes: Table, **overrides: Any) -> Scenario:
    """A scenario of one mode with these processes, on nvme; ``vm__vcpus=2`` sets ``vm.vcpus``.

    Nothing is read ahead: what is asked of a page is whether it was there, and not who else was near.
    """
    chosen: dict[str, Any] = {
        "apf": [apf],
        "swap.device": "nvme",
        "swap.readahead": "none",
        "vm.vcpus": 2,
        "vm.guest_memory": "96MiB",
        "vm.group_memory": "4MiB",
        "host.reserve_frames": 512,
        "host.patience_s": 60,
        "process": list(processes),
    }
    chosen |= {name.replace("__", "."): value for name, value in overrides.items()}
    return load(None, chosen)


@dataclass(frozen=True)
class Ran:
    """A run that has ended, and its cores' journals, a line an event."""

    result: RunResult
    journals: dict[str, list[str]]

    def lines(self, core: str, kind: str) -> list[list[str]]:
        """The journal's events of one kind, as words: time, kind, fields."""
        words = (line.split() for line in self.journals[core])
        return [line for line in words if line[1] == kind]

    def tasks(self, program: str) -> list[dict[str, Any]]:
        """The tasks that ran ``program``."""
        return [row for row in self.result.tasks if row["program"] == program]


def read_journals(paths: dict[str, Path]) -> dict[str, list[str]]:
    return {name: path.read_text().splitlines() for name, path in sorted(paths.items())}


def on_twin(scenario: Scenario, directory: Path) -> Ran:
    directory.mkdir(exist_ok=True)
    result = twin.run(scenario, journals=directory)
    return Ran(result, read_journals({path.stem: path for path in directory.glob("*.journal")}))


def on_processes(scenario: Scenario) -> Ran:
    with LocalCluster(scenario, journals=True) as cluster:
        return Ran(cluster.wait(), read_journals(cluster.journals()))


def same(one: Ran, other: Ran) -> None:
    """Equal digests and windows, and equal in what no digest covers but a user sees; nothing is lost or corrupt."""
    for core in one.journals:
        difference = first_difference(one.journals[core], other.journals[core])
        assert difference is None, f"{core}: {difference}"
    left, right = one.result, other.result
    assert left.digest == right.digest and left.windows == right.windows
    assert (left.tasks, left.workers, left.told) == (right.tasks, right.workers, right.told)
    assert (left.host_counters, left.guest_counters, left.audit) == (
        (right.host_counters, right.guest_counters, right.audit)
    )
    assert [vcpu["time_ns"] for vcpu in left.vcpus] == [vcpu["time_ns"] for vcpu in right.vcpus]
    assert [vcpu["counters"] for vcpu in left.vcpus] == [vcpu["counters"] for vcpu in right.vcpus]
    sound(one)
    sound(other)


def sound(ran: Ran) -> None:
    """No task read a wrong byte, and no write is lost."""
    assert not any(row["values"].get("corrupt", 0) for row in ran.result.tasks)
    assert ran.result.audit["corrupt"] == 0


def alike(scenario: Scenario, directory: Path) -> Ran:
    """Run ``scenario`` on the twin and on the processes and compare; returns the twin's run."""
    expected = on_twin(scenario, directory)
    same(expected, on_processes(scenario))
    return expected
