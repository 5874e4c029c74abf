"""A run of the twin against queueing theory: one vCPU, one device server, a few tasks that compute and fault in turn.

Each of N tasks computes for an exponentially distributed time, on the one vCPU that they share, then touches a page that
is in swap: an asynchronous fault, a read of exactly D. That is a closed network of two stations. However the vCPU's time
is shared, the memoryless station sends its customers to the device as a Poisson process that pauses while all N are
there: the device is an M/D/1/N queue, whose lengths the embedded chain at departures gives exactly (Kleinrock, Queueing
Systems I, 5; Cooper, Introduction to Queueing Theory, 5.9).

So the formula has no idealisation, and what a run's mean is off by is nearly all chance: few wait at a low load, and
some of them for long. Two things keep its standard deviation over seeds at about a quarter of the tolerance, or less.
The lower the load, the more faults there are. And tasks take turns at the vCPU in their order (``rr``): with one that
preempts whoever computes (``cfs``) the mean spreads twice as far, for which it would take four times the faults.

Reclaim writes a page for each that is read. So that there is one class of customers, a write takes 1 ns; and so that
computing is all that the vCPU does, exits, handlers and switches take none, or 1 ns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apf.chance import Stream
from apf.costs import Costs
from apf.scenario import load
from deploy.twin import Twin
from hostd.core.device import Op

TASKS = 3
THINK_NS = 1_000_000
NS_AN_INSTRUCTION = 20
LOADS = {0.5: 8000, 1.0: 2700, 2.0: 900}
"""D, of the mean computation: faults of each task."""
SEED = 1
FAULTS_OF_SIMPY = 10_000
"""Of each task: so many that what it says spreads by a seventh of the tolerance."""

SCENARIO = """
seed = 1
duration_s = {seconds}
apf = ["pv"]
gup = "nowait"
window_ns = 1_000_000
[vm]
vcpus = 1
cpu_mips = {mips}
guest_memory = "128MiB"
group_memory = "32MiB"
[host]
reserve_frames = 1024
[swap]
device = "server.toml"
readahead = "none"
[sched]
policy = "rr"
[costs]
ept_violation_ns = 1
syscall_ns = 1
{costs}
[[process]]
name = "tasks"
memory = "80MiB"
"""
PAGES = (80 - 32) << 20 >> 12
"""Of those that are in swap at first: the others are all zeros, for which there is no I/O."""
FREE = [name for name in Costs.model_fields if name not in ("ept_violation_ns", "syscall_ns")]


@dataclass(frozen=True)
class Formula:
    """M/D/1/N: mean wait and the server's utilisation."""

    wait_ns: float
    busy: float

    @classmethod
    def of(cls, service_ns: float, think_ns: float, places: int) -> Formula:
        """A Poisson process of rate 1 / ``think_ns``, of which only who finds a place comes in."""
        load = service_ns / think_ns
        chances = [math.exp(-load) * load**count / math.factorial(count) for count in range(places)]
        chain = np.zeros((places, places))  # customers left behind by a departure -> by the next
        for left in range(places):
            room = places - max(left, 1)
            row = chances[:room]
            chain[left, max(left, 1) - 1 :] = [*row, 1 - sum(row)]
        system = np.vstack([chain.T - np.eye(places), np.ones(places)])
        left_behind = np.linalg.lstsq(system, np.array([0.0] * places + [1.0]), rcond=None)[0]
        lengths = np.append(left_behind, left_behind[0] + load - 1) / (left_behind[0] + load)
        taken = (1 - lengths[-1]) / think_ns
        mean = float(np.arange(places + 1) @ lengths)
        return cls(mean / taken - service_ns, taken * service_ns)


def computations_ns(faults: int, seed: int) -> list[list[int]]:
    """Of each task: exponential times in whole instructions, each quantile of the distribution once, in random order.

    So their mean is the distribution's, and the means of waits spread less than those of independent draws would.
    """
    chance, count = Stream(seed, "computations"), TASKS * faults
    times = [-math.log((index + 0.5) / count) * THINK_NS for index in range(count)]
    for index in range(count - 1, 0, -1):
        other = chance.below(index + 1)
        times[index], times[other] = times[other], times[index]
    whole = [round(time / NS_AN_INSTRUCTION) * NS_AN_INSTRUCTION for time in times]
    return [whole[task::TASKS] for task in range(TASKS)]


def write_scenario(directory: Path, service_ns: int, thinks_ns: list[list[int]]) -> Path:
    """One trace a task, each with pages of its own, of which none is in memory when its turn comes."""
    (directory / "server.toml").write_text(
        f"servers = 1\nread_ns = [{service_ns}, {service_ns}]\nwrite_ns = [1, 1]\n"
    )
    # So long that nearly all is used, and all tasks are there to the end.
    seconds = 0.96 * sum(map(len, thinks_ns)) * service_ns / Formula.of(service_ns, THINK_NS, TASKS).busy / 1e9
    text = SCENARIO.format(
        seconds=f"{seconds:.3f}", mips=1000 // NS_AN_INSTRUCTION, costs="\n".join(f"{name} = 0" for name in FREE)
    )
    for task, own_ns in enumerate(thinks_ns):
        text += f'[[process.thread]]\ntrace = "{task}.trace"\n'
        first = task * (PAGES // TASKS)
        lines = [
            f"+{think_ns // NS_AN_INSTRUCTION} {first + number % (PAGES // TASKS)} w\n"
            for number, think_ns in enumerate(own_ns)
        ]
        (directory / f"{task}.trace").write_text("".join(lines))
    path = directory / "one.toml"
    path.write_text(text)
    return path


def measured(path: Path, swap: Path, service_ns: int, faults: int) -> tuple[float, float]:
    """Of a run of the twin: mean wait in the device's queue, and the server's utilisation. ``faults``: of each task."""
    twin = Twin(load(path, {}), swap)
    try:
        twin.start()
        while twin.run_window():
            pass
        result, reads = twin.result(0.0), twin.host.core.watched().page_io.times(Op.READ)
    finally:
        twin.close()
    counts, host = result.counter("faults_async"), result.host_counters
    assert reads.count == host["pswpin"] == host["pgmajfault"] and reads.count - counts < TASKS + 3
    assert min(task["values"]["accesses"] for task in result.tasks) > 0.85 * faults
    assert max(task["values"]["accesses"] for task in result.tasks) < faults, "all are there to the end"
    return reads.sum_ns / reads.count - service_ns, reads.count * service_ns / (result.virtual_seconds * 1e9)


def by_simpy(service_ns: int, thinks_ns: list[list[int]]) -> float:
    """Mean wait of such computations in a network of two queues, first come, first served."""
    simpy = pytest.importorskip("simpy")
    environment = simpy.Environment()
    cpu, server = simpy.Resource(environment, 1), simpy.Resource(environment, 1)
    waits: list[float] = []

    def task(own_ns: list[int]) -> Iterator[Any]:
        for think_ns in own_ns:
            with cpu.request() as request:
                yield request
                yield environment.timeout(think_ns)
            came_ns = environment.now
            with server.request() as request:
                yield request
                waits.append(environment.now - came_ns)
                yield environment.timeout(service_ns)

    for own_ns in thinks_ns:
        environment.process(task(own_ns))
    environment.run()
    return sum(waits) / len(waits)


@pytest.mark.parametrize("share", LOADS)
def test_waiting_is_what_the_formula_says(share: float, tmp_path: Path) -> None:
    service_ns = int(share * THINK_NS)
    formula = Formula.of(service_ns, THINK_NS, TASKS)
    thinks_ns = computations_ns(LOADS[share], SEED)
    path = write_scenario(tmp_path, service_ns, thinks_ns)
    wait_ns, busy = measured(path, tmp_path / "swap", service_ns, LOADS[share])
    simulated_ns = by_simpy(service_ns, computations_ns(FAULTS_OF_SIMPY, SEED))
    assert wait_ns == pytest.approx(formula.wait_ns, rel=0.02)
    assert busy == pytest.approx(formula.busy, rel=0.02)
    assert wait_ns == pytest.approx(simulated_ns, rel=0.02)


def test_the_formula_itself() -> None:
    """With one place nobody waits; with many, and a small load, it is Pollaczek and Khinchine's for M/D/1."""
    alone = Formula.of(500, 1000, 1)
    assert alone.wait_ns == pytest.approx(0, abs=1e-9) and alone.busy == pytest.approx(500 / 1500)
    many = Formula.of(500, 1000, 60)
    assert many.wait_ns == pytest.approx(0.5 * 500 / (2 * (1 - 0.5))) and many.busy == pytest.approx(0.5)
