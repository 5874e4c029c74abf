"""A client's stream to a server without an event loop: the thread that asks polls gRPC's completion queue itself.

Between a vCPU and a server every request waits for its reply, and the vCPU has nothing else to do meanwhile. On gRPC's
asyncio stack such a round trip wakes a thread that polls, which wakes the loop through a socket, which wakes a task:
twice, for what is sent and for what is received. Here both are one batch of operations on a queue of the call's own, and
who started it waits for it in poll(2), without the interpreter's lock. That is 40 us of CPU time instead of 110.

gRPC's blocking stubs do the same, but they have calls with one request only. So this uses what they are made of, as they
do: ``grpc._cython.cygrpc``, of one minor version (pyproject.toml). ``tests/unit/apf/test_stream.py`` tells if another
version of gRPC changes what is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc
from grpc._cython import cygrpc

from apf.process import Failure, PeerLost

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_OK = grpc.StatusCode.OK.value[0]
_NO_FLAGS = 0
_OPENED, _ASKED, _CLOSED, _ENDED = "opened", "asked", "closed", "ended"
_Send, _Receive = cygrpc.SendMessageOperation, cygrpc.ReceiveMessageOperation


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf names it
        """As it goes over the wire."""


RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT")


class Stream(Generic[RequestT, ResponseT]):
    """One call of a bidirectional method. For one thread, but for ``cancel``, which is for any."""

    def __init__(self, channel: grpc.Channel, method: str, parse: Callable[[bytes], ResponseT]) -> None:
        """``method``: ``/package.Service/Method``; ``parse``: a response from its bytes."""
        self._parse = parse
        self._status: Any = None  # the operation that has received it
        self._call = channel._channel.segregated_call(
            cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
            method.encode(),
            None,  # host
            None,  # deadline: the life of a vCPU has none; whoever waits for it cancels
            (),  # metadata
            None,  # credentials
            (
                ((cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),), _OPENED),
                ((cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS),), _OPENED),
                ((cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS),), _ENDED),
            ),
            None,  # context
        )

    def ask(self, request: RequestT) -> ResponseT:
        """Send a request and wait for its reply. Raises PeerLost if the server ends the stream, or goes away."""
        call, reply = self._call, _Receive(_NO_FLAGS)
        if call.operate((_Send(request.SerializeToString(), _NO_FLAGS), reply), _ASKED):
            while (event := call.next_event()).tag is not _ASKED:
                self._note(event)
            data = reply.message()
            if data is not None:
                return self._parse(data)
        raise PeerLost(f"lost its server: {self._how_it_ended()}")

    def end(self) -> None:
        """Say that there is no further request, and wait until the server has ended the stream well. Raises PeerLost."""
        last = _Receive(_NO_FLAGS)
        if self._call.operate((cygrpc.SendCloseFromClientOperation(_NO_FLAGS), last), _CLOSED):
            while (event := self._call.next_event()).tag is not _CLOSED:
                self._note(event)
            if last.message() is not None:
                raise Failure("its server said more after the end")
        how = self._how_it_ended()
        if self._status.code() != _OK:
            raise PeerLost(f"lost its server: {how}")

    def cancel(self) -> None:
        """Let whoever waits for the server wait no more."""
        self._call.cancel(grpc.StatusCode.CANCELLED.value[0], "given up")

    def _note(self, event: Any) -> None:
        if event.tag is _ENDED:
            (self._status,) = event.batch_operations

    def _how_it_ended(self) -> str:
        """Its status; a stream that receives nothing more has one, or gets it at once."""
        while self._status is None:
            self._note(self._call.next_event())
        code = self._status.code()
        return f"{_NAMES.get(code, code)}: {self._status.details()}"
