"""What a fault took: stages one behind the other, whose sums are the latencies."""

from __future__ import annotations

from apf.histogram import Histogram
from apf.messages import FaultKind
from apf.stats import HISTOGRAMS
from vcpud.core.observed import Observed


def counted(observed: Observed) -> dict[str, tuple[int, int]]:
    """Number and sum of each histogram that is not empty."""
    document = observed.document()
    return {name: (one["count"], one["sum_ns"]) for name, one in document.items() if one["count"]}


def test_a_minor_and_a_major_fault() -> None:
    observed = Observed()
    observed.raised(gfn=1, task=1, retired=10, now_ns=1_000)
    observed.mapped(FaultKind.MINOR, 0, 3_500)
    observed.raised(gfn=2, task=1, retired=11, now_ns=4_000)
    observed.mapped(FaultKind.MAJOR, 90_000, 100_000)
    assert counted(observed) == {
        "latency_minor": (1, 2_500),
        "latency_major": (1, 96_000),
        "stage_host": (2, 2_500 + 6_000),
        "stage_wait": (1, 90_000),
    }


def test_a_retried_fault_counts_from_its_first_violation() -> None:
    observed = Observed()
    for now_ns in (1_000, 20_000, 40_000):
        observed.raised(gfn=1, task=1, retired=10, now_ns=now_ns)
    observed.mapped(FaultKind.MINOR, 0, 42_500)
    assert counted(observed) == {
        "latency_minor": (1, 41_500),
        "stage_retry": (1, 39_000),
        "stage_host": (1, 2_500),
    }


def test_a_violation_after_anything_else_begins_anew() -> None:
    for other in ((2, 1, 10), (1, 2, 10), (1, 1, 11)):
        observed = Observed()
        observed.raised(1, 1, 10, 1_000)
        observed.raised(*other, now_ns=20_000)
        observed.mapped(FaultKind.MINOR, 0, 21_000)
        assert counted(observed)["latency_minor"] == (1, 1_000)
    observed = Observed()
    observed.raised(1, 1, 10, 1_000)
    observed.mapped(FaultKind.MINOR, 0, 2_000)
    observed.raised(1, 1, 10, 5_000)  # the same instruction writes to what was mapped read-only
    observed.mapped(FaultKind.MINOR, 0, 5_500)
    assert counted(observed)["latency_minor"] == (2, 1_500)


def test_an_asynchronous_fault_stage_by_stage() -> None:
    observed = Observed()
    observed.raised(1, 1, 10, 1_000)
    observed.in_progress(token=7, at_ns=2_500, ready_ns=90_000)
    observed.raised(2, 2, 20, 10_000)
    observed.mapped(FaultKind.MINOR, 0, 12_000)
    observed.injected(7, 4_000)
    assert "latency_async" not in counted(observed), "it is not over"
    observed.exited(7, 95_000)
    observed.prefaulted(7, 96_000)
    observed.delivered(7, 97_500)
    seen = counted(observed)
    assert seen["latency_async"] == (1, 96_500) and seen["latency_minor"] == (1, 2_000)
    async_stages = {"inject": 1_500, "wait": 86_000, "exit": 5_000, "prefault": 1_000, "ready": 1_500}
    assert {name: seen[f"stage_{name}"][1] for name in async_stages} == async_stages
    assert seen["stage_host"] == (2, 1_500 + 2_000)
    assert sum(async_stages.values()) + 1_500 == 96_500


def test_done_before_the_guest_knew_that_it_was_not_present() -> None:
    observed = Observed()
    observed.raised(1, 1, 10, 1_000)
    observed.in_progress(token=7, at_ns=2_500, ready_ns=3_000)
    observed.injected(7, 4_000)
    observed.exited(7, 9_000)
    observed.prefaulted(7, 10_000)
    observed.delivered(7, 11_000)
    seen = counted(observed)
    assert seen["stage_wait"] == (1, 0) and seen["stage_exit"] == (1, 5_000)
    assert sum(total for name, (_, total) in seen.items() if name.startswith("stage")) == seen["latency_async"][1]


def test_it_counts_into_what_it_is_given() -> None:
    given = {name: Histogram() for name in HISTOGRAMS}
    observed = Observed()
    observed.share(given)
    observed.raised(1, 1, 10, 1_000)
    observed.mapped(FaultKind.MINOR, 0, 3_500)
    observed.settle()
    assert given["latency_minor"].count == 1
