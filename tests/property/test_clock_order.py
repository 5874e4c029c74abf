"""The clock page with real processes: requests are taken in (time, participant) order, whoever comes first."""

from __future__ import annotations

import multiprocessing
import os
import select
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from apf.clockpage import _WAITERS, ClockPage, Waited, next_border_ns
from apf.messages import NEVER_NS

_fork = multiprocessing.get_context("fork")
DEADLINE_S = 60
Request = tuple[int, int]
"""(guest ns the participant runs before it asks, guest ns until it goes on after the reply)"""


def participant(path: Path, who: int, requests: list[Request], pipe: Connection) -> None:
    """Runs, publishes, asks and goes on at the time it is told, as a vCPU does; then leaves."""
    clock = ClockPage.attach(path)
    now_ns = 0
    for run_ns, _ in requests:
        now_ns += run_ns
        clock.publish(who, now_ns)
        while clock.wait_window(who, now_ns) is not Waited.DONE:
            if clock.aborted:
                return
        pipe.send(now_ns)
        now_ns = pipe.recv()
    clock.publish(who, NEVER_NS)
    pipe.send(None)


class Turns:
    """Waits for turns of one participant, by a want entry and an eventfd of its own."""

    def __init__(self, clock: ClockPage, server: int, who: int) -> None:
        self._clock, self._who = clock, who
        self._entry = clock.want_entry(server, who)
        self._poke = os.eventfd(0, os.EFD_NONBLOCK)
        self._closed = False
        self._bridge = threading.Thread(target=self._run)
        self._bridge.start()

    def _run(self) -> None:
        seen = 0
        while not self._closed and not self._clock.aborted:
            seen = self._clock.wait_passed(self._entry, seen, self._poke)

    def wait(self, time_ns: int) -> bool:
        """Wait for the turn of the request of ``time_ns``; False if the run is aborted."""
        if self._clock.has_turn(self._who, time_ns):
            return True
        try:
            while not self._clock.announce(self._entry, self._who, time_ns):
                if self._clock.aborted:
                    return False
                if select.select([self._poke], [], [], 0.2)[0]:
                    os.eventfd_read(self._poke)
            return True
        finally:
            self._clock.withdraw(self._entry)

    def close(self) -> None:
        self._closed = True
        self._bridge.join()
        os.close(self._poke)


class Server:
    """A thread for each participant, as the servers have, and the opener."""

    def __init__(
        self, clock: ClockPage, window_ns: int, scripts: list[list[Request]], pipes: list[Connection]
    ) -> None:
        self.clock = clock
        self.taken: list[tuple[int, int]] = []
        self.borders: list[int] = []
        self._lock = threading.Lock()
        self._window_ns = window_ns
        self._threads = [
            threading.Thread(target=self._serve, args=(who, scripts[who], pipe)) for who, pipe in enumerate(pipes)
        ]
        self._threads.append(threading.Thread(target=self._open))

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        late = [thread for thread in self._threads if thread.is_alive()]
        if late:
            self.clock.abort()
        assert not late

    def _serve(self, who: int, script: list[Request], pipe: Connection) -> None:
        turns = Turns(self.clock, 0, who)
        try:
            for _, delay_ns in script:
                time_ns = pipe.recv()
                if not turns.wait(time_ns):
                    return
                with self._lock:
                    self.taken.append((time_ns, who))
                    assert time_ns < self.clock.border_ns
                # The reply may overtake the slot: what the participant stores after it must not be overwritten.
                pipe.send(time_ns + delay_ns)
                self.clock.settle(who, time_ns, time_ns + delay_ns)
            assert pipe.recv() is None
        finally:
            turns.close()

    def _open(self) -> None:
        while (waited := self.clock.run_openings(self._window_ns)) is not Waited.FINISHED:
            if waited is Waited.ABORTED:
                return
            self.borders.append(self.clock.border_ns)


def expected(scripts: list[list[Request]]) -> list[tuple[int, int]]:
    """The order by definition: always the earliest of what each asks next."""
    order, at = [], [0] * len(scripts)
    left = [list(script) for script in scripts]
    while any(left):
        time_ns, who = min((at[i] + left[i][0][0], i) for i in range(len(scripts)) if left[i])
        at[who] = time_ns + left[who].pop(0)[1]
        order.append((time_ns, who))
    return order


def times(most: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 3), st.integers(0, most))


scripts_of = st.lists(
    st.lists(st.tuples(times(30_000), times(100_000).map(lambda ns: ns + 1)), max_size=25), min_size=1, max_size=5
)


@settings(max_examples=12, deadline=None)
@given(scripts=scripts_of, window_ns=st.sampled_from([1000, 20_000, 1_000_000]))
@example(scripts=[[(0, 1)] * 20] * 4, window_ns=1000)  # all always at the same time
@example(scripts=[[(5, 10_000_000)], [(7, 1)] * 20], window_ns=1000)  # one far ahead
@example(scripts=[[], [(1, 1)]], window_ns=1000)  # one leaves at once
def test_requests_are_taken_in_order(scripts: list[list[Request]], window_ns: int) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "clock"
        clock = ClockPage.create(path, len(scripts))
        pipes = [_fork.Pipe() for _ in scripts]
        processes = [
            _fork.Process(target=participant, args=(path, who, script, pipes[who][1]))
            for who, script in enumerate(scripts)
        ]
        for process in processes:
            process.start()
        server = Server(clock, window_ns, scripts, [ours for ours, _ in pipes])
        try:
            server.run()
            for process in processes:
                process.join(DEADLINE_S)
                assert process.exitcode == 0
        finally:
            clock.abort()
            for process in processes:
                process.kill()
                process.join()
            for ours, theirs in pipes:
                ours.close()
                theirs.close()
        assert server.taken == expected(scripts)
        assert clock.border_ns % window_ns == 0


# Alone -------------------------------------------------------------------------------------------------------------


def page(participants: int, directory: Path) -> ClockPage:
    return ClockPage.create(directory / "clock", participants)


def turn_of(clock: ClockPage, who: int, time_ns: int) -> Waited:
    """Wait for one turn at server 0."""
    turns = Turns(clock, 0, who)
    try:
        return Waited.DONE if turns.wait(time_ns) else Waited.ABORTED
    finally:
        turns.close()


def in_thread(wait: Callable[[], Waited]) -> tuple[threading.Thread, list[Waited]]:
    """``wait`` in a thread, again and again while it says LATER."""
    said: list[Waited] = []

    def run() -> None:
        while (waited := wait()) is Waited.LATER:
            pass
        said.append(waited)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, said


def test_abort_ends_every_wait(tmp_path: Path) -> None:
    clock = page(3, tmp_path)
    clock.publish(0, 10)
    waits = [
        in_thread(lambda: turn_of(clock, 0, 10)),
        in_thread(lambda: clock.wait_window(0, 10_000_000)),
        in_thread(lambda: clock.run_openings(1000)),
    ]
    clock.publish(1, 5)
    clock.abort()
    for thread, said in waits:
        thread.join(DEADLINE_S)
        assert said == [Waited.ABORTED]
    assert clock.aborted


def test_a_waiter_that_died_holds_up_nobody(tmp_path: Path) -> None:
    """Its want entry stays announced; waking it is a system call for nothing."""
    clock = page(2, tmp_path)
    clock.publish(0, 100)

    def wait_for_ever() -> None:
        turn_of(ClockPage.attach(tmp_path / "clock"), 0, 100)

    waiter = _fork.Process(target=wait_for_ever)
    waiter.start()
    while clock._cells[_WAITERS] == 0:  # it has announced itself
        waiter.join(0.01)
        assert waiter.is_alive()
    waiter.kill()
    waiter.join()
    clock.publish(1, 200)
    assert turn_of(clock, 0, 100) is Waited.DONE
    thread, said = in_thread(lambda: clock.run_openings(1000))
    clock.publish(0, NEVER_NS)
    clock.publish(1, NEVER_NS)
    thread.join(DEADLINE_S)
    assert said == [Waited.FINISHED]


@given(earliest=st.integers(0, 10**15), window_ns=st.integers(1, 10**8))
def test_the_window_that_holds_a_time(earliest: int, window_ns: int) -> None:
    border_ns = next_border_ns(earliest, window_ns)
    assert border_ns % window_ns == 0
    assert border_ns - window_ns <= earliest < border_ns


def test_openings_jump_over_empty_windows(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    clock.publish(0, 123_456)
    clock.publish(1, 999_999_999)
    assert clock.run_openings(1000) is Waited.LATER
    assert (clock.border_ns, clock.windows) == (124_000, 1)
    assert clock.wait_window(0, 123_456) is Waited.DONE
    clock.publish(0, 123_999)  # not yet at the border
    assert clock.run_openings(1000) is Waited.LATER
    assert clock.windows == 1
    clock.publish(0, 5_000_000)
    assert clock.run_openings(1000) is Waited.LATER
    assert (clock.border_ns, clock.windows) == (5_001_000, 2)


def test_border_work_comes_before_the_opening(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    clock.set_border_due(500)
    clock.publish(0, 700)
    assert clock.run_openings(1000) is Waited.LATER  # the border at 0 is before 500
    assert clock.border_ns == 1000
    clock.publish(0, 1500)
    assert clock.run_openings(1000) is Waited.BORDER_WORK
    assert clock.border_ns == 1000
    clock.set_border_due(None)
    assert clock.run_openings(1000) is Waited.LATER
    assert clock.border_ns == 2000


def test_settle_replaces_the_request_it_answered_only(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    clock.publish(0, 100)
    clock.settle(0, 100, 300)
    assert clock.slot_ns(0) == 300
    clock.publish(0, 400)  # the vCPU has gone on: its next request
    clock.settle(0, 300, 350)
    assert clock.slot_ns(0) == 400


def test_ties_go_to_the_lower_participant(tmp_path: Path) -> None:
    clock = page(3, tmp_path)
    for who in range(3):
        clock.publish(who, 50)
    assert clock.has_turn(0, 50) and not clock.has_turn(1, 50)
    clock.publish(0, 51)
    assert clock.has_turn(1, 50) and not clock.has_turn(2, 50)
    assert clock.virtual_ns() == 50
