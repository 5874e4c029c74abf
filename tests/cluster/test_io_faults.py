"""An operator lets the swap device of a running host fail, and the twin repeats the run from the log of it.

And who watches looks at the host's memory meanwhile, of which the run knows nothing.
"""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import small, until_running

from apf.roles import Role
from apf.scenario import Scenario, ScenarioError
from deploy import journals, replay
from deploy.local import LocalCluster
from deploy.result import RunResult
from tests.commands import Commands

SLOWLY = {"duration_s": "0.06", "pace": "0.006"}
"""Long enough in wall time for somebody to do something."""


class Apf:
    """The command line, in processes of its own: this one forks clusters."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def __call__(self, address: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self._commands.run(*words, "--api", address)

    def io_fault(self, address: str, *words: str) -> subprocess.CompletedProcess[str]:
        """``apf io-fault``."""
        return self(address, "io-fault", *words)


@pytest.fixture
def apf(commands: Commands) -> Apf:
    return Apf(commands)


@dataclass(frozen=True)
class Failed:
    """A run whose device was made to fail: what the commands said, the result, the merged journal and the log."""

    said: list[subprocess.CompletedProcess[str]]
    result: RunResult
    merged: list[str]
    log: Path
    looks: list[dict[str, Any]]
    """At the host's memory, before the first and the last command."""


def while_it_runs(apf: Apf, scenario: Scenario, directory: Path, *commands: tuple[str, ...]) -> Failed:
    merged = io.StringIO()
    with LocalCluster(scenario, journals=True) as cluster:
        until_running(cluster)
        looks = [look(apf, cluster, directory)]
        said = [apf.io_fault(cluster.run.host_operator_address, *words) for words in commands[:-1]]
        looks.append(look(apf, cluster, directory))
        said.append(apf.io_fault(cluster.run.host_operator_address, *commands[-1]))
        result = cluster.wait()
        log = directory / "io-faults.jsonl"
        log.write_bytes(cluster.run.io_faults.read_bytes())
        journals.merge(result.mode, cluster.journals(), merged)
    return Failed(said, result, merged.getvalue().splitlines(), log, looks)


def look(apf: Apf, cluster: LocalCluster, directory: Path) -> dict[str, Any]:
    """``apf memory`` of VM 0, with the rights of a load generator."""
    file = directory / "memory.json"
    done = apf(cluster.run.address(Role.LOAD, "hostd"), "memory", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    assert f"memory.current {found['memory']['0']['memory.current']}" in done.stdout.splitlines()
    return found


def repeats(failed: Failed) -> None:
    journal = io.StringIO()
    result, [(recorded, now)] = replay.run([failed.log], lambda ran, paths: journals.merge(ran.mode, paths, journal))
    difference = journals.first_difference(journal.getvalue().splitlines(), failed.merged)
    assert difference is None, difference
    assert recorded == now and (result.digest, result.windows) == (failed.result.digest, failed.result.windows)
    assert (result.page_errors, result.lost_pages, result.told) == (
        (failed.result.page_errors, failed.result.lost_pages, failed.result.told)
    )


def test_the_twin_repeats_it(tmp_path: Path, apf: Apf) -> None:
    failed = while_it_runs(
        apf,
        small("pv", swap__errors="report", **SLOWLY),
        tmp_path,
        ("slow", "--factor", "3", "--io", "read", "--for", "0.002"),
        ("read_error", "--nth", "2", "--count", "1"),
        ("lost_write", "--count", "0"),
    )
    for done in failed.said:
        assert done.returncode == 0, done.stderr
    asked = [json.loads(line) for line in failed.log.read_text().splitlines()]
    assert asked[0]["host"] is True and asked[-1].keys() == {"digest"}
    times = [line["at_ns"] for line in asked[1:-1]]
    assert len(times) == 3 and times == sorted(times) and all(at_ns % failed.result.window_ns == 0 for at_ns in times)
    for at_ns, done in zip(times, failed.said, strict=True):
        assert f"from {at_ns / 1e9:.9f} s of guest time on" in done.stdout
    assert failed.result.host_counters["swap_lost_write"] > 0
    repeats(failed)
    times = [found["now_ns"] for found in failed.looks]
    assert times == sorted(times) and 0 < times[-1] <= 60_000_000
    for name in ("pgfault", "pgmajfault", "pswpin", "pgscan_direct"):
        grown = [found["memory"]["0"]["memory.stat"][name] for found in failed.looks]
        grown.append(failed.result.host_counters[name])
        assert grown == sorted(grown) and grown[-2] > 0


def test_a_vm_that_dies_of_it_is_named_at_the_end(tmp_path: Path, apf: Apf) -> None:
    # Without readahead, for whoever reads a page then needs it.
    failed = while_it_runs(apf, small("off", swap__readahead="none", **SLOWLY), tmp_path, ("read_error",))
    assert "KVM_RUN: Bad address" in failed.result.failed[0]
    repeats(failed)


def test_who_may_and_what_is_refused(apf: Apf) -> None:
    with LocalCluster(small("off", duration_s="10", pace="0.001", host__max_vms=2)) as cluster:
        until_running(cluster)
        operator, guest = cluster.run.host_operator_address, cluster.run.host_load_address
        denied = apf.io_fault(guest, "read_error")
        refused = [
            apf.io_fault(operator, *words)
            for words in (("no_error",), ("stop", "--gfn", "5"), ("read_error", "--vm", "3"), ("slow", "--add", "-1"))
        ]
        assert not cluster.run.io_faults.exists()
        looks = {role: apf(cluster.run.address(role, "hostd"), "memory") for role in Role}
        missing = [apf(operator, "memory", "--vm", number) for number in ("1", "2")]
    assert "PERMISSION_DENIED: /apf.v1.HostService/InjectIoFault as guest: allowed: operator" in denied.stderr
    told = [(done.returncode, done.stderr.removeprefix("apf: ").strip()) for done in refused]
    assert told[0][1].startswith("what = 'no_error': ") and "'read_error'" in told[0][1]
    assert told[1][1] == "gfn = 5: stop is of the whole device for a time; allowed: -1"
    assert told[2][1] == "vm = 3: 0 to 1" and told[3][1].startswith("--add = '-1'")
    assert {code for code, _ in told} == {2} and denied.returncode == 1
    assert {role for role, done in looks.items() if done.returncode == 0} == {Role.LOAD, Role.OPERATOR}
    for role in (Role.VCPU, Role.GUEST):
        text = f"PERMISSION_DENIED: /apf.v1.HostService/GetMemory as {role}: allowed: load, operator"
        assert text in looks[role].stderr and not looks[role].stdout
    assert [(done.returncode, done.stderr.strip()) for done in missing] == [
        (2, "apf: vm = 1: no VM is there; on the host: 0"),
        (2, "apf: vm = 2: 0 to 1"),
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"scenario": {}, "host": true}', '{"at_ns": 1}'], "line 2: not of a log of I/O failures"),
        (['{"scenario": {"seed": -1}, "host": true}'], "line 1: not of a log of I/O failures"),
        (["x"], "line 1: not of a log of arrivals"),
    ],
)
def test_a_log_that_is_none(lines: list[str], told: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("\n".join(lines))
    with pytest.raises(ScenarioError, match=told):
        replay.run([file])
