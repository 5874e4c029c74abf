"""Cells in shared memory: buckets as Prometheus means them, rows that outlive their writers, one writer a row."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest

from apf.histogram import BOUNDS_NS, CELLS, Histogram, added
from apf.stats import FAULT_KINDS, FIELDS, HISTOGRAMS, ROW, STAGES, STATES, VcpuStats
from vcpud.core.account import Cause


def naive(values: list[int]) -> list[int]:
    """Each value in the first bucket whose bound it does not exceed."""
    counts = [0] * (len(BOUNDS_NS) + 1)
    for value in values:
        counts[next((at for at, bound in enumerate(BOUNDS_NS) if value <= bound), len(BOUNDS_NS))] += 1
    return counts


def test_bounds_are_1_2_5_steps_from_1_us_to_1_s() -> None:
    assert BOUNDS_NS[:4] == (1000, 2000, 5000, 10_000) and BOUNDS_NS[-2:] == (500_000_000, 10**9)
    assert len(BOUNDS_NS) == 19 and list(BOUNDS_NS) == sorted(BOUNDS_NS)


def test_observe_against_a_naive_count() -> None:
    chance = random.Random(1)
    values = [0, *BOUNDS_NS, *(bound + 1 for bound in BOUNDS_NS), *(chance.randrange(2 * 10**9) for _ in range(500))]
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert histogram.buckets() == naive(values)
    assert (histogram.count, histogram.sum_ns) == (len(values), sum(values))
    twice = added([histogram.cells, histogram.cells])
    assert (twice.count, twice.sum_ns) == (2 * len(values), 2 * sum(values))


def test_the_columns_fit_the_row_and_the_states_are_the_causes(tmp_path: Path) -> None:
    assert tuple(cause.value for cause in Cause) == STATES
    assert len(set(FIELDS)) == len(FIELDS) and len(HISTOGRAMS) == len(FAULT_KINDS) + len(STAGES)
    assert ROW % 8 == 0 and len(FIELDS) + CELLS * len(HISTOGRAMS) <= ROW
    stats = VcpuStats.create(tmp_path / "stats", 3)
    for vcpu in range(3):
        fields = stats.fields(vcpu)
        for place in range(len(FIELDS)):
            fields[place] = 1
        for histogram in stats.histograms(vcpu).values():
            for place in range(CELLS):
                histogram.cells[place] += 1  # no two of them share a cell
    assert (stats.rows <= 1).all() and int(stats.rows.sum()) == 3 * (len(FIELDS) + CELLS * len(HISTOGRAMS))


def _count_and_die(path: Path) -> None:
    stats = VcpuStats.attach(path, 2)
    stats.fields(1)[FIELDS.index("faults_async")] = 7
    stats.histograms(1)["latency_async"].observe(30_000)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_died_leaves_its_counts(tmp_path: Path) -> None:
    stats = VcpuStats.create(tmp_path / "stats", 2)
    with pytest.raises(FileExistsError):
        VcpuStats.create(tmp_path / "stats", 2)
    child = multiprocessing.get_context("fork").Process(target=_count_and_die, args=(tmp_path / "stats",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    stats.histograms(0)["latency_async"].observe(10_000)
    assert stats.total("faults_async") == 7
    summed = stats.summed("latency_async")
    assert (summed.count, summed.sum_ns) == (2, 40_000)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 1000])
def test_many_at_once_are_one_after_the_other(count: int) -> None:
    values = [
        random.Random(count + place).choice([0, 1, 1000, 1001, 10**9, 10**9 + 1, 777_777]) for place in range(count)
    ]
    together, apart = Histogram(), Histogram()
    together.observe_all(values)
    for value in values:
        apart.observe(value)
    assert together.cells == apart.cells and together.buckets() == naive(values)
