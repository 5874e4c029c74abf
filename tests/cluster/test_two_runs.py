"""Runs on one machine at the same time have nothing in common."""

from __future__ import annotations

from cluster_runs import small, until_running

from deploy import twin
from deploy.local import LocalCluster


def test_two_at_once() -> None:
    one, other = small("off", seed=5), small("pv2010", seed=6)
    with LocalCluster(one) as first, LocalCluster(other) as second:
        until_running(first)
        until_running(second)
        assert {first.run.memory, first.run.files}.isdisjoint({second.run.memory, second.run.files})
        results = second.wait(), first.wait()
    assert [result.digest for result in results] == [twin.run(other).digest, twin.run(one).digest]
    for cluster in (first, second):
        assert not cluster.run.memory.exists() and not cluster.run.files.exists()


def test_the_same_twice_at_once() -> None:
    scenario = small("off", duration_s="0.01")
    with LocalCluster(scenario) as first, LocalCluster(scenario) as second:
        assert first.wait().digest == second.wait().digest
