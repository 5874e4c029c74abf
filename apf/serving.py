"""How a server takes requests of vCPUs in the order of virtual time; shared by hostd and guestsched.

One stream a vCPU. A request that does not have its turn yet waits in a heap; the earliest of them stands on the clock
page. Whoever stores a slot that lets it pass wakes a thread that waits natively. The slots alone decide: at most one
request at a time finds that it has the turn.

Streams are either all on one event loop (gRPC's asyncio stack, ``serve_vcpu``), which that thread pokes; or all are
handled by the thread that polls them (``apf.vcpu_stream``), and then that thread, or the one that waits for turns, takes
the request. A lock is between the two. What else there is to do for a stream, its beginning and its end, is always
the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NoReturn, Protocol, TypeVar

import grpc

from apf import limits
from apf.calls import CallCounter
from apf.clockcells import Server
from apf.clockpage import ClockPage
from apf.guard import Refused, first_message
from apf.messages import NEVER_NS
from apf.process import Failure, PeerLost
from apf.v1 import types_pb2
from apf.wire import WireError

log = logging.getLogger(__name__)

_POLL_S = 0.2
_SETTLE_S = 0.5


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

    def HasField(self, field_name: Literal["attach"]) -> bool:  # noqa: N802 - protobuf names it
        """Whether it says so."""


RequestT = TypeVar("RequestT", bound=Request)
ResponseT = TypeVar("ResponseT")


class Turn(Protocol):
    """A request that waits."""

    @property
    def dropped(self) -> bool:
        """Whether its vCPU has gone."""

    def take(self) -> bool:
        """It has its turn. Whether it has been answered; if not, who asked goes on with it."""


class _LoopTurn:
    """The turn of a request whose stream is on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()

    @property
    def dropped(self) -> bool:
        return self.future.cancelled()

    def take(self) -> bool:
        self.future.set_result(None)
        return False


class TurnServer:
    """Attachment, order and the end of the run, for one server process. Made inside its event loop.

    ``method``: the service and method of the vCPUs' streams, as ``calls`` is to name it. ``ends_all``: a failure of this
    server ends the run of all processes of the host, not just of its own VM.
    """

    def __init__(
        self, server: Server, scenario_digest: str, patience_s: int, method: str, ends_all: bool = True
    ) -> None:
        self._server = server
        self._scenario_digest = scenario_digest
        self._patience_s = patience_s
        self.loop = asyncio.get_running_loop()
        self._method = method
        self._participants: dict[tuple[int, int], int] = {}  # (vm, vcpu) -> participant
        self._clock: ClockPage | None = None
        self._entry = 0
        self._lock = threading.RLock()
        self._waiting: list[tuple[int, int, Turn]] = []  # heap of (time, participant, turn), guarded by the lock
        self._opens: Callable[[], None] | None = None
        self._ends_all = ends_all
        self._attached: set[tuple[int, int]] = set()
        self._attachments = 0
        self._expected: frozenset[tuple[int, int]] = frozenset()
        self._lost: Callable[[int, Failure], bool] = lambda vm, failure: False
        self._detached: Callable[[int], None] = lambda vm: None
        self.messages: Counter[str] = Counter()  # "in.<kind>" and "out.<kind>", counted where they pass
        self.calls = CallCounter({method: self._stream_messages})
        self.all_attached = threading.Event()
        self._all_left = asyncio.Event()
        self._granted: Callable[[int], None] | None = None
        self._over = asyncio.Event()
        self._failure: Failure | None = None
        self.is_over = False

    def open(
        self,
        clock: ClockPage,
        participants: dict[tuple[int, int], int],
        expected: Iterable[tuple[int, int]] = (),
        on_loop: bool = True,
    ) -> None:
        """Let vCPUs attach: ``participants`` maps (vm, vcpu) to its slot.

        ``all_attached`` is set once ``expected`` have, all if none are given. ``on_loop``: where the streams are.
        """
        self._clock = clock
        self._entry = clock.want_entry(self._server, min(participants.values()))
        self._participants = participants
        self._expected = frozenset(expected) or frozenset(participants)
        if on_loop:
            poke = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.loop.add_reader(poke, self._poked, poke)
            threading.Thread(target=self._bridge, args=(clock, poke), name="turns", daemon=True).start()
        else:
            threading.Thread(target=self._wait_turns, args=(clock,), name="turns", daemon=True).start()

    def _bridge(self, clock: ClockPage, poke: int) -> None:
        seen = 0
        while not self.is_over and not clock.aborted:
            seen = clock.wait_passed(self._entry, seen, poke)

    def _wait_turns(self, clock: ClockPage) -> None:
        seen = 0
        while not self.is_over and not clock.aborted:
            now = clock.wait_want(self._entry, seen)
            if now != seen:
                seen = now
                self._pass_turn()

    def _poked(self, poke: int) -> None:
        with contextlib.suppress(
            BlockingIOError
        ):  # read already: a stop has come between that and the callback's end
            os.eventfd_read(poke)
        self._pass_turn()
        clock = self._clock
        if self._granted is not None and clock is not None:
            time_ns = clock.granted_ns(self._entry)
            if time_ns is not None:
                try:
                    self._granted(time_ns)
                except Exception as error:
                    self.fail(Failure(f"{type(error).__name__}: {error}"))
                    raise
                clock.give_back(self._entry)

    # VMs that come and go --------------------------------------------------------------------------------------------

    def survive(self, lost: Callable[[int, Failure], bool], detached: Callable[[int], None]) -> None:
        """``lost(vm, why)`` is told of an attached vCPU that is lost; True: the others' run goes on.

        ``detached(vm)`` is called whenever the last stream of a VM has ended.
        """
        self._lost, self._detached = lost, detached

    def is_attached(self, vm: int) -> bool:
        """Whether all vCPUs of a VM have a stream."""
        return {key for key in self._participants if key[0] == vm} <= self._attached

    def forget_waiting(self) -> None:
        """Requests of vCPUs that are gone wait no more."""
        self._pass_turn()

    @property
    def now_ns(self) -> int:
        """How far the host's virtual time is, for show."""
        return 0 if self._clock is None else self._clock.now_ns()

    @property
    def entry(self) -> int:
        """This server's want entry on the clock page."""
        return self._entry

    # What comes from outside the run ----------------------------------------------------------------------------------

    def take_arrivals(self, granted: Callable[[int], None]) -> None:
        """``granted(time_ns)`` is called when all vCPUs stand still at ``time_ns``, after ``ask_for_clock``."""
        self._granted = granted

    def ask_for_clock(self) -> None:
        """Something has arrived that is to take effect."""
        assert self._clock is not None
        self._clock.announce_arrivals(self._entry)

    def post(self, participant: int, at_ns: int | None = None) -> None:
        """Interrupt a vCPU: at the border of the open window, or at the time granted for arrivals."""
        assert self._clock is not None
        self._clock.post(participant, self._clock.border_ns if at_ns is None else at_ns)

    # The end of the run; both may be called from any thread. -------------------------------------------------------

    def finish(self) -> None:
        """The run has ended for this server."""
        self.is_over = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: this process ends, and nobody waits
            self.loop.call_soon_threadsafe(self._over.set)

    def fail(self, failure: Failure) -> None:
        """End the run for everybody; the first reason stays."""
        if self._failure is None and not self.is_over:
            self._failure = failure
        if self._clock is not None and self._ends_all:
            self._clock.abort()
        self.finish()

    def failed(self, error: Exception) -> None:
        """An error of ours."""
        self.fail(Failure(f"{type(error).__name__}: {error}"))

    def end_all(self, failure: Failure) -> None:
        """This server's run is over, but what it came to ends that of all others."""
        self._failure = self._failure or failure
        if self._clock is not None:
            self._clock.abort()

    async def wait_left(self) -> None:
        """Wait until every vCPU that is attached has left, which it does by itself when its run is over.

        On a loaded machine that takes a while, and a vCPU whose stream is cut before has failed.
        """
        if self._attached:
            with contextlib.suppress(TimeoutError):  # then their servers end, and they say so
                await asyncio.wait_for(self._all_left.wait(), self._patience_s)

    def raise_failure(self) -> None:
        """Raise why the run failed, if it did."""
        if self._failure is not None:
            raise self._failure

    async def wait_over(self, poll: Callable[[], None]) -> None:
        """Wait until the run is over for this server; ``poll`` is called now and then and may raise."""
        patience = Patience(self._patience_s)
        while not self.is_over:
            poll()
            clock = self._clock
            if clock is not None and self._waiting and patience.lost(clock.virtual_ns() + clock.beats):
                self.fail(Failure(f"no progress for {patience.seconds} s; {slowest(clock)}"))
            try:
                await asyncio.wait_for(self._over.wait(), _POLL_S)
            except TimeoutError:
                continue
        for _, _, turn in self._waiting:
            if isinstance(turn, _LoopTurn):
                turn.future.cancel()

    # One stream -----------------------------------------------------------------------------------------------------

    async def serve_vcpu(
        self,
        context: grpc.aio.ServicerContext[RequestT, ResponseT],
        attached: Callable[[int, int, int], Awaitable[ResponseT]],
        take: Callable[[int, int, RequestT], tuple[int, ResponseT]],
    ) -> None:
        """The life of one stream. ``take(vm, vcpu, request)`` is called in order; returns (at_ns, response).

        ``attached(vm, vcpu, seq)`` gives the answer to attach, once the VM is there.

        Until it is attached a peer can do nothing but be refused. From then on it is that vCPU: whatever it says against
        the contract (a message that is none, another number than the next, time that goes back, a field out of
        range) and an end before the run's is answered with a status, and fails the run, saying why.
        """
        first: Any = await first_message(context)
        if first is grpc.aio.EOF:
            return
        try:
            vm, vcpu, participant = self.attach(first)
        except Refused as refused:
            await self._refuse(context, refused.code, refused.text)
        clock = self._clock
        assert clock is not None
        read, write = context.read, context.write
        try:
            await write(await attached(vm, vcpu, first.seq))
            seq, at_ns = first.seq, 0
            while True:
                try:
                    request: Any = await read()
                except Refused as refused:
                    await self._break_off(context, vm, vcpu, refused.code, refused.text)
                if request is grpc.aio.EOF:
                    return
                seq += 1
                time_ns = request.time_ns
                if request.seq != seq or not at_ns <= time_ns < NEVER_NS:
                    why = f"seq = {request.seq}, time_ns = {time_ns}: expected {seq} and {at_ns} to {NEVER_NS - 1}"
                    await self._break_off(context, vm, vcpu, grpc.StatusCode.INVALID_ARGUMENT, why)
                if not clock.has_turn(participant, time_ns):
                    await self._turn(participant, time_ns)
                try:
                    at_ns, response = take(vm, vcpu, request)
                except WireError as error:
                    await self._break_off(context, vm, vcpu, grpc.StatusCode.INVALID_ARGUMENT, str(error))
                except Exception as error:
                    self.fail(Failure(f"{type(error).__name__}: {error}"))
                    raise
                # The slot first, natively. Border work that it sets off wants this process's interpreter, which it gets
                # when the loop has nothing more to do: the reply is on its way by then.
                clock.settle(participant, time_ns, at_ns, self._entry)
                if self._waiting:
                    self._pass_turn()
                await write(response)
        finally:
            self.detach(vm, vcpu)

    def detach(self, vm: int, vcpu: int) -> None:
        """The stream of an attached vCPU has ended."""
        clock = self._clock
        assert clock is not None
        self._attached.discard((vm, vcpu))
        if not self._attached:
            self._all_left.set()
        if not self.is_over:
            if clock.slot_ns(self._participants[vm, vcpu]) < NEVER_NS:
                self.lose(vm, PeerLost(f"lost vCPU {vcpu} of VM {vm}: its stream ended before its run"))
            if not any(key[0] == vm for key in self._attached):
                self._detached(vm)

    def lose(self, vm: int, failure: Failure) -> None:
        """A vCPU of a VM is lost: so is its VM, or the run."""
        if not self._lost(vm, failure):
            self.fail(failure)

    async def _turn(self, participant: int, time_ns: int) -> None:
        """Wait for the request's turn."""
        turn = _LoopTurn(self.loop)
        self._wait(time_ns, participant, turn)
        await turn.future

    def offer(self, time_ns: int, participant: int, turn: Turn) -> None:
        """Take a request of a stream that is not on the loop: now, if it has its turn, or when it has."""
        clock = self._clock
        assert clock is not None
        with self._lock:
            if not clock.has_turn(participant, time_ns):
                self._wait(time_ns, participant, turn)
                return
            if self._opens is not None:
                clock.rouse_next(participant)
            if turn.take() and self._waiting:
                self._pass_turn()

    def settle(self, participant: int, asked_ns: int, at_ns: int) -> None:
        """A request is answered for ``at_ns``; by its turn (``Turn.take``): those that wait are looked at after it.

        If it was the last that a window waited for, the next one is opened here.
        """
        assert self._clock is not None
        opens = self._opens
        if self._clock.settle(participant, asked_ns, at_ns, self._entry, opens is not None) and opens is not None:
            opens()

    def open_with(self, opens: Callable[[], None]) -> None:
        """``opens()`` opens windows until one waits for a vCPU; called by one thread at a time."""
        self._opens = opens

    def stream_ended(self, code: str) -> None:
        """Count a stream that is not on the loop."""
        self.calls.calls[self._method, code] += 1

    def _wait(self, time_ns: int, participant: int, turn: Turn) -> None:
        # Whoever is the first that waits now: its vCPU has told nobody else that this request lets it pass.
        with self._lock:
            heapq.heappush(self._waiting, (time_ns, participant, turn))
            self._pass_turn()

    def _pass_turn(self) -> None:
        """Let the earliest waiting requests go on that have their turn; what stands on the page follows."""
        clock = self._clock
        assert clock is not None
        with self._lock:
            waiting = self._waiting
            while waiting:
                time_ns, participant, turn = waiting[0]
                if not turn.dropped and not clock.announce(self._entry, participant, time_ns):
                    return
                heapq.heappop(waiting)
                if not turn.dropped and not turn.take():
                    break
            clock.withdraw(self._entry)

    def attach(self, request: Request) -> tuple[int, int, int]:
        """The vCPU that the first message on a stream is of: vm, vcpu, participant. Raises Refused."""
        if not request.HasField("attach") or request.seq:
            why = f"seq = {request.seq}: the first message on a stream is attach, with seq = 0"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, why)
        attach = request.attach
        key = (attach.vm, attach.vcpu)
        if attach.scenario_digest != self._scenario_digest:
            why = f"attach.scenario_digest = {attach.scenario_digest!r}: this run has {self._scenario_digest!r}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, why)
        if key not in self._participants:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"attach: no vCPU {attach.vcpu} of VM {attach.vm} here")
        if key in self._attached:
            why = f"attach: vCPU {attach.vcpu} of VM {attach.vm} is attached already"
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, why)
        self._attached.add(key)
        self._all_left.clear()
        self._attachments += 1
        if self._expected <= self._attached:
            self.all_attached.set()
        return attach.vm, attach.vcpu, self._participants[key]

    async def _refuse(self, context: Any, code: grpc.StatusCode, why: str) -> NoReturn:
        why = limits.details(why)
        log.info("refused: %s", why)
        await context.abort(code, why)
        raise AssertionError("abort raises")

    async def _break_off(self, context: Any, vm: int, vcpu: int, code: grpc.StatusCode, why: str) -> NoReturn:
        """An attached vCPU has broken the contract."""
        try:
            await self._refuse(context, code, why)
        finally:  # it has been told; what follows may be the end of this process
            self.lose(vm, Failure(f"vCPU {vcpu} of VM {vm}: {limits.details(why)}"))

    def _stream_messages(self) -> tuple[int, int]:
        """Messages in and out of the vCPUs' streams, attachments included."""
        counts, attached = list(self.messages.items()), self._attachments
        taken = sum(count for kind, count in counts if kind.startswith("in."))
        return taken + attached, sum(count for _, count in counts) - taken + attached


async def let_calls_end() -> None:
    """Let the calls of a stopped server notice it, for a moment: gRPC prints whoever is cancelled later."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=_SETTLE_S)


class Patience:
    """Notices when virtual time has stood still for ``seconds`` of wall time."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self._at_ns = -1
        self._since_s = time.monotonic()

    def lost(self, now_ns: int) -> bool:
        """Whether ``now_ns`` has not moved for that long."""
        if now_ns != self._at_ns:
            self._at_ns, self._since_s = now_ns, time.monotonic()
        return time.monotonic() - self._since_s > self.seconds


def slowest(clock: ClockPage) -> str:
    """Which participant everybody waits for."""
    slots = [(clock.slot_ns(participant), participant) for participant in range(clock.participants)]
    time_ns, participant = min(slots)
    return f"all wait for participant {participant} at {time_ns} ns"
