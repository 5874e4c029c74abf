"""Counts the gRPC calls a server takes, by method and status, and their messages.

A server interceptor wraps each method once; ``apf.guard`` stands before it and tells of what it lets nobody see
(``refused``). A call is counted when it ends, whatever way: returned, aborted, cancelled
by its caller, or with an exception (which gRPC tells the caller as UNKNOWN). Messages of unary methods follow from
that. Streams count their own: the vCPUs' streams do so already, kind by kind, for the run's results (``streams``), and
others add to ``messages``; nothing here is called for a message. Methods nobody serves share the name ``unknown``, so
that callers cannot make up labels.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import grpc
from prometheus_client.core import CounterMetricFamily, Metric

from apf import roles
from apf.guard import Refused

_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_UNKNOWN = "UNKNOWN"
UNKNOWN_METHOD = "unknown"


class CallCounter(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """``calls`` by (method, status), ``messages`` by (method, "in" or "out"); methods are ``package.Service/Method``."""

    def __init__(self, streams: Mapping[str, Callable[[], tuple[int, int]]] | None = None) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.messages: Counter[tuple[str, str]] = Counter()
        self._streams = dict(streams or {})

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Find the method's handler and put the counting around it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            self.calls[UNKNOWN_METHOD, "UNIMPLEMENTED"] += 1
            return None
        method = handler_call_details.method.lstrip("/")
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                unary = (not handler.request_streaming, not handler.response_streaming)
                return handler._replace(**{kind: self._counted(method, behaviour, unary)})
        return handler

    def refused(self, method: str, code: str) -> None:
        """A call of ``method``, as on the wire, was refused before any handler of it ran."""
        known = method in roles.METHODS
        self.calls[method.lstrip("/") if known else UNKNOWN_METHOD, code] += 1

    def _counted(self, method: str, behaviour: Any, unary: tuple[bool, bool]) -> Any:
        async def call(request: Any, context: Any) -> Any:
            code = _UNKNOWN
            try:
                response = await behaviour(request, context)
                code = _told(context)
                return response
            except BaseException as error:
                code = _code_of(error, context)
                raise
            finally:
                self._ended(method, code, unary)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            code = _UNKNOWN
            try:
                async for response in behaviour(request, context):
                    self.messages[method, "out"] += 1
                    yield response
                code = _told(context)
            except BaseException as error:
                code = _code_of(error, context)
                raise
            finally:
                self._ended(method, code, (unary[0], False))

        return stream if inspect.isasyncgenfunction(behaviour) else call

    def _ended(self, method: str, code: str, unary: tuple[bool, bool]) -> None:
        self.calls[method, code] += 1
        if unary[0]:
            self.messages[method, "in"] += 1
        if unary[1] and code == "OK":
            self.messages[method, "out"] += 1

    def __call__(self) -> Iterator[Metric]:
        """The two families."""
        calls = CounterMetricFamily("apf_grpc_calls", "gRPC calls served.", labels=["method", "code"])
        for (method, code), count in list(self.calls.items()):
            calls.add_metric([method, code], count)
        messages = CounterMetricFamily("apf_grpc_messages", "Messages of gRPC calls.", labels=["method", "kind"])
        counts = dict(self.messages)
        for method, counted in self._streams.items():
            counts[method, "in"], counts[method, "out"] = counted()
        for (method, kind), count in counts.items():
            messages.add_metric([method, kind], count)
        yield from (calls, messages)


def _code_of(error: BaseException, context: Any) -> str:
    """The status a caller is told, or would be if it still listened, of a call that ends with ``error``."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left_s = context.time_remaining()
        late = left_s is not None and left_s <= 0
        return "DEADLINE_EXCEEDED" if late else "CANCELLED"
    if isinstance(error, Refused):
        return str(error.code.name)
    return _told(context) if context.code() else _UNKNOWN


def _told(context: Any) -> str:
    """The status that was set, OK if none was. gRPC knows it as a number."""
    code = context.code()
    return _NAMES.get(code.value[0] if isinstance(code, grpc.StatusCode) else code or 0, _UNKNOWN)
