"""A vCPU's stream to a server, handled by the thread that polls it (``apf.streams``), in order (``apf.serving``).

The same life as ``TurnServer.serve_vcpu``, which is for streams on an event loop: attach, then requests, each with the
next number and no earlier time than the reply before it, and an end after the run's. What breaks that is answered with a
status and fails the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic

import grpc

from apf import limits
from apf.guard import Refused
from apf.messages import NEVER_NS
from apf.process import Failure
from apf.serving import RequestT, TurnServer
from apf.streams import Peer
from apf.wire import WireError

log = logging.getLogger(__name__)


class VcpuStream(Generic[RequestT]):
    """One stream: its handler, and the turn of the one request that it can have."""

    def __init__(
        self,
        turns: TurnServer,
        peer: Peer,
        parse: Callable[[bytes], RequestT],
        attached: Callable[[int, int, int], Awaitable[Any]],
        take: Callable[[int, int, RequestT], tuple[int, Any]],
    ) -> None:
        """``parse`` raises Refused; ``attached`` and ``take`` as ``serve_vcpu`` has them."""
        self._turns = turns
        self._peer = peer
        self._parse = parse
        self._on_attached = attached
        self._on_take = take
        self._vm = self._vcpu = self._participant = -1
        self._seq = self._at_ns = 0
        self._request: Any = None
        self._why: Failure | None = None  # what it did against the contract
        self._attaching: asyncio.Task[None] | None = None
        self._first: asyncio.TimerHandle | None = None
        self.dropped = False
        self._on_loop(self._expect_first)

    # In the thread that polls, or in the one that waits for turns ----------------------------------------------------

    def received(self, data: bytes | None) -> None:
        """A request, or the last of them is answered."""
        if data is None:
            self._peer.end(grpc.StatusCode.OK)
            return
        try:
            request = self._parse(data)
        except Refused as refused:
            self._break_off(refused.code, refused.text)
            return
        if self._participant < 0:
            self._on_loop(self._begin, request)
            return
        self._seq += 1
        time_ns = request.time_ns
        if request.seq != self._seq or not self._at_ns <= time_ns < NEVER_NS:
            allowed = f"expected {self._seq} and {self._at_ns} to {NEVER_NS - 1}"
            why = f"seq = {request.seq}, time_ns = {time_ns}: {allowed}"
            self._break_off(grpc.StatusCode.INVALID_ARGUMENT, why)
            return
        self._request = request
        self._turns.offer(time_ns, self._participant, self)

    def take(self) -> bool:
        """Answer the request."""
        request = self._request
        try:
            at_ns, response = self._on_take(self._vm, self._vcpu, request)
        except WireError as error:
            self._break_off(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return True
        except Exception as error:
            self._fail(error)
            raise
        self._at_ns = at_ns
        # The slot first: whoever waits for it goes on at once, while this vCPU needs its reply only when the window that
        # it goes on in is open.
        self._turns.settle(self._participant, request.time_ns, at_ns)
        self._peer.answer(response.SerializeToString())
        return True

    def ended(self, code: grpc.StatusCode) -> None:
        """The stream is over."""
        self.dropped = True
        self._on_loop(self._end, code)

    def _break_off(self, code: grpc.StatusCode, why: str) -> None:
        """It has broken the contract; once it has been told, its run hears of it."""
        text = limits.details(why)
        log.info("refused: %s", text)
        if self._participant >= 0:
            self._why = Failure(f"vCPU {self._vcpu} of VM {self._vm}: {text}")
        self._peer.end(code, text)

    def _fail(self, error: Exception) -> None:
        self._turns.failed(error)
        self._peer.end(grpc.StatusCode.UNKNOWN, "an error of this server")

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed: the process ends
            self._turns.loop.call_soon_threadsafe(function, *args)

    # On the loop -----------------------------------------------------------------------------------------------------

    def _expect_first(self) -> None:
        self._first = self._turns.loop.call_later(limits.FIRST_MESSAGE_S, self._too_late)

    def _too_late(self) -> None:
        self.dropped = True  # what comes while it is being told attaches nobody
        self._break_off(grpc.StatusCode.DEADLINE_EXCEEDED, f"no first message within {limits.FIRST_MESSAGE_S:g} s")

    def _begin(self, request: RequestT) -> None:
        if self._first is not None:
            self._first.cancel()
        if not self.dropped:
            self._attaching = self._turns.loop.create_task(self._attach(request))

    async def _attach(self, request: RequestT) -> None:
        try:
            self._vm, self._vcpu, participant = self._turns.attach(request)
        except Refused as refused:
            self._break_off(refused.code, refused.text)
            return
        try:
            response = await self._on_attached(self._vm, self._vcpu, request.seq)
        except Exception as error:
            self._fail(error)
            raise
        self._participant = participant
        self._peer.answer(response.SerializeToString())

    def _end(self, code: grpc.StatusCode) -> None:
        if self._first is not None:
            self._first.cancel()
        if self._attaching is not None:
            self._attaching.cancel()
        self._turns.stream_ended(code.name)
        if self._vm >= 0:
            if self._why is not None:
                self._turns.lose(self._vm, self._why)
            self._turns.detach(self._vm, self._vcpu)
