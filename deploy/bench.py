"""The published benchmark: the same scenario in each mode, as processes or in the twin."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from apf.journal import Journal
from apf.messages import PAGE_SIZE
from apf.scenario import Scenario, ScenarioError
from deploy import twin
from deploy.local import LocalCluster, check_space
from deploy.result import RunResult, Snapshot
from guestsched.build import guest_core
from hostd import reclaim_policies

Progress = Callable[[Scenario, Snapshot], None]
Keep = Callable[[RunResult, Mapping[str, Path]], None]
"""Told of a run that has ended, with its journals by core name; they are gone afterwards unless it moves them."""
_TWIN_PROGRESS_S = 0.2


def prepare(scenario: Scenario, *, endless: bool = False) -> None:
    """Raise ScenarioError for whatever would make a run impossible, before anything starts.

    ``endless``: somebody can shut the run down, so it may last until then.
    """
    if not scenario.duration_s and not endless:
        raise ScenarioError("duration_s = 0: greater than 0, for nobody can shut this run down (apf up has an API)")
    for mode in scenario.apf:
        guest = guest_core(scenario.for_mode(mode), Journal())
    _check_swap(scenario, sum(segment.pages for segment in guest.segments() if not segment.demand_zero))
    reclaim_policies.load(scenario.host.reclaim)
    check_space(scenario)


def _check_swap(scenario: Scenario, populated: int) -> None:
    """What VMs that are full from the start cannot have in memory must fit into the swap area."""
    size, host, vm = scenario.swap.size, scenario.host, scenario.vm
    memory = min(host.vms * min(vm.group_memory, populated * PAGE_SIZE), host.memory or (1 << 62))
    least = host.vms * populated * PAGE_SIZE - memory
    if size and size < least:
        raise ScenarioError(f"swap.size = {size}: at least {least}, for what the guests have written beforehand")


def run_modes(
    scenario: Scenario, *, in_twin: bool, keep: Keep | None = None, progress: Progress | None = None
) -> list[RunResult]:
    """One run for each mode of the scenario, in order; with journals if somebody is to ``keep`` them. Raises Failure."""
    run_one = _in_twin if in_twin else _on_processes
    return [run_one(scenario.for_mode(mode), keep, progress) for mode in scenario.apf]


def _on_processes(scenario: Scenario, keep: Keep | None, progress: Progress | None) -> RunResult:
    with LocalCluster(scenario, journals=keep is not None) as cluster:
        result = cluster.wait(None if progress is None else lambda snapshot: progress(scenario, snapshot))
        if keep is not None:
            keep(result, cluster.journals())
        return result


def _in_twin(scenario: Scenario, keep: Keep | None, progress: Progress | None) -> RunResult:
    shown_s = 0.0

    def show(now_ns: int, running: twin.Twin) -> None:
        nonlocal shown_s
        if progress is not None and time.monotonic() - shown_s > _TWIN_PROGRESS_S:
            shown_s = time.monotonic()
            progress(scenario, running.snapshot(now_ns))

    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        directory = Path(scratch) if keep is not None else None
        result = twin.run(scenario, journals=directory, progress=show)
        if keep is not None:
            keep(result, {path.stem: path for path in Path(scratch).glob("*.journal")})
        return result


def ratios(results: list[RunResult]) -> dict[str, float]:
    """Work done in each mode over work done without APF; empty unless that was run and anything was counted."""
    off = next((result.total for result in results if result.mode == "off"), 0)
    return {result.mode: result.total / off for result in results if off and result.mode != "off"}


def ratio(results: list[RunResult]) -> float | None:
    """Work done with APF over work done without: the published protocol if it was run, else the last one that was."""
    found = ratios(results)
    if "pv2010" in found:
        return found["pv2010"]
    return next(reversed(found.values()), None)


def document(scenario: Scenario, results: list[RunResult]) -> dict[str, Any]:
    """The JSON document of a bench."""
    found = ratio(results)
    return {
        "ratio": None if found is None else round(found, 4),
        "ratios": {mode: round(value, 4) for mode, value in ratios(results).items()},
        "scenario": scenario.model_dump(mode="json"),
        "versions": {name: metadata.version(name) for name in ("apf-emulator", "unicorn", "numba", "grpcio")},
        "runs": [result.document() for result in results],
    }
