"""What a run came to: corrupt pages, lost writes, and the document made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apf.scenario import load
from deploy.result import CAUSES, RunResult


def result(
    *,
    corrupt: int = 0,
    audit_corrupt: int = 0,
    accesses: int = 100,
    writes: int = 100,
    lost_pages: dict[str, int] | None = None,
    page_errors: list[dict[str, Any]] | None = None,
    failed: str = "",
    errors: str = "kernel",
) -> RunResult:
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
        "lost_pages": lost_pages or {},
        "page_errors": page_errors or [],
        "told": [],
    }
    guest = {"digest": "g", "tasks": tasks, "told": [], "counters": {}, "profile": [], "folded": "", "end_ns": 9}
    guest["failed"] = failed
    scenario = load(None, {"apf": ["off"], "duration_s": "2.5", "swap.errors": errors})
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
        ({"writes": 99, "lost_pages": {"torn": 1}}, 0),  # it may be in the page that cannot be had
        ({"audit_corrupt": 1, "lost_pages": {"torn": 1}}, 1),
        ({"audit_corrupt": 1, "writes": 4_000}, 1),  # the wrong page is the one with the wrong count
    ],
)
def test_corrupt_pages(changes: dict[str, Any], corrupt_pages: int) -> None:
    assert result(**changes).corrupt_pages == corrupt_pages


def page_error(gfn: int, faults: int) -> dict[str, Any]:
    return {"vm": 0, "gfn": gfn, "slot": 7, "why": "it is gone", "since_ns": 5, "faults": faults}


def test_a_user_is_told_of_pages_that_are_asked_for_in_vain_most_often_first() -> None:
    errors = [page_error(1, 2), page_error(2, 4000), page_error(3, 9)]
    first, second, third = result(page_errors=errors).told
    assert (
        first
        == "host: gfn 0x2 of VM 0 cannot be had since 5 ns (it is gone, slot 7): 4,000 faults on it were in vain"
    )
    assert "gfn 0x3" in second and "for ever" in third and 'swap.errors = "report"' in third
    assert len(result(page_errors=errors, errors="report").told) == 2
    assert result(page_errors=[page_error(1, 2)]).told == ()
    assert json.loads(json.dumps(result(page_errors=errors).document()))["page_errors"][1]["faults"] == 4000


def test_a_vm_that_has_failed_is_named_and_its_run_was_shorter() -> None:
    run = result(failed="at 9 ns: it is gone")
    assert run.failed == {0: "at 9 ns: it is gone"} and run.virtual_seconds == 9e-9
    assert run.document()["failed_vms"] == {"0": "at 9 ns: it is gone"}


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
