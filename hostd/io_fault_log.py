"""What operators have asked the swap device to do while the host ran, written down so that the run can be repeated.

A JSON document a line: the scenario, then every failure with the border from which on it was in force and how many VMs
had joined by then, then, if the run came to its end, the digest of the host's journal.

    {"scenario": {...}, "host": true}
    {"at_ns": 40000, "joins": 0, "io_fault": {"what": "read_error", ...}}
    {"digest": "..."}
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apf.io_faults import IoFaultWish
from apf.scenario import Scenario, ScenarioError


@dataclass(frozen=True, slots=True)
class Asked:
    """``wish`` is in force from border ``at_ns`` on, behind the first ``joins`` VMs that have joined."""

    at_ns: int
    joins: int
    wish: IoFaultWish


class IoFaultLog:
    """Writes the log, which is there once there is something to note."""

    def __init__(self, path: Path, scenario: Scenario) -> None:
        self._path = path
        self._scenario = scenario

    def take(self, asked: Asked) -> None:
        """Note a failure."""
        if not self._path.exists():
            self._write({"scenario": self._scenario.model_dump(mode="json"), "host": True})
        self._write({"at_ns": asked.at_ns, "joins": asked.joins, "io_fault": asked.wish.model_dump(mode="json")})

    def close(self, digest: str) -> None:
        """The run has come to its end; ``digest`` is that of the host's journal."""
        if self._path.exists():
            self._write({"digest": digest})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as sink:
            sink.write(json.dumps(line, separators=(",", ":")) + "\n")


@dataclass(slots=True)
class Recorded:
    """A log that was read. ``digest``: of the host's journal, None if the run was cut short."""

    scenario: Scenario
    asked: deque[Asked] = field(default_factory=deque)
    digest: str | None = None


def is_log(path: Path) -> bool:
    """Whether the file at ``path`` begins as such a log does. Raises ScenarioError if it cannot be read."""
    try:
        with path.open() as lines:
            first = json.loads(lines.readline() or "{}")
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    except ValueError:
        return False
    return isinstance(first, dict) and first.get("host") is True


def read(path: Path) -> Recorded:
    """Read a log. Raises ScenarioError."""
    found: Recorded | None = None
    try:
        with path.open() as lines:
            for number, text in enumerate(lines, start=1):
                try:
                    line = json.loads(text)
                    if found is None:
                        found = Recorded(Scenario.model_validate(line["scenario"]))
                    elif "digest" in line:
                        found.digest = str(line["digest"])
                    else:
                        wish = IoFaultWish.model_validate(line["io_fault"])
                        found.asked.append(Asked(int(line["at_ns"]), int(line["joins"]), wish))
                except (ValueError, KeyError, TypeError) as error:
                    raise ScenarioError(f"{path}: line {number}: not of a log of I/O failures: {error}") from error
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error
    if found is None:
        raise ScenarioError(f"{path}: not a log of I/O failures: it is empty")
    return found
