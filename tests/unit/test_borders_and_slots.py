"""Which borders need hostd, and what a slot may become; the rest of the clock page needs several processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from apf.clockpage import _BORDER, ClockPage, Waited, due_border_ns
from apf.messages import NEVER_NS

WINDOW_NS, END_NS = 20, 1_000


@pytest.mark.parametrize(
    ("due_ns", "border_ns", "earliest_ns", "expected"),
    [
        (None, 100, 100, None),
        (90, 100, 100, 100),  # due in the window that ends now
        (105, 100, 100, None),  # due in the window to be opened
        (105, 100, 119, None),
        (105, 100, 120, 120),  # a border that is jumped over
        (105, 100, NEVER_NS, 120),  # the run ends: the same
        (120, 120, 125, 120),
        (990, 980, NEVER_NS, 1_000),
        (1_005, 1_000, NEVER_NS, None),  # past the end
        (1_000, 1_020, NEVER_NS, None),
    ],
)
def test_due_border(due_ns: int | None, border_ns: int, earliest_ns: int, expected: int | None) -> None:
    assert due_border_ns(due_ns, border_ns, earliest_ns, WINDOW_NS, END_NS) == expected


@pytest.mark.parametrize("due_ns", [None, 95, 105, 120, 121, 1_005])
@pytest.mark.parametrize(("border_ns", "slot_ns"), [(100, 113), (100, 120), (100, 145), (1_020, 1_030)])
def test_the_native_opener_asks_for_work_exactly_where_there_is_some(
    tmp_path: Path, border_ns: int, slot_ns: int, due_ns: int | None
) -> None:
    clock = ClockPage.create(tmp_path / "clock", 1)
    clock.publish(0, slot_ns)
    clock._cells[_BORDER] = border_ns
    clock.set_border_due(due_ns)
    expected = due_border_ns(due_ns, border_ns, slot_ns, WINDOW_NS, END_NS)
    waited = clock.run_openings(WINDOW_NS, END_NS)
    assert waited is (Waited.LATER if expected is None else Waited.BORDER_WORK)
    if expected is not None:
        assert (clock.border_ns, clock.windows) == (border_ns, 0), "no window opens before the work is done"


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
