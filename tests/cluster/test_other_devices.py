"""Devices other than the two of test_same_digest, and users' own: the same digest from the twin and the processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_runs import MEMORY, on_processes

from apf.scenario import load
from deploy import twin
from deploy.result import RunResult

BUSY = {**MEMORY, "duration_s": "0.002", "bench.work_threads": 0}
"""Nothing but faults."""


def same(one: RunResult, other: RunResult) -> None:
    assert one.digest == other.digest
    assert (one.workers, one.windows, one.host_counters) == (other.workers, other.windows, other.host_counters)
    assert one.host_counters["pgmajfault"] > 50 and one.corrupt_pages == other.corrupt_pages == 0


@pytest.mark.parametrize(("device", "gup"), [("zram", "nowait"), ("rdma", "noio")])
def test_twin_and_processes(device: str, gup: str) -> None:
    scenario = load(None, {**BUSY, "apf": ["pv"], "swap.device": device, "gup": gup})
    same(twin.run(scenario), on_processes(scenario))


def test_a_users_profile_reaches_every_process_after_its_file_is_gone(tmp_path: Path) -> None:
    profile, path = tmp_path / "mine.toml", tmp_path / "scenario.toml"
    profile.write_text("servers = 3\nread_ns = [20_000, 40_000, 90_000]\nwrite_ns = [9_000, 12_000]\n")
    path.write_text('swap.device = "mine.toml"\n')
    scenario = load(path, {**BUSY, "apf": ["pv2010"]})
    profile.unlink()
    expected = twin.run(scenario)
    same(expected, on_processes(scenario))
    assert expected.digest != twin.run(load(path, {**BUSY, "apf": ["pv2010"], "swap.device": "nvme"})).digest
