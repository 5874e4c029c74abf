"""Who waits for a page ready that will not come, and why: true is what a longer run of the same scenario shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apf.messages import PageError
from apf.scenario import load
from deploy import twin
from deploy.faults import Faults, latencies
from deploy.journals import events
from deploy.waiting import Looping, Waiting, looping, waiting

SHORT_S, LONG_S = "0.0165", "0.0252"
"""What is injected is over 5 ms before the long run ends, and a read takes 0.1."""
RUN = {
    "seed": 2,
    "swap.device": "nvme",
    "vm.vcpus": 2,
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "4MiB",
    "bench.buffer": "32MiB",
    "host.reserve_frames": 256,
    "bench.fault_threads": 8,
}
LOST: list[tuple[str, dict[str, Any], list[str]]] = [
    # mode, what is injected, what the reasons of those that are lost say
    ("pv", {"what": "lost_ready"}, ["was lost on the way", "whose ready was lost (injected lost_ready)"]),
    ("pv2010", {"what": "lost_ready", "count": 3}, ["was lost on the way (injected lost_ready)"]),
    ("pv", {"what": "token_left"}, ["set since 10,100,240 ns, by a snapshot (injected token_left)"]),
    ("pv", {"what": "msr_lost"}, ["(injected msr_lost), and EN was not written again: nothing wakes all"]),
    ("pv2010", {"what": "msr_lost"}, ["(injected msr_lost), and EN was not written again: nothing wakes all"]),
    ("pv", {"what": "restore_without_int"}, ["held vector 0 then, which is no interrupt's"]),
    ("pv", {"what": "restore_int_late"}, ["held vector 0 then, which is no interrupt's (injected restore_int_late)"]),
    ("pv", {"what": "dropped_ack", "count": 7}, ["look at its done list was dropped at "]),
]
NOT_LOST: list[tuple[str, dict[str, Any] | None]] = [
    ("pv", None),
    ("pv2010", None),
    ("pv", {"what": "duplicate_ready", "count": 5}),
    ("pv2010", {"what": "duplicate_ready", "count": 5}),
    ("pv", {"what": "dropped_ack"}),
    ("pv", {"what": "restore"}),
    ("pv2010", {"what": "restore_without_int"}),
    ("pv", {"what": "lapic_off", "for_s": "0.01"}),
    ("pv", {"what": "paging_off", "for_s": "0.01"}),
]


def left(mode: str, inject: dict[str, Any] | None, duration_s: str, directory: Path, **changes: Any) -> list[Waiting]:
    injected = [] if inject is None else [{"at_s": "0.0101", **inject}]
    scenario = load(None, {**RUN, **changes, "apf": [mode], "inject": injected, "duration_s": duration_s})
    directory.mkdir()
    twin.run(scenario, journals=directory)
    found = Faults()
    for event in events({path.stem: path for path in directory.glob("*.journal")}):
        found.take(event)
    return waiting(found, scenario)


def told_apart(mode: str, inject: dict[str, Any] | None, directory: Path) -> list[Waiting]:
    """Those that are lost; fails if any of those that wait is said to be lost and is not, or the other way round."""
    short, long = (left(mode, inject, duration_s, directory / duration_s) for duration_s in (SHORT_S, LONG_S))
    still = {(one.fault.task, one.fault.token) for one in long}
    assert short
    for one in short:
        assert one.lost == ((one.fault.task, one.fault.token) in still), one
    return [one for one in short if one.lost]


@pytest.mark.parametrize(("mode", "inject", "reasons"), LOST)
def test_lost_for_a_reason(mode: str, inject: dict[str, Any], reasons: list[str], tmp_path: Path) -> None:
    lost = told_apart(mode, inject, tmp_path)
    assert lost
    for one in lost:
        assert any(reason in one.why for reason in reasons), one.why
    for reason in reasons:
        assert any(reason in one.why for one in lost), reason


def test_a_token_that_a_snapshot_takes_the_place_of_is_lost(tmp_path: Path) -> None:
    """With seed 1 the snapshot comes in the very ns in which KVM has written a token."""
    for duration_s in (SHORT_S, LONG_S):
        waits = left("pv", {"what": "token_left"}, duration_s, tmp_path / duration_s, seed=1)
        (lost,) = (one for one in waits if one.lost)
        assert lost.fault.sent_ns == lost.fault.overwritten_ns and "a snapshot's token took its place" in lost.why


@pytest.mark.parametrize(("mode", "inject"), NOT_LOST)
def test_only_not_over(mode: str, inject: dict[str, Any] | None, tmp_path: Path) -> None:
    assert told_apart(mode, inject, tmp_path) == []


def test_an_apic_that_is_off_is_named(tmp_path: Path) -> None:
    waits = left("pv", {"what": "lapic_off", "for_s": "0.01"}, SHORT_S, tmp_path / "run")
    assert any("but the local APIC is disabled since 10,100,240 ns; the run ended at" in one.why for one in waits)


# A page that cannot be had (E39) -------------------------------------------------------------------------------------


def failed(mode: str, errors: str, directory: Path) -> tuple[list[Looping], Faults, twin.RunResult]:
    fault = [{"what": "read_error", "at_s": "0.005"}]
    scenario = load(
        None, {**RUN, "apf": [mode], "swap.fault": fault, "swap.errors": errors, "duration_s": SHORT_S, "vm.vcpus": 1}
    )
    result = twin.run(scenario, journals=directory)
    found, ended = Faults(), []
    for event in events({path.stem: path for path in directory.glob("*.journal")}):
        ended += found.take(event)
    counted = latencies([*ended, *found.open()])
    for name, took in counted.items():
        assert (took.count, took.sum_ns) == (
            result.fault_times()[name]["count"],
            result.fault_times()[name]["sum_ns"],
        )
    return looping(found), found, result


@pytest.mark.parametrize("mode", ["halt", "pv2010", "pv"])
def test_a_task_that_faults_on_a_bad_page_for_ever_is_named(mode: str, tmp_path: Path) -> None:
    (loop,), _, result = failed(mode, "kernel", tmp_path)
    (error,) = result.page_errors
    assert (loop.vm, loop.gfn, loop.error) == (0, error["gfn"], PageError.READ)
    assert loop.since_ns <= error["since_ns"] and abs(loop.faults - error["faults"]) <= 1 and loop.faults > 10
    task = next(task for task in result.tasks if task["id"] == loop.task)
    assert loop.name == task["name"] and task["maj_flt"] >= loop.faults


@pytest.mark.parametrize("mode", ["off", "pv"])
def test_nobody_goes_round_where_the_guest_is_told_or_has_ended(mode: str, tmp_path: Path) -> None:
    for errors in ("report", "kernel")[: 2 if mode == "off" else 1]:
        directory = tmp_path / errors
        directory.mkdir()
        loops, found, _ = failed(mode, errors, directory)
        assert not loops and len(found.vain) == 1
