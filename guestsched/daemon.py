"""guestsched: one VM's guest kernel. Loads the VM into hostd, then answers traps in the order of virtual time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import grpc

from apf import limits, metrics, roles, tls, wire
from apf.clockcells import Server
from apf.clockpage import ClockPage
from apf.guard import Servers
from apf.journal import Journal
from apf.listen import API_ON_SOCKETS, PLAIN, Listener, ListenError, Security, listener, sockets
from apf.messages import Segment, TrapRaised
from apf.process import Failure, PeerLost, settle_collector
from apf.rundir import RunDir
from apf.scenario import Scenario
from apf.serving import TurnServer, let_calls_end
from apf.v1 import guest_pb2, types_pb2
from apf.v1.guest_pb2_grpc import GuestServiceServicer, add_GuestServiceServicer_to_server
from apf.v1.host_pb2_grpc import HostServiceStub
from guestsched.api import LoadApi
from guestsched.api_server import ApiServer
from guestsched.arrival_log import ArrivalLog
from guestsched.build import guest_core
from guestsched.metrics import GuestMetrics
from guestsched.shell import GuestShell, guest_report

log = logging.getLogger(__name__)
_METHOD = "apf.v1.GuestService/TakeTraps"
_CONNECT_S = 60
_LOAD_S = 300
_STOP_S = 2.0
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_NO_CONNECTION = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


@dataclass(frozen=True, slots=True)
class GuestschedConfig:
    """VM ``vm`` of a host."""

    scenario: Scenario
    run: RunDir
    vm: int
    host_address: str
    listen: tuple[Listener, ...] = ()
    """Where it answers its vCPUs; without, at their socket."""
    journal: bool = False
    api: str | None = None
    """Where the API listens beside its roles' sockets: ``HOST:PORT`` (port 0: any), ``unix``: nowhere; None: no API."""
    metrics: str = metrics.ANYWHERE
    security: Security = PLAIN

    @property
    def first_participant(self) -> int:
        """The slot of its vCPU 0 on the host's clock page."""
        return self.vm * self.scenario.vm.vcpus

    @property
    def name(self) -> str:
        """As in reports and journals."""
        return f"guest-{self.vm}"

    @property
    def daemon(self) -> str:
        """As in the names of sockets."""
        return f"guestsched-{self.vm}"


class GuestService(GuestServiceServicer):
    """The gRPC face of one guest kernel. It answers before there is one: vCPUs that attach wait until it boots."""

    def __init__(self, turns: TurnServer) -> None:
        self._turns = turns
        self._shell: asyncio.Future[GuestShell] = asyncio.get_running_loop().create_future()

    def boot(self, shell: GuestShell) -> None:
        """The VM is on its host."""
        self._shell.set_result(shell)

    async def TakeTraps(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request_iterator: object,
        context: grpc.aio.ServicerContext[guest_pb2.TakeTrapsRequest, guest_pb2.TakeTrapsResponse],
    ) -> None:
        await self._turns.serve_vcpu(context, self._attached, self._take)

    async def _attached(self, vm: int, vcpu: int, seq: int) -> guest_pb2.TakeTrapsResponse:
        await asyncio.shield(self._shell)
        return guest_pb2.TakeTrapsResponse(seq=seq, attached=types_pb2.Attached())

    def _take(
        self, vm: int, vcpu: int, message: guest_pb2.TakeTrapsRequest
    ) -> tuple[int, guest_pb2.TakeTrapsResponse]:
        raised: TrapRaised = wire.trap_in(message)
        dispatch = self._shell.result().take(vcpu, raised, message.time_ns)
        counts = self._turns.messages
        counts[f"in.{message.WhichOneof('trap')}"] += 1
        counts["out.dispatch"] += 1
        return dispatch.at_ns, wire.dispatch_out(dispatch, message.seq)


def main(config: GuestschedConfig) -> None:
    """Serve one run to its end; leaves the guest's results as a report."""
    asyncio.run(_serve(config))


async def _serve(config: GuestschedConfig) -> None:
    """Listen, load the VM into its host, which lets it join, and boot."""
    scenario, run = config.scenario, config.run
    ends_all = scenario.host.on_vm_loss == "end"
    turns = TurnServer(Server.GUESTSCHED, scenario.fingerprint(), scenario.host.patience_s, _METHOD, ends_all)
    sink = run.journal(config.name).open("w") if config.journal else None

    def post(vcpu: int, at_ns: int | None) -> None:
        turns.post(config.first_participant + vcpu, at_ns)

    service = GuestService(turns)
    vcpus = range(scenario.vm.vcpus)
    servers = Servers(
        config.listen or sockets(run, config.daemon, roles.GUESTSCHED),
        config.security,
        lambda server: add_GuestServiceServicer_to_server(service, server),
        len(vcpus),
        turns.calls,
    )
    segments = guest_core(scenario, Journal(), config.vm).segments()
    host = _Host(config)
    api_server = None

    def poll() -> None:
        if shell.all_stopped:
            turns.finish()
        elif clock.aborted:
            raise PeerLost("the run was ended by another process")
        elif host.lost:
            clock.abort()
            raise PeerLost("lost hostd: it does not answer any more")

    try:
        await host.connect()
        clock = _clock(run)
        turns.open(clock, {(config.vm, vcpu): config.first_participant + vcpu for vcpu in vcpus})
        await servers.start()
        boot_ns = await host.load(segments)
        api = None
        if config.api is not None:
            arrivals = ArrivalLog(run.arrivals(config.vm).open("w"), scenario, config.vm, boot_ns)
            api = LoadApi(scenario, run, config.vm, turns, arrivals)
        shell = GuestShell(scenario, Journal(sink), post, api.answered if api else None, config.vm, boot_ns)
        if api is not None and config.api is not None:
            api.serve(shell)
            found = _api_listeners(config, config.api)
            api_server = ApiServer(api, found, config.security, turns.calls, config.name)
            addresses = await api_server.start()
            by_role = {next(iter(each.roles)): each.address for each in found if each.path is not None}
            run.write_report(f"api-guest-{config.vm}", {"address": addresses[-1], "sockets": by_role})
        settle_collector()
        collects = (GuestMetrics(shell, config.vm, clock), turns.calls)
        metrics.serve(run, config.name, "guestsched", *collects, listen=config.metrics)
        service.boot(shell)
        await turns.wait_over(poll)
        if shell.core.failed and ends_all and scenario.host.vms > 1:
            turns.end_all(Failure(f"VM {config.vm}: {shell.core.failed}"))
        turns.raise_failure()
        await turns.wait_left()
        await servers.stop(_STOP_S)
        if api_server is not None:
            await api_server.stop(_STOP_S)
        report = {
            "digest": "",
            "messages": dict(sorted(turns.messages.items())),
            **guest_report(shell),
        }
        report["digest"] = shell.core_digest()
        if api is not None:
            arrivals.close(report["digest"])
        run.write_report(config.name, report)
    finally:
        await servers.stop(0)
        if api_server is not None:
            await api_server.stop(0)
        await host.close()
        await let_calls_end()


def _api_listeners(config: GuestschedConfig, api: str) -> tuple[Listener, ...]:
    """A socket for each role, then TCP if there is to be any."""
    found = sockets(config.run, config.daemon, roles.API)
    if api == API_ON_SOCKETS:
        return found
    try:
        return (*found, listener("--api", api, roles.API, config.security.tls))
    except ListenError as error:
        raise Failure(str(error)) from error


class _Host:
    """guestsched's connection to hostd: loads the VM, and then tells whether hostd is still there.

    The vCPUs' streams end with hostd too, but until vCPUs have attached nobody else would notice.
    """

    def __init__(self, config: GuestschedConfig) -> None:
        self._vm = config.vm
        options = (("grpc.max_send_message_length", limits.request_bytes_max("/apf.v1.HostService/LoadVm")),)
        self._channel = tls.channel(config.host_address, config.security.tls, options)

    async def connect(self) -> None:
        """Wait for hostd. Raises Failure."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), _CONNECT_S)
        except TimeoutError:
            raise Failure(f"hostd did not answer within {_CONNECT_S} s") from None

    async def load(self, segments: tuple[Segment, ...]) -> int:
        """Fill the VM's memory; returns when it starts, 0 if it is there from the start. Raises Failure or PeerLost."""
        request = wire.segments_out(self._vm, list(segments))
        try:
            loaded = await HostServiceStub(self._channel).LoadVm(request, timeout=_LOAD_S)
        except grpc.aio.AioRpcError as error:
            said = f"{error.code().name}: {error.details()}"
            if error.code() in _GONE:
                raise PeerLost(f"lost hostd while it loaded VM {self._vm}: {said}") from error
            raise Failure(f"hostd refused to load VM {self._vm}: {said}") from error
        log.info(
            "VM %d is loaded: %d pages resident; the host has swapped %d; it starts at %d ns",
            self._vm,
            loaded.resident_pages,
            loaded.swapped_pages,
            loaded.start_ns,
        )
        return int(loaded.start_ns)

    @property
    def lost(self) -> bool:
        """Whether a connection to hostd cannot be had any more."""
        return self._channel.get_state(try_to_connect=True) in _NO_CONNECTION

    async def close(self) -> None:
        """Let go of it."""
        await self._channel.close()


def _clock(run: RunDir) -> ClockPage:
    try:
        return ClockPage.attach(run.clock)
    except FileNotFoundError:
        raise PeerLost(f"lost hostd: {run.clock} is gone") from None
