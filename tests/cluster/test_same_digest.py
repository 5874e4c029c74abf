"""The same digest from the twin, from the processes, and from the processes beside a busy loop on every core."""

from __future__ import annotations

import pytest
from cluster_runs import busy_cores, on_processes, small

from deploy import twin
from deploy.result import RunResult

FAST = [
    # device, mode, get_user_pages variant, seed: each value at least once
    ("nvme", "off", "noio", 1),
    ("nvme", "pv2010", "noio", 2),
    ("nvme", "pv2010", "nowait", 3),
    ("hdd-7200", "off", "noio", 2),
    ("hdd-7200", "pv2010", "fast", 3),
    ("nvme", "halt", "noio", 1),
    ("nvme", "pv", "nowait", 2),
    ("hdd-7200", "pv", "noio", 1),
]
ALL = [
    (device, apf, gup, seed)
    for device in ("nvme", "hdd-7200")
    for apf, gup in (
        *(("off", "noio"), ("pv2010", "fast"), ("pv2010", "noio"), ("pv2010", "nowait")),
        *(("halt", "noio"), ("pv", "fast"), ("pv", "nowait")),
    )
    for seed in (1, 2, 3)
]


def same(one: RunResult, other: RunResult) -> None:
    """Equal digests, and equal in what no digest covers but a user sees."""
    assert one.digest == other.digest
    assert (one.workers, one.windows, one.tasks, one.host_counters, one.guest_counters, one.audit) == (
        (other.workers, other.windows, other.tasks, other.host_counters, other.guest_counters, other.audit)
    )
    assert [vcpu["time_ns"] for vcpu in one.vcpus] == [vcpu["time_ns"] for vcpu in other.vcpus]
    assert one.corrupt_pages == other.corrupt_pages == 0
    assert one.lost_writes == other.lost_writes == 0


def did_something(result: RunResult) -> None:
    """A digest of nothing proves nothing."""
    assert result.counter("faults_major" if result.mode == "off" else "faults_async") >= 5
    assert result.counter("faults_async") == 0 or result.mode != "off"
    assert all(count > 0 for count in result.workers)


@pytest.mark.parametrize(("device", "apf", "gup", "seed"), FAST)
def test_twin_and_processes(device: str, apf: str, gup: str, seed: int) -> None:
    scenario = small(apf, device, gup=gup, seed=seed)
    expected = twin.run(scenario)
    did_something(expected)
    same(expected, on_processes(scenario))


@pytest.mark.parametrize("apf", ["off", "halt", "pv2010", "pv"])
def test_twin_and_processes_with_shadow_page_tables(apf: str) -> None:
    scenario = small(apf, kvm__mmu="shadow")
    expected = twin.run(scenario)
    did_something(expected)
    assert expected.counter("shadow_faults") > 0
    same(expected, on_processes(scenario))


@pytest.mark.parametrize(
    "what", ["restore", "lost_ready", "duplicate_ready", "dropped_ack", "alloc_failure", "lapic_off"]
)
def test_twin_and_processes_with_a_fault_of_the_protocol(what: str) -> None:
    inject = {"what": what, "at_s": "0.001", **({"for_s": "0.001"} if what == "lapic_off" else {})}
    injects = [inject, {**inject, "vcpu": 1}]
    scenario = small("pv", duration_s="0.004", vm__vcpus=2, bench__work_threads=0, inject=injects)
    expected = twin.run(scenario)
    assert expected.counter("injected") >= 2
    same(expected, on_processes(scenario))


@pytest.mark.parametrize(("device", "apf", "seed"), [("nvme", "pv2010", 1), ("hdd-7200", "off", 3)])
def test_beside_a_busy_loop_on_every_core(device: str, apf: str, seed: int) -> None:
    scenario = small(apf, device, seed=seed)
    expected = twin.run(scenario)
    did_something(expected)
    with busy_cores():
        same(expected, on_processes(scenario))


@pytest.mark.long
@pytest.mark.parametrize(("device", "apf", "gup", "seed"), ALL)
def test_the_whole_matrix(device: str, apf: str, gup: str, seed: int) -> None:
    scenario = small(apf, device, gup=gup, seed=seed, duration_s={"nvme": "0.03", "hdd-7200": "0.4"}[device])
    expected = twin.run(scenario)
    did_something(expected)
    same(expected, on_processes(scenario))
    with busy_cores():
        same(expected, on_processes(scenario))


def test_twin_twice() -> None:
    scenario = small()
    assert twin.run(scenario).digest == twin.run(scenario).digest


@pytest.mark.parametrize("vcpus", [1, 3])
def test_other_numbers_of_vcpus(vcpus: int) -> None:
    scenario = small(vm__vcpus=vcpus, duration_s="0.004")
    same(twin.run(scenario), on_processes(scenario))
