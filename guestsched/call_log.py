"""Calls of the API for load generators in the log: what was asked for and how it ended, under the caller's request id.

An interceptor, so that the service itself knows nothing of it. Every call runs with ``apf.logs.request_id`` set, to the
metadata ``x-request-id`` if the caller sent one, else to a number of this guest's; the caller reads it in the trailing
metadata. Calls that change the guest leave a line each. Accesses are the load itself, thousands a second: a stream of
them leaves one line at its end, and a single access, as whatever else only looks, a line at level DEBUG.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from apf.logs import REQUEST_ID_MAX, request_id

log = logging.getLogger(__name__)
HEADER = "x-request-id"
_TOLD = {"Spawn", "Kill", "Inject", "Replay", "Shutdown", "AccessStream"}
_SERVICE = "/apf.v1.LoadService/"


class CallLog(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Gives calls their ids and logs how they end; ``guest`` is what ids of ours begin with."""

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._numbers = itertools.count(1)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Wrap the handler of a call of the load service."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_SERVICE):
            return handler
        name = method.removeprefix(_SERVICE)
        given = dict(handler_call_details.invocation_metadata or ()).get(HEADER, "")
        call = _Call(name, _printable(given) or f"{self._guest}-{next(self._numbers)}")
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(call.awaited(handler.stream_stream), *codecs)
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(call.awaited(handler.stream_unary), *codecs)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(call.iterated(handler.unary_stream), *codecs)
        return grpc.unary_unary_rpc_method_handler(call.awaited(handler.unary_unary), *codecs)


class _Call:
    """One call, from its start to its line in the log."""

    def __init__(self, name: str, identity: str) -> None:
        self._name = name
        self._identity = identity
        self._began_s = 0.0

    def awaited(self, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def serve(request: Any, context: Any) -> Any:
            self._begin(context)
            try:
                response = await behaviour(request, context)
            except BaseException as error:
                self._ended(context, error)
                raise
            self._ended(context, None)
            return response

        return serve

    def iterated(self, behaviour: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        async def serve(request: Any, context: Any) -> AsyncIterator[Any]:
            self._begin(context)
            try:
                async for response in behaviour(request, context):
                    yield response
            except BaseException as error:
                self._ended(context, error)
                raise
            self._ended(context, None)

        return serve

    def _begin(self, context: Any) -> None:
        request_id.set(self._identity)
        context.set_trailing_metadata(((HEADER, self._identity),))
        self._began_s = time.monotonic()

    def _ended(self, context: Any, error: BaseException | None) -> None:
        level = logging.INFO if self._name in _TOLD else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        took_ms = (time.monotonic() - self._began_s) * 1000
        if error is None:
            log.log(level, "%s: OK, %.1f ms", self._name, took_ms)
        elif isinstance(error, asyncio.CancelledError):
            log.log(level, "%s: the caller went away, %.1f ms", self._name, took_ms)
        else:
            code, details = context.code(), context.details()
            said = f"{code.name}: {details}" if isinstance(code, grpc.StatusCode) else f"{error!r}"
            log.log(level, "%s: %s, %.1f ms", self._name, said, took_ms)


def _printable(given: str | bytes) -> str:
    """What a caller calls its request, as far as it may stand in a log."""
    text = given.decode("ascii", "replace") if isinstance(given, bytes) else given
    return "".join(letter for letter in text[:REQUEST_ID_MAX] if letter.isascii() and letter.isprintable())
