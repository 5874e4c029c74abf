"""The clock page with real processes: requests are taken in (time, participant) order, whoever comes first."""

from __future__ import annotations

import multiprocessing
import os
import select
import threading
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from apf.clockcells import WAITERS, Waited
from apf.clockpage import ClockPage, next_border_ns
from apf.messages import FOREVER_NS, NEVER_NS

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
        while (waited := openings(self.clock, self._window_ns)) is not Waited.FINISHED:
            if waited is Waited.ABORTED:
                return
            self.borders.append(self.clock.border_ns)


def openings(clock: ClockPage, window_ns: int) -> Waited:
    """What the opener has to do; that participants have ended it notes."""
    while (waited := clock.run_openings(window_ns)) is Waited.ENDED:
        clock.note_ended()
    return waited


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
        in_thread(lambda: openings(clock, 1000)),
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
    while clock._cells[WAITERS] == 0:  # it has announced itself
        waiter.join(0.01)
        assert waiter.is_alive()
    waiter.kill()
    waiter.join()
    clock.publish(1, 200)
    assert turn_of(clock, 0, 100) is Waited.DONE
    thread, said = in_thread(lambda: openings(clock, 1000))
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


# Interrupts ----------------------------------------------------------------------------------------------------------

Act = tuple[int, int, int, int]
"""(ns it idles for unless interrupted, ns it runs before it asks, ns until it goes on, whom the server posts to)"""
NOBODY = 99
Told = tuple[int, int, int]
"""A request taken: its time, whose, and the last post its vCPU had taken by then (0: none)."""


def life(acts: list[Act]) -> Generator[tuple[str, int, bool], tuple[int, int], None]:
    """One vCPU as ``vcpud.machine`` has it: yields what it needs, gets (border, post) of a window or (time, 0)."""
    now_ns = border_ns = 0
    for idle_ns, run_ns, _, _ in acts:
        until_ns = now_ns + idle_ns
        if until_ns >= border_ns:
            border_ns, post_ns = yield "window", until_ns, True
            until_ns = max(now_ns, post_ns) if post_ns else until_ns
        now_ns = until_ns + run_ns
        if now_ns >= border_ns:
            border_ns, _ = yield "window", now_ns, False
        now_ns, _ = yield "ask", now_ns, False
    yield "over", now_ns, False


def vcpu(path: Path, who: int, acts: list[Act], pipe: Connection) -> None:
    """Lives on the clock page."""
    clock = ClockPage.attach(path)
    living = life(acts)
    need = next(living)
    taken = 0
    while True:
        kind, time_ns, interruptible = need
        if kind == "over":
            clock.publish(who, NEVER_NS)
            pipe.send(None)
            return
        if kind == "window" and interruptible:
            clock.set_interruptible(who, True)
        clock.publish(who, time_ns)
        if kind == "ask":
            pipe.send((time_ns, taken))
            need = living.send((pipe.recv(), 0))
            continue
        while clock.wait_window(who, time_ns) is not Waited.DONE:
            if clock.aborted:
                return
        border_ns = clock.border_ns
        post_ns = clock.take_interrupt(who, border_ns)
        assert clock.take_interrupt(who, border_ns) == 0, "taken once"
        taken = post_ns or taken
        need = living.send((border_ns, post_ns))


def by_definition(worlds: list[list[Act]], window_ns: int) -> list[Told]:
    """As the twin does it: a window after the other, in it the earliest request first."""
    lives = [life(acts) for acts in worlds]
    needs = [next(living) for living in lives]
    posts: list[list[int]] = [[] for _ in worlds]
    taken = [0] * len(worlds)
    done = [0] * len(worlds)
    told: list[Told] = []

    def bound(who: int) -> int:
        kind, time_ns, interruptible = needs[who]
        if kind == "over":
            return NEVER_NS
        return min([time_ns, *posts[who]]) if kind == "window" and interruptible else time_ns

    while any(kind != "over" for kind, *_ in needs):
        border_ns = next_border_ns(min(bound(who) for who in range(len(lives))), window_ns)
        for who, living in enumerate(lives):
            if bound(who) < border_ns:
                due = [post for post in posts[who] if post < border_ns]
                posts[who] = [post for post in posts[who] if post >= border_ns]
                taken[who] = max([taken[who], *due])
                needs[who] = living.send((border_ns, max([0, *due])))
        while asking := [(time_ns, who) for who, (kind, time_ns, _) in enumerate(needs) if kind == "ask"]:
            time_ns, who = min(asking)
            _, _, delay_ns, target = worlds[who][done[who]]
            done[who] += 1
            told.append((time_ns, who, taken[who]))
            if target < len(lives) and border_ns not in posts[target]:
                posts[target].append(border_ns)
            needs[who] = lives[who].send((time_ns + delay_ns, 0))
            kind, at_ns, _ = needs[who]
            if kind == "ask" and at_ns >= border_ns:
                raise AssertionError("a request beyond the border")
    return told


class PostingServer(Server):
    """Posts before it answers."""

    def __init__(self, clock: ClockPage, window_ns: int, worlds: list[list[Act]], pipes: list[Connection]) -> None:
        super().__init__(clock, window_ns, [[(0, 0)] * len(acts) for acts in worlds], pipes)
        self.told: list[Told] = []
        self._worlds = worlds

    def _serve(self, who: int, script: list[Request], pipe: Connection) -> None:
        turns = Turns(self.clock, 0, who)
        try:
            for _, _, delay_ns, target in self._worlds[who]:
                time_ns, taken = pipe.recv()
                if not turns.wait(time_ns):
                    return
                with self._lock:
                    self.told.append((time_ns, who, taken))
                    assert time_ns < self.clock.border_ns
                    if target < len(self._worlds):
                        self.clock.post(target, self.clock.border_ns)
                pipe.send(time_ns + delay_ns)
                self.clock.settle(who, time_ns, time_ns + delay_ns)
            assert pipe.recv() is None
        finally:
            turns.close()


acts_of = st.tuples(
    st.one_of(st.integers(0, 3), st.integers(0, 200_000), st.just(50_000_000)),
    times(30_000),
    times(60_000).map(lambda ns: ns + 1),
    st.one_of(st.integers(0, 3), st.just(NOBODY)),
)


@settings(max_examples=25, deadline=None)
@given(
    worlds=st.lists(st.lists(acts_of, max_size=15), min_size=1, max_size=4),
    window_ns=st.sampled_from([1000, 20_000, 1_000_000]),
)
@example(worlds=[[(0, 10, 1, 1)] * 10, [(50_000_000, 5, 1, NOBODY)] * 5], window_ns=1000)  # one wakes the other
@example(worlds=[[(50_000_000, 0, 1, 1)] * 8, [(50_000_000, 0, 1, 0)] * 8], window_ns=1000)  # they wake each other
@example(worlds=[[(50_000_000, 0, 1, 0)] * 3], window_ns=1000)  # one posts to itself
def test_posts_end_waits_in_the_order_of_virtual_time(worlds: list[list[Act]], window_ns: int) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "clock"
        clock = ClockPage.create(path, len(worlds))
        pipes = [_fork.Pipe() for _ in worlds]
        processes = [
            _fork.Process(target=vcpu, args=(path, who, acts, pipes[who][1])) for who, acts in enumerate(worlds)
        ]
        for process in processes:
            process.start()
        server = PostingServer(clock, window_ns, worlds, [ours for ours, _ in pipes])
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
        assert server.told == by_definition(worlds, window_ns)


def opened(clock: ClockPage, window_ns: int = 1000) -> int:
    """Border of the window that the opener opens now."""
    assert openings(clock, window_ns) is Waited.LATER
    return clock.border_ns


def idle(clock: ClockPage, who: int, until_ns: int) -> None:
    clock.set_interruptible(who, True)
    clock.publish(who, until_ns)


def test_a_jump_never_skips_a_post(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    idle(clock, 0, 999_999)
    clock.publish(1, 100)
    assert opened(clock) == 1000
    clock.post(0, 1000)
    clock.publish(1, 500_000)
    assert clock.earliest_ns() == 1000 and opened(clock) == 2000, "the window right behind the post"
    assert clock.wait_window(0, 999_999) is Waited.DONE
    assert clock.take_interrupt(0, 2000) == 1000
    assert clock.slot_ns(0) == 1000, "from here on it holds the others back as the post has"


def test_a_post_holds_back_the_turns_of_later_requests(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    idle(clock, 0, 999_999)
    clock.publish(1, 1500)
    assert clock.has_turn(1, 1500)
    clock.post(0, 1000)
    assert not clock.has_turn(1, 1500) and not clock.has_turn(1, 1000), "a tie goes to the lower one"
    assert clock.has_turn(1, 999)


def test_who_cannot_be_interrupted_takes_the_post_when_it_goes_on(tmp_path: Path) -> None:
    clock = page(2, tmp_path)
    clock.publish(0, 50_500)  # a stall
    clock.publish(1, NEVER_NS)
    clock.post(0, 1000)
    assert clock.earliest_ns() == 50_500 and opened(clock) == 51_000
    assert clock.take_interrupt(0, 51_000) == 1000
    assert clock.slot_ns(0) == 50_500, "it goes on when it does"


def test_a_post_of_the_open_window_waits_for_the_next(tmp_path: Path) -> None:
    """That of the window before is not lost to it, nor are older ones ever told again."""
    clock = page(2, tmp_path)
    clock.publish(0, 50_500)
    clock.publish(1, 50_000)
    assert opened(clock) == 51_000
    for at_ns in (30_000, 40_000, 50_000, 51_000, 51_000):
        clock.post(0, at_ns)
    assert clock.take_interrupt(0, 51_000) == 50_000
    assert clock.take_interrupt(0, 51_000) == 0
    assert clock.take_interrupt(0, 52_000) == 51_000
    assert clock.take_interrupt(0, 99_000) == 0


def test_of_two_posts_the_older_ends_the_wait(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    idle(clock, 0, 999_999)
    clock.post(0, 1000)
    clock.post(0, 2000)
    assert clock.earliest_ns() == 1000
    assert clock.take_interrupt(0, 2000) == 1000
    idle(clock, 0, 999_999)
    assert clock.earliest_ns() == 2000, "the newer is still to come"
    assert clock.take_interrupt(0, 3000) == 2000


def test_a_post_behind_the_end_of_a_wait_changes_nothing_of_it(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    idle(clock, 0, 700)
    clock.post(0, 1000)
    assert clock.earliest_ns() == 700 and opened(clock) == 1000
    assert clock.take_interrupt(0, 1000) == 0 and clock.slot_ns(0) == 700


def test_who_has_been_woken_is_not_interruptible_any_more(tmp_path: Path) -> None:
    clock = page(1, tmp_path)
    idle(clock, 0, 999_999)
    assert clock.take_interrupt(0, 1000) == 0
    clock.post(0, 1000)
    assert clock.earliest_ns() == 999_999


def test_posts_wake_a_sleeping_vcpu(tmp_path: Path) -> None:
    """One that waits in its futex, through the opener."""
    clock = page(2, tmp_path)
    clock.publish(1, 10)
    idle(clock, 0, 10_000_000)
    thread, said = in_thread(lambda: clock.wait_window(0, 10_000_000))
    opened(clock)
    clock.post(0, clock.border_ns)
    clock.publish(1, NEVER_NS)
    opened(clock)
    thread.join(DEADLINE_S)
    assert said == [Waited.DONE] and clock.border_ns == 2000


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
