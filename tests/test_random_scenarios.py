"""Random scenarios in the twin: every core's invariants at every step, and vCPUs and guests against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import twin
from deploy.local import LocalCluster
from tests import soak
from tests.checked_runs import run_checked
from tests.random_scenarios import random_host, random_scenario


@pytest.mark.parametrize("seed", range(10))
def test_random_scenario(seed: int, tmp_path: Path) -> None:
    assert run_checked(random_scenario(seed), tmp_path).steps > 20


@pytest.mark.parametrize("seed", [3, 5, 7, 9, 10, 11, 13, 103])
def test_random_host(seed: int, tmp_path: Path) -> None:
    """Devices, policies, readahead, backings, limits, failures; the host's core is checked at every step too."""
    scenario = random_host(seed)
    assert scenario is not None and run_checked(scenario, tmp_path, host_too=True).steps > 20


@pytest.mark.parametrize("seed", [3, 4])
def test_random_host_on_processes(seed: int) -> None:
    outcome, why = soak.run_seed(seed, processes=True)
    assert outcome in (soak.Outcome.OK, soak.Outcome.VM_FAILED), why


def test_a_seed_that_fails_says_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        soak, "run_seed", lambda seed, _processes: (soak.Outcome["BAD" if seed == 2 else "OK"], "why")
    )
    told = CliRunner().invoke(soak.app, ["--count", "5"])
    assert told.exit_code == 1 and "why" in told.stderr and "    poe soak --only 2\n" in told.stderr


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_random_scenarios(seed: int, tmp_path: Path) -> None:
    assert run_checked(random_scenario(seed), tmp_path).steps > 5


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
