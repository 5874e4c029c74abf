"""A program that does what it may not is killed, with a message naming it; the others go on."""

from __future__ import annotations

import pytest
from cluster_runs import on_processes, small, use_plans
from guests_of_tests import BAD_ADDRESS, OWN_CODE_GVA, offenders

from apf.scenario import Scenario
from deploy import twin
from deploy.result import RunResult


def scenario(apf: str = "pv2010") -> Scenario:
    return small(apf, duration_s="0.03")


def offenders_died_alone(result: RunResult) -> None:
    """Both offenders are dead, all others alive and at work; the messages say who, why and where."""
    dead = {task["name"]: task for task in result.tasks if task["state"] == "DEAD"}
    assert sorted(dead) == ["illegal/0", "stray/0"]
    assert f"illegal instruction (#UD, vector 6) at rip {OWN_CODE_GVA:#x}" in dead["illegal/0"]["killed"]
    # The engine knows a fault's address to the page.
    assert f"bad address {BAD_ADDRESS:#x} (#PF, vector 14) at rip {OWN_CODE_GVA:#x}" in dead["stray/0"]["killed"]
    assert len(result.told) == 2
    for name, task in dead.items():
        (told,) = (line for line in result.told if name in line)
        assert f"task {task['id']} {name} (program {name.partition('/')[0]}, vCPU {task['vcpu']}) killed" in told
        assert task["killed"] in told
    others = [task for task in result.tasks if task["name"] not in dead]
    assert all(not task["killed"] and task["sum_exec_ns"] > 0 for task in others)
    assert all(count > 0 for count in result.workers) and len(result.workers) == 4
    assert result.corrupt_pages == result.lost_writes == 0


@pytest.mark.parametrize("apf", ["off", "pv2010"])
def test_in_the_twin(apf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_plans(monkeypatch, offenders)
    offenders_died_alone(twin.run(scenario(apf)))


def test_on_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plans(monkeypatch, offenders)
    result = on_processes(scenario())
    offenders_died_alone(result)
    assert result.digest == twin.run(scenario()).digest
