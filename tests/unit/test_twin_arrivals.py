"""What arrives from outside in the twin: at which border, what becomes of it, and that it is part of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apf.messages import PAGE_SIZE, FaultKind
from apf.process import Failure
from apf.scenario import load
from deploy.result import RunResult
from deploy.twin import Twin
from guestsched.core.arrivals import (
    AccessArrived,
    AccessDone,
    Arrival,
    KillArrived,
    ProcessEnded,
    Refusal,
    Refused,
    ReplayArrived,
    ReplayDone,
    ShutdownArrived,
    SpawnArrived,
    Spawned,
)
from guestsched.core.task import AccessList, TraceAccess
from guestsched.plan import Wanted, plan
from guestsched.programs import BUILTINS

WINDOW_NS = 20_000
SERVED = {"name": "served", "memory": "8MiB", "access_threads": 1, "populate": False}


@contextmanager
def twin(tmp_path: Path, *arrivals: tuple[int, tuple[Arrival, ...]], **overrides: Any) -> Iterator[Twin]:
    """A started twin of a guest that only serves accesses, for which these arrive."""
    chosen: dict[str, Any] = {
        "apf": ["pv2010"],
        "duration_s": "0.02",
        "vm.vcpus": 2,
        "vm.guest_memory": "96MiB",
        "vm.group_memory": "4MiB",
        "swap.device": "nvme",
        "host.reserve_frames": 256,
        "process": [SERVED],
    }
    made = Twin(
        load(None, chosen | {name.replace("__", "."): value for name, value in overrides.items()}), tmp_path / "s"
    )
    made.arrivals[0].extend(arrivals)
    try:
        assert made.window_ns == WINDOW_NS
        made.start()
        yield made
    finally:
        made.close()


def run(made: Twin) -> RunResult:
    while made.run_window():
        made.check()
    return made.result(0)


def write(ticket: int, page: int, process: int = 1) -> AccessArrived:
    return AccessArrived(ticket, process, page * PAGE_SIZE, 4, write=True)


def read(ticket: int, page: int) -> AccessArrived:
    return AccessArrived(ticket, 1, page * PAGE_SIZE, 4, write=False)


def test_access_is_performed_from_the_time_it_arrived_on(tmp_path: Path) -> None:
    with twin(tmp_path, (5 * WINDOW_NS, (write(1, 7),)), (9 * WINDOW_NS, (read(2, 7), read(3, 8)))) as made:
        result = run(made)
    first, second, third = made.answers
    assert isinstance(first, AccessDone) and isinstance(second, AccessDone) and isinstance(third, AccessDone)
    assert [one.ticket for one in (first, second, third)] == [1, 2, 3]
    assert (first.arrived_ns, second.arrived_ns) == (5 * WINDOW_NS, 9 * WINDOW_NS)
    assert (first.met, second.met, third.met) == (FaultKind.MINOR, None, FaultKind.MINOR)
    assert 5 * WINDOW_NS < first.done_ns < 9 * WINDOW_NS < second.done_ns <= third.done_ns
    (task,) = result.tasks
    assert task["values"] == {"accesses": 3, "corrupt": 0} and task["state"] == "WAIT"
    assert result.corrupt_pages == 0


def test_jump_over_idle_windows_stops_at_an_arrival(tmp_path: Path) -> None:
    with twin(tmp_path, (250 * WINDOW_NS, (write(1, 7),))) as made:
        borders = []
        while made.run_window():
            borders.append(made.border_ns)
    assert 251 * WINDOW_NS in borders and len(borders) < 20, "the windows between hold nothing"
    assert isinstance(made.answers[0], AccessDone) and made.answers[0].arrived_ns == 250 * WINDOW_NS


def test_arrivals_of_one_time_are_one_step(tmp_path: Path) -> None:
    accesses = tuple(write(ticket, ticket) for ticket in range(1, 11))
    with twin(tmp_path, (5 * WINDOW_NS, accesses)) as made:
        run(made)
        assert made.guest.counters()["interrupts"] == 1, "the thread was woken once"
    assert [one.ticket for one in made.answers if isinstance(one, AccessDone)] == list(range(1, 11))


def test_page_that_was_swapped_out_is_met_as_an_asynchronous_fault(tmp_path: Path) -> None:
    """8 MiB of memory in a group of 4 MiB: by the time all is written, the first pages are out.

    Not page 0: its neighbour in guest memory is the program's, and reading that back reads ahead.
    """
    trace = AccessList(tuple(TraceAccess(page * PAGE_SIZE, 1, True) for page in range(1600)))
    with twin(tmp_path, (WINDOW_NS, (ReplayArrived(1, 1, trace),)), (900 * WINDOW_NS, (read(2, 300),))) as made:
        result = run(made)
    replayed, done = made.answers
    assert isinstance(replayed, ReplayDone) and dict(replayed.met) == {FaultKind.MINOR: 1600}
    assert isinstance(done, AccessDone) and done.met is FaultKind.ASYNC
    assert result.tasks[0]["values"] == {"accesses": 1601, "corrupt": 0}
    assert result.counter("not_present") >= 1 and done.done_ns - done.arrived_ns > 50_000


def test_spawned_process_runs_and_can_be_killed(tmp_path: Path) -> None:
    wanted = [Wanted(BUILTINS["work_thread"], "work", n) for n in range(2)]
    new = plan(1, "new", wanted, 0, populate=False)
    arrivals = ((5 * WINDOW_NS, (SpawnArrived(1, new),)), (300 * WINDOW_NS, (KillArrived(2, 2, 0),)))
    with twin(tmp_path, *arrivals) as made:
        result = run(made)
    spawned, *_ = made.answers
    assert spawned == Spawned(1, 2, (2, 3), 5 * WINDOW_NS) and made.answers[-1] == ProcessEnded(2)
    rows = [row for row in result.tasks if row["process"] == "new"]
    assert [row["state"] for row in rows] == ["DEAD"] * 2
    assert all(row["values"]["count"] > 100_000 and row["killed"] == "killed from outside" for row in rows)
    assert result.counter("kernel_faults") >= 1, "the program's page was there by the copy's own fault"


def test_refused_arrival_changes_nothing_of_the_guest(tmp_path: Path) -> None:
    with twin(tmp_path, (5 * WINDOW_NS, (write(1, 1 << 20), write(2, 0, process=9)))) as made:
        result = run(made)
    assert [(one.ticket, one.why) for one in made.answers if isinstance(one, Refused)] == [
        (1, Refusal.INVALID_ARGUMENT),
        (2, Refusal.NOT_FOUND),
    ]
    assert result.tasks[0]["values"]["accesses"] == 0 and made.guest.counters()["interrupts"] == 0


def test_endless_run_lasts_until_it_is_shut_down(tmp_path: Path) -> None:
    arrivals = ((5 * WINDOW_NS, (write(1, 7),)), (4000 * WINDOW_NS, (ShutdownArrived(),)))
    with twin(tmp_path, *arrivals, duration_s=0) as made:
        result = run(made)
        ended_ns = made.machines[0].core.now_ns
    assert 4000 * WINDOW_NS <= ended_ns < 4002 * WINDOW_NS
    assert isinstance(made.answers[0], AccessDone) and result.tasks[0]["state"] == "WAIT"
    for vcpu in result.vcpus:
        assert 4000 * WINDOW_NS <= sum(vcpu["time_ns"].values()) < 4002 * WINDOW_NS


def test_endless_run_of_which_nothing_comes_any_more_is_an_error(tmp_path: Path) -> None:
    with (
        twin(tmp_path, (5 * WINDOW_NS, (write(1, 7),)), duration_s=0) as made,
        pytest.raises(Failure, match="all vCPUs wait for an interrupt, and no arrival is left"),
    ):
        run(made)


def test_arrival_after_the_end_is_never_taken(tmp_path: Path) -> None:
    with twin(tmp_path, (5000 * WINDOW_NS, (write(1, 7),))) as made:
        run(made)
    assert made.answers == [] and len(made.arrivals[0]) == 1


def test_arrivals_are_part_of_the_run(tmp_path: Path) -> None:
    digests = []
    for number, at in enumerate((5, 5, 6)):
        (tmp_path / str(number)).mkdir()
        with twin(tmp_path / str(number), (at * WINDOW_NS, (write(1, 7),))) as made:
            digests.append(run(made).digest)
    assert digests[0] == digests[1] != digests[2]


def test_arrivals_of_several_vms_are_taken_in_order_of_time_each_by_its_own(tmp_path: Path) -> None:
    with twin(tmp_path, (9 * WINDOW_NS, (write(1, 7),)), host__vms=2) as made:
        made.arrivals[1].append((5 * WINDOW_NS, (write(2, 7), write(3, 8))))
        run(made)
        assert [guest.core.results()[0].values[0] for guest in made.guests] == [("accesses", 1), ("accesses", 2)]
    done = [(one.ticket, one.arrived_ns) for one in made.answers if isinstance(one, AccessDone)]
    assert done == [(2, 5 * WINDOW_NS), (3, 5 * WINDOW_NS), (1, 9 * WINDOW_NS)]
