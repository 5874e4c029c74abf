"""Locust users that access the memory of a running guest: unary Access calls, each user one call after another.

    locust -f tests/clients/locustfile.py --headless --users 50 --spawn-rate 25 --run-time 60s \
        --host 127.0.0.1:41234 --guest-process mem --guest-pages 256

The pattern is that of Locust's documentation for gRPC: gRPC's gevent support is switched on before any channel is made,
and an interceptor fires Locust's request event for every call. Beside the calls (type ``grpc``, wall time, ms) rows of
type ``guest-us`` show the latency that the guest itself reports, by what the access met: in guest time and, since Locust
keeps whole numbers, in us.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import User, constant, events, task
from locust.env import Environment

from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import LoadServiceStub
from apf.v1.types_pb2 import Access

grpc_gevent.init_gevent()

DEADLINE_S = 60.0
WRITES = 0.25


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--guest-process", default="mem", help="Name of the guest process to access (default: mem).")
    parser.add_argument("--guest-pages", type=int, default=256, help="Pages of its memory to access (default: 256).")


class Timed(grpc.UnaryUnaryClientInterceptor):
    """Tells Locust of every call: its wall time, and what went wrong."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """One call, to its end."""
        began_s = time.perf_counter()
        call = continuation(details, request)
        error = call.exception()
        self._environment.events.request.fire(
            request_type="grpc",
            name=details.method.rpartition("/")[2],
            response_time=(time.perf_counter() - began_s) * 1000,
            response_length=0 if error else call.result().ByteSize(),
            response=None if error else call.result(),
            context={},
            exception=error,
        )
        return call


class AccessUser(User):  # type: ignore[misc]
    """Somebody who touches a random page, and the next when that has happened."""

    wait_time = constant(0)
    _channels: dict[str, grpc.Channel] = {}  # noqa: RUF012 - one a process, for all its users

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        self._process, self._pages = options.guest_process, options.guest_pages
        channel = self._channels.setdefault(environment.host, grpc.insecure_channel(environment.host))
        self._service = LoadServiceStub(grpc.intercept_channel(channel, Timed(environment)))

    @task
    def access(self) -> None:
        """One access, a quarter of them stores."""
        request = load_pb2.AccessRequest(
            process_name=self._process,
            page=random.randrange(self._pages),
            kind=Access.ACCESS_WRITE if random.random() < WRITES else Access.ACCESS_READ,
        )
        try:
            answer = self._service.Access(request, timeout=DEADLINE_S)
        except grpc.RpcError:
            return  # told by the interceptor
        self.environment.events.request.fire(
            request_type="guest-us",
            name=load_pb2.AccessResponse.Met.Name(answer.met),
            response_time=answer.latency_ns / 1e3,
            response_length=0,
            response=answer,
            context={},
            exception=None,
        )
