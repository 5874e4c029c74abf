"""What lives on a clock page besides vCPUs: servers that wait for turns, and the opener."""

from __future__ import annotations

import multiprocessing
import os
import select
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from hypothesis import strategies as st

from apf.clockcells import Waited
from apf.clockpage import ClockPage

FORK = multiprocessing.get_context("fork")
DEADLINE_S = 60
Request = tuple[int, int]
"""(guest ns the participant runs before it asks, guest ns until it goes on after the reply)"""


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


AnyServer = TypeVar("AnyServer", bound=Server)


def served(
    directory: Path,
    serve: Callable[[ClockPage, list[Connection]], AnyServer],
    lives: Sequence[Callable[[Path, Connection], None]],
) -> AnyServer:
    """A server for processes that live on a clock page, each with a pipe to it, when all of them have ended."""
    path = directory / "clock"
    clock = ClockPage.create(path, len(lives))
    pipes = [FORK.Pipe() for _ in lives]
    processes = [
        FORK.Process(target=live, args=(path, theirs)) for live, (_, theirs) in zip(lives, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    server = serve(clock, [ours for ours, _ in pipes])
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
    return server


def openings(clock: ClockPage, window_ns: int) -> Waited:
    """What the opener has to do; that participants have ended it notes."""
    while (waited := clock.run_openings(window_ns)) is Waited.ENDED:
        clock.note_ended()
    return waited


def opened(clock: ClockPage, window_ns: int = 1000) -> int:
    """Border of the window that the opener opens now."""
    assert openings(clock, window_ns) is Waited.LATER
    return clock.border_ns


def page(participants: int, directory: Path) -> ClockPage:
    return ClockPage.create(directory / "clock", participants)


def idle(clock: ClockPage, who: int, until_ns: int) -> None:
    clock.set_interruptible(who, True)
    clock.publish(who, until_ns)


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


def times(most: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 3), st.integers(0, most))
