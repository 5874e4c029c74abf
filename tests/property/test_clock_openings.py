"""The opener of the clock page: when it opens which window, and what comes before."""

from __future__ import annotations

import threading
from pathlib import Path

from clock_servers import DEADLINE_S, idle, opened, openings, page
from hypothesis import given
from hypothesis import strategies as st

from apf.clockcells import WAITERS, Waited
from apf.clockpage import next_border_ns
from apf.messages import FOREVER_NS, NEVER_NS


@given(earliest=st.integers(0, 10**15), window_ns=st.integers(1, 10**8))
def test_the_window_that_holds_a_time(earliest: int, window_ns: int) -> None:
    border_ns = next_border_ns(earliest, window_ns)
    assert border_ns % window_ns == 0
    assert border_ns - window_ns <= earliest < border_ns


def test_openings_jump_over_empty_windows(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    clock.publish(0, 123_456)
    clock.publish(1, 999_999_999)
    assert openings(clock, 1000) is Waited.LATER
    assert (clock.border_ns, clock.windows) == (124_000, 1)
    assert clock.wait_window(0, 123_456) is Waited.DONE
    clock.publish(0, 123_999)  # not yet at the border
    assert openings(clock, 1000) is Waited.LATER
    assert clock.windows == 1
    clock.publish(0, 5_000_000)
    assert openings(clock, 1000) is Waited.LATER
    assert (clock.border_ns, clock.windows) == (5_001_000, 2)


def test_border_work_comes_before_the_opening(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    clock.set_border_due(500)
    clock.publish(0, 700)
    assert openings(clock, 1000) is Waited.LATER  # the border at 0 is before 500
    assert clock.border_ns == 1000
    clock.publish(0, 1500)
    assert openings(clock, 1000) is Waited.BORDER_WORK
    assert clock.border_ns == 1000
    clock.set_border_due(None)
    assert openings(clock, 1000) is Waited.LATER
    assert clock.border_ns == 2000


# Coming and going ----------------------------------------------------------------------------------------------------


def test_the_opener_is_told_once_that_a_participant_has_ended(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    clock.publish(0, 5)
    clock.publish(1, NEVER_NS)
    assert clock.run_openings(1000) is Waited.ENDED and clock.border_ns == 0
    assert clock.has_ended(range(1, 2)) and not clock.has_ended(range(2))
    clock.note_ended()
    assert clock.run_openings(1000) is Waited.LATER and clock.border_ns == 1000
    clock.publish(0, 1500)
    clock.enter(range(1, 2), 1000)
    assert clock.run_openings(1000) is Waited.LATER and clock.border_ns == 2000
    assert clock.wait_window(1, 1000) is Waited.DONE


def test_nobody_waits_for_an_evicted_participant_or_its_server(tmp_path: Path) -> None:
    clock = page(3, tmp_path)
    entry = clock.want_entry(1, 1)
    clock.announce_arrivals(entry)
    assert not clock.announce(entry, 1, 70)
    clock.publish(0, 100)
    clock.post(2, 50)
    clock.set_interruptible(2, True)
    assert not clock.has_turn(0, 100)
    clock.evict(range(1, 3), 1)
    assert clock.has_turn(0, 100) and not clock.has_arrivals(entry) and clock._cells[WAITERS] == 0
    assert clock.has_ended(range(1, 3))
    clock.enter(range(1, 3), 200)
    assert clock.take_interrupt(2, 1000) == 0, "what was posted to the one before is forgotten"


# Arrivals and pace ---------------------------------------------------------------------------------------------------


def test_arrivals_are_granted_only_at_a_border_with_everybody_there(tmp_path: Path) -> None:
    clock = page(3, tmp_path)
    entry = clock.want_entry(1, 0)
    for who in range(3):
        clock.publish(who, 100)
    assert opened(clock) == 1000
    clock.announce_arrivals(entry)
    clock.publish(0, 1500)
    clock.publish(1, 1200)
    assert openings(clock, 1000) is Waited.LATER and clock.granted_ns(entry) is None, "one is on its way"
    clock.publish(2, 5000)
    for _ in range(2):
        assert openings(clock, 1000) is Waited.ARRIVALS
        assert clock.windows == 1, "no window opens before they were taken"
    assert clock.granted_ns(entry) is None, "not before the opener says so"
    clock.grant(1000)
    assert clock.granted_ns(entry) == 1000
    clock.post(2, 1000)
    clock.give_back(entry)
    assert clock.granted_ns(entry) is None
    assert opened(clock) == 2000


def test_border_work_comes_before_arrivals(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    clock.announce_arrivals(clock.want_entry(1, 0))
    clock.set_border_due(0)
    assert openings(clock, 1000) is Waited.BORDER_WORK
    clock.set_border_due(None)
    assert openings(clock, 1000) is Waited.ARRIVALS


def test_grant_is_for_those_that_asked_and_once(tmp_path: Path) -> None:
    """Two guests of a host: each has its own entry and keeps the time it was given."""
    clock = page(4, tmp_path)
    first, second = clock.want_entry(1, 0), clock.want_entry(1, 2)
    clock.announce_arrivals(first)
    clock.grant(1000)
    clock.announce_arrivals(second)
    assert (clock.granted_ns(first), clock.granted_ns(second)) == (1000, None)
    clock.grant(2000)
    assert (clock.granted_ns(first), clock.granted_ns(second)) == (1000, 2000)
    clock.give_back(first)
    for who in range(4):
        clock.publish(who, 3000)
    assert openings(clock, 1000) is Waited.ARRIVALS, "the second has not given it back"
    clock.give_back(second)
    assert opened(clock) == 4000


def test_when_all_wait_for_an_interrupt_the_opener_parks(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    idle(clock, 0, FOREVER_NS)
    clock.publish(1, NEVER_NS)
    assert openings(clock, 1000) is Waited.PARKED and clock.windows == 0
    clock.announce_arrivals(clock.want_entry(1, 0))
    assert openings(clock, 1000) is Waited.ARRIVALS, "which is how it goes on"
    clock.grant(7000)
    clock.post(0, 7000)
    clock.give_back(clock.want_entry(1, 0))
    assert opened(clock) == 8000 and clock.take_interrupt(0, 8000) == 7000
    clock.publish(0, NEVER_NS)
    assert openings(clock, 1000) is Waited.FINISHED


def test_no_window_that_starts_beyond_the_limit_opens(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    clock.publish(0, 5500)
    clock.set_limit(4999)
    assert openings(clock, 1000) is Waited.AHEAD and clock.border_ns == 0
    clock.set_limit(5000)
    assert opened(clock) == 6000


def test_the_opener_waits_for_arrivals_until_they_are_there(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    entry = clock.want_entry(1, 0)
    clock.announce_arrivals(entry)
    clock.wait_arrivals(True, 500_000_000)  # there are some: at once
    clock.give_back(entry)
    clock.wait_arrivals(False, 500_000_000)
    waiting = threading.Thread(target=lambda: clock.wait_arrivals(True, 999_000_000))
    waiting.start()
    clock.announce_arrivals(entry)
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()


def test_beats_are_counted(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    clock.beat()
    clock.beat()
    assert clock.beats == 2
