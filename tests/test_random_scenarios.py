"""Random scenarios in the twin: every core's invariants at every step, and vCPUs and guests against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apf.messages import ApfMode
from apf.scenario import Scenario
from deploy import twin
from deploy.local import LocalCluster
from deploy.twin import Twin
from tests.random_scenarios import random_scenario

SETTLED = 50
"""Windows between two checks of all pages of the host."""


class Checked(Twin):
    """A twin that checks as it goes."""

    def __init__(self, scenario: Scenario, swap: Path) -> None:
        super().__init__(scenario, swap)
        self.steps = 0
        for machine in self.machines:
            machine.core.step = self._checked(machine.core)  # type: ignore[method-assign]
        for guest in self.guests:
            guest.core.step = self._checked(guest.core)  # type: ignore[method-assign]

    def _checked(self, core: Any) -> Any:
        step = core.step

        def checked(event: Any, now_ns: int) -> Any:
            self.steps += 1
            effects = step(event, now_ns)
            core.check()
            return effects

        return checked

    def agree(self) -> None:
        """Who waits in a guest is waited for in KVM, or told: in the queue, in the slot, or on the way."""
        for vm, guest in enumerate(self.guests):
            for node in guest.core.waiting():
                core = self.machines[vm * self.scenario.vm.vcpus + node.cpu].core
                live = {item.token for item in core.async_pf.queue if item.injected}
                assert node.token in live or core.telling, f"VM {vm}: {node} is nobody's any more\n{core.story()}"


def run_checked(scenario: Scenario, directory: Path) -> Checked:
    """Run ``scenario`` to its end; what it came to is in the twin that is returned, closed."""
    checked = Checked(scenario, directory / "swap")
    try:
        checked.start()
        windows = 0
        while checked.run_window():
            windows += 1
            if not scenario.inject:
                checked.agree()
            if windows % SETTLED == 0:
                checked.host.core.check()
        checked.check()
        result = checked.result(0.0)
        assert result.corrupt_pages == 0 and result.lost_writes == 0, scenario
        _events_add_up(scenario, checked)
    finally:
        checked.close()
    return checked


def _events_add_up(scenario: Scenario, checked: Checked) -> None:
    for machine in checked.machines:
        counters, core = machine.core.counters, machine.core
        if scenario.mode in (ApfMode.OFF, ApfMode.HALT):
            assert counters.not_present == counters.ready == 0
        if scenario.mode is ApfMode.OFF:
            assert counters.faults_async == counters.halts == 0
        if not scenario.inject:
            injected = [item for item in core.async_pf.queue if item.injected and item.state.value != "LISTED"]
            under_way = counters.not_present - (counters.ready - counters.wake_all) - len(injected)
            assert 0 <= under_way <= 1, f"{under_way} not-presents without a ready"
            assert counters.msr_gp == counters.dropped == 0


@pytest.mark.parametrize("seed", range(10))
def test_random_scenario(seed: int, tmp_path: Path) -> None:
    assert run_checked(random_scenario(seed), tmp_path).steps > 20


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_random_scenarios(seed: int, tmp_path: Path) -> None:
    assert run_checked(random_scenario(seed), tmp_path).steps > 20


@pytest.mark.long
@pytest.mark.parametrize("seed", range(300, 310))
def test_random_scenarios_on_processes(seed: int) -> None:
    scenario = random_scenario(seed)
    expected = twin.run(scenario)
    with LocalCluster(scenario) as cluster:
        assert cluster.wait().digest == expected.digest


@pytest.mark.parametrize("mode", ["off", "halt", "pv2010", "pv"])
def test_the_twin_comes_to_the_same_digest_twice(mode: str) -> None:
    scenario = random_scenario(7, apf=[mode])
    assert twin.run(scenario).digest == twin.run(scenario).digest


@pytest.mark.parametrize("device", ["sata-ssd", "rdma", "zswap", "zram"])
@pytest.mark.parametrize("seed", [500, 507])
def test_invariants_hold_on_other_devices(seed: int, device: str, tmp_path: Path) -> None:
    assert run_checked(random_scenario(seed, swap__device=device, duration_s="0.004"), tmp_path).steps > 3000
