"""Clusters under load from outside, by the clients of ``load_calls``, and their repetition in the twin."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_runs import DEADLINE_S, until
from guest_runs import Ran, read_journals

from apf.scenario import Scenario
from deploy import journals, replay
from deploy.local import LocalCluster
from deploy.result import RunResult

CLIENT = Path(__file__).with_name("load_calls.py")


@dataclass(frozen=True)
class Loaded:
    """A run that has ended under load: what its client saw, its result and journals, its log of arrivals."""

    said: dict[str, Any]
    ran: Ran
    merged: list[str]
    log: Path

    def arrivals(self, kind: str) -> list[list[Any]]:
        """Everything of one kind that came: ticket, and so on."""
        groups = [json.loads(line).get("arrivals", ()) for line in self.log.read_text().splitlines()]
        return [arrival[1:] for group in groups for arrival in group if arrival[0] == kind]


def under_load(scenario: Scenario, directory: Path, client: str, *arguments: str) -> Loaded:
    """Run ``client`` against a cluster until it has asked for the end."""
    log = directory / "arrivals.jsonl"
    merged = io.StringIO()
    with LocalCluster(scenario, journals=True, api="127.0.0.1:0") as cluster:
        until("the API listens", lambda: cluster.api_address() is not None)
        command = [sys.executable, str(CLIENT), client, str(cluster.api_address()), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 0, done.stderr
        result = cluster.wait()
        log.write_bytes(cluster.arrivals().read_bytes())
        journals.merge(result.mode, cluster.journals(), merged)
        ran = Ran(result, read_journals(cluster.journals()))
    return Loaded(json.loads(done.stdout), ran, merged.getvalue().splitlines(), log)


def replays(loaded: Loaded) -> RunResult:
    """The twin repeats the run from its log."""
    journal = io.StringIO()
    result, [(recorded, now)] = replay.run([loaded.log], lambda ran, paths: journals.merge(ran.mode, paths, journal))
    difference = journals.first_difference(journal.getvalue().splitlines(), loaded.merged)
    assert difference is None, difference
    ran = loaded.ran.result
    assert recorded == now
    assert (result.digest, result.windows) == (ran.digest, ran.windows)
    assert (result.tasks, result.host_counters, result.guest_counters) == (
        (ran.tasks, ran.host_counters, ran.guest_counters)
    )
    assert result.audit["corrupt"] == 0 and not any(row["values"].get("corrupt", 0) for row in result.tasks)
    return result
