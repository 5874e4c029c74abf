"""hostd: owns guest memory and the swap file, answers page faults in the order of virtual time, opens the windows."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import grpc

from apf import limits, metrics, roles, wire
from apf.clockcells import Server, Waited
from apf.clockpage import ClockPage
from apf.guard import Servers, for_streams, parser
from apf.hostmem import Geometry, HostMemory
from apf.io_faults import IoFaultWish, endless_stop
from apf.journal import Journal
from apf.listen import PLAIN, Listener, Security, sockets
from apf.messages import FOREVER_NS, NEVER_NS, PAGE_SIZE, Segment
from apf.process import Failure, PeerLost, settle_collector
from apf.rundir import RunDir
from apf.scenario import Scenario
from apf.serving import Patience, TurnServer, let_calls_end, slowest
from apf.streams import Peer, StreamMethod
from apf.v1 import host_pb2, types_pb2
from apf.v1.host_pb2_grpc import HostServiceServicer, add_HostServiceServicer_to_server
from apf.vcpu_stream import VcpuStream
from hostd.build import host_shell
from hostd.io_fault_log import Asked, IoFaultLog
from hostd.metrics import HostMetrics
from hostd.report import host_report
from hostd.shell import HostShell

log = logging.getLogger(__name__)
IO_FAULTS_MAX = 1024
"""Failures of the device that operators may ask for in a run."""
_METHOD = "apf.v1.HostService/RunVcpu"
_IN = {kind: f"in.{name}" for kind, name in wire.HOST_KINDS.items()}
_OUT = {kind: f"out.{name}" for kind, name in wire.HOST_KINDS.items()}
_START_S = 60
_STOP_S = 2.0
_IDLE_NS = 200_000_000
"""The opener looks around at least so often."""
_SWITCH_S = 0.0005
"""How long the event loop may keep the opener from its border work: all vCPUs wait for that."""


@dataclass(frozen=True, slots=True)
class HostdConfig:
    """The scenario's host. ``listen``: where it answers; without, at its roles' sockets."""

    scenario: Scenario
    run: RunDir
    listen: tuple[Listener, ...] = ()
    journal: bool = False
    metrics: str = metrics.ANYWHERE
    security: Security = PLAIN

    @property
    def places(self) -> int:
        """How many VMs it may have at a time."""
        return self.scenario.host.places

    def participants(self, vm: int) -> range:
        """The slots of a VM's vCPUs on the clock page."""
        vcpus = self.scenario.vm.vcpus
        return range(vm * vcpus, (vm + 1) * vcpus)


@dataclass(frozen=True, slots=True, eq=False)
class WantedIoFault:
    """What an operator wants the device to do. ``at_ns`` becomes known when it does."""

    wish: IoFaultWish
    at_ns: asyncio.Future[int]


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """A VM that wants to join a host that runs. ``start_ns`` becomes known when it does."""

    vm: int
    segments: tuple[Segment, ...]
    start_ns: asyncio.Future[int]


class HostService(HostServiceServicer):
    """The gRPC face of one host."""

    def __init__(self, config: HostdConfig, turns: TurnServer, shell: HostShell, clock: ClockPage) -> None:
        self._config = config
        self._turns = turns
        self._shell = shell
        self._clock = clock
        self._guest_pages = config.scenario.vm.guest_memory // PAGE_SIZE
        self._parse = parser(wire.RUN_VCPU, host_pb2.RunVcpuRequest.FromString)
        self._claimed: set[int] = set()  # loaded, or being loaded
        self._loads: set[asyncio.Future[None]] = set()
        self._loaded = 0
        self._starts: dict[int, asyncio.Future[int]] = {}  # of VMs that are not there from the start
        self._joins: dict[int, Join] = {}
        self.present = set(range(config.scenario.host.vms))
        self.lost: dict[int, Failure] = {}
        self.vm_events: Counter[str] = Counter()
        self._io_faults: deque[WantedIoFault] = deque()
        self._io_faults_asked = 0
        self._io_fault_log = IoFaultLog(config.run.io_faults, config.scenario)
        self._loading = asyncio.Condition()
        # Not the loop's own executor, whose threads it waits for at its end: a load may take seconds.
        self._loader = ThreadPoolExecutor(1, "loader")
        self.all_loaded = threading.Event()
        self.is_running = False
        turns.survive(self._lost, self._detached)

    async def RunVcpu(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request_iterator: object,
        context: grpc.aio.ServicerContext[host_pb2.RunVcpuRequest, host_pb2.RunVcpuResponse],
    ) -> None:
        await self._turns.serve_vcpu(context, self._attached, self._take)

    def opened(self, peer: Peer) -> VcpuStream[host_pb2.RunVcpuRequest]:
        """RunVcpu, on a stream that is not on the event loop."""
        return VcpuStream(self._turns, peer, self._parse, self._attached, self._take)

    async def LoadVm(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request: host_pb2.LoadVmRequest,
        context: grpc.aio.ServicerContext[host_pb2.LoadVmRequest, host_pb2.LoadVmResponse],
    ) -> host_pb2.LoadVmResponse:
        if request.vm >= self._config.places:
            text = f"vm = {request.vm}: 0 to {self._config.places - 1}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        if request.vm in self._joins or (request.vm in self._claimed and not self._is_leaving(request.vm)):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"vm = {request.vm}: loaded already")
        try:
            segments = wire.segments_in(request, self._guest_pages)
            wire.check_layout(segments)
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, limits.details(str(error)))
        # From here on the VM is this caller's, and loaded to its end even if the caller goes away.
        self._claimed.add(request.vm)
        if request.vm not in self.present or self._is_leaving(request.vm):
            return self._response(request.vm, await self._join(request.vm, tuple(segments)))
        loading = asyncio.ensure_future(self._load(request.vm, tuple(segments)))
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)
        await asyncio.shield(loading)
        return self._response(request.vm, 0)

    async def InjectIoFault(  # noqa: N802, D102 - the generated base names and documents it
        self,
        request: host_pb2.InjectIoFaultRequest,
        context: grpc.aio.ServicerContext[host_pb2.InjectIoFaultRequest, host_pb2.InjectIoFaultResponse],
    ) -> host_pb2.InjectIoFaultResponse:
        if not self.is_running or self._turns.is_over:
            when = "is over" if self._turns.is_over else "has not begun"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the run {when}")
        try:
            wish = wire.io_fault_in(request)
            if wish.vm >= self._config.places:
                raise wire.WireError(f"vm = {wish.vm}: 0 to {self._config.places - 1}")
            if endless_stop(wish.what, wish.for_ns, self._config.scenario.duration_ns):
                raise wire.WireError("for_ns = 0: nothing would ever end a stop in a run until it is shut down")
        except wire.WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, limits.details(str(error)))
        if self._io_faults_asked >= IO_FAULTS_MAX:
            text = f"{IO_FAULTS_MAX} failures have been asked for; no more in this run"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._io_faults_asked += 1
        wanted = WantedIoFault(wish, asyncio.get_running_loop().create_future())
        self._io_faults.append(wanted)
        self._turns.ask_for_clock()
        return host_pb2.InjectIoFaultResponse(at_ns=await asyncio.shield(wanted.at_ns))

    def _response(self, vm: int, start_ns: int) -> host_pb2.LoadVmResponse:
        core = self._shell.core
        resident, swapped = core.resident_pages(vm), core.swap_pages
        return host_pb2.LoadVmResponse(resident_pages=resident, swapped_pages=swapped, start_ns=start_ns)

    async def _load(self, vm: int, segments: tuple[Segment, ...]) -> None:
        async with self._loading:
            # One VM after the other, whichever comes first: who gets which frame is part of the run.
            await self._loading.wait_for(lambda: self._loaded == vm)
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._loader, self._shell.load, vm, segments)
            except Exception as error:
                self._turns.fail(Failure(f"cannot load VM {vm}: {type(error).__name__}: {error}"))
                raise
            self._loaded += 1
            self._loading.notify_all()
            if self._loaded == len(self.present):
                self.all_loaded.set()

    # VMs that come and go: these run on the event loop ... -----------------------------------------------------------

    async def _join(self, vm: int, segments: tuple[Segment, ...]) -> int:
        """Let a VM join at a border, once its vCPUs are here too; returns when it starts."""
        join = self._joins[vm] = Join(vm, segments, self._start_of(vm))
        self._ask_to_join(vm)
        try:
            return await asyncio.shield(join.start_ns)
        except asyncio.CancelledError:
            if self._joins.pop(vm, None) is not None:  # else the opener has it, and it joins
                self._claimed.discard(vm)
            raise

    def _is_leaving(self, vm: int) -> bool:
        """Whether all of a VM has ended, and its place is free at the next border."""
        return self.is_running and vm in self.present and self._clock.has_ended(self._config.participants(vm))

    def _start_of(self, vm: int) -> asyncio.Future[int]:
        """Of the VM that is about to take the place ``vm``."""
        start = self._starts.get(vm)
        if start is None or start.done():  # that of the VM before it
            start = self._starts[vm] = asyncio.get_running_loop().create_future()
        return start

    def _ask_to_join(self, vm: int) -> None:
        if vm in self._joins and self._turns.is_attached(vm):
            self._turns.ask_for_clock()

    def _lost(self, vm: int, failure: Failure) -> bool:
        """A vCPU of a VM is lost. Whether the host goes on without that VM."""
        if self._config.scenario.host.on_vm_loss == "end" or not self.is_running or vm not in self.present:
            return False
        if vm not in self.lost:
            self.lost[vm] = failure
            log.warning("VM %d is lost and will leave: %s", vm, failure)
        return True

    def _detached(self, vm: int) -> None:
        """No stream of a VM is left: its processes, if it is lost, cannot touch the clock any more."""
        if vm in self.lost and vm in self.present:
            self._clock.evict(self._config.participants(vm), Server.GUESTSCHED)
            self._turns.forget_waiting()

    # ... and these in the opener, while all stand at a border. -------------------------------------------------------

    def take_joins(self) -> list[Join]:
        """The VMs that are ready to join, by number."""
        ready = [vm for vm in sorted(self._joins) if vm not in self.present and self._turns.is_attached(vm)]
        return [join for vm in ready if (join := self._joins.pop(vm, None)) is not None]

    def take_io_faults(self, at_ns: int) -> None:
        """Let the device do what was asked for, from the border at ``at_ns`` on."""
        while self._io_faults:
            wanted = self._io_faults.popleft()
            self._shell.fail_ios(wanted.wish, at_ns)
            self._io_fault_log.take(Asked(at_ns, self.vm_events["joined"], wanted.wish))
            log.warning("the swap device fails from %d ns on, as was asked for: %s", at_ns, wanted.wish)
            wanted.at_ns.get_loop().call_soon_threadsafe(wanted.at_ns.set_result, at_ns)

    def close_log(self, digest: str) -> None:
        """The run has come to its end."""
        self._io_fault_log.close(digest)

    def put_back(self, join: Join) -> None:
        """It cannot join yet."""
        self._joins[join.vm] = join

    @property
    def wants_to_join(self) -> bool:
        """Whether a VM waits for its place."""
        return bool(self._joins)

    def joined(self, join: Join, at_ns: int) -> None:
        """A VM is loaded and starts at ``at_ns``."""
        self.present.add(join.vm)
        self.vm_events["joined"] += 1
        join.start_ns.get_loop().call_soon_threadsafe(join.start_ns.set_result, at_ns)

    def left(self, vm: int) -> None:
        """A VM's place is free."""
        self.present.discard(vm)
        if vm not in self._joins:
            self._claimed.discard(vm)
        self.vm_events["lost" if vm in self.lost else "ended"] += 1

    def end_loads(self) -> None:
        """Nobody waits for them any more."""
        for loading in self._loads:
            loading.cancel()

    async def _attached(self, vm: int, vcpu: int, seq: int) -> host_pb2.RunVcpuResponse:
        if vm not in self.present or self._is_leaving(vm):
            start = self._start_of(vm)
            self._ask_to_join(vm)
            start_ns = await asyncio.shield(start)
        else:
            start_ns = self._starts[vm].result() if vm in self._starts else 0
        return host_pb2.RunVcpuResponse(seq=seq, attached=types_pb2.Attached(start_ns=start_ns))

    def _take(self, vm: int, vcpu: int, message: host_pb2.RunVcpuRequest) -> tuple[int, host_pb2.RunVcpuResponse]:
        request = wire.host_request_in(message, self._guest_pages)
        reply = self._shell.take(vm, vcpu, request, message.time_ns)
        self._clock.set_border_due(self._shell.core.border_due_ns())
        response = wire.host_reply_out(reply, message.seq)
        counts = self._turns.messages
        counts[_IN[type(request)]] += 1
        counts[_OUT[type(reply)]] += 1
        return reply.at_ns, response


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
    service = HostService(config, turns, shell, clock)
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
        HostMetrics(shell.core, clock, service.present, service.vm_events),
        turns.calls,
        listen=config.metrics,
    )
    try:
        opener = _Opener(config, turns, service, clock)
        opener.start()
        await turns.wait_over(lambda: None)
        turns.raise_failure()
        opener.join(_STOP_S)
        await turns.wait_left()
        await servers.stop(_STOP_S)
        service.close_log(_report(config, shell, turns, clock, opener.run_seconds, service.lost))
    finally:
        clock.abort()
        await servers.stop(0)
        service.end_loads()
        await let_calls_end()
        if sink:
            shell.core.journal.flush()


class _Pace:
    """How far virtual time may be: ``pace`` guest seconds a second of wall time, 0: as far as it gets."""

    def __init__(self, pace: Decimal, began_s: float) -> None:
        self.slows = pace > 0
        self._pace = float(pace)
        self._began_s = began_s

    def now_ns(self) -> int:
        """The limit now. A float decides when a window opens, never what happens in it."""
        return int((time.monotonic() - self._began_s) * self._pace * 1e9) if self.slows else NEVER_NS

    def wall_ns_until(self, time_ns: int) -> int:
        """Wall time until the limit has reached ``time_ns``."""
        return max(0, int((time_ns - self.now_ns()) / self._pace)) if self.slows else 0


class _Opener(threading.Thread):
    """Opens the windows. Waits natively; comes up for air for border work and when nothing happens for a while."""

    def __init__(self, config: HostdConfig, turns: TurnServer, service: HostService, clock: ClockPage) -> None:
        super().__init__(name="opener", daemon=True)
        self._config = config
        self._turns = turns
        self._service = service
        self._clock = clock
        self.run_seconds = 0.0  # wall time of all windows

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:
            self._turns.fail(Failure(f"{type(error).__name__}: {error}"))
            raise

    def _run(self) -> None:
        if not self._everybody_is_here():
            return
        log.info("all VMs are loaded and all vCPUs are here; the first window opens")
        self._service.is_running = True
        clock, shell = self._clock, self._service._shell
        window_ns = shell.core.config.window_ns
        patience = Patience(self._config.scenario.host.patience_s)
        began_s = time.monotonic()
        pace = _Pace(self._config.scenario.pace, began_s)
        clock.set_limit(pace.now_ns())
        clock.set_border_due(shell.core.border_due_ns())
        while not self._turns.is_over:
            match clock.run_openings(window_ns):
                case Waited.PARKED:
                    clock.beat()
                    clock.wait_arrivals(True, _IDLE_NS)
                case Waited.AHEAD:
                    clock.beat()
                    next_ns = clock.earliest_ns() // window_ns * window_ns
                    clock.wait_arrivals(True, min(_IDLE_NS, pace.wall_ns_until(next_ns)))
                    clock.set_limit(pace.now_ns())
                case Waited.ARRIVALS:
                    self._let_arrive(window_ns, pace)
                case Waited.ENDED:
                    self._let_leave()
                case Waited.BORDER_WORK:
                    self._work()
                    if self._service.wants_to_join:  # perhaps for the place of one that is gone now
                        self._turns.ask_for_clock()
                case Waited.FINISHED:
                    self.run_seconds = time.monotonic() - began_s
                    log.info("all vCPUs have ended, after %d windows in %.1f s", clock.windows, self.run_seconds)
                    self._finish()
                case Waited.ABORTED:
                    self._turns.fail(PeerLost("the run was ended by another process"))
                case Waited.LATER:
                    if patience.lost(clock.virtual_ns() + clock.beats):
                        self._turns.fail(Failure(f"no progress for {patience.seconds} s; {slowest(clock)}"))

    def _finish(self) -> None:
        """No vCPU will ask again. A host all of whose VMs were lost has failed."""
        lost = self._service.lost
        if lost and not self._service.vm_events["ended"] and self._service.present <= lost.keys():
            self._turns.fail(Failure(f"every VM was lost; the first: {next(iter(lost.values()))}"))
        else:
            self._turns.finish()

    def _work(self) -> None:
        shell, clock = self._service._shell, self._clock
        shell.border(clock.border_ns)
        clock.set_border_due(shell.core.border_due_ns())

    def _let_leave(self) -> None:
        """VMs none of whose vCPUs will ask again leave the host, unless that is at its end too."""
        clock, service = self._clock, self._service
        clock.note_ended()
        if clock.border_ns >= self._config.scenario.end_ns:
            return
        leaving = [vm for vm in sorted(service.present) if clock.has_ended(self._config.participants(vm))]
        if not leaving:
            return
        self._work()
        for vm in leaving:
            service._shell.leave(vm, clock.border_ns, intact=vm not in service.lost)
            service.left(vm)
            log.info("VM %d has left at %d ns", vm, clock.border_ns)
        clock.set_border_due(service._shell.core.border_due_ns())
        if service.wants_to_join:  # perhaps for a place that is free now
            self._turns.ask_for_clock()

    def _let_arrive(self, window_ns: int, pace: _Pace) -> None:
        """Let VMs join, or guests take their arrivals: at the border, or as late as pace and guests allow."""
        clock, service = self._clock, self._service
        time_ns = clock.border_ns
        if pace.slows:
            latest_ns = min(clock.earliest_ns(), pace.now_ns()) // window_ns * window_ns
            time_ns = max(time_ns, latest_ns)
        if clock.has_arrivals(self._turns.entry):
            clock.give_back(self._turns.entry)
            service.take_io_faults(time_ns)
            for join in service.take_joins():
                self._let_join(join, time_ns, window_ns)
            return
        clock.grant(time_ns)
        clock.beat()
        clock.wait_arrivals(False, _IDLE_NS)

    def _let_join(self, join: Join, time_ns: int, window_ns: int) -> None:
        """Load a VM, which starts then; later, if its place still holds pages of the VM before it."""
        clock, service, core = self._clock, self._service, self._service._shell.core
        start_ns = max(time_ns, -(-core.gone_ns(join.vm) // window_ns) * window_ns)
        earliest_ns = clock.earliest_ns()
        if earliest_ns < FOREVER_NS and start_ns > earliest_ns // window_ns * window_ns:
            service.put_back(join)
            return
        clock.beat()
        service._shell.load(join.vm, join.segments, start_ns)
        clock.beat()
        clock.enter(self._config.participants(join.vm), start_ns)
        service.lost.pop(join.vm, None)
        service.joined(join, start_ns)
        log.info("VM %d joins at %d ns", join.vm, start_ns)

    def _everybody_is_here(self) -> bool:
        """Wait until all VMs are loaded and all vCPUs attached; nobody can have opened a window before."""
        deadline_s = time.monotonic() + max(_START_S, self._config.scenario.host.patience_s)
        for event, what in (
            (self._service.all_loaded, "a VM to be loaded"),
            (self._turns.all_attached, "a vCPU to attach"),
        ):
            while not event.wait(0.2):
                if self._turns.is_over:
                    return False
                if time.monotonic() > deadline_s:
                    self._turns.fail(Failure(f"waited in vain for {what}"))
                    return False
        return True


def _report(
    config: HostdConfig,
    shell: HostShell,
    turns: TurnServer,
    clock: ClockPage,
    run_seconds: float,
    lost: dict[int, Failure],
) -> str:
    """Leave the host's results; returns the digest."""
    shell.core.finish(config.scenario.duration_ns or clock.border_ns)
    digest = shell.core.journal.digest()
    report = {
        "digest": digest,
        "messages": dict(sorted(turns.messages.items())),
        "windows": clock.windows,
        "run_seconds": run_seconds,
        "lost": {str(vm): str(failure) for vm, failure in sorted(lost.items())},
        **host_report(shell),
    }
    config.run.write_report("hostd", report)
    return digest
