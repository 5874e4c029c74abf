"""Bare grpcio: request and reply on bidirectional streams over a Unix socket, with the emulator's own messages.

In processes of their own, with the emulator's settings; the server answers at once. ``aio`` is gRPC as everybody has it,
asyncio at both ends; ``sync`` has the threaded server instead. ``own`` is the emulator's own way with a vCPU's streams
(``apf.stream``, ``apf.streams``): what is slower than this is the emulator's doing.
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

Stack = Literal["aio", "sync", "own"]
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
            args = (run.host_address, seconds, stack, connection)
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
    if stack == "own":
        process.settle_polling()
    if stack != "sync":
        asyncio.run(_serve_aio(address, connection) if stack == "aio" else _serve_own(address, connection))
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


async def _serve_own(address: str, connection: Connection) -> None:
    from apf.streams import Peer, StreamMethod, StreamServer
    from apf.v1 import host_pb2
    from apf.wire import RUN_VCPU

    class Echo:
        def __init__(self, peer: Peer) -> None:
            self._peer = peer

        def received(self, data: bytes | None) -> None:
            if data is not None:
                self._peer.answer(_reply(host_pb2.RunVcpuRequest.FromString(data)).SerializeToString())

        def ended(self, code: object) -> None:
            pass

    def never(_: object) -> Any:
        raise AssertionError

    server = StreamServer(StreamMethod(RUN_VCPU, Echo, never), never, 100, ())
    server.add_insecure_port(address)
    await server.start()
    connection.send("ready")
    await asyncio.Event().wait()


def _reply(request: Any) -> Any:
    from apf.v1 import host_pb2

    mapped = host_pb2.Mapped(gfn=request.fault.gfn, pfn=131_000, writable=True, kind=2, stall_ns=80_000)
    return host_pb2.RunVcpuResponse(seq=request.seq, at_ns=request.time_ns + 83_200, mapped=mapped)


class _Trips:
    """Round trips in us: those of ``seconds`` after the first few, when all streams are there."""

    def __init__(self, seconds: float, connection: Connection) -> None:
        self._seconds = seconds
        self._connection = connection
        self._us: list[float] = []
        self._began_ns = 0
        self._until_s = float("inf")

    def requests(self) -> Iterator[Any]:
        """What to ask, each when the one before is answered."""
        from apf.v1 import host_pb2

        seq = 0
        while time.monotonic() < self._until_s:
            seq += 1
            fault = host_pb2.FaultRaised(gfn=seq * 7919 % 262_144, access=2, mode=1)
            began_ns = time.perf_counter_ns()
            yield host_pb2.RunVcpuRequest(time_ns=1_000_000_000 + seq, seq=seq, fault=fault)
            self._us.append((time.perf_counter_ns() - began_ns) / 1000)
            if seq == _WARM_UP:
                self._connection.send("warm")
                self._connection.recv()
                self._us.clear()
                self._until_s = time.monotonic() + self._seconds

    def tell(self) -> None:
        """Done."""
        self._connection.send(self._us)


def _call(address: str, seconds: float, stack: Stack, connection: Connection) -> None:
    trips = _Trips(seconds, connection)
    if stack == "own":
        _call_own(address, trips)
    else:
        asyncio.run(_call_aio(address, trips))
    trips.tell()


def _call_own(address: str, trips: _Trips) -> None:
    process.settle_polling()
    import grpc

    from apf.stream import Stream
    from apf.v1 import host_pb2
    from apf.wire import RUN_VCPU

    with grpc.insecure_channel(address) as channel:
        stream: Stream[Any, Any] = Stream(channel, RUN_VCPU, host_pb2.RunVcpuResponse.FromString)
        for request in trips.requests():
            stream.ask(request)
        stream.cancel()


async def _call_aio(address: str, trips: _Trips) -> None:
    import grpc

    from apf.v1.host_pb2_grpc import HostServiceStub

    async with grpc.aio.insecure_channel(address) as channel:
        call = HostServiceStub(channel).RunVcpu()
        for request in trips.requests():
            await call.write(request)
            await call.read()
        await call.done_writing()
