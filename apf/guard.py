"""Between the wire and the services: who may call, how much, how long; the servers of a daemon by listener.

One gRPC server a listener, all with the same services on the same event loop: so the role of a call is that of the
server it came to, and no message can say otherwise. In front of every handler stands one interceptor, ``Guard``. It

- refuses what the role may not (``apf.roles``), before anything of the request is read;
- gives every method the handler of a stream of requests, for then reading the first message has a deadline too, and a
  message that cannot be parsed is answered INVALID_ARGUMENT instead of an error of ours;
- keeps the limits of ``apf.limits`` on messages, calls and time.

A handler sees what gRPC would have shown it. A refusal is a status and a line at INFO: whoever wants to can cause any
number of them, and a log is no place to let strangers write.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from apf import limits, listen, roles, tls
from apf.listen import Listener, Security
from apf.process import Failure
from apf.streams import StreamMethod, StreamServer

if TYPE_CHECKING:
    from apf.calls import CallCounter

log = logging.getLogger(__name__)

Add = Callable[[grpc.aio.Server], None]
"""Adds the services of a daemon to one of its servers."""
_Handler = Any
"""A ``grpc.RpcMethodHandler``; gRPC has no types."""
_EOF = grpc.aio.EOF


class Refused(Exception):
    """A call ends with this status, and has changed nothing."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


async def first_message(context: Any, deadline_s: float = limits.FIRST_MESSAGE_S) -> Any:
    """The first message of a stream, or its end. Raises Refused if none comes."""
    return await _message(context, deadline_s, "first message")


async def _message(context: Any, deadline_s: float | None, what: str) -> Any:
    try:
        async with asyncio.timeout(deadline_s):
            return await context.read()
    except TimeoutError:
        raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"no {what} within {deadline_s:g} s") from None


class _Requests:
    """The requests of a stream, as a handler iterates over them."""

    def __init__(self, context: Any, next_s: float | None) -> None:
        self._context = context
        self._next_s = next_s
        self._first = True

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        if self._first:
            self._first = False
            message = await first_message(self._context)
        elif self._next_s is None:
            message = await self._context.read()
        else:
            message = await _message(self._context, self._next_s, "further message")
        if message is _EOF:
            raise StopAsyncIteration
        return message


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # gRPC has no types
    """The interceptor of one listener's server."""

    def __init__(self, listener: Listener, count: Callable[[str, str], None] = lambda method, code: None) -> None:
        """``count(method, code)`` is called for each call that ends here, before any handler has seen it."""
        self._count = count
        self._roles = listener.roles
        self._by_certificate = listener.by_certificate
        self._where = listener.address
        self._calls: Counter[str] = Counter()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[_Handler]], details: Any) -> _Handler:
        """The handler to run: the method's own behind this guard, or one that refuses."""
        method = details.method
        known = method in roles.METHODS
        if known and not roles.may(self._roles, method):
            return self._denied(method)
        handler = await continuation(details)
        if handler is None:
            return None
        return self._guarded(method, handler) if known else self._denied(method)

    def refusal(self, method: str) -> tuple[grpc.StatusCode, str]:
        """What to tell the caller of a method that is not served at this listener, whoever may call it."""
        if method in roles.METHODS and not roles.may(self._roles, method):
            refused = self._not_allowed(method, self._roles)
            log.info("refused %s at %s: %s: %s", method, self._where, refused.code.name, refused.text)
            self._count(method, refused.code.name)
            return refused.code, refused.text
        self._count("", grpc.StatusCode.UNIMPLEMENTED.name)
        return grpc.StatusCode.UNIMPLEMENTED, "Method not found!"

    def _denied(self, method: str) -> _Handler:
        async def deny(_: object, context: Any) -> None:
            refused = self._not_allowed(method, self._roles)
            self._count(method, refused.code.name)
            await self._abort(context, method, refused)

        return grpc.stream_unary_rpc_method_handler(deny)

    def _not_allowed(self, method: str, held: roles.Roles) -> Refused:
        as_whom = ", ".join(sorted(held)) or "a peer whose certificate names no role"
        allowed = ", ".join(sorted(roles.METHODS.get(method, ()))) or "nobody"
        return Refused(grpc.StatusCode.PERMISSION_DENIED, f"{method} as {as_whom}: allowed: {allowed}")

    async def _abort(self, context: Any, method: str, refused: Refused) -> None:
        text = limits.details(refused.text)
        log.info("refused %s at %s: %s: %s", method, self._where, refused.code.name, text)
        await context.abort(refused.code, text)

    def _guarded(self, method: str, handler: _Handler) -> _Handler:
        deserialize = parser(method, handler.request_deserializer)
        serialize = handler.response_serializer
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if handler.request_streaming:
            next_s = limits.NEXT_MESSAGE_S.get(method)

            async def requests(context: Any) -> Any:
                return _Requests(context, next_s)
        else:

            async def requests(context: Any) -> Any:
                request = await first_message(context)
                if request is _EOF:
                    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no request")
                return request

        if inspect.isasyncgenfunction(inner):

            async def generate(_: object, context: Any) -> AsyncIterator[Any]:
                async with self._admitted(method, context) as admitted:
                    taken = await requests(context)
                    admitted.set()
                    async for response in inner(taken, context):
                        yield response

            return grpc.stream_stream_rpc_method_handler(generate, deserialize, serialize)

        async def call(_: object, context: Any) -> Any:
            async with self._admitted(method, context) as admitted:
                taken = await requests(context)
                admitted.set()
                return await inner(taken, context)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(call, deserialize, serialize)

    @asynccontextmanager
    async def _admitted(self, method: str, context: Any) -> AsyncIterator[asyncio.Event]:
        """Let a call run within its limits; what is raised to refuse it becomes its status.

        Gives an event to set when the handler takes over, which is counted by whoever counts handlers' calls.
        """
        admitted = asyncio.Event()
        try:
            if self._by_certificate:
                held = tls.roles_in(context.auth_context())
                if not roles.may(held & self._roles, method):
                    raise self._not_allowed(method, held)
            most = limits.CALLS_MAX.get(method)
            if most is not None and self._calls[method] >= most:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{most} calls of {method} are in flight already")
            self._calls[method] += 1
            try:
                async with asyncio.timeout(limits.CALL_S.get(method)) as deadline:
                    yield admitted
            except TimeoutError:
                if not deadline.expired():
                    raise
                text = f"no answer within {limits.CALL_S[method]:g} s"
                raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
            finally:
                self._calls[method] -= 1
        except NotImplementedError:  # what generated services raise for a method nobody wrote, as health's List
            unwritten = Refused(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered here")
            await self._abort(context, method, unwritten)
        except Refused as refused:
            if not admitted.is_set():
                self._count(method, refused.code.name)
            await self._abort(context, method, refused)


def parser(method: str, deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Takes a request of ``/package.Service/Method`` from its bytes; what it makes raises Refused."""
    most = limits.request_bytes_max(method)

    def parse(data: bytes) -> Any:
        if len(data) > most:
            text = f"a message of {len(data)} bytes; allowed: {most}"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            return deserialize(data)
        except DecodeError as error:
            text = f"{len(data)} bytes that are no message of {method}: {error}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text) from None

    return parse


def for_streams(listeners: Sequence[Listener]) -> bool:
    """Whether vCPUs come to listeners of their own only, on which ``apf.streams`` can serve them."""
    return all(
        each.roles == {roles.Role.VCPU} and not each.by_certificate
        for each in listeners
        if roles.Role.VCPU in each.roles
    )


class Servers:
    """The gRPC servers of a daemon, one a listener. ``vcpus`` of them have streams of their own.

    ``streams``: the vCPUs' method, if ``for_streams``, which is then served without the event loop.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        security: Security,
        add: Add,
        vcpus: int,
        calls: CallCounter,
        further: Sequence[grpc.aio.ServerInterceptor] = (),
        streams: StreamMethod | None = None,
    ) -> None:
        self._security = security
        self._servers: list[tuple[Listener, grpc.aio.Server | StreamServer]] = []
        for listener in listeners:
            if streams is not None and listener.roles == {roles.Role.VCPU}:
                options = limits.server_options(listener.roles, listener.path is None)
                most = limits.rpcs_max(listener.roles, vcpus)
                server = StreamServer(streams, Guard(listener, calls.refused).refusal, most, options)
                self._servers.append((listener, server))
                continue
            server = grpc.aio.server(
                interceptors=(Guard(listener, calls.refused), calls, *further),
                options=limits.server_options(listener.roles, listener.path is None),
                maximum_concurrent_rpcs=limits.rpcs_max(listener.roles, vcpus),
            )
            add(server)
            self._servers.append((listener, server))

    async def start(self) -> tuple[str, ...]:
        """Listen; returns the addresses, with the ports that port 0 has become. Raises Failure."""
        listen.prepare([listener for listener, _ in self._servers])
        addresses = tuple(self._bind(listener, server) for listener, server in self._servers)
        listen.give_rights([listener for listener, _ in self._servers], self._security.groups)
        for _, server in self._servers:
            await server.start()
        return addresses

    def _bind(self, listener: Listener, server: grpc.aio.Server | StreamServer) -> str:
        address = listener.address
        try:
            if listener.by_certificate:
                assert self._security.tls is not None
                assert not isinstance(server, StreamServer)
                port = server.add_secure_port(address, tls.server_credentials(self._security.tls))
            else:
                port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise Failure(f"cannot listen at {address}: {error}") from error
        if not port:
            raise Failure(f"cannot listen at {address}")
        return address if listener.path is not None else f"{address.rpartition(':')[0]}:{port}"

    async def stop(self, grace_s: float) -> None:
        """End all calls, after ``grace_s`` by force."""
        await asyncio.gather(*(server.stop(grace_s) for _, server in self._servers))
