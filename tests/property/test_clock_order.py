"""The clock page with real processes: requests are taken in (time, participant) order, whoever comes first."""

from __future__ import annotations

from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from clock_servers import DEADLINE_S, FORK, Request, Server, in_thread, openings, page, served, times, turn_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apf.clockcells import WAITERS, Waited
from apf.clockpage import ClockPage
from apf.messages import NEVER_NS


def participant(who: int, requests: list[Request], path: Path, pipe: Connection) -> None:
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


def expected(scripts: list[list[Request]]) -> list[tuple[int, int]]:
    """The order by definition: always the earliest of what each asks next."""
    order, at = [], [0] * len(scripts)
    left = [list(script) for script in scripts]
    while any(left):
        time_ns, who = min((at[i] + left[i][0][0], i) for i in range(len(scripts)) if left[i])
        at[who] = time_ns + left[who].pop(0)[1]
        order.append((time_ns, who))
    return order


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
        lives = [partial(participant, who, script) for who, script in enumerate(scripts)]
        server = served(Path(directory), lambda clock, pipes: Server(clock, window_ns, scripts, pipes), lives)
    assert server.taken == expected(scripts)
    assert server.clock.border_ns % window_ns == 0


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

    waiter = FORK.Process(target=wait_for_ever)
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
