"""Interrupts on the clock page: posts end waits, in the order of virtual time, and hold others back until they have."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from clock_servers import DEADLINE_S, Request, Server, Turns, idle, in_thread, opened, page, served, times
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apf.clockcells import Waited
from apf.clockpage import ClockPage, next_border_ns
from apf.messages import NEVER_NS

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


def vcpu(who: int, acts: list[Act], path: Path, pipe: Connection) -> None:
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
        lives = [partial(vcpu, who, acts) for who, acts in enumerate(worlds)]
        server = served(Path(directory), lambda clock, pipes: PostingServer(clock, window_ns, worlds, pipes), lives)
    assert server.told == by_definition(worlds, window_ns)


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
