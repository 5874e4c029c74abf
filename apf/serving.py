"""How a server takes requests of vCPUs in the order of virtual time, and nothing else: shared by hostd and guestsched.

One stream a vCPU, one thread a stream (gRPC's sync stack). The thread that holds a request waits for its turn on the
clock page; the slots alone decide, so no queue is needed and exactly one thread at a time finds it has the turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NoReturn, Protocol, TypeVar

import grpc

from apf.clockpage import ClockPage, Waited
from apf.messages import NEVER_NS
from apf.process import Failure, PeerLost
from apf.v1 import types_pb2
from apf.wire import WireError

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 64 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
)


class Request(Protocol):
    """What the two request messages have in common."""

    @property
    def time_ns(self) -> int:
        """The vCPU's time."""

    @property
    def seq(self) -> int:
        """Number of the request."""

    @property
    def attach(self) -> types_pb2.Attach:
        """Who asks."""


RequestT = TypeVar("RequestT", bound=Request)
ResponseT = TypeVar("ResponseT")


class TurnServer:
    """Attachment, order and the end of the run, for one server process."""

    def __init__(self, server: int, scenario_digest: str, patience_s: int) -> None:
        self._server = server
        self._scenario_digest = scenario_digest
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._participants: dict[tuple[int, int], int] = {}  # (vm, vcpu) -> participant
        self._clock: ClockPage | None = None
        self._attached: set[tuple[int, int]] = set()
        self.messages: Counter[str] = Counter()  # "in.<kind>" and "out.<kind>", counted where they pass
        self.all_attached = threading.Event()
        self.over = threading.Event()  # finished or failed: see ``raise_failure``
        self._failure: Failure | None = None

    def open(self, clock: ClockPage, participants: dict[tuple[int, int], int]) -> None:
        """Let vCPUs attach: ``participants`` maps (vm, vcpu) to its slot."""
        self._clock = clock
        self._participants = participants

    def fail(self, failure: Failure) -> None:
        """End the run for everybody; the first reason stays."""
        if self._failure is None and not self.over.is_set():
            self._failure = failure
        self.over.set()
        if self._clock is not None:
            self._clock.abort()

    def raise_failure(self) -> None:
        """Raise why the run failed, if it did."""
        if self._failure is not None:
            raise self._failure

    def serve_vcpu(
        self,
        requests: Iterator[RequestT],
        context: grpc.ServicerContext,
        attached: Callable[[int], ResponseT],
        take: Callable[[int, int, RequestT], tuple[int, ResponseT]],
    ) -> Iterator[ResponseT]:
        """The life of one stream. ``take(vm, vcpu, request)`` is called in order; returns (at_ns, response)."""
        try:
            first = next(requests)
        except (StopIteration, grpc.RpcError):
            return
        vm, vcpu, participant = self._attach(first, context)
        clock = self._clock
        assert clock is not None
        try:
            yield attached(first.seq)
            seq, at_ns = first.seq, 0
            for request in requests:
                seq += 1
                if request.seq != seq or request.time_ns < at_ns:
                    why = f"seq = {request.seq}, time_ns = {request.time_ns}: expected {seq} and at least {at_ns}"
                    self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, why)
                self._wait_turn(clock, participant, request.time_ns, context)
                try:
                    with self._lock:
                        at_ns, response = take(vm, vcpu, request)
                        clock.publish(participant, at_ns)
                except WireError as error:
                    self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
                except Exception as error:
                    self.fail(Failure(f"{type(error).__name__}: {error}"))
                    raise
                yield response
        finally:
            if clock.slot_ns(participant) < NEVER_NS and not self.over.is_set():
                self.fail(PeerLost(f"lost vCPU {vcpu} of VM {vm}: its stream ended before its run"))

    def _attach(self, request: RequestT, context: grpc.ServicerContext) -> tuple[int, int, int]:
        attach = request.attach
        key = (attach.vm, attach.vcpu)
        if attach.scenario_digest != self._scenario_digest:
            why = f"attach.scenario_digest = {attach.scenario_digest!r}: this run has {self._scenario_digest!r}"
            self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, why)
        with self._lock:
            if key not in self._participants:
                why = f"attach: no vCPU {attach.vcpu} of VM {attach.vm} here"
                self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, why)
            if key in self._attached:
                why = f"attach: vCPU {attach.vcpu} of VM {attach.vm} is attached already"
                self._refuse(context, grpc.StatusCode.ALREADY_EXISTS, why)
            self._attached.add(key)
            if len(self._attached) == len(self._participants):
                self.all_attached.set()
        return attach.vm, attach.vcpu, self._participants[key]

    def _wait_turn(self, clock: ClockPage, participant: int, time_ns: int, context: grpc.ServicerContext) -> None:
        progress_ns, since_s = -1, time.monotonic()
        while (waited := clock.wait_turn(self._server, participant, time_ns)) is not Waited.DONE:
            if waited is Waited.ABORTED or self.over.is_set() or not context.is_active():
                context.abort(grpc.StatusCode.ABORTED, "the run has ended")
            if clock.virtual_ns() != progress_ns:
                progress_ns, since_s = clock.virtual_ns(), time.monotonic()
            elif time.monotonic() - since_s > self._patience_s:
                why = f"no progress for {self._patience_s} s at {progress_ns} ns; {slowest(clock)}"
                self.fail(Failure(why))

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, why: str) -> NoReturn:
        log.warning("refused: %s", why)
        context.abort(code, why)
        raise AssertionError("abort raises")

    def server(self, streams: int) -> grpc.Server:
        """A gRPC server with a thread for each stream, and some to refuse others with."""
        pool = futures.ThreadPoolExecutor(max_workers=streams + 4, thread_name_prefix="stream")
        return grpc.server(pool, options=_OPTIONS, maximum_concurrent_rpcs=streams + 4)

    def listen(self, server: grpc.Server, addresses: tuple[str, ...]) -> None:
        """Bind ``server`` to gRPC addresses: ``unix:PATH``, or ``HOST:PORT`` of the loopback or a private network."""
        for address in addresses:
            try:
                bound = server.add_insecure_port(address)
            except RuntimeError as error:
                raise Failure(f"cannot listen at {address}: {error}") from error
            if not bound:
                raise Failure(f"cannot listen at {address}")

    def wait_over(self, poll: Callable[[], None]) -> None:
        """Block until the run is over for this server; ``poll`` is called now and then and may raise."""
        while not self.over.wait(0.2):
            poll()


def slowest(clock: ClockPage) -> str:
    """Which participant everybody waits for."""
    slots = [(clock.slot_ns(participant), participant) for participant in range(clock.participants)]
    time_ns, participant = min(slots)
    return f"all wait for participant {participant} at {time_ns} ns"
