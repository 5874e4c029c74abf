"""Which borders need hostd, and what a slot may become; the rest of the clock page needs several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apf.clockcells import BORDER, LINE, OPENER, SLOTS, Waited
from apf.clockpage import ClockPage
from apf.messages import FOREVER_NS, NEVER_NS

WINDOW_NS = 20
_SLOT_FUTEX = 1


@pytest.mark.parametrize(
    ("due_ns", "work"),
    [(None, False), (0, True), (95, True), (100, True), (101, False), (NEVER_NS, False)],
)
def test_the_opener_asks_for_work_that_is_due_at_the_border(tmp_path: Path, due_ns: int | None, work: bool) -> None:
    clock = ClockPage.create(tmp_path / "clock", 1)
    clock._cells[BORDER] = 100
    clock.publish(0, 113)
    clock.set_border_due(due_ns)
    assert clock.run_openings(WINDOW_NS) is (Waited.BORDER_WORK if work else Waited.LATER)
    assert (clock.border_ns, clock.windows) == ((100, 0) if work else (120, 1)), "no opening before the work is done"


def test_no_border_work_once_all_have_finished(tmp_path: Path) -> None:
    clock = ClockPage.create(tmp_path / "clock", 1)
    clock.set_border_due(0)
    clock.publish(0, NEVER_NS)
    assert clock.run_openings(WINDOW_NS) is Waited.FINISHED


def test_an_answer_never_takes_a_slot_back(tmp_path: Path) -> None:
    clock = ClockPage.create(tmp_path / "clock", 2)
    clock.publish(0, 50)
    clock.settle(0, 50, 70)
    assert clock.slot_ns(0) == 70
    clock.publish(0, 90)  # the vCPU has its reply and went on
    clock.settle(0, 70, 75)
    assert clock.slot_ns(0) == 90


def test_turn_belongs_to_the_earliest_and_then_to_the_lower_number(tmp_path: Path) -> None:
    clock = ClockPage.create(tmp_path / "clock", 2)
    clock.publish(0, 50)
    clock.publish(1, 50)
    assert clock.has_turn(0, 50) and not clock.has_turn(1, 50)
    entry = clock.want_entry(0, 0)
    assert not clock.announce(entry, 1, 50)
    clock.settle(0, 50, 51)
    assert clock.announce(entry, 1, 50)
    clock.withdraw(entry)


def test_who_answers_last_opens_the_next_window_itself(tmp_path: Path) -> None:
    clock = ClockPage.create(tmp_path / "clock", 2)
    assert clock.run_openings(WINDOW_NS) is Waited.LATER and clock.border_ns == WINDOW_NS
    clock.publish(0, 5)
    assert not clock.settle(0, 5, 33, opens=True), "the other one is not there yet"
    clock.publish(1, 7)
    assert clock.settle(1, 7, 70, opens=True)
    assert not clock.open_next(WINDOW_NS)
    assert (clock.border_ns, clock.windows) == (40, 2)


def test_nobody_else_opens_a_window_while_one_works_at_the_border(tmp_path: Path) -> None:
    clock = ClockPage.create(tmp_path / "clock", 1)
    clock.set_border_due(0)
    clock.publish(0, 1)
    assert clock.open_next(WINDOW_NS)
    assert clock.run_openings(WINDOW_NS) is Waited.LATER
    assert clock.windows == 0
    clock.set_border_due(WINDOW_NS)
    assert not clock.open_next(WINDOW_NS), "it is done with the work"
    assert clock.windows == 1
    clock.publish(0, 21)
    assert clock.run_openings(WINDOW_NS) is Waited.BORDER_WORK
    assert not clock.open_next(WINDOW_NS)
    assert clock.windows == 1
    clock.set_border_due(None)
    assert clock.run_openings(WINDOW_NS) is Waited.LATER and clock.windows == 2


@pytest.mark.parametrize(
    ("why", "waited"),
    [
        (lambda clock: clock.publish(0, NEVER_NS), Waited.FINISHED),
        (lambda clock: clock.publish(0, FOREVER_NS), Waited.PARKED),
        (lambda clock: clock.set_limit(99), Waited.AHEAD),
        (lambda clock: clock.announce_arrivals(0), Waited.ARRIVALS),
    ],
)
def test_all_but_border_work_is_left_to_the_thread_that_waits(
    tmp_path: Path, why: Callable[[ClockPage], None], waited: Waited
) -> None:
    clock = ClockPage.create(tmp_path / "clock", 1)
    clock.publish(0, 150)
    why(clock)
    clock.note_ended()
    before = clock._cells[OPENER]
    assert not clock.open_next(WINDOW_NS)
    assert clock._cells[OPENER] == before + 1, "it is woken"
    assert clock.windows == 0 and clock.run_openings(WINDOW_NS) is waited


@pytest.mark.parametrize(
    ("slots_ns", "roused"),
    [
        ([15, 40, 33, 90], 2),  # the first of those that wait for the answer to 0
        ([15, 33, 33, 90], 1),
        ([15, 40, 19, 33], None),  # 2 has not reached the border
        ([15, FOREVER_NS, NEVER_NS, FOREVER_NS], None),
    ],
)
def test_who_goes_on_after_an_answer_is_roused(tmp_path: Path, slots_ns: list[int], roused: int | None) -> None:
    clock = ClockPage.create(tmp_path / "clock", 4)
    clock._cells[BORDER] = WINDOW_NS
    for participant, slot_ns in enumerate(slots_ns):
        clock.publish(participant, slot_ns)
    clock.rouse_next(0)
    woken = [participant for participant in range(4) if clock._cells[SLOTS + LINE * participant + _SLOT_FUTEX]]
    assert woken == ([] if roused is None else [roused])
