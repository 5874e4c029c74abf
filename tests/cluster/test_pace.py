"""A run that is held back to a pace is the same run."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from guest_runs import guests, on_processes, on_twin, same

DURATION_S, WINDOW_S = Decimal("0.002"), Decimal("0.00005")
PACE = Decimal("0.002")
"""Guest seconds a second: a second of wall time for this run."""


def test_a_pace_changes_nothing_but_how_long_it_takes(tmp_path: Path) -> None:
    scenario = guests(
        "pv2010",
        {"name": "db", "memory": "6MiB", "thread": [{"program": "zipfian", "count": 2}]},
        {"name": "sleep", "thread": [{"program": "idle"}, {"program": "work_thread", "lifetime_s": 0.001}]},
        duration_s=DURATION_S,
        window_ns=int(WINDOW_S * 10**9),
    )
    paced = on_processes(scenario.model_copy(update={"pace": PACE}))
    assert paced.result.run_seconds >= (DURATION_S - WINDOW_S) / PACE
    unpaced = on_processes(scenario)
    same(unpaced, paced)
    same(on_twin(scenario, tmp_path), paced)
