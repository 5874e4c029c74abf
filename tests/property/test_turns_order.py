"""A server with many vCPUs and one want entry: nobody wakes it for a time whose request is on its way to it."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from clock_servers import Request, Server, openings, served
from hypothesis import example, given, settings
from test_clock_order import expected, scripts_of

from apf import clockcells
from apf.clockcells import LINE, SLOTS, Waited
from apf.clockpage import ClockPage
from apf.messages import NEVER_NS
from apf.serving import TurnServer

_PATIENCE_S = 60
_WANT_FUTEX = 2


def participant(who: int, requests: list[Request], path: Path, pipe: Connection) -> None:
    """As a vCPU's worker: waits for a window only if it has to, and says nothing to hostd but its request."""
    clock = ClockPage.attach(path)
    hostd = clock.want_entry(clockcells.Server.HOSTD, 0)
    now_ns = border_ns = 0
    for number, (run_ns, _) in enumerate([*requests, (0, 0)]):
        now_ns += run_ns
        if now_ns >= border_ns:
            clock.publish(who, now_ns)
            while clock.wait_window(who, now_ns) is not Waited.DONE:
                if clock.aborted:
                    return
            border_ns = clock.border_ns
        if number < len(requests):  # else it ends, in the window it has come to
            clock.publish(who, now_ns, hostd)
            pipe.send(now_ns)
            now_ns = pipe.recv()
    clock.publish(who, NEVER_NS)
    pipe.send(None)


class _Turn:
    """A request that notes when it was taken."""

    dropped = False

    def __init__(self, server: OfferingServer, request: tuple[int, int], delay_ns: int, pipe: Connection) -> None:
        self._server, self._request, self._delay_ns, self._pipe = server, request, delay_ns, pipe

    def take(self) -> bool:
        time_ns, who = self._request
        self._server.taken.append(self._request)
        self._server.turns.settle(who, time_ns, time_ns + self._delay_ns)
        self._pipe.send(time_ns + self._delay_ns)
        return True


class OfferingServer(Server):
    """Offers each request to a ``TurnServer``, which is not on its event loop."""

    def __init__(
        self, clock: ClockPage, window_ns: int, scripts: list[list[Request]], pipes: list[Connection]
    ) -> None:
        super().__init__(clock, window_ns, scripts, pipes)
        self.turns = asyncio.run(self._made(len(scripts)))

    async def _made(self, participants: int) -> TurnServer:
        turns = TurnServer(clockcells.Server.HOSTD, "digest", _PATIENCE_S, "apf.v1.HostService/RunVcpu")
        turns.open(self.clock, {(0, who): who for who in range(participants)}, on_loop=False)
        return turns

    def _serve(self, who: int, script: list[Request], pipe: Connection) -> None:
        for _, delay_ns in script:
            time_ns = pipe.recv()
            self.turns.offer(time_ns, who, _Turn(self, (time_ns, who), delay_ns, pipe))
        assert pipe.recv() is None


class OpeningServer(OfferingServer):
    """Opens windows itself where it has answered last, and has work at every border, as has the opener."""

    def __init__(
        self, clock: ClockPage, window_ns: int, scripts: list[list[Request]], pipes: list[Connection]
    ) -> None:
        super().__init__(clock, window_ns, scripts, pipes)
        self.worked: list[int] = []
        self.here = 0
        self._works = threading.Lock()
        clock.set_border_due(0)
        self.turns.open_with(self._open_here)

    def _open_here(self) -> None:
        while self.clock.open_next(self._window_ns):
            self.here += 1
            self._work()

    def _open(self) -> None:
        while (waited := openings(self.clock, self._window_ns)) is not Waited.FINISHED:
            if waited is Waited.ABORTED:
                return
            if waited is Waited.BORDER_WORK:
                self._work()

    def _work(self) -> None:
        assert self._works.acquire(blocking=False), "two threads are at one border"
        border_ns = self.clock.border_ns
        os.sched_yield()  # the interpreter is anybody's
        assert self.clock.border_ns == border_ns
        self.worked.append(border_ns)
        self.clock.set_border_due(border_ns + 1)
        self._works.release()


@settings(max_examples=12, deadline=None)
@given(scripts=scripts_of)
@example(scripts=[[(0, 1)] * 20] * 4)  # nobody reaches a border but at the end
@example(scripts=[[(10, 5000)] * 20] * 4)  # the last answer of every window lets the next one open
@example(scripts=[[(990, 20)] * 20, [(5000, 10)] * 5])  # one runs across borders, the other waits
def test_who_answers_last_opens_the_next_window(scripts: list[list[Request]]) -> None:
    with TemporaryDirectory() as directory:
        lives = [partial(participant, who, script) for who, script in enumerate(scripts)]
        server = served(Path(directory), lambda clock, pipes: OpeningServer(clock, 1000, scripts, pipes), lives)
    assert server.taken == expected(scripts)
    assert server.worked == sorted(set(server.worked)) and len(server.worked) == server.clock.windows


@settings(max_examples=12, deadline=None)
@given(scripts=scripts_of)
@example(scripts=[[(0, 1)] * 20] * 4)  # all always at the same time
@example(scripts=[[(10, 50)] * 20, [(35, 50)] * 20])  # each lets the other pass
@example(scripts=[[(1, 1)] * 20, [(1, 900)] * 20, [(1, 100_000)] * 3])  # one asks between any two of another
def test_requests_that_tell_of_themselves_let_others_pass(scripts: list[list[Request]]) -> None:
    with TemporaryDirectory() as directory:
        lives = [partial(participant, who, script) for who, script in enumerate(scripts)]
        server = served(Path(directory), lambda clock, pipes: OfferingServer(clock, 1000, scripts, pipes), lives)
    assert server.taken == expected(scripts)


def test_the_server_that_knows_is_not_woken_and_others_are(tmp_path: Path) -> None:
    clock = ClockPage.create(tmp_path / "clock", 2)
    entries = [clock.want_entry(server, 0) for server in clockcells.Server]
    futexes = [SLOTS + LINE * (2 + entry) + _WANT_FUTEX for entry in entries]
    clock.publish(1, 50)
    for entry in entries:
        assert not clock.announce(entry, 1, 50)
    clock.publish(0, 60, entries[0])
    assert [clock._cells[futex] for futex in futexes] == [0, 1]
    clock.publish(0, 40)  # as if it were at its beginning again
    clock.settle(0, 40, 60, entries[1])
    assert [clock._cells[futex] for futex in futexes] == [1, 1]
