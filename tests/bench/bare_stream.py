"""Bare grpcio: request and reply on bidirectional streams over a Unix socket, with the emulator's own messages.

The same stacks as the emulator's (asyncio at both ends, see ``apf.serving``) with the same settings, in processes of
their own; the server answers at once. What is slower than this is the emulator's doing. ``stack="sync"`` is the
threaded server instead, for comparison.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from multiprocessing.connection import Connection
from typing import Any, Literal

from apf import process
from apf.rundir import RunDir

Stack = Literal["aio", "sync"]
_DEADLINE_S = 60.0
_WARM_UP = 300


def ping_pong(streams: int, seconds: float, stack: Stack = "aio") -> tuple[float, float]:
    """P50 of a round trip in us, and round trips a second of all streams together."""
    fork = multiprocessing.get_context("fork")
    run = RunDir.make()
    ours, theirs = zip(*(fork.Pipe() for _ in range(streams + 1)), strict=True)
    (run.files / "vcpu").mkdir()
    children = [
        process.spawn("bare-server", _serve, run.host_address, stack, streams, theirs[0], run=run, report="s")
    ]
    try:
        _receive(ours[0])
        for index, connection in enumerate(theirs[1:]):
            args = (run.host_address, seconds, connection)
            children.append(process.spawn(f"bare-{index}", _call, *args, run=run, report=f"c-{index}"))
        for connection in ours[1:]:
            _receive(connection)
        for connection in ours[1:]:
            connection.send("go")
        trips = [_receive(connection) for connection in ours[1:]]
    finally:
        process.stop(children, 5)
        run.remove()
    return statistics.median(trip for one in trips for trip in one), sum(len(one) for one in trips) / seconds


def _receive(connection: Connection) -> Any:
    if not connection.poll(_DEADLINE_S):
        raise TimeoutError("a process of the bare stream does not answer")
    return connection.recv()


def _serve(address: str, stack: Stack, streams: int, connection: Connection) -> None:
    if stack == "aio":
        asyncio.run(_serve_aio(address, connection))
        return
    import grpc

    from apf.v1.host_pb2_grpc import HostServiceServicer, add_HostServiceServicer_to_server

    class Echo(HostServiceServicer):
        def RunVcpu(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
            yield from map(_reply, request_iterator)

    server = grpc.server(futures.ThreadPoolExecutor(streams + 4))
    add_HostServiceServicer_to_server(Echo(), server)
    server.add_insecure_port(address)
    server.start()
    connection.send("ready")
    server.wait_for_termination()


async def _serve_aio(address: str, connection: Connection) -> None:
    import grpc

    from apf.v1.host_pb2_grpc import HostServiceServicer, add_HostServiceServicer_to_server

    class Echo(HostServiceServicer):
        async def RunVcpu(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(_reply(request))

    server = grpc.aio.server()
    add_HostServiceServicer_to_server(Echo(), server)
    server.add_insecure_port(address)
    await server.start()
    connection.send("ready")
    await server.wait_for_termination()


def _reply(request: Any) -> Any:
    from apf.v1 import host_pb2

    mapped = host_pb2.Mapped(gfn=request.fault.gfn, pfn=131_000, writable=True, kind=2, stall_ns=80_000)
    return host_pb2.RunVcpuResponse(seq=request.seq, at_ns=request.time_ns + 83_200, mapped=mapped)


def _call(address: str, seconds: float, connection: Connection) -> None:
    asyncio.run(_call_aio(address, seconds, connection))


async def _call_aio(address: str, seconds: float, connection: Connection) -> None:
    import grpc

    from apf.v1 import host_pb2
    from apf.v1.host_pb2_grpc import HostServiceStub

    trips: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = HostServiceStub(channel).RunVcpu()
        until_s, seq = None, 0
        while until_s is None or time.monotonic() < until_s:
            seq += 1
            fault = host_pb2.FaultRaised(gfn=seq * 7919 % 262_144, access=2, mode=1)
            began_ns = time.perf_counter_ns()
            await call.write(host_pb2.RunVcpuRequest(time_ns=1_000_000_000 + seq, seq=seq, fault=fault))
            await call.read()
            trips.append((time.perf_counter_ns() - began_ns) / 1000)
            if seq == _WARM_UP:
                connection.send("warm")
                connection.recv()
                trips.clear()
                until_s = time.monotonic() + seconds
        await call.done_writing()
    connection.send(trips)
