"""T18 and T19: the profile inside the guest, with and without APF. Only user symbols are gated."""

from __future__ import annotations

import pytest

from deploy import twin
from deploy.result import RunResult
from tests.cluster.cluster_runs import on_processes, small


def shares(run: RunResult) -> dict[str, float]:
    """Symbol -> percent of all samples."""
    whole = sum(row["samples"] for row in run.profile)
    return {row["symbol"]: 100 * row["samples"] / whole for row in run.profile}


def profiled(apf: str, duration_s: str = "1") -> RunResult:
    return twin.run(small(apf, "hdd-7200", vm__vcpus=4, duration_s=duration_s, profile_hz=1000))


@pytest.fixture(scope="module")
def with_apf() -> RunResult:
    return profiled("pv2010")


@pytest.fixture(scope="module")
def without() -> RunResult:
    return profiled("off")


def test_t18_with_apf_the_guest_spends_its_time_in_the_working_threads(with_apf: RunResult) -> None:
    assert shares(with_apf)["work_thread"] >= 97
    assert sum(row["samples"] for row in with_apf.profile) == 4 * 1000, "no vCPU stalls: every sample comes on time"


def test_t18_the_rest_is_where_the_apf_handlers_let_interrupts_in() -> None:
    """With faults of 100 us instead of 50 ms there are enough of them to be seen."""
    seen = shares(twin.run(small("pv2010", "nvme", duration_s="0.05", profile_hz=10_000)))
    assert {"work_thread", "retint_careful", "_raw_spin_unlock_irq"} <= set(seen)
    kernel = seen["retint_careful"] + seen["_raw_spin_unlock_irq"]
    assert 0 < kernel < 12, "some ten of a hundred microseconds are the protocol's"


def test_t19_without_apf_samples_of_stalls_are_late_and_few(without: RunResult) -> None:
    """A stall of many periods is one sample, at the instruction that faulted."""
    seen = shares(without)
    assert seen["work_thread"] > seen["fault_thread"] > 0, "the order of the user symbols"
    late = next(row["samples"] for row in without.profile if row["symbol"] == "fault_thread")
    assert late == pytest.approx(without.counter("faults_major"), rel=0.1)
    periods = without.time_ns("stall") / 1e6
    assert late < periods / 5, "coalesced"


def test_t18_t19_no_symbol_is_unknown(with_apf: RunResult, without: RunResult) -> None:
    for run in (with_apf, without):
        assert {row["program"] for row in run.profile} <= {"", "work_thread", "fault_thread"}
        assert "[unknown]" not in shares(run)


def test_t18_processes_take_the_same_samples() -> None:
    scenario = small("pv2010", "nvme", profile_hz=10_000)
    here, there = twin.run(scenario), on_processes(scenario)
    assert here.profile and here.profile == there.profile
    assert here.digest == there.digest
    assert here.folded == there.folded
    assert all(line.rpartition(" ")[2].isdigit() for line in here.folded.splitlines())


def test_sampling_costs_what_the_scenario_says() -> None:
    """A profile is no free look: its interrupts take guest time."""
    plain = twin.run(small("pv2010", "hdd-7200", duration_s="0.2"))
    sampled = twin.run(small("pv2010", "hdd-7200", duration_s="0.2", profile_hz=1000))
    samples = sum(vcpu["counters"]["samples"] for vcpu in sampled.vcpus)
    assert samples > 0
    assert sampled.time_ns("kernel") - plain.time_ns("kernel") == pytest.approx(samples * 1000, rel=0.2)
