"""Where what is asked of a running guest waits for the clock, and the answer for whoever asked.

What changes the guest waits in the inbox until the opener grants the clock (``apf.clockpage``, Arrivals); then all of it
arrives together, at one time, and is written to the run's log of arrivals. A caller's deadline and cancellation count
until its arrival has been taken; an access that waits in the guest is taken back by another arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from apf import limits
from apf.serving import TurnServer
from guestsched.arrival_log import ArrivalLog
from guestsched.core.arrivals import (
    AccessCancelled,
    Answer,
    Arrival,
    ProcessEnded,
    Refusal,
    Refused,
    ShutdownArrived,
)
from guestsched.shell import GuestShell
from guestsched.spawn import SpawnWish

INBOX_MAX = 8192
"""Arrivals that wait for the clock; what comes then is refused."""

Code = grpc.StatusCode
_CODES = {
    Refusal.NOT_FOUND: Code.NOT_FOUND,
    Refusal.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    Refusal.RESOURCE_EXHAUSTED: Code.RESOURCE_EXHAUSTED,
    Refusal.FAILED_PRECONDITION: Code.FAILED_PRECONDITION,
    Refusal.CANCELLED: Code.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class CallError(Exception):
    """How a call ends that cannot be done."""

    code: grpc.StatusCode
    text: str

    @classmethod
    def of(cls, refused: Refused) -> CallError:
        """The guest has refused it."""
        return cls(_CODES[refused.why], refused.text)

    @classmethod
    def gone(cls) -> CallError:
        """The run is over."""
        return cls(Code.UNAVAILABLE, "the run is ending")


async def abort(context: Any, error: CallError) -> NoReturn:
    """End the call of ``context`` with ``error``."""
    await context.abort(error.code, limits.details(error.text))
    raise AssertionError("abort raises")


Settle = Callable[[Answer | CallError], None]
"""Takes the final answer to one arrival."""


@dataclass(slots=True)
class _Waiting:
    """An arrival on its way: into the guest (``taken`` False), or its answer back."""

    arrival: Arrival
    settle: Settle
    deadline_s: float | None = None
    taken: bool = False


class Inbox:
    """Between the calls of the API and the guest. ``wishes``: what processes are made of, by ticket, for the log."""

    def __init__(self, turns: TurnServer, log: ArrivalLog) -> None:
        self.wishes: dict[int, SpawnWish] = {}
        self._turns = turns
        self._log = log
        self._shell: GuestShell | None = None
        self._inbox: deque[_Waiting] = deque()
        self._asked = False
        self._tickets = 0
        self._pending: dict[int, _Waiting] = {}
        self._ended: dict[int, list[asyncio.Future[None]]] = {}
        self._closing = asyncio.Event()

    def serve(self, shell: GuestShell) -> None:
        """The guest is there."""
        self._shell = shell
        self._turns.take_arrivals(self._granted)

    @property
    def guest(self) -> GuestShell:
        """The guest, once it is there."""
        assert self._shell is not None
        return self._shell

    # Into the guest --------------------------------------------------------------------------------------------------

    def ticket(self) -> int:
        """A number for one arrival."""
        self._tickets += 1
        return self._tickets

    def submit(self, arrival: Arrival, settle: Settle, ticket: int, deadline_s: float | None = None) -> None:
        """Put an arrival into the inbox. Raises CallError if that is full or the run ends."""
        if self._closing.is_set():
            raise CallError.gone()
        if len(self._inbox) >= INBOX_MAX:
            raise CallError(Code.RESOURCE_EXHAUSTED, f"{len(self._inbox)} arrivals wait already")
        waiting = _Waiting(arrival, settle, deadline_s)
        if ticket:
            self._pending[ticket] = waiting
        self._inbox.append(waiting)
        if not self._asked:
            self._asked = True
            self._turns.ask_for_clock()

    def _granted(self, at_ns: int) -> None:
        """All vCPUs stand still at ``at_ns``: what is in the inbox arrives."""
        self._asked = False
        now_s = time.monotonic()
        arrivals = []
        while self._inbox:
            waiting = self._inbox.popleft()
            if waiting.deadline_s is not None and now_s >= waiting.deadline_s:
                self._settle(_ticket_of(waiting.arrival), CallError(Code.DEADLINE_EXCEEDED, "before it was taken"))
                continue
            waiting.taken = True
            arrivals.append(waiting.arrival)
        if arrivals:
            self._log.take(at_ns, arrivals, self.wishes)
            self.guest.arrive(tuple(arrivals), at_ns)

    def take_back(self, ticket: int, process: int) -> None:
        """The caller of an access has gone."""
        waiting = self._pending.pop(ticket, None)
        if waiting is None:
            return
        if not waiting.taken:
            self._inbox.remove(waiting)
        elif not self._closing.is_set() and len(self._inbox) < INBOX_MAX:
            self.submit(AccessCancelled(ticket, process), lambda _: None, 0)

    async def ask(self, context: Any, ticket: int, arrival: Arrival, process: int = 0) -> Any:
        """Let one arrival take effect and wait for its answer; aborts the call if it is refused."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def settle(answer: Answer | CallError) -> None:
            if not future.done():
                if isinstance(answer, CallError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

        remaining_s = context.time_remaining()
        try:
            self.submit(arrival, settle, ticket, None if remaining_s is None else time.monotonic() + remaining_s)
            answer = await future
        except CallError as error:
            await abort(context, error)
        except asyncio.CancelledError:
            self.take_back(ticket, process)
            raise
        if isinstance(answer, Refused):
            await abort(context, CallError.of(answer))
        return answer

    # And back --------------------------------------------------------------------------------------------------------

    def answered(self, answer: Answer) -> None:
        """The guest has answered an arrival."""
        if isinstance(answer, ProcessEnded):
            for future in self._ended.pop(answer.process, ()):
                if not future.done():
                    future.set_result(None)
            return
        self._settle(answer.ticket, answer)

    def _settle(self, ticket: int, answer: Answer | CallError) -> None:
        waiting = self._pending.pop(ticket, None)
        self.wishes.pop(ticket, None)
        if waiting is not None:
            waiting.settle(answer)

    async def end_of(self, process: int) -> None:
        """Wait until ``process`` (asid) has ended. Raises CallError if the run ends before."""
        if self._closing.is_set():
            raise CallError.gone()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._ended.setdefault(process, [])
        waiters.append(future)
        try:
            await future
        finally:
            if future.cancelled():  # the caller has gone; nobody else forgets it
                waiters.remove(future)

    # The end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """The run is over: whoever waits is told."""
        self._closing.set()
        for ticket in list(self._pending):
            self._settle(ticket, CallError.gone())
        for futures in self._ended.values():
            for future in futures:
                if not future.done():
                    future.set_exception(CallError.gone())
        self._ended.clear()

    @property
    def closing(self) -> bool:
        """Whether the run is over."""
        return self._closing.is_set()

    async def closed(self, deadline_s: float) -> bool:
        """Wait for the end of the run; False if it has not come ``deadline_s`` from now."""
        try:
            await asyncio.wait_for(self._closing.wait(), deadline_s)
        except TimeoutError:
            return False
        return True


def _ticket_of(arrival: Arrival) -> int:
    return 0 if isinstance(arrival, ShutdownArrived) else arrival.ticket
