"""What every client of a running cluster does the same way: find it, connect, and turn refusals into messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from apf import tls
from apf.listen import TlsFiles
from apf.process import Failure
from apf.v1.host_pb2_grpc import HostServiceStub
from apf.v1.load_pb2_grpc import LoadServiceStub
from deploy.clusters import BadInput, Clusters, Record

_Stub = TypeVar("_Stub")
CALL_S = 30.0
"""Deadline of a call that only waits for a window to open, wall s."""

OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A server that was not there yet is asked again soon, not after gRPC's first second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_BAD_INPUT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE)


class Address(str):
    """An address of the API together with what to show there: text to all who only pass it on."""

    __slots__ = ("tls",)
    tls: TlsFiles | None

    def __new__(cls, text: str, tls: TlsFiles | None) -> Address:
        """``text``, and the files of who connects there."""
        made = super().__new__(cls, text)
        made.tls = tls
        return made


def address(text: str) -> str:
    """``text`` if it is ``HOST:PORT`` or ``unix:PATH``, else BadInput."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise BadInput(f"--api = {text!r}: expected HOST:PORT, port 1 to 65535, or unix:PATH")
    return text


def _credentials(address: str) -> grpc.ChannelCredentials | None:
    """What to show at ``address``; None where connections have no certificates."""
    files = getattr(address, "tls", None)
    return None if files is None or address.startswith("unix:") else tls.client_credentials(files)


def channel(address: str) -> grpc.Channel:
    """A channel to the API."""
    credentials = _credentials(address)
    if credentials is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, credentials, options=OPTIONS)


def aio_channel(address: str) -> grpc.aio.Channel:
    """A channel to the API, for asyncio."""
    credentials = _credentials(address)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS)


def running(clusters: Clusters, name: str) -> Record:
    """The running cluster of this name. Raises BadInput if there is none, Failure if its run is over."""
    record = clusters.find(name)
    if record is None:
        names = clusters.names()
        there = f"there are {', '.join(names)}" if names else "none runs; start one with 'apf up'"
        raise BadInput(f"--name = {name}: no such cluster; {there}")
    if record.over:
        raise Failure(f"the run of cluster {name} has {record.status}: see 'apf down --name {name}'")
    if not record.api:
        raise Failure(f"cluster {name} is still starting")
    return record


def refused(error: grpc.RpcError, address: str) -> Failure | BadInput:
    """The exception to raise for what a call met."""
    code, details = error.code(), error.details() or "no details"
    if code in _BAD_INPUT:
        return BadInput(details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Failure(f"{address}: the run is ending, or nobody answers ({details})")
    return Failure(f"{address}: {code.name}: {details}")


def host_service(address: str) -> AbstractContextManager[HostServiceStub]:
    """A stub of hostd's service at ``address``; what a call meets is raised as Failure or BadInput."""
    return _service(address, HostServiceStub)


def load_service(address: str) -> AbstractContextManager[LoadServiceStub]:
    """A stub of the API at ``address``, likewise."""
    return _service(address, LoadServiceStub)


@contextmanager
def _service(address: str, stub: Callable[[grpc.Channel], _Stub]) -> Iterator[_Stub]:
    with channel(address) as opened:
        try:
            yield stub(opened)
        except grpc.RpcError as error:
            raise refused(error, address) from error


def serving(address: str, deadline_s: float) -> None:
    """Return once the health service at ``address`` says SERVING. Raises Failure if not within ``deadline_s``."""
    with channel(address) as opened:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(opened).Check(request, timeout=deadline_s, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Failure(f"{address}: {error.code().name}: {error.details()}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise Failure(f"{address}: health is {name}, not SERVING")
