"""Whole runs of the twin on every kind of guest memory: what the reference says they show."""

from __future__ import annotations

from typing import Any

import pytest

from apf.scenario import ScenarioError, load
from deploy import twin
from deploy.result import RunResult

SMALL: dict[str, Any] = {
    "duration_s": "0.03",
    "gup": "nowait",
    "swap.device": "nvme",
    "vm.vcpus": 2,
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "4MiB",
    "bench.buffer": "16MiB",
    "host.reserve_frames": 256,
}


def run(mode: str, **changes: Any) -> RunResult:
    chosen = {name.replace("__", "."): value for name, value in changes.items()}
    return twin.run(load(None, {**SMALL, "apf": [mode], **chosen}))


@pytest.mark.parametrize("backing", ["anon", "file", "memfd", "userfault"])
def test_every_byte_is_right_and_the_same_run_is_the_same(backing: str) -> None:
    first = run("pv", vm__backing=backing)
    assert first.corrupt_pages == 0 and first.host_counters["pf_taken"] > 100
    assert first.digest == run("pv", vm__backing=backing).digest


def test_e14_asynchronous_page_faults_buy_nothing_on_shared_memory() -> None:
    """E14: the NOWAIT step sleeps, so a run with APF is as one without; on anonymous memory it is not."""
    off, pv = run("off", vm__backing="memfd"), run("pv", vm__backing="memfd")
    assert pv.host_counters["kvm_try_async_get_page"] == 0 < pv.counter("faults_major")
    assert pv.total < 1.05 * off.total
    assert run("pv").total > 1.3 * run("off").total


def test_a_mapped_file_is_no_swap() -> None:
    counters = run("pv", vm__backing="file").host_counters
    assert counters["workingset_refault_file"] > 100 and counters["kvm_try_async_get_page"] > 100
    assert counters["pswpin"] == counters["pswpout"] == counters["workingset_refault_anon"] == 0


def test_e56_a_run_whose_handlers_die_ends_and_says_who_hangs() -> None:
    """E56: tasks that were told to wait never run again; a vCPU that sleeps does nothing more."""
    for mode in ("off", "pv"):
        result = run(mode, vm__backing="userfault", userfault__dies_at_s="0.005")
        [line] = [line for line in result.told if "userfaultfd" in line]
        assert "VM 0: the handlers of its userfaultfd died at 0.005 s" in line and "waits for ever" in line
        assert result.virtual_seconds == 0.03 and result.corrupt_pages == 0
    alive = run("off", vm__backing="userfault")
    assert run("off", vm__backing="userfault", userfault__dies_at_s="0.005").total < alive.total / 2
    assert not [line for line in alive.told if "userfaultfd" in line]


def test_e40_programs_in_memory_that_the_vmm_may_not_write() -> None:
    """E40: their text is read in by prefaults that sleep. All of a restored VM is, text too."""
    read_only, writable = (run("pv", vm__backing="userfault", vm__read_only=flag) for flag in (True, False))
    for result in (read_only, writable):
        assert result.corrupt_pages == 0 and result.host_counters["userfault_event"] > 50
    assert read_only.host_counters["prefault_sync"] > 0 == writable.host_counters["prefault_sync"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vm.backing": "tape"}, "vm.backing = 'tape': input should be 'anon', 'file', 'memfd' or 'userfault'"),
        ({"userfault.dies_at_s": 1}, "userfault.dies_at_s = 1, vm.backing = 'anon': 0, or backing 'userfault'"),
        (
            {"userfault.dies_at_s": 1, "vm.backing": "userfault", "duration_s": 0},
            "userfault.dies_at_s = 1, duration_s = 0: who waits for a dead handler hears of no shutdown; a duration",
        ),
        ({"userfault.handlers": 0}, "userfault.handlers = 0"),
        ({"swap.page_cluster": 10}, "swap.page_cluster = 10"),
    ],
)
def test_scenarios_that_make_no_sense(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        load(None, changes)
    assert told in str(raised.value)


def test_readahead_policies_are_of_the_scenario() -> None:
    sequential = [{"name": "p", "memory": "16MiB", "thread": [{"program": "sequential"}]}]
    runs = {name: run("off", process=sequential, swap__readahead=name) for name in ("none", "kernel", "stride")}
    majors = {name: result.host_counters["pgmajfault"] for name, result in runs.items()}
    accesses = {name: result.tasks[0]["values"]["accesses"] for name, result in runs.items()}
    assert runs["none"].host_counters["swap_ra"] == 0
    for name in ("kernel", "stride"):
        counters = runs[name].host_counters
        assert counters["swap_ra_hit"] > 0.8 * counters["swap_ra"] > 0, name
        assert majors[name] / accesses[name] < 0.4 * majors["none"] / accesses["none"], name
        assert runs[name].corrupt_pages == 0
