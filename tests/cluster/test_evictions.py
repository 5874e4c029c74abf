"""Evictions lose nothing: pages in use by another vCPU, code pages whose frames get other code, a million of them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from cluster_runs import on_processes, small, tiny_memory, use_plans
from guests_of_tests import CODE_PAGES, code_walkers, walker_sum

from apf.scenario import GUEST_KERNEL_BYTES, Scenario
from deploy import twin
from deploy.result import RunResult
from deploy.twin import Twin
from vcpud.machine import Machine, Need


def sound(result: RunResult) -> None:
    """No page wrong, no write lost, no task killed."""
    assert result.corrupt_pages == 0
    assert result.lost_writes == 0
    assert result.told == ()


def evictions(result: RunResult) -> int:
    """Pages that left the group, by write or by dropping them."""
    return result.host_counters["pgsteal_direct"]


class Witness(Twin):
    """A twin that knows which vCPU used which frame in the open window, and whose request had which page picked."""

    def __init__(self, scenario: Scenario, swap: Path) -> None:
        super().__init__(scenario, swap)
        self._used: dict[int, set[int]] = defaultdict(set)  # vCPU -> frames
        self._picked_by: dict[int, int] = {}
        self.used_by_another = 0
        self._machines = {vcpu: self._watched(vcpu, machine) for vcpu, machine in self._machines.items()}

    def _watched(self, vcpu: int, machine: Machine) -> Machine:
        accessed, used, proceed = self.memory.accessed, self._used, machine.proceed

        def watched(border_ns: int) -> Need:
            before = accessed.copy()
            accessed[:] = 0
            need = proceed(border_ns)
            used[vcpu].update(np.flatnonzero(accessed).tolist())
            np.maximum(accessed, before, out=accessed)
            return need

        machine.proceed = watched
        return machine

    def _answer(self, vcpu: int) -> int:
        before = set(self.host.core._mm.evicting)
        goes_on_ns = super()._answer(vcpu)
        for key in self.host.core._mm.evicting.keys() - before:
            self._picked_by[key] = vcpu
        return goes_on_ns

    def run_window(self) -> bool:
        mm = self.host.core._mm
        for key in mm.evicting:
            others = (frames for vcpu, frames in self._used.items() if vcpu != self._picked_by[key])
            self.used_by_another += any(mm.pages.pfn[key] in frames for frames in others)
        self._used.clear()
        self._picked_by.clear()
        return super().run_window()


@pytest.mark.parametrize(
    ("apf", "duration_s", "window_ns"), [("off", "0.1", 10_000_000), ("pv2010", "0.04", 4_000_000)]
)
def test_pages_that_another_vcpu_uses_in_the_same_window(
    apf: str, duration_s: str, window_ns: int, tmp_path: Path
) -> None:
    """Long windows: a page picked early in one stays in the others' EPT and TLBs for long."""
    scenario = tiny_memory(apf, duration_s=duration_s, window_ns=window_ns)
    witness = Witness(scenario, tmp_path / "swap")
    try:
        witness.start()
        while witness.run_window():
            pass
        result = witness.result(0.0)
    finally:
        witness.close()
    sound(result)
    assert witness.used_by_another >= 1000, (witness.used_by_another, evictions(result))
    assert result.host_counters["eviction_cancelled"] >= 10


def walkers(apf: str, **overrides: str) -> Scenario:
    return small(
        apf,
        vm__vcpus=2,
        vm__guest_memory=GUEST_KERNEL_BYTES + (32 << 20),
        vm__group_memory="4MiB",
        bench__buffer="4MiB",
        **overrides,
    )


@pytest.mark.parametrize("apf", ["off", "pv2010"])
def test_code_pages_refilled_with_other_code(apf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs at one address, more code than memory: whoever runs another's stale code gets another sum."""
    use_plans(monkeypatch, code_walkers)
    scenario = walkers(apf, duration_s="0.1" if apf == "off" else "0.04")
    result = twin.run(scenario)
    assert evictions(result) >= 800
    if apf == "off":  # the fault-in worker of the other mode always asks for a writable page, which is never clean
        assert result.host_counters["swap_dropped_clean"] >= 300
    assert result.told == ()
    for program, task in enumerate(result.tasks):
        assert task["values"]["sum"] == walker_sum(program, task["values"]["pages"]), task
    assert sum(task["values"]["pages"] for task in result.tasks) >= 2 * CODE_PAGES


def test_code_pages_on_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plans(monkeypatch, code_walkers)
    scenario = walkers("pv2010", duration_s="0.015")
    expected = twin.run(scenario)
    assert evictions(expected) >= 300
    result = on_processes(scenario)
    assert result.digest == expected.digest
    for program, task in enumerate(result.tasks):
        assert task["values"]["sum"] == walker_sum(program, task["values"]["pages"]), task


@pytest.mark.parametrize("gup", ["fast", "noio", "nowait"])
def test_tiny_memory(gup: str) -> None:
    result = twin.run(tiny_memory(gup=gup))
    sound(result)
    assert evictions(result) >= 1000


@pytest.mark.long
def test_a_million_evictions() -> None:
    """In the twin, over seeds, modes and variants."""
    total, seed = 0, 0
    while total < 1_000_000:
        seed += 1
        for apf, gup in (("pv2010", "noio"), ("pv2010", "fast"), ("pv2010", "nowait"), ("off", "noio")):
            result = twin.run(tiny_memory(apf, gup=gup, seed=seed, duration_s="1" if apf == "pv2010" else "2"))
            sound(result)
            total += evictions(result)


@pytest.mark.long
@pytest.mark.parametrize(("apf", "least"), [("off", 25_000), ("pv2010", 25_000)])
def test_fifty_thousand_evictions_on_the_processes(apf: str, least: int) -> None:
    scenario = tiny_memory(apf, duration_s="0.5" if apf == "pv2010" else "1")
    result = on_processes(scenario)
    sound(result)
    assert evictions(result) >= least
    assert result.digest == twin.run(scenario).digest
