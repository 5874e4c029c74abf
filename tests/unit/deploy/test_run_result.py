"""What a run came to: corrupt pages, lost writes, and the document made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apf.scenario import load
from deploy.result import CAUSES, RunResult


def result(*, corrupt: int = 0, audit_corrupt: int = 0, accesses: int = 100, writes: int = 100) -> RunResult:
    """A run with one faulting and two counting tasks."""
    tasks: list[dict[str, Any]] = [
        {"process": "bench", "program": "fault_thread", "values": {"accesses": accesses, "corrupt": corrupt}},
        {"process": "bench", "program": "work_thread", "values": {"count": 7}},
        {"process": "bench", "program": "work_thread", "values": {"count": 5}},
    ]
    counters = {"faults_minor": 1, "faults_major": 2, "faults_async": 3}
    vcpu = {"digest": "v", "time_ns": dict.fromkeys(CAUSES, 500_000_000), "counters": counters}
    host = {
        "digest": "h",
        "counters": {"pswpin": 1},
        "audit": {"pages": 9, "corrupt": audit_corrupt, "writes": writes},
    }
    guest = {"digest": "g", "tasks": tasks, "told": [], "counters": {}, "profile": [], "folded": "", "end_ns": 9}
    scenario = load(None, {"apf": ["off"], "duration_s": "2.5"})
    return RunResult.of(scenario, 1000, 10, host, {0: guest}, {(0, 0): vcpu, (0, 1): vcpu}, 1.25)


@pytest.mark.parametrize(
    ("changes", "corrupt_pages"),
    [
        ({}, 0),
        ({"corrupt": 3}, 3),
        ({"audit_corrupt": 2}, 2),
        ({"corrupt": 3, "audit_corrupt": 2}, 5),
        ({"writes": 99}, 1),  # an update is in no page, and no page looks wrong
        ({"writes": 101}, 1),
        ({"audit_corrupt": 1, "writes": 4_000}, 1),  # the wrong page is the one with the wrong count
    ],
)
def test_corrupt_pages(changes: dict[str, int], corrupt_pages: int) -> None:
    assert result(**changes).corrupt_pages == corrupt_pages


def test_sums_and_document() -> None:
    run = result()
    assert (run.workers, run.total, run.virtual_seconds, run.mode) == ((7, 5), 12, 2.5, "off")
    assert run.time_ns("stall") == 1_000_000_000 and run.counter("faults_async") == 6
    document = json.loads(json.dumps(run.document()))
    assert document["faults"] == {"minor": 2, "major": 4, "async": 6}
    assert document["vcpu_time"]["1"]["counting"] == 0.5
    assert document["corrupt_pages"] == 0 and document["workers"] == [7, 5]


def test_the_digest_is_of_all_cores() -> None:
    one = result()
    assert len(one.digest) == 32 and one.digest == result(accesses=5, writes=5).digest
