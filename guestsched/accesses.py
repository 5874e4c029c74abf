"""Accesses from outside, one a call or many a stream, and which process and place a request means."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Any

from apf.messages import PAGE_SIZE, FaultKind
from apf.v1 import load_pb2, types_pb2
from guestsched.core.access import WORDS_MAX
from guestsched.core.arrivals import AccessArrived, AccessDone, Answer, Refused
from guestsched.core.core import GuestCore
from guestsched.core.process import Process
from guestsched.inbox import CallError, Code, Inbox, abort

IN_FLIGHT_MAX = 1024
ITEMS_MAX = 64
_WORD = 8
_MET = {
    None: load_pb2.AccessResponse.MET_HIT,
    FaultKind.MINOR: load_pb2.AccessResponse.MET_MINOR,
    FaultKind.MAJOR: load_pb2.AccessResponse.MET_MAJOR,
    FaultKind.ASYNC: load_pb2.AccessResponse.MET_ASYNC,
}
_STREAM = "apf.v1.LoadService/AccessStream"
_KINDS = (types_pb2.ACCESS_READ, types_pb2.ACCESS_WRITE)


def process_of(core: GuestCore, number: int, name: str) -> Process:
    """The process meant, by number or by name (of several the newest). Raises CallError."""
    processes = core.processes
    if number:
        if number in processes:
            return processes[number]
        raise CallError(Code.NOT_FOUND, f"process = {number}: there is none")
    if not name:
        raise CallError(Code.INVALID_ARGUMENT, "process = 0, process_name = '': name one of the two")
    for process in reversed(processes.values()):
        if process.name == name:
            return process
    raise CallError(Code.NOT_FOUND, f"process_name = {name!r}: there is none")


def access_of(core: GuestCore, ticket: int, request: load_pb2.AccessRequest) -> AccessArrived:
    """A checked access. Raises CallError."""
    process = process_of(core, request.process, request.process_name)
    gva, pages = process.plan.memory
    if request.kind not in _KINDS:
        raise CallError(Code.INVALID_ARGUMENT, f"kind = {request.kind}: allowed: ACCESS_READ, ACCESS_WRITE")
    length = request.length or _WORD
    if length % _WORD or length > WORDS_MAX * _WORD:
        raise CallError(Code.INVALID_ARGUMENT, f"length = {length}: a multiple of {_WORD} up to {WORDS_MAX * _WORD}")
    place = request.WhichOneof("place")
    if place == "page":
        field, value, offset = "page", request.page, request.page * PAGE_SIZE
    elif place == "address":
        field, value, offset = "address", request.address, request.address - gva
    else:
        raise CallError(Code.INVALID_ARGUMENT, "page, address: name one of the two")
    if offset < 0 or offset % _WORD or offset + length > pages * PAGE_SIZE:
        raise CallError(
            Code.INVALID_ARGUMENT,
            f"{field} = {value}: with {length} bytes it is not in the memory of process {process.asid}, "
            f"{pages} pages from {gva:#x}, 8-aligned",
        )
    return AccessArrived(ticket, process.asid, offset, length // _WORD, request.kind == types_pb2.ACCESS_WRITE)


def access_response(done: AccessDone) -> load_pb2.AccessResponse:
    """What the caller of a single access is told."""
    return load_pb2.AccessResponse(
        arrived_ns=done.arrived_ns,
        latency_ns=done.done_ns - done.arrived_ns,
        met=_MET[done.met],
        task=done.task,
    )


class AccessStream:
    """One AccessStream: reads on while not too many of its accesses are in flight, writes what has retired."""

    def __init__(self, inbox: Inbox, context: Any, messages: Counter[tuple[str, str]]) -> None:
        self._inbox = inbox
        self._context = context
        self._done: deque[load_pb2.AccessStreamResponse.Item] = deque()
        self._in_flight: dict[int, int] = {}
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._read_all = False
        self._messages = messages

    def wake(self) -> None:
        """Look whether the run is over."""
        self._news.set()

    async def run(self, requests: AsyncIterator[load_pb2.AccessStreamRequest]) -> None:
        """Until the caller has said all and heard all, or the run is over."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while not (self._read_all and not self._in_flight and not self._done):
                if not self._done:
                    await self._news.wait()
                self._news.clear()
                if reading.done():
                    reading.result()
                while self._done:
                    items = [self._done.popleft() for _ in range(min(len(self._done), ITEMS_MAX))]
                    await self._context.write(load_pb2.AccessStreamResponse(items=items))
                    self._messages[_STREAM, "out"] += 1
                if self._inbox.closing and not self._in_flight:
                    raise CallError.gone()
        except CallError as error:
            await abort(self._context, error)
        finally:
            reading.cancel()
            for ticket, process in list(self._in_flight.items()):
                self._inbox.take_back(ticket, process)

    async def _read(self, requests: AsyncIterator[load_pb2.AccessStreamRequest]) -> None:
        try:
            async for request in requests:
                self._messages[_STREAM, "in"] += 1
                if len(request.items) > ITEMS_MAX:
                    raise CallError(Code.INVALID_ARGUMENT, f"items: {len(request.items)}; at most {ITEMS_MAX}")
                for item in request.items:
                    self._take(item)
                if len(self._in_flight) >= IN_FLIGHT_MAX:
                    self._room.clear()
                    await self._room.wait()
            self._read_all = True
        finally:
            self._news.set()

    def _take(self, item: load_pb2.AccessStreamRequest.Item) -> None:
        inbox, number = self._inbox, item.id
        ticket = inbox.ticket()
        try:
            access = access_of(inbox.guest.core, ticket, item.access)
            inbox.submit(access, lambda answer: self._settled(ticket, number, answer), ticket)
        except CallError as error:
            self._tell(number, error)
        else:
            self._in_flight[ticket] = access.process

    def _settled(self, ticket: int, number: int, answer: Answer | CallError) -> None:
        self._in_flight.pop(ticket, None)
        if len(self._in_flight) < IN_FLIGHT_MAX:
            self._room.set()
        self._tell(number, answer)

    def _tell(self, number: int, answer: Answer | CallError) -> None:
        if isinstance(answer, AccessDone):
            result = load_pb2.AccessStreamResponse.Item(id=number, response=access_response(answer))
        else:
            if isinstance(answer, Refused):
                answer = CallError.of(answer)
            assert isinstance(answer, CallError), answer
            code = answer.code.value[0]
            result = load_pb2.AccessStreamResponse.Item(id=number, code=code, message=answer.text)
        self._done.append(result)
        self._news.set()
