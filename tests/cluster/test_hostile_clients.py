"""Hostile clients at every socket of a running cluster: each gets a status, the bench beside them keeps its digest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import small, until_running

from apf.process import EXIT_FAILED
from deploy import twin
from deploy.local import LocalCluster

HERE = Path(__file__).resolve().parent
GROWTH_KIB = 96 << 10
"""Anonymous memory that a server may grow by: the run itself, and what allocators keep."""


def used(pid: int) -> dict[str, int]:
    """File descriptors, threads and anonymous memory (KiB) of a process; nothing once it has ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    if "RssAnon" not in fields:
        return {}
    return {
        "fds": fds,
        "threads": int(fields["Threads"]),
        "kib": int(fields["RssAnon"].split()[0]),
    }


def hostile(cluster: LocalCluster, number: int, *more: str, timeout_s: float) -> dict[str, Any]:
    """Attack the cluster with so many inputs; returns what was seen."""
    command = [sys.executable, str(HERE / "hostile_calls.py"), str(cluster.run.files)]
    done = subprocess.run(
        [*command, cluster.scenario.fingerprint(), str(number), *more],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def attacked(number: int, wall_s: int, *more: str) -> None:
    """A bench of ``wall_s`` wall seconds at the least under attack: its digest, and what its servers use."""
    scenario = small(device="hdd-7200", pace=f"{0.2 / wall_s:.6f}")
    with LocalCluster(scenario, api="127.0.0.1:0") as cluster:
        until_running(cluster)
        pids = {child.name: child.pid or 0 for child in cluster.processes if child.name != "vcpud-0"}
        hostile(cluster, 30, timeout_s=wall_s + 60)  # what is made at first use is no leak
        before = {name: used(pid) for name, pid in pids.items()}
        began_s = time.monotonic()
        said = hostile(cluster, number, *more, timeout_s=wall_s + 60)
        time.sleep(1)  # connections that were closed are forgotten
        after = {} if said["over"] else {name: used(pid) for name, pid in pids.items()}
        took_s = time.monotonic() - began_s
        result = cluster.wait()
    print(f"{number} inputs in {took_s:.0f} s: {said}; before {before}, after {after}")
    assert sum(said["seen"].values()) >= (number if more else 50), "the bench was over before the attack"
    assert {"PERMISSION_DENIED", "INVALID_ARGUMENT"} <= set(said["seen"])
    for name, now in after.items():
        if not now:  # the bench was over meanwhile
            continue
        assert now["fds"] <= before[name]["fds"] + 8, name
        assert now["threads"] <= before[name]["threads"] + 8, name
        assert now["kib"] <= before[name]["kib"] + GROWTH_KIB, name
    assert result.digest == twin.run(scenario).digest


def test_some_hundred_bad_inputs() -> None:
    attacked(300, 15)  # the attack takes some 4 s of them


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_bad_inputs() -> None:
    attacked(10_000, 1200, "alone")


def attached_vcpu(tmp_path: Path, what: str) -> str:
    """A hostd whose vCPU 0 attaches and then does ``what``; returns why the run failed."""
    memory, files = tmp_path / "m", tmp_path / "f"
    memory.mkdir()
    files.mkdir()
    options = ["--memory", str(memory), "--files", str(files), "--apf", "pv2010"]
    daemon = subprocess.Popen([sys.executable, "-m", "hostd", *options], stdin=subprocess.DEVNULL)
    try:
        subprocess.run([sys.executable, str(HERE / "broken_vcpu.py"), str(files), what], check=True, timeout=60)
        assert daemon.wait(60) == EXIT_FAILED
    finally:
        daemon.kill()
        daemon.wait()
    return str(json.loads((files / "failed-hostd.json").read_text())["why"])


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("seq", "seq = 7, time_ns = 0: expected 1"),
        ("garbage", "bytes that are no message"),
        ("huge", "allowed: 4096"),
        ("enum", "fault.access = 99"),
        ("leave", "its stream ended before its run"),
        ("cancel", "its stream ended before its run"),
    ],
)
def test_a_vcpu_that_breaks_its_contract_fails_its_run(what: str, why: str, tmp_path: Path) -> None:
    """One of each way to be refused or to leave; tests/unit/apf/test_vcpu_stream.py has every breach."""
    told = attached_vcpu(tmp_path, what)
    assert why in told and "vCPU 0 of VM 0" in told
