"""Faults put together from journals: their stages are those that the vCPUs counted, to the nanosecond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from apf.scenario import load
from apf.stats import HISTOGRAMS
from deploy import twin
from deploy.fault import Fault
from deploy.faults import faults, latencies
from deploy.journals import Core, Event, Record, events
from deploy.result import RunResult

SMALL = {"vm.guest_memory": "96MiB", "vm.group_memory": "4MiB", "bench.buffer": "32MiB", "host.reserve_frames": 64}
RUNS: dict[str, dict[str, Any]] = {
    "off": {"apf": ["off"], "duration_s": "0.02", "swap.device": "nvme"},
    "async": {"apf": ["pv2010"], "duration_s": "0.02", "swap.device": "nvme", "profile_hz": 1000},
    # First touches that go to the worker, repeated faults, reads of others, kernel faults, few frames: all at once.
    "thrash": {
        "apf": ["pv2010"],
        "duration_s": "0.03",
        "swap.device": "nvme",
        "gup": "fast",
        "vm.vcpus": 8,
        "bench.fault_threads": 64,
        "bench.populate": False,
    },
    # Writes take so long that frames run out: most faults are tried again, and many are given up for another task's.
    "retries": {
        "apf": ["pv2010"],
        "duration_s": 2,
        "swap.device": "hdd-7200",
        "gup": "nowait",
        "bench.fault_threads": 64,
    },
    "halt": {"apf": ["halt"], "duration_s": "0.02", "swap.device": "nvme"},
    "pv": {"apf": ["pv"], "duration_s": "0.02", "swap.device": "nvme"},
    # Two processes on a vCPU: what is done while the other one runs is not prefaulted (E43).
    "shadow": {
        "apf": ["pv"],
        "duration_s": "0.02",
        "swap.device": "nvme",
        "kvm.mmu": "shadow",
        "vm.vcpus": 1,
        "process": [
            {"name": n, "memory": "8MiB", "thread": [{"program": "zipfian", "count": 2}]} for n in ("a", "b")
        ],
    },
    # Every kind of fault of the protocol that leaves the guest running.
    "spoiled": {
        "apf": ["pv"],
        "duration_s": "0.02",
        "swap.device": "nvme",
        "bench.fault_threads": 8,
        "inject": [
            {"what": "duplicate_ready", "at_s": "0.004", "count": 5},
            {"what": "alloc_failure", "at_s": "0.006", "count": 5},
            {"what": "lapic_off", "at_s": "0.0085", "for_s": "0.001"},
            {"what": "paging_off", "at_s": "0.0102", "for_s": "0.001"},
            {"what": "restore", "at_s": "0.0123"},
            {"what": "dropped_ack", "at_s": "0.013"},
        ],
    },
    "two VMs": {"apf": ["pv2010"], "duration_s": "0.04", "swap.device": "nvme", "host.vms": 2},
}


@dataclass
class Told:
    result: RunResult
    faults: list[Fault]


@pytest.fixture(scope="module")
def told_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """Each of ``RUNS`` by its name, run once."""

    @cache
    def run(name: str) -> Told:
        directory = tmp_path_factory.mktemp("journals")
        result = twin.run(load(None, SMALL | RUNS[name]), journals=directory)
        return Told(result, list(faults(events({path.stem: path for path in directory.glob("*.journal")}))))

    return run


@pytest.fixture(scope="module", params=RUNS)
def told(request: pytest.FixtureRequest, told_of: Callable[[str], Told]) -> Told:
    return told_of(request.param)


def test_the_same_histograms_as_the_vcpus_counted(told: Told) -> None:
    found = latencies(told.faults)
    for name in HISTOGRAMS:
        counted = [vcpu["observed"][name] for vcpu in told.result.vcpus]
        assert found[name].sum_ns == sum(one["sum_ns"] for one in counted), name
        assert found[name].buckets() == [
            sum(column) for column in zip(*(one["buckets"] for one in counted), strict=True)
        ]


def test_stages_add_up_to_the_latency_of_each_fault(told: Told) -> None:
    over = [fault for fault in told.faults if fault.latency_ns is not None]
    assert len(over) > 100
    for fault in over:
        stages = fault.stages()
        assert min(stages.values()) >= 0 and sum(stages.values()) == fault.latency_ns


def test_every_violation_is_one_fault_s(told: Told) -> None:
    assert sorted(fault.serial for fault in told.faults) == list(range(1, len(told.faults) + 1))
    kinds = {kind: [fault for fault in told.faults if fault.kind == kind] for kind in ("minor", "major", "async")}
    kernel = [attempt.outcome for fault in told.faults for attempt in fault.kernel_faults]
    for kind, found in kinds.items():
        assert len(found) + kernel.count(kind) == told.result.counter(f"faults_{kind}"), kind
    assert sum(len(fault.repeated) for fault in told.faults) == told.result.counter("repeated")
    tokens = [(fault.vm, fault.token) for fault in kinds["async"]]
    assert len(set(tokens)) == len(tokens)


def test_what_makes_these_runs_hard_is_in_them(told_of: Callable[[str], Told]) -> None:
    seen: dict[str, int] = dict.fromkeys(("retry", "abandoned", "repeated", "of another", "kernel"), 0)
    for name in ("thrash", "retries"):
        for fault in told_of(name).faults:
            seen["retry"] += len(fault.retries)
            seen["abandoned"] += fault.kind == "abandoned"
            seen["repeated"] += len(fault.repeated)
            seen["of another"] += fault.read is not None and not fault.own_read
            seen["kernel"] += len(fault.kernel_faults)
    assert all(seen.values()), seen


def test_ready_may_be_journaled_before_completed() -> None:
    """E58: what belongs together has the same token, in whatever order it comes."""
    vcpu, host, guest = Core("vcpu"), Core("host"), Core("guest")
    told = [
        (guest, 0, "task_new", 1, "t/0", 1, 0),
        (vcpu, 100, "exit", "EPT_VIOLATION", 64),
        (vcpu, 100, "page_fault", 5, "WRITE", "NOWAIT", 4096, 1, 77),
        (host, 100, "fault", 0, 0, 5, "WRITE/NOWAIT", "async", 200, 4096, 900),
        (vcpu, 300, "async_pf_not_present", 4096, 5),
        (guest, 300, "not_present", 0, 4096),
        (guest, 300, "leave", 1, "NOT_PRESENT"),
        (guest, 300, "dispatch", 0, 0, 310, 1000, -1),
        (host, 905, "prefault", 0, 0, 5, 4096, "minor", 950, 7, 1, 0),
        (vcpu, 960, "async_pf_ready", 4096, 5),
        (host, 900, "completed", 0, 5),
        (guest, 960, "page_ready", 0, 4096),
        (guest, 960, "wake", 1, 0),
        (guest, 960, "dispatch", 0, 1, 970, 1000, -1),
    ]
    (fault,) = faults(Event(core, Record(time_ns, kind, tuple(rest))) for core, time_ns, kind, *rest in told)
    assert (fault.token, fault.completed_ns, fault.delivered_ns, fault.back_ns) == (4096, 900, 960, 970)
    assert fault.latency_ns == 860 == sum(fault.stages().values())


@pytest.mark.parametrize("name", ["host-0", "vcpu-0", "vcpu-0-x", "guest", "what"])
def test_a_name_that_no_core_has(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no core of this name"):
        Core.of(name)
