"""A server of one method's streams without an event loop: the thread that polls gRPC's completion queue answers.

What ``apf.stream`` is for a client. On gRPC's asyncio stack a server spends 80 us of CPU time on a request and its
reply, most of it on threads, sockets and tasks that wake each other. Here it is 26 us: one thread polls, tells a handler
of what it has read, and sends the answer in one batch of operations with the order to receive what comes next.

It is for a listener whose peers may call this one method and nothing else; the rest is refused, as ``apf.guard`` does.
Handlers are called in the polling thread and must not wait. A ``Peer``'s methods are for any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc

from apf import limits
from apf.haltpoll import HaltPoll

log = logging.getLogger(__name__)
_NO_FLAGS = 0
_END_S = 5.0
_TELL_S = 0.25
_PAST_S = 1.0
_TIMEOUT = cygrpc.CompletionType.queue_timeout
_Send, _Receive = cygrpc.SendMessageOperation, cygrpc.ReceiveMessageOperation


class Handler(Protocol):
    """Who is told of one stream, in the polling thread."""

    def received(self, data: bytes | None) -> None:
        """A message; None: the peer says no more. The next one comes once this is answered."""

    def ended(self, code: grpc.StatusCode) -> None:
        """The stream is over: with this status, which the peer has been told if it was still there."""


class Peer:
    """The other side of one stream."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._code: grpc.StatusCode | None = None
        self._next = _Receive(_NO_FLAGS)
        self._close = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
        self._is_closed = self._is_told = False
        self._handler: Handler | None = None
        self._over: Callable[[Peer], None]

    def open(self, handler: Handler, over: Callable[[Peer], None]) -> None:
        """Let messages come to ``handler``; ``over`` is called at the end. By the server."""
        self._handler = handler
        self._over = over
        self._call.start_server_batch((self._close,), self._closed)
        begin = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)
        self._call.start_server_batch((begin, self._next), self._received)

    def answer(self, data: bytes) -> None:
        """Send a message, and let the next one come."""
        self._next = receive = _Receive(_NO_FLAGS)
        self._call.start_server_batch((_Send(data, _NO_FLAGS), receive), self._received)

    def end(self, code: grpc.StatusCode, text: str = "") -> None:
        """End the stream with a status; the first one stays."""
        if self._code is None:
            self._code = code
            self._call.start_server_batch((_status(code, text),), self._told)

    def _told(self, _: Any) -> None:
        self._is_told = True
        if self._is_closed:
            self._ended()

    def _closed(self, _: Any) -> None:
        self._is_closed = True
        if self._code is None or self._is_told:  # else its status is still on its way
            self._ended()

    def _ended(self) -> None:
        if self._handler is None:
            return
        handler, self._handler = self._handler, None
        self._over(self)
        code = self._code or grpc.StatusCode.OK
        if code is grpc.StatusCode.OK and self._close.cancelled():
            code = grpc.StatusCode.CANCELLED
        handler.ended(code)

    def _received(self, _: Any) -> None:
        if self._handler is not None:
            self._handler.received(self._next.message())


def _status(code: grpc.StatusCode, text: str) -> Any:
    return cygrpc.SendStatusFromServerOperation(None, code.value[0], limits.details(text).encode(), _NO_FLAGS)


def _nothing(event: Any) -> None:
    """What becomes of a status shows at the end of its stream."""


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """The method that a server has streams of: ``/package.Service/Method``."""

    name: str
    opened: Callable[[Peer], Handler]
    """Who handles a new stream."""
    failed: Callable[[Exception], None]
    """A handler has raised: a bug."""


class StreamServer:
    """Listens and polls. To be bound, started and stopped as a ``grpc.aio.Server``, on an event loop.

    ``refusal(method)``: what the caller of any other method is told; it is called in the polling thread. ``rpcs_max``:
    calls in flight.
    """

    def __init__(
        self,
        method: StreamMethod,
        refusal: Callable[[str], tuple[grpc.StatusCode, str]],
        rpcs_max: int,
        options: limits.Options,
    ) -> None:
        self._method = method
        self._refusal = refusal
        self._rpcs_max = rpcs_max
        self._peers: set[Peer] = set()
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(options, False)
        self._server.register_completion_queue(self._queue)
        self._halt_poll = HaltPoll()
        self._thread = threading.Thread(target=self._poll, name="streams", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._lock = threading.Lock()
        self._stops = self._is_gone = False  # guarded by the lock

    def add_insecure_port(self, address: str) -> int:
        """Listen there; returns the port, 0 if that is not possible."""
        return int(self._server.add_http2_port(address.encode()))

    async def start(self) -> None:
        """Take calls."""
        self._server.start()
        self._request_call()
        self._thread.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end those there are, after ``grace_s`` by force.

        Not at once, though: that closes connections, and a status that was sent just before may still be on its way out.
        """
        if not self._thread.is_alive():
            return
        with self._lock:
            if not self._stops:
                self._stops = True
                self._server.shutdown(self._queue, None)
        for wait_s in (max(grace_s, _TELL_S), _END_S):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), wait_s)
                return
            with self._lock:
                if not self._is_gone:
                    self._server.cancel_all_calls()

    def _request_call(self) -> None:
        with self._lock:
            if not self._stops:
                self._server.request_call(self._queue, self._queue, self._called)

    def _poll(self) -> None:
        """The thread. The queue has functions to call; None: the server is shut down, and no call is left."""
        while (event := self._next()).tag is not None:
            self._handle(event)
            del event  # it may hold a call, which ends when nobody does
        # How the last streams have ended may come behind that.
        until_s = time.time() + _END_S
        while self._peers and time.time() < until_s:
            event = self._queue.poll(deadline=until_s)
            if event.tag is not None:
                self._handle(event)
            del event
        with self._lock:
            self._is_gone = True
            self._server.destroy()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._ended.set)

    def _next(self) -> Any:
        """The next event; polls for a while before it sleeps."""
        poll, halt_poll = self._queue.poll, self._halt_poll
        event = poll(deadline=_PAST_S)
        if event.completion_type != _TIMEOUT:
            return event
        began_ns = now_ns = time.perf_counter_ns()
        while now_ns - began_ns < halt_poll.ns:
            os.sched_yield()  # KVM polls only where nobody else wants the core (kvm_vcpu_can_poll)
            event = poll(deadline=_PAST_S)
            now_ns = time.perf_counter_ns()
            if event.completion_type != _TIMEOUT:
                break
        else:
            event = poll()
            now_ns = time.perf_counter_ns()
        halt_poll.waited(now_ns - began_ns)
        return event

    def _handle(self, event: Any) -> None:
        try:
            event.tag(event)
        except Exception as error:
            log.exception("a stream's handler failed")
            self._method.failed(error)

    def _called(self, event: Any) -> None:
        if not event.success:  # there is no call: the server stops
            return
        self._request_call()
        name = event.call_details.method.decode(errors="replace")
        if name != self._method.name:
            self._refuse(event.call, *self._refusal(name))
        elif len(self._peers) >= self._rpcs_max:
            text = f"{self._rpcs_max} calls are in flight already"
            self._refuse(event.call, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        else:
            peer = Peer(event.call)
            self._peers.add(peer)
            peer.open(self._method.opened(peer), self._peers.discard)

    def _refuse(self, call: Any, code: grpc.StatusCode, text: str) -> None:
        begin = cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)
        close = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
        call.start_server_batch((begin, close, _status(code, text)), _nothing)
