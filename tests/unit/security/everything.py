"""A daemon that offers every method there is, and tells what was called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from apf import roles
from apf.calls import CallCounter
from apf.guard import Servers
from apf.listen import PLAIN, Listener, Security
from apf.v1 import load_pb2

CALL_S = 10.0


class Everything:
    """Takes any message as a KillRequest and answers b""; ``holds`` keeps calls until it is set."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.calls = CallCounter()
        self.holds = asyncio.Event()
        self.holds.set()
        self.error: Exception | None = None

    def add(self, server: grpc.aio.Server) -> None:
        services: dict[str, dict[str, Any]] = {}
        for method in (*roles.METHODS, "/apf.v1.LoadService/Forgotten"):
            _, service, name = method.split("/")
            services.setdefault(service, {})[name] = grpc.unary_unary_rpc_method_handler(
                self._handler(method), load_pb2.KillRequest.FromString, lambda _: b""
            )
        for service, handlers in services.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _handler(self, method: str) -> Callable[[Any, Any], Coroutine[Any, Any, bytes]]:
        async def handle(request: Any, context: Any) -> bytes:
            self.called.append(method)
            await self.holds.wait()
            if self.error is not None:
                raise self.error
            return b""

        return handle


@asynccontextmanager
async def serving(
    listeners: Sequence[Listener], security: Security = PLAIN
) -> AsyncIterator[tuple[Everything, tuple[str, ...]]]:
    everything = Everything()
    servers = Servers(listeners, security, everything.add, 0, everything.calls)
    try:
        yield everything, await servers.start()
    finally:
        everything.holds.set()
        await servers.stop(0)


async def status(
    channel: grpc.aio.Channel, method: str, data: bytes = b"", **options: Any
) -> tuple[grpc.StatusCode, str]:
    """Status of a unary call with these bytes."""
    try:
        await channel.unary_unary(method)(data, timeout=CALL_S, **options)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
