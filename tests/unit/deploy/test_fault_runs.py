"""Faults of every kind of run: their stages are those that vCPUs counted, to the nanosecond; their story is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
from fault_runs import RUNS, Read, all_of, ran

from apf.stats import HISTOGRAMS
from deploy import explain
from deploy.faults import latencies
from deploy.journals import events
from deploy.result import RunResult


@dataclass
class Told(Read):
    """What was put together from a run, and what the run itself says."""

    result: RunResult


@pytest.fixture(scope="module")
def told_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """Each of ``RUNS`` by its name, run once."""

    @cache
    def run(name: str) -> Told:
        result, recorded = ran(tmp_path_factory.mktemp("runs"), **RUNS[name])
        read = all_of(recorded)
        return Told(read.run, read.found, read.faults, result)

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


def test_steps_are_in_order_and_their_times_add_up(told: Told) -> None:
    for fault in told.faults:
        steps = told.tell(fault)
        times = [step.time_ns for step in steps]
        assert times == sorted(times) and times[0] == fault.began_ns
        between = [later - earlier for earlier, later in pairwise(times)]
        last = next((at for at in (fault.back_ns, fault.over_ns) if at is not None), times[-1])
        if fault.dropped_ns is None:  # else the worker, of whom nobody wants to know any more, may be the last
            assert sum(between) == last - fault.began_ns
        if fault.latency_ns is not None:
            assert sum(fault.stages().values()) == fault.latency_ns <= sum(between)


def test_every_step_has_its_process_and_functions(told: Told) -> None:
    without = {"unheard", "back", "abandoned", "end"}
    for fault in told.faults[:2000]:
        for step in told.tell(fault):
            assert step.process.split()[0] in ("hostd", "guestsched", "vcpud")
            assert bool(step.functions) == (step.what not in without), step
            assert step.text.endswith(".") and "None" not in step.text


def test_steps_of_an_asynchronous_fault_that_is_over(told: Told) -> None:
    whole = ["violation", "gup", "work", "not present", "asleep", "completed", "prefault", "ready", "woken", "back"]
    for fault in told.faults:
        plain = not (fault.retries or fault.repeated or fault.kernel_faults or fault.dropped_ns)
        if fault.back_ns is not None and plain:
            assert [step.what for step in told.tell(fault)] == whole


def test_tasks_that_wait_are_those_the_guest_says_wait(told: Told) -> None:
    """Of a clean run: nothing is lost, they are only not over."""
    left = explain.summarize(told.run).waiting
    states: dict[tuple[int, int], str] = {}
    for event in events(told.run.journals):
        if event.core.kind == "guest" and event.record.kind == "task":
            states[event.core.vm, event.record.fields[0]] = event.record.fields[2]
    assert "APF_WAIT" in states.values() or told.run.mode in ("off", "halt")
    assert {(one.fault.vm, one.fault.task) for one in left} == {
        task for task, state in states.items() if state == "APF_WAIT"
    }
    for one in left:
        assert not one.lost and f"the run ended at {told.found.end_ns:,} ns" in one.why
        assert one.since_ns + one.waited_ns == told.found.end_ns
