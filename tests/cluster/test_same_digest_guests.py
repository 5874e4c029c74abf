"""The same digest from the twin and from the processes, whatever programs run, under every scheduler.

Tasks that would never leave their vCPU have a lifetime: under ``rr`` nobody else had a turn within these short runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_runs import busy_cores
from guest_runs import Ran, Table, alike, guests, on_processes, on_twin, same

from apf.scenario import Scenario
from guestsched.programs import BUILTINS
from guestsched.schedulers import BUILT_IN

MODES = ("off", "halt", "pv2010", "pv")
ACCESSES = 300
COUNTS = ("accesses", "count", "produced", "consumed")
"""What programs count, by the names of their results."""

Build = Callable[[str, str, str], Scenario]


def trace_file(directory: Path) -> str:
    """Accesses to 1280 pages, far apart, two of them at a given time, the others after a thought."""
    lines = [f"{index % 7 * 40} {index * 331 % 1280} {'rw'[index % 2]}" for index in range(ACCESSES)]
    lines[0], lines[100] = "@100000 0 w", "@3000000 5 r"
    path = directory / "some.trace"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def thread(program: str, **more: object) -> Table:
    return {"program": program, **more}


def users(apf: str, policy: str, trace: str) -> Scenario:
    """Skewed readers and a chase on swapped memory, and pairs that wake each other across vCPUs."""
    return guests(
        apf,
        {
            "name": "pair",
            "thread": [
                thread("producer", parameters={"think": 30_000}, vcpus=[0], lifetime_s=0.003),
                thread("consumer", parameters={"think": 500}, vcpus=[1]),
            ],
        },
        {"name": "count", "thread": [thread("work_thread", vcpus=[1], nice=3, lifetime_s=0.003)]},
        {
            "name": "db",
            "memory": "6MiB",
            "thread": [thread("zipfian", count=2, lifetime_s=0.006), thread("pointer_chase", nice=5)],
        },
        sched__policy=policy,
        vm__hz=1000,
        profile_hz=5000,
        duration_s="0.01",
    )


def scans(apf: str, policy: str, trace: str) -> Scenario:
    """Scans of demand-zero memory that start late and are killed early, and one that sleeps; three vCPUs."""
    return guests(
        apf,
        {
            "name": "scan",
            "memory": "5MiB",
            "populate": False,
            "thread": [
                thread("sequential", vcpus=[0, 2], parameters={"writes": 128}, lifetime_s=0.005),
                thread("strided", nice=-3, start_s=0.0005),
                thread("shifting", start_s=0.001, lifetime_s=0.003, count=2, parameters={"period": 200}),
            ],
        },
        {"name": "sleep", "count": 2, "thread": [thread("idle", vcpus=[1]), thread("work_thread", lifetime_s=0.002)]},
        sched__policy=policy,
        vm__vcpus=3,
        profile_hz=2000,
        duration_s="0.006",
    )


def traces(apf: str, policy: str, trace: str) -> Scenario:
    """Traces by access threads on either vCPU, beside the published benchmark's two programs."""
    return guests(
        apf,
        {"name": "traced", "memory": "5MiB", "thread": [{"trace": trace, "count": 2}], "access_threads": 1},
        {
            "name": "bench",
            "memory": "4MiB",
            "thread": [
                thread("fault_thread", lifetime_s=0.004),
                thread("work_thread", count=2, start_s=0.001, lifetime_s=0.002),
            ],
        },
        sched__policy=policy,
        vm__hz=1000,
        profile_hz=2000,
        duration_s="0.015",
    )


FAST: list[tuple[Build, str, str]] = [
    (users, "pv2010", "cfs"),
    (users, "off", "rr"),
    (scans, "pv2010", "eevdf"),
    (traces, "pv2010", "rr"),
    (traces, "off", "eevdf"),
]


def programs_of(scenario: Scenario) -> set[str]:
    threads = [thread for process in scenario.process for thread in process.thread]
    return {"access_thread" if thread.trace else thread.program for thread in threads}


def did_something(ran: Ran) -> None:
    """A digest of nothing proves nothing: every task ran and came to something, and pages came back from swap."""
    result = ran.result
    for row in result.tasks:
        outside = row["program"] == "access_thread"
        assert row["sum_exec_ns"] > 0, row
        assert outside or all(row["values"].get(name, 1) > 0 for name in COUNTS), row
    assert result.counter("faults_async" if result.mode == "pv2010" else "faults_major") > 20
    assert (result.counter("faults_async") > 0) is (result.mode == "pv2010")
    assert result.counter("samples") > 10
    assert len(ran.lines("guest-0", "profile")) > 3


@pytest.mark.parametrize(("build", "apf", "policy"), FAST)
def test_twin_and_processes(build: Build, apf: str, policy: str, tmp_path: Path) -> None:
    ran = alike(build(apf, policy, trace_file(tmp_path)), tmp_path / "journals")
    did_something(ran)


def test_the_fast_runs_leave_no_program_and_no_scheduler_out(tmp_path: Path) -> None:
    ran = [(build(apf, policy, trace_file(tmp_path)), policy) for build, apf, policy in FAST]
    assert set().union(*(programs_of(scenario) for scenario, _ in ran)) == set(BUILTINS)
    assert {policy for _, policy in ran} == set(BUILT_IN)


def alone(program: str, apf: str, policy: str, seed: int, trace: str) -> Scenario:
    """Four tasks of one program (consumers with producers) with a short life, beside a sleeper and a counting task."""
    match program:
        case "access_thread":
            threads: list[Table] = [{"trace": trace, "count": 2, "start_s": 0.0003}, {"trace": trace, "nice": -5}]
        case "producer":
            threads = [
                thread("producer", count=2, vcpus=[0, 1], parameters={"think": 5_000}),
                thread("consumer", count=2, nice=4, parameters={"think": 20_000}),
            ]
        case _:
            threads = [thread(program, count=3), thread(program, nice=4, start_s=0.0005, vcpus=[2])]
    for table in threads:
        if "trace" not in table:
            table["lifetime_s"] = 0.004
    return guests(
        apf,
        {"name": "chosen", "memory": "6MiB", "thread": threads},
        {"name": "beside", "thread": [thread("idle"), thread("work_thread", lifetime_s=0.007)]},
        sched__policy=policy,
        seed=seed,
        vm__vcpus=3,
        vm__hz=1000,
        profile_hz=3000,
        duration_s="0.01",
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("apf", MODES)
@pytest.mark.parametrize("policy", sorted(BUILT_IN))
@pytest.mark.parametrize("program", sorted(BUILTINS.keys() - {"consumer"}))
def test_every_program_under_every_scheduler(program: str, policy: str, apf: str, seed: int, tmp_path: Path) -> None:
    scenario = alone(program, apf, policy, seed, trace_file(tmp_path))
    assert program in programs_of(scenario)
    expected = alike(scenario, tmp_path / "journals")
    idle = [row["name"] for row in expected.result.tasks if not row["sum_exec_ns"]]
    assert len(idle) <= 1, "at most one did not have its turn before its life was over"
    if seed == 2:
        with busy_cores():
            same(expected, on_processes(scenario))


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("apf", MODES)
@pytest.mark.parametrize("policy", sorted(BUILT_IN))
@pytest.mark.parametrize("build", [users, scans, traces])
def test_mixtures_beside_a_busy_loop_on_every_core(
    build: Build, policy: str, apf: str, seed: int, tmp_path: Path
) -> None:
    scenario = build(apf, policy, trace_file(tmp_path)).model_copy(update={"seed": seed})
    expected = on_twin(scenario, tmp_path / "journals")
    with busy_cores():
        same(expected, on_processes(scenario))
