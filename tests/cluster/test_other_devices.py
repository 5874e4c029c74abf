"""Other devices than test_same_digest's, users' own and real ones, other memory: twin and processes do the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_runs import MEMORY, on_processes

from apf.scenario import load
from deploy import replay, twin
from deploy.local import LocalCluster
from deploy.recording import Recorder
from deploy.result import RunResult

BUSY = {**MEMORY, "duration_s": "0.002", "bench.work_threads": 0}
"""Nothing but faults."""


def same(one: RunResult, other: RunResult) -> None:
    assert one.digest == other.digest
    assert (one.workers, one.windows, one.host_counters) == (other.workers, other.windows, other.host_counters)
    assert one.host_counters["pgmajfault"] > 50 and one.corrupt_pages == other.corrupt_pages == 0


@pytest.mark.parametrize("backing", ["file", "memfd", "userfault"])
def test_twin_and_processes_on_other_memory_than_anonymous(backing: str) -> None:
    dies = {"userfault.dies_at_s": "0.015"} if backing == "userfault" else {}
    chosen = {**MEMORY, "duration_s": "0.02", "apf": ["pv"], "gup": "nowait", "swap.device": "nvme"}
    scenario = load(None, {**chosen, "vm.backing": backing, **dies})
    expected, found = twin.run(scenario), on_processes(scenario)
    assert (expected.digest, expected.host_counters) == (found.digest, found.host_counters)
    assert expected.told == found.told and bool(expected.told) is (backing == "userfault")
    assert expected.host_counters["pf_taken"] > 50 and expected.corrupt_pages == found.corrupt_pages == 0


def test_the_twin_repeats_what_processes_did_on_a_real_file(tmp_path: Path) -> None:
    """Real I/O is measured in one run and replayed in the other."""
    real = {"swap.device": "file", "swap.file": str(tmp_path / "swap"), "apf": ["pv"], "duration_s": "0.05"}
    recorder = Recorder(tmp_path / "recording")
    with LocalCluster(load(None, {**MEMORY, **real}), journals=True) as cluster:
        result = cluster.wait()
        recorder.keep(result, cluster.journals())
    recorder.finish()
    [(again, digest)] = replay.run_recorded(tmp_path / "recording")
    assert again.digest == digest == result.digest and result.corrupt_pages == 0
    assert result.host_counters["pgmajfault"] > 5


@pytest.mark.parametrize(
    ("device", "gup"), [("zram", "noio"), ("zram", "nowait"), ("zswap", "noio"), ("rdma", "noio")]
)
def test_twin_and_processes(device: str, gup: str) -> None:
    scenario = load(None, {**BUSY, "apf": ["pv"], "swap.device": device, "gup": gup})
    same(twin.run(scenario), on_processes(scenario))


def test_twin_and_processes_where_vcpus_meet_at_pages_of_a_synchronous_device(tmp_path: Path) -> None:
    trace = tmp_path / "same.trace"
    trace.write_text("".join(f"0 {page} w\n" for page in range(1000)))
    thread = [{"trace": str(trace), "vcpus": [vcpu]} for vcpu in (0, 1)]
    chosen = {**MEMORY, "duration_s": "0.006", "apf": ["pv"], "swap.device": "zswap", "vm.group_memory": "4MiB"}
    scenario = load(None, {**chosen, "vm.vcpus": 2, "process": [{"memory": "12MiB", "thread": thread}]})
    expected = twin.run(scenario)
    same(expected, on_processes(scenario))
    assert expected.counter("faults_async") > 20 and expected.counter("faults_major") > 20


def test_twin_and_processes_on_a_device_of_ones_own_with_errors_by_chance_and_a_narrow_link() -> None:
    device = {"servers": 3, "read_ns": [20_000, 40_000, 90_000], "write_ns": [9_000, 12_000]}
    spoilt = {"read_errors": 10**15 // 50, "write_errors": 10**15 // 20, "bandwidth": 100_000_000}
    chosen = {"apf": ["pv"], "swap.device": device | spoilt, "swap.errors": "report", "duration_s": "0.006"}
    scenario = load(None, {**BUSY, **chosen})
    expected, found = twin.run(scenario), on_processes(scenario)
    assert (expected.digest, expected.host_counters) == (found.digest, found.host_counters)
    assert expected.host_counters["swap_write_error"] > 1 and expected.page_errors == found.page_errors != []


def test_a_users_profile_reaches_every_process_after_its_file_is_gone(tmp_path: Path) -> None:
    profile, path = tmp_path / "mine.toml", tmp_path / "scenario.toml"
    profile.write_text("servers = 3\nread_ns = [20_000, 40_000, 90_000]\nwrite_ns = [9_000, 12_000]\n")
    path.write_text('swap.device = "mine.toml"\n')
    scenario = load(path, {**BUSY, "apf": ["pv2010"]})
    profile.unlink()
    expected = twin.run(scenario)
    same(expected, on_processes(scenario))
    assert expected.digest != twin.run(load(path, {**BUSY, "apf": ["pv2010"], "swap.device": "nvme"})).digest
