"""hostd: owns guest memory and the swap file, answers page faults in the order of virtual time, opens the windows.

Here a run starts and ends. ``service`` answers, ``vms`` knows who is on the host, ``opener`` opens the windows.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from apf import metrics, roles, wire
from apf.clockcells import Server
from apf.clockpage import ClockPage
from apf.guard import Servers, for_streams
from apf.hostmem import Geometry, HostMemory
from apf.journal import Journal
from apf.listen import sockets
from apf.process import settle_collector
from apf.serving import TurnServer, let_calls_end
from apf.streams import StreamMethod
from apf.v1.host_pb2_grpc import add_HostServiceServicer_to_server
from hostd.build import host_shell
from hostd.config import HostdConfig
from hostd.io_fault_log import IoFaultLog
from hostd.io_fault_requests import IoFaultRequests
from hostd.metrics import HostMetrics
from hostd.opener import Opener
from hostd.report import host_report
from hostd.service import HostService
from hostd.shell import HostShell
from hostd.vms import Vms

log = logging.getLogger(__name__)
_METHOD = "apf.v1.HostService/RunVcpu"
_STOP_S = 2.0
_SWITCH_S = 0.0005
"""How long the event loop may keep the opener from its border work: all vCPUs wait for that."""


def main(config: HostdConfig) -> None:
    """Serve one run to its end; leaves the host's results as report ``hostd``."""
    sys.setswitchinterval(_SWITCH_S)
    asyncio.run(_serve(config))


async def _serve(config: HostdConfig) -> None:
    scenario, run = config.scenario, config.run
    vcpus = scenario.vm.vcpus
    memory = HostMemory.create(Geometry.of(scenario), run.host_memory)
    places = range(config.places)
    clock = ClockPage.create(run.clock, config.places * vcpus, scenario.host.vms * vcpus)
    sink = run.journal("host").open("w") if config.journal else None
    shell, _swap = host_shell(scenario, Journal(sink), memory, run.swap)
    turns = TurnServer(Server.HOSTD, scenario.fingerprint(), scenario.host.patience_s, _METHOD)
    participants = {(vm, vcpu): vm * vcpus + vcpu for vm in places for vcpu in range(vcpus)}
    listeners = config.listen or sockets(run, "hostd", roles.HOSTD)
    expected = [key for key in participants if key[0] < scenario.host.vms]
    turns.open(clock, participants, expected, on_loop=not for_streams(listeners))
    vms = Vms(config, turns, shell, clock)
    io_faults = IoFaultRequests(shell, IoFaultLog(run.io_faults, scenario))
    service = HostService(config, turns, shell, clock, vms, io_faults)
    streams = StreamMethod(wire.RUN_VCPU, service.opened, turns.failed)
    servers = Servers(
        listeners,
        config.security,
        lambda server: add_HostServiceServicer_to_server(service, server),
        config.places * vcpus,
        turns.calls,
        streams=streams if for_streams(listeners) else None,
    )
    addresses = await servers.start()
    log.info("answers at %s: places for VMs %d, vCPUs of each %d", ", ".join(addresses), config.places, vcpus)
    settle_collector()
    metrics.serve(
        run,
        "hostd",
        "hostd",
        HostMetrics(shell.core, clock, vms.present, vms.events),
        turns.calls,
        listen=config.metrics,
    )
    try:
        opener = Opener(config, turns, shell, clock, vms, io_faults)
        opener.start()
        await turns.wait_over(lambda: None)
        turns.raise_failure()
        opener.join(_STOP_S)
        await turns.wait_left()
        await servers.stop(_STOP_S)
        io_faults.close(_report(config, shell, turns, clock, vms, opener.run_seconds))
    finally:
        clock.abort()
        await servers.stop(0)
        vms.end_loads()
        await let_calls_end()
        if sink:
            shell.core.journal.flush()


def _report(
    config: HostdConfig,
    shell: HostShell,
    turns: TurnServer,
    clock: ClockPage,
    vms: Vms,
    run_seconds: float,
) -> str:
    """Leave the host's results; returns the digest."""
    shell.core.finish(config.scenario.duration_ns or clock.border_ns)
    digest = shell.core.journal.digest()
    report = {
        "digest": digest,
        "messages": dict(sorted(turns.messages.items())),
        "windows": clock.windows,
        "run_seconds": run_seconds,
        "lost": {str(vm): str(failure) for vm, failure in sorted(vms.lost.items())},
        **host_report(shell),
    }
    config.run.write_report("hostd", report)
    return digest
