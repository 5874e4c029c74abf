"""vcpud: the supervisor of one VM's vCPU workers. Forks them, watches them, exports their counters.

It never imports gRPC, so that it can fork at any time.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from apf import metrics, process
from apf.clockpage import ClockPage
from apf.listen import TlsFiles
from apf.process import Failure, PeerLost
from apf.rundir import RunDir
from apf.scenario import Scenario
from apf.stats import VcpuStats
from vcpud import worker
from vcpud.metrics import VcpuMetrics
from vcpud.worker import WorkerConfig

log = logging.getLogger(__name__)
_GRACE_S = 2.0
_AFTERMATH_S = 1.0


@dataclass(frozen=True, slots=True)
class VcpudConfig:
    """One VM's vCPUs."""

    scenario: Scenario
    run: RunDir
    vm: int
    host_address: str
    guest_address: str
    journal: bool = False
    metrics: str = metrics.ANYWHERE
    tls: TlsFiles | None = None

    @property
    def first_participant(self) -> int:
        """The slot of vCPU 0 on the host's clock page."""
        return self.vm * self.scenario.vm.vcpus

    @property
    def name(self) -> str:
        """As in reports."""
        return f"vcpud-{self.vm}"


def main(config: VcpudConfig) -> None:
    """Run all vCPUs of a VM to their end. Raises Failure naming the worker that failed first."""
    vcpus = config.scenario.vm.vcpus
    stats = VcpuStats.create(config.run.vcpu_stats(config.vm), vcpus)
    workers = [_spawn(config, vcpu) for vcpu in range(vcpus)]
    collect = VcpuMetrics(stats, config.vm, config.scenario.mode)
    try:
        metrics.serve(config.run, config.name, "vcpud", collect, listen=config.metrics)
        log.info("VM %d: %d vCPUs, workers %s", config.vm, vcpus, ", ".join(str(each.pid) for each in workers))
        _watch(config, workers)
    finally:
        process.stop(workers, _GRACE_S)


def _spawn(config: VcpudConfig, vcpu: int) -> ForkProcess:
    worker_config = WorkerConfig(
        scenario=config.scenario,
        run=config.run,
        host_address=config.host_address,
        guest_address=config.guest_address,
        vm=config.vm,
        vcpu=vcpu,
        participant=config.first_participant + vcpu,
        journal=_journal(config, vcpu),
        tls=config.tls,
    )
    name = worker_config.name
    return process.spawn(name, worker.main, worker_config, run=config.run, report=name)


def _journal(config: VcpudConfig, vcpu: int) -> Path | None:
    return config.run.journal(f"vcpu-{config.vm}-{vcpu}") if config.journal else None


def _watch(config: VcpudConfig, workers: list[ForkProcess]) -> None:
    """Wait for all workers; the first that does not end well ends the VM."""
    alive = {item.sentinel: item for item in workers}
    while alive:
        for sentinel in connection.wait(list(alive)):
            assert isinstance(sentinel, int)
            ended = alive.pop(sentinel)
            ended.join()
            if ended.exitcode:
                raise _failure(config, workers, ended)


def _failure(config: VcpudConfig, workers: list[ForkProcess], first: ForkProcess) -> Failure:
    """Who is to blame: the worker that did not just lose another process, else whoever that is."""
    if config.run.clock.exists() and config.scenario.host.on_vm_loss == "end":
        ClockPage.attach(config.run.clock).abort()
    deadline_s = time.monotonic() + _AFTERMATH_S
    while True:
        alive = [item.sentinel for item in workers if item.is_alive()]  # before one looks at those that are not
        for ended in workers:
            if ended.exitcode and not _is_secondary(config, ended):
                return Failure(_why(config, ended))
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not alive:
            return PeerLost(_why(config, first))
        connection.wait(alive, left_s)


def _is_secondary(config: VcpudConfig, ended: ForkProcess) -> bool:
    report = config.run.read_report(f"failed-{ended.name}")
    return report is not None and bool(report["secondary"])


def _why(config: VcpudConfig, ended: ForkProcess) -> str:
    report = config.run.read_report(f"failed-{ended.name}")
    why = report["why"] if report else process.describe_exit(ended.exitcode)
    return f"worker {ended.name} (pid {ended.pid}): {why}"
