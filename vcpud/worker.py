"""A vCPU worker: one process, one vCPU, two gRPC streams (``apf.stream``), one x86-64 engine.

Forked by the supervisor; gRPC is imported only here, after the fork. One thread does everything, the other watches it.
"""

from __future__ import annotations

import logging
import os
import statistics
import struct
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apf.clockcells import Server, Waited
from apf.clockpage import ClockPage
from apf.hostmem import Geometry, HostMemory
from apf.journal import Journal
from apf.listen import TlsFiles
from apf.messages import NEVER_NS
from apf.process import Failure, PeerLost, settle_collector, settle_polling
from apf.rundir import RunDir
from apf.scenario import Scenario
from apf.stats import FIELDS, VcpuStats
from vcpud.build import vcpu_machine, vcpu_report
from vcpud.core.account import Cause
from vcpud.machine import Need, NeedKind

if TYPE_CHECKING:
    from apf.stream import Stream

log = logging.getLogger(__name__)
_CONNECT_S = 60
_WATCH_S = 1.0
_COUNT_NS = 50_000_000
"""Between two refreshes of the shared counters; a vCPU that goes to sleep for long refreshes them before."""
_RETIRED = FIELDS.index("retired")
_FIELDS = struct.Struct(f"{len(FIELDS)}q")
_OTHER_CAUSES = tuple(cause for cause in Cause if cause is not Cause.COUNTING)
_ROUND_TRIPS = 4096
"""Round trips to hostd that are kept for the report: the last ones."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Which vCPU this is, and where the others are. ``participant`` is its slot on the host's clock page."""

    scenario: Scenario
    run: RunDir
    host_address: str
    guest_address: str
    vm: int
    vcpu: int
    participant: int
    journal: Path | None
    tls: TlsFiles | None = None

    @property
    def name(self) -> str:
        """As in reports and journals."""
        return f"vcpu-{self.vm}-{self.vcpu}"


def main(config: WorkerConfig) -> None:
    """Run the vCPU from attachment to its end; leaves its results as a report."""
    _Worker(config).run()


class _Worker:
    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._messages: Counter[str] = Counter()
        self._asks = False  # waits for a server's reply
        self._left = threading.Event()
        self._counted_ns = 0
        self._round_trips_ns: deque[int] = deque(maxlen=_ROUND_TRIPS)

    def run(self) -> None:
        """Attach everywhere, run, report."""
        settle_polling()
        from apf import stream, tls, wire
        from apf.v1 import guest_pb2, host_pb2

        self._wire = wire
        self._host_out = {kind: f"host.out.{name}" for kind, name in wire.HOST_KINDS.items()}
        self._host_in = {kind: f"host.in.{name}" for kind, name in wire.HOST_KINDS.items()}
        config = self._config
        with (
            tls.blocking_channel(config.host_address, config.tls) as host_channel,
            tls.blocking_channel(config.guest_address, config.tls) as guest_channel,
        ):
            self._connect(host_channel, "hostd")
            self._connect(guest_channel, "guestsched")
            self._host: Stream[Any, Any] = stream.Stream(
                host_channel, wire.RUN_VCPU, host_pb2.RunVcpuResponse.FromString
            )
            start_ns = self._attach_to_host()
            self._guest: Stream[Any, Any] = stream.Stream(
                guest_channel, wire.TAKE_TRAPS, guest_pb2.TakeTrapsResponse.FromString
            )
            try:
                self._clock = ClockPage.attach(config.run.clock)
                memory = HostMemory.attach(Geometry.of(config.scenario), config.run.host_memory)
            except FileNotFoundError:  # it has answered, and ended since
                raise PeerLost("lost hostd: its memory is gone") from None
            self._hostd = self._clock.want_entry(Server.HOSTD, 0)
            self._guestsched = self._clock.want_entry(Server.GUESTSCHED, config.participant - config.vcpu)
            stats = VcpuStats.attach(config.run.vcpu_stats(config.vm), config.scenario.vm.vcpus)
            self._fields = stats.fields(config.vcpu)
            sink = config.journal.open("w") if config.journal else None
            clock, participant = self._clock, config.participant
            self._machine = vcpu_machine(
                config.scenario,
                config.vm,
                config.vcpu,
                memory,
                Journal(sink),
                clock,
                participant,
                lambda border_ns: clock.take_interrupt(participant, border_ns),
                start_ns,
            )
            self._machine.core.observed.share(stats.histograms(config.vcpu))
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            try:
                self._attach_to_guest()
                self._go()
            finally:
                self._left.set()
                self._count()
                if sink:
                    self._machine.core.journal.flush()
            self._leave()

    def _connect(self, channel: Any, name: str) -> None:
        import grpc

        try:
            grpc.channel_ready_future(channel).result(_CONNECT_S)
        except grpc.FutureTimeoutError:
            raise Failure(f"{name} did not answer within {_CONNECT_S} s") from None

    def _attach_to_host(self) -> int:
        """Returns when the vCPU starts; hostd answers once its VM has joined the host."""
        from apf.v1 import host_pb2

        response = self._host.ask(host_pb2.RunVcpuRequest(attach=self._who()))
        self._check_seq(response, 0)
        return int(response.attached.start_ns)

    def _attach_to_guest(self) -> None:
        from apf.v1 import guest_pb2

        self._check_seq(self._guest.ask(guest_pb2.TakeTrapsRequest(attach=self._who())), 0)

    def _who(self) -> Any:
        from apf.v1 import types_pb2

        config = self._config
        return types_pb2.Attach(vm=config.vm, vcpu=config.vcpu, scenario_digest=config.scenario.fingerprint())

    def _go(self) -> None:
        """The vCPU's life: proceed, say how far one is, get what is needed."""
        machine, clock, participant = self._machine, self._clock, self._config.participant
        machine.start()
        settle_collector()
        host_seq = guest_seq = 0
        border_ns = 0
        while True:
            need = machine.proceed(border_ns)
            match need.kind:
                case NeedKind.WINDOW:
                    if need.interruptible:
                        clock.set_interruptible(participant, True)
                    clock.publish(participant, need.time_ns)
                    if need.interruptible:
                        self._count()
                    else:
                        self._count_now_and_then()
                    border_ns = self._wait_window(need)
                case NeedKind.HOST:
                    host_seq += 1
                    self._ask_host(need, host_seq)
                case NeedKind.GUEST:
                    guest_seq += 1
                    self._ask_guest(need, guest_seq)
                case NeedKind.NOTHING:
                    clock.publish(participant, NEVER_NS)
                    return

    def _ask_host(self, need: Need, seq: int) -> None:
        message = self._wire.host_request_out(need.request, need.time_ns, seq)  # type: ignore[arg-type]  # by kind
        self._clock.publish(self._config.participant, need.time_ns, self._hostd)
        self._messages[self._host_out[type(need.request)]] += 1
        self._count_now_and_then()
        began_ns = time.perf_counter_ns()
        self._asks = True
        response = self._host.ask(message)
        self._asks = False
        self._round_trips_ns.append(time.perf_counter_ns() - began_ns)
        self._check_seq(response, seq)
        reply = self._wire.host_reply_in(response)
        self._messages[self._host_in[type(reply)]] += 1
        self._machine.host_replied(reply)

    def _ask_guest(self, need: Need, seq: int) -> None:
        message = self._wire.trap_out(need.request, need.time_ns, seq)  # type: ignore[arg-type]  # by kind
        self._clock.publish(self._config.participant, need.time_ns, self._guestsched)
        self._messages[f"guest.out.{message.WhichOneof('trap')}"] += 1
        self._count_now_and_then()
        self._asks = True
        response = self._guest.ask(message)
        self._asks = False
        self._check_seq(response, seq)
        self._messages[f"guest.in.{response.WhichOneof('reply')}"] += 1
        self._machine.guest_replied(self._wire.dispatch_in(response))

    def _check_seq(self, message: Any, seq: int) -> None:
        if message.seq != seq:
            raise Failure(f"reply {message.seq} to request {seq}")

    def _wait_window(self, need: Need) -> int:
        """Sleep until the window that holds the need's time is open; returns its border."""
        clock, participant = self._clock, self._config.participant
        progress, since_s = None, 0.0
        while (waited := clock.wait_window(participant, need.time_ns)) is not Waited.DONE:
            if waited is Waited.ABORTED:
                raise PeerLost("the run was ended by another process")
            now = (clock.virtual_ns(), clock.windows, clock.beats)
            if now != progress:
                progress, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > self._config.scenario.host.patience_s:
                raise Failure(f"no progress for {self._config.scenario.host.patience_s} s at {now[0]} ns")
        return clock.border_ns

    def _watch(self) -> None:
        """Give up on a server that neither answers nor lets anybody else go on."""
        patience_s = self._config.scenario.host.patience_s
        progress, since_s = (-1, -1), time.monotonic()
        while not self._left.wait(_WATCH_S):
            if self._clock.aborted:
                self._cancel()
            now = (self._clock.virtual_ns(), self._clock.beats)
            if now != progress or not self._asks:
                progress, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > patience_s:
                log.error("no reply for %d s", patience_s)
                self._cancel()

    def _cancel(self) -> None:
        self._host.cancel()
        self._guest.cancel()

    def _count_now_and_then(self) -> None:
        self._fields[_RETIRED] = self._machine.engine.retired  # how far it is, always; all else now and then
        if time.monotonic_ns() - self._counted_ns > _COUNT_NS:
            self._count()

    def _count(self) -> None:
        """Refresh what this vCPU shares, in the order of ``apf.stats.FIELDS``: while a server works, or others."""
        self._counted_ns = time.monotonic_ns()
        self._machine.core.observed.settle()
        core = self._machine.core
        counters, observed, spent_ns = core.counters, core.observed, core.account.spent_ns
        retired = self._machine.engine.retired
        _FIELDS.pack_into(
            *(self._fields, 0),
            *(retired, spent_ns[Cause.COUNTING]),
            *(counters.faults_minor, counters.faults_major, counters.faults_async),
            *(counters.not_present, counters.ready, self._messages.total(), counters.repeated),
            *(observed.sync_disabled, counters.sync_limit, counters.sync_ineligible, counters.sync_alloc),
            *(counters.sync_kernel, len(core.async_pf), core.work(retired), counters.exits, counters.halts),
            *(spent_ns[cause] for cause in _OTHER_CAUSES),
        )

    def _leave(self) -> None:
        """Close both streams in good order and leave the results."""
        config, core = self._config, self._machine.core
        for stream in (self._host, self._guest):
            stream.end()
        core.finish()
        report = {
            "name": config.name,
            "digest": core.journal.digest(),
            "messages": dict(sorted(self._messages.items())),
            **vcpu_report(self._machine),
            "pid": os.getpid(),
            "host_round_trip_us": statistics.median(self._round_trips_ns or [0]) / 1000,  # wall time: not of the run
        }
        config.run.write_report(config.name, report)
