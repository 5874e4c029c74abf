"""Schedulers are found by name, a user's too, and what cannot be used is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from example_scheduler import LifoRunQueue

from apf.scenario import ScenarioError
from guestsched import schedulers
from guestsched.core.cfs import CfsRunQueue
from guestsched.core.eevdf import EevdfRunQueue
from guestsched.core.rr import RrRunQueue
from guestsched.core.sched import RunQueue

Install = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with these entry points into a directory of sys.path."""

    def install(*lines: str, name: str = "mine") -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[apf.schedulers]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(site)

    return install


@pytest.mark.parametrize(("name", "expected"), [("cfs", CfsRunQueue), ("eevdf", EevdfRunQueue), ("rr", RrRunQueue)])
def test_built_in_schedulers_by_name(name: str, expected: type[RunQueue]) -> None:
    assert schedulers.load(name) is expected


def test_users_scheduler_comes_from_an_entry_point(package: Install) -> None:
    package("lifo = example_scheduler:LifoRunQueue")
    assert schedulers.load("lifo") is LifoRunQueue


def test_users_scheduler_schedules(package: Install) -> None:
    package("lifo = example_scheduler:LifoRunQueue")
    kind = schedulers.load("lifo")
    rq = kind(1, 250)
    first, second, third = (kind.new_entity(number, 0) for number in (1, 2, 3))
    for entity in (first, second):
        rq.enqueue_new(entity)
    assert rq.pick_next() is second
    rq.update_curr(10)
    rq.enqueue_new(third)
    assert rq.wakeup_preempts(third) and rq.pick_next(preferred=third) is third
    rq.update_curr(30)
    assert rq.pick_next(skip=True) is second
    rq.dequeue_curr()
    assert rq.pick_next() is first
    rq.check()
    assert [entity.sum_exec_ns for entity in (first, second, third)] == [0, 10, 20]
    assert rq.waiting_ids() == [3]


def test_unknown_name_is_refused_with_what_is_allowed(package: Install) -> None:
    with pytest.raises(ScenarioError) as told:
        schedulers.load("lottery")
    assert str(told.value).startswith("sched.policy = 'lottery': allowed: cfs, eevdf, rr (and entry points of group")
    package("lifo = example_scheduler:LifoRunQueue")
    with pytest.raises(ScenarioError, match=r"rr \(and entry points of group apf.schedulers: .*lifo"):
        schedulers.load("lottery")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("pathlib:Path", "is no subclass of guestsched.core.sched.RunQueue"),
        ("math:pi", "3.14.* is no subclass of guestsched.core.sched.RunQueue"),
        ("guestsched.core.sched:RunQueue", "RunQueue does not define .*pick_next"),
        ("no_such_module:Queue", "No module named 'no_such_module'"),
        ("example_scheduler:Fifo", "has no attribute 'Fifo'"),
    ],
)
def test_what_is_no_scheduler_is_refused(package: Install, value: str, reason: str) -> None:
    package(f"odd = {value}")
    with pytest.raises(ScenarioError, match=rf"sched\.policy = 'odd': entry point {value}: .*{reason}"):
        schedulers.load("odd")


def test_built_in_name_cannot_be_taken(package: Install) -> None:
    package("cfs = example_scheduler:LifoRunQueue")
    assert schedulers.load("cfs") is CfsRunQueue


def test_name_that_means_two_things_is_refused(package: Install) -> None:
    package("twice = example_scheduler:LifoRunQueue")
    package("twice = guestsched.core.rr:RrRunQueue", name="yours")
    with pytest.raises(ScenarioError, match=r"several entry points .*LifoRunQueue"):
        schedulers.load("twice")
