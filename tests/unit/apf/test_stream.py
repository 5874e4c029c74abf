"""A stream that its own thread polls: replies, how it ends, and giving up, against gRPC's threaded server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from apf.process import Failure, PeerLost
from apf.stream import Stream
from apf.v1 import host_pb2
from apf.wire import RUN_VCPU

pytestmark = pytest.mark.grpc

Request, Response = host_pb2.RunVcpuRequest, host_pb2.RunVcpuResponse
Answer = Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]
HostStream = Stream[host_pb2.RunVcpuRequest, host_pb2.RunVcpuResponse]


@contextmanager
def asking(tmp_path: Path, answer: Answer) -> Iterator[tuple[HostStream, grpc.Server]]:
    """A stream to a server that answers so."""
    handler = grpc.stream_stream_rpc_method_handler(answer, Request.FromString, Response.SerializeToString)
    service, _, method = RUN_VCPU.strip("/").rpartition("/")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    server.start()
    try:
        with grpc.insecure_channel(address) as channel:
            yield Stream(channel, RUN_VCPU, Response.FromString), server
    finally:
        server.stop(0).wait(10)


def echo(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
    for request in requests:
        yield Response(seq=request.seq, at_ns=request.time_ns + 1)


class Hangs:
    """Takes a request and says nothing, until ``gone``."""

    def __init__(self) -> None:
        self.asked, self.gone = threading.Event(), threading.Event()

    def __call__(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        next(requests)
        self.asked.set()
        self.gone.wait(10)
        yield from ()


def test_each_request_has_its_reply(tmp_path: Path) -> None:
    with asking(tmp_path, echo) as (stream, _):
        for seq in range(100):
            assert stream.ask(Request(seq=seq, time_ns=2 * seq)) == Response(seq=seq, at_ns=2 * seq + 1)
        stream.end()


def test_a_server_that_refuses(tmp_path: Path) -> None:
    def refuse(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield Response(seq=next(requests).seq)
        next(requests)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "seq = 7: expected 2")

    with asking(tmp_path, refuse) as (stream, _):
        assert stream.ask(Request(seq=1)).seq == 1
        for _ in range(2):  # and so it stays
            with pytest.raises(PeerLost, match="lost its server: INVALID_ARGUMENT: seq = 7: expected 2"):
                stream.ask(Request(seq=7))
        with pytest.raises(PeerLost, match="INVALID_ARGUMENT"):
            stream.end()


def test_a_server_that_ends_the_stream(tmp_path: Path) -> None:
    def leave(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield Response(seq=next(requests).seq)

    with asking(tmp_path, leave) as (stream, _):
        stream.ask(Request(seq=1))
        with pytest.raises(PeerLost, match="lost its server: OK"):
            stream.ask(Request(seq=2))


def test_a_server_that_says_more_after_the_end(tmp_path: Path) -> None:
    def say_more(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield from echo(requests, context)
        yield Response(seq=9)

    with asking(tmp_path, say_more) as (stream, _):
        stream.ask(Request(seq=1))
        with pytest.raises(Failure, match="more after the end"):
            stream.end()


def test_a_server_that_goes_away(tmp_path: Path) -> None:
    hangs = Hangs()
    with asking(tmp_path, hangs) as (stream, server):
        stopping = threading.Thread(target=lambda: hangs.asked.wait(10) and server.stop(0))
        stopping.start()
        with pytest.raises(PeerLost, match=r"lost its server: (UNAVAILABLE|CANCELLED)"):
            stream.ask(Request(seq=1))
        hangs.gone.set()
        stopping.join(10)


def test_giving_up(tmp_path: Path) -> None:
    hangs = Hangs()
    with asking(tmp_path, hangs) as (stream, _):
        watchdog = threading.Thread(target=lambda: hangs.asked.wait(10) and stream.cancel())
        watchdog.start()
        with pytest.raises(PeerLost, match="lost its server: CANCELLED: given up"):
            stream.ask(Request(seq=1))
        hangs.gone.set()
        watchdog.join(10)


def test_nobody_there(tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/nobody") as channel:
        stream: HostStream = Stream(channel, RUN_VCPU, Response.FromString)
        with pytest.raises(PeerLost, match="lost its server: UNAVAILABLE"):
            stream.ask(Request(seq=1))
