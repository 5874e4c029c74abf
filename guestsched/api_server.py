"""The API's gRPC servers: one a listener, with health and reflection beside the service."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from apf.calls import CallCounter
from apf.guard import Servers
from apf.listen import Listener, Security
from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import add_LoadServiceServicer_to_server
from guestsched.api import LoadApi
from guestsched.call_log import CallLog


class ApiServer:
    """The API's own gRPC servers, with health and reflection."""

    def __init__(
        self, api: LoadApi, listeners: Sequence[Listener], security: Security, calls: CallCounter, guest: str
    ) -> None:
        self._api = api
        self._health = health.aio.HealthServicer()
        self._names = (load_pb2.DESCRIPTOR.services_by_name["LoadService"].full_name, health.SERVICE_NAME)
        self._servers = Servers(listeners, security, self._add, 0, calls, (CallLog(guest),))

    def _add(self, server: grpc.aio.Server) -> None:
        add_LoadServiceServicer_to_server(self._api, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*self._names, reflection.SERVICE_NAME), server)

    async def start(self) -> tuple[str, ...]:
        """Listen; returns the addresses. Raises Failure."""
        addresses = await self._servers.start()
        for name in ("", self._names[0]):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return addresses

    async def stop(self, grace_s: float) -> None:
        """Tell whoever waits, and end."""
        await self._health.enter_graceful_shutdown()
        self._api.close()
        await self._servers.stop(grace_s)
