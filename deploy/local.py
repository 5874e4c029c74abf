"""A run as local processes: hostd, guestsched, and vcpud with a worker per vCPU, forked from this one.

This process never imports gRPC: its children are forked before anything in them does.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from apf import process
from apf.clockpage import ClockPage
from apf.hostmem import Geometry
from apf.listen import API_ON_SOCKETS, PLAIN, Security
from apf.messages import PAGE_SIZE
from apf.process import Failure
from apf.rundir import RunDir
from apf.scenario import Scenario, ScenarioError
from apf.stats import VcpuStats
from deploy.result import RunResult, Snapshot
from hostd.build import window_ns

log = logging.getLogger(__name__)
_GRACE_S = 5.0
_AFTERMATH_S = 3.0
_POLL_S = 0.2


Progress = Callable[[Snapshot], None]


def check_space(scenario: Scenario) -> None:
    """Raise ScenarioError if shared memory or disk is too small for a run, with both amounts."""
    shape = Geometry.of(scenario)
    run = RunDir.make()
    try:
        _check_free(run.memory, _memory_bytes(shape), "shared memory")
        _check_free(run.files, scenario.vm.guest_memory, "disk space for the swap file")
    finally:
        run.remove()


def _memory_bytes(shape: Geometry) -> int:
    return shape.frames * PAGE_SIZE + shape.frames * 6 + sum(pages * 8 for pages in shape.guest_pages)


def _check_free(path: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(path).free
    if free < needed:
        raise ScenarioError(
            f"too little {what} in {path.parent}: {needed >> 20} MiB needed, {free >> 20} MiB free; "
            f"a smaller --guest-memory, --group-memory or --buffer needs less"
        )


class LocalCluster:
    """The processes of one run. A context manager: leaving it ends them all and removes what they left.

    ``api``: where the API for load generators listens beside its roles' sockets, ``HOST:PORT``; port 0 is any, see
    ``api_address``; ``unix``: nowhere. ``security``: of the API; the processes of a run talk on sockets.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        journals: bool = False,
        api: str | None = None,
        security: Security = PLAIN,
    ) -> None:
        self.scenario = scenario
        self._api = api
        self._security = security
        self.run = RunDir.make()
        self._journals = journals
        self._began_s = time.monotonic()
        self.processes: list[ForkProcess] = []
        self._clock: ClockPage | None = None
        self._stats: list[VcpuStats] | None = None

    def __enter__(self) -> LocalCluster:
        try:
            daemons: list[tuple[str, Callable[..., None], int]] = [("hostd", _hostd, 0)]
            for vm in range(self.scenario.host.vms):
                daemons += [(f"guest-{vm}", _guestsched, vm), (f"vcpud-{vm}", _vcpud, vm)]
            for name, target, vm in daemons:
                args = (self.scenario, self.run, vm, self._journals, self._api, self._security)
                self.processes.append(process.spawn(name, target, *args, run=self.run, report=name, heir=True))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End what still runs, within ten seconds, and remove the run's directories."""
        try:
            if any(child.is_alive() for child in self.processes):
                self._attach()
                if self._clock is not None:
                    self._clock.abort()
            process.stop(self.processes, _GRACE_S)
        finally:
            self.run.remove()

    def wait(self, progress: Progress | None = None) -> RunResult:
        """Wait for the end of the run. Raises Failure naming who failed first and why."""
        alive = {child.sentinel: child for child in self.processes}
        while alive:
            for sentinel in connection.wait(list(alive), _POLL_S):
                assert isinstance(sentinel, int)
                child = alive.pop(sentinel)
                child.join()
                if child.exitcode:
                    raise Failure(self._why(child))
            if progress is not None and (snapshot := self.snapshot()) is not None:
                progress(snapshot)
        return self._result(time.monotonic() - self._began_s)

    def snapshot(self) -> Snapshot | None:
        """How far the run is; None while the processes are still starting."""
        self._attach()
        if self._clock is None or self._stats is None:
            return None
        stats = self._stats
        faults = sum(each.total(f"faults_{kind}") for each in stats for kind in ("minor", "major", "async"))
        counting_ns = sum(each.total("counting_ns") for each in stats)
        now_ns = min(self._clock.virtual_ns(), self.scenario.end_ns)
        return Snapshot(now_ns, counting_ns, faults, sum(each.total("messages") for each in stats))

    def _attach(self) -> None:
        try:
            if self._clock is None:
                self._clock = ClockPage.attach(self.run.clock)
            if self._stats is None:
                vms, vcpus = range(self.scenario.host.vms), self.scenario.vm.vcpus
                self._stats = [VcpuStats.attach(self.run.vcpu_stats(vm), vcpus) for vm in vms]
        except (FileNotFoundError, ValueError):
            return

    def _why(self, first: ForkProcess) -> str:
        """Who is to blame: of those that ended badly, the one that did not just lose another."""
        deadline_s = time.monotonic() + _AFTERMATH_S
        while (blamed := self._blamed()) is None and time.monotonic() < deadline_s:
            connection.wait([child.sentinel for child in self.processes if child.is_alive()], _POLL_S)
        return blamed or f"{first.name}: {process.describe_exit(first.exitcode)}{self._report_of(first.name)}"

    def _blamed(self) -> str | None:
        for child in self.processes:
            if child.exitcode is not None and child.exitcode < 0:
                return f"{child.name} (pid {child.pid}) {process.describe_exit(child.exitcode)}"
        for child in self.processes:
            report = self.run.read_report(f"failed-{child.name}")
            if report is not None and not report["secondary"]:
                return f"{child.name}: {report['why']}"
        return None

    def _report_of(self, name: str) -> str:
        report = self.run.read_report(f"failed-{name}")
        return f": {report['why']}" if report else ""

    def _result(self, wall_seconds: float) -> RunResult:
        vms = range(self.scenario.host.vms)
        host, guests = self._read("hostd"), [self._read(f"guest-{vm}") for vm in vms]
        vcpus = [self._read(f"vcpu-{vm}-{index}") for vm in vms for index in range(self.scenario.vm.vcpus)]
        messages = _messages(host, guests, vcpus)
        return RunResult.of(
            self.scenario, window_ns(self.scenario), host["windows"], host, guests, vcpus, wall_seconds, messages
        )

    def _read(self, name: str) -> dict[str, Any]:
        report = self.run.read_report(name)
        if report is None:
            raise Failure(f"{name} ended without a report")
        return report

    def api_address(self, vm: int = 0) -> str | None:
        """Where the API of a VM listens; None: nowhere, or not yet."""
        report = self.run.read_report(f"api-guest-{vm}")
        return None if report is None else str(report["address"])

    def api_sockets(self, vm: int = 0) -> dict[str, str]:
        """Address of the sockets of a VM's API by role; empty as long as there is none."""
        report = self.run.read_report(f"api-guest-{vm}")
        return {} if report is None else dict(report["sockets"])

    def arrivals(self, vm: int = 0) -> Path:
        """What has come to a VM from outside so far (``guestsched.arrival_log``); removed with the cluster."""
        return self.run.arrivals(vm)

    def journals(self) -> dict[str, Path]:
        """Journal files by core name."""
        return {path.stem: path for path in sorted(self.run.files.glob("*.journal"))}


def _messages(
    host: dict[str, Any], guests: list[dict[str, Any]], vcpus: list[dict[str, Any]]
) -> dict[str, dict[str, int]]:
    """Messages by kind and direction, as counted by the vCPUs and by the servers. Raises Failure if they differ."""
    sent: dict[str, int] = {}
    for vcpu in vcpus:
        for key, count in vcpu["messages"].items():
            sent[key] = sent.get(key, 0) + count
    taken: dict[str, int] = {}
    for server, report in (("host", host), *(("guest", guest) for guest in guests)):
        for key, count in report["messages"].items():
            direction, kind = key.split(".", 1)
            sent_as = f"{server}.{'out' if direction == 'in' else 'in'}.{kind}"
            taken[sent_as] = taken.get(sent_as, 0) + count
    if sent != taken:
        raise Failure(f"messages got lost: vCPUs counted {sent}, servers {taken}")
    return {"vcpus": dict(sorted(sent.items())), "servers": dict(sorted(taken.items()))}


def _hostd(scenario: Scenario, run: RunDir, vm: int, journals: bool, api: str | None, security: Security) -> None:
    from hostd.daemon import HostdConfig, main

    main(HostdConfig(scenario, run, (), journals))


def _guestsched(
    scenario: Scenario, run: RunDir, vm: int, journals: bool, api: str | None, security: Security
) -> None:
    from guestsched.daemon import GuestschedConfig, main

    main(
        GuestschedConfig(scenario, run, vm, run.host_load_address, (), journals, _api_of(api, vm), security=security)
    )


def _api_of(api: str | None, vm: int) -> str | None:
    """The first VM's API listens where it is asked to, the others' at the ports behind; port 0 is any for each."""
    if api is None or api == API_ON_SOCKETS or not vm:
        return api
    host, _, port = api.rpartition(":")
    return f"{host}:{int(port) + vm if int(port) else 0}"


def _vcpud(scenario: Scenario, run: RunDir, vm: int, journals: bool, api: str | None, security: Security) -> None:
    from vcpud.daemon import VcpudConfig, main

    main(VcpudConfig(scenario, run, vm, run.host_address, run.guest_address(vm), journals))


def processes_of(cluster: LocalCluster) -> list[int]:
    """Process ids of the run: the daemons and all their children."""
    pids = [child.pid for child in cluster.processes if child.pid]
    for pid in list(pids):
        children = Path(f"/proc/{pid}/task/{pid}/children")
        if children.exists():
            pids += [int(word) for word in children.read_text().split()]
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
