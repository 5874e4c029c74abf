"""A run as local processes: hostd, guestsched, and vcpud with a worker per vCPU, forked from this one.

This process never imports gRPC: its children are forked before anything in them does.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
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
        place = run.files
        if scenario.swap.is_measured:
            place = Path(scenario.swap.file)
            if place.exists():
                raise ScenarioError(f"swap.file = {scenario.swap.file!r}: exists; a new one, which the run makes")
            if not place.parent.is_dir():
                raise ScenarioError(f"swap.file = {scenario.swap.file!r}: no directory {place.parent}")
            place = place.parent
        _check_free(place, scenario.vm.guest_memory, "disk space for the swap file")
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
        self._vms: dict[int, list[ForkProcess]] = {}
        """The processes of each VM; of the last that took its place."""
        self.lost: dict[int, str] = {}
        """VMs that are lost while the host goes on, and why."""
        self._losses: dict[int, str] = {}  # also those whose place was taken again
        self._late_s: float | None = None
        self._clock: ClockPage | None = None
        self._stats: dict[int, VcpuStats] = {}

    def __enter__(self) -> LocalCluster:
        try:
            self._spawn("hostd", _hostd, 0)
            for vm in range(self.scenario.host.vms):
                self.join(vm)
        except BaseException:
            self.close()
            raise
        return self

    def join(self, vm: int) -> None:
        """Start VM ``vm``; on a host that runs already it joins as soon as its processes are up.

        It may take the place of a VM that was lost.
        """
        for name in (
            f"guest-{vm}",
            f"vcpud-{vm}",
            *(f"vcpu-{vm}-{index}" for index in range(self.scenario.vm.vcpus)),
        ):
            for left in (name, f"failed-{name}", f"metrics-{name}", f"api-{name}"):
                self.run.report(left).unlink(missing_ok=True)
        self.run.vcpu_stats(vm).unlink(missing_ok=True)
        self._stats.pop(vm, None)
        self.lost.pop(vm, None)
        self._vms[vm] = [self._spawn(f"guest-{vm}", _guestsched, vm), self._spawn(f"vcpud-{vm}", _vcpud, vm)]

    def _spawn(self, name: str, target: Callable[..., None], vm: int) -> ForkProcess:
        args = (self.scenario, self.run, vm, self._journals, self._api, self._security)
        self.processes.append(process.spawn(name, target, *args, run=self.run, report=name, heir=True))
        return self.processes[-1]

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

    @property
    def vms(self) -> list[int]:
        """VMs that were started, also such as have ended or were lost since."""
        return sorted(self._vms)

    def is_alive(self, vm: int) -> bool:
        """Whether a process of a VM runs."""
        return any(child.is_alive() for child in self._vms[vm])

    def free_places(self) -> list[int]:
        """Places of the host that no VM has, as far as the processes tell."""
        taken = {vm for vm in self._vms if self.is_alive(vm)}
        return [vm for vm in range(self.scenario.host.places) if vm not in taken]

    def wait(self, progress: Progress | None = None) -> RunResult:
        """Wait for the end of the run. Raises Failure naming who failed first and why."""
        ended: set[ForkProcess] = set()
        while alive := {child.sentinel: child for child in self.processes if child not in ended}:
            for sentinel in connection.wait(list(alive), _POLL_S):
                assert isinstance(sentinel, int)
                child = alive[sentinel]
                child.join()
                ended.add(child)
                if child.exitcode:
                    self._ended_badly(child)
                elif child is self.processes[0]:
                    self._late_s = time.monotonic() + _GRACE_S
            if self._late_s is not None and time.monotonic() > self._late_s:
                self._end_late()
            if progress is not None and (snapshot := self.snapshot()) is not None:
                progress(snapshot)
        return self._result(time.monotonic() - self._began_s)

    def _ended_badly(self, child: ForkProcess) -> None:
        """Raise Failure, unless the host goes on without the VM that this was a process of."""
        vm = _vm_of(child)
        if vm is None or self.scenario.host.on_vm_loss == "end":
            raise Failure(self._why(child))
        own = self._vms[vm]
        if vm not in self.lost and child in own:
            self.lost[vm] = self._why(child, own)
            self._losses[vm] = self.lost[vm]
            log.warning("VM %d is lost: %s", vm, self.lost[vm])

    def _end_late(self) -> None:
        """The host's run is over; end VMs that were to join it and are waiting for a host."""
        for vm, own in self._vms.items():
            late = [child for child in own if child.is_alive()]
            if late:
                self.lost.setdefault(vm, "the run was over before it could join")
                process.stop(late, _GRACE_S)

    def snapshot(self) -> Snapshot | None:
        """How far the run is; None while the processes are still starting."""
        self._attach()
        if self._clock is None or not self._stats:
            return None
        stats = self._stats.values()
        faults = sum(each.total(f"faults_{kind}") for each in stats for kind in ("minor", "major", "async"))
        counting_ns = sum(each.total("counting_ns") for each in stats)
        now_ns = min(self._clock.virtual_ns(), self.scenario.end_ns)
        return Snapshot(now_ns, counting_ns, faults, sum(each.total("messages") for each in stats))

    def _attach(self) -> None:
        try:
            if self._clock is None:
                self._clock = ClockPage.attach(self.run.clock)
            for vm in self._vms:
                if vm not in self._stats:
                    self._stats[vm] = VcpuStats.attach(self.run.vcpu_stats(vm), self.scenario.vm.vcpus)
        except (FileNotFoundError, ValueError):
            return

    def _why(self, first: ForkProcess, among: Sequence[ForkProcess] | None = None) -> str:
        """Who is to blame: of those that ended badly, the one that did not just lose another."""
        deadline_s = time.monotonic() + _AFTERMATH_S
        among = self.processes if among is None else among
        while (blamed := self._blamed(among)) is None and time.monotonic() < deadline_s:
            connection.wait([child.sentinel for child in among if child.is_alive()], _POLL_S)
        return blamed or f"{first.name}: {process.describe_exit(first.exitcode)}{self._report_of(first.name)}"

    def _blamed(self, among: Sequence[ForkProcess]) -> str | None:
        for child in among:
            if child.exitcode is not None and child.exitcode < 0:
                return f"{child.name} (pid {child.pid}) {process.describe_exit(child.exitcode)}"
        for child in among:
            report = self.run.read_report(f"failed-{child.name}")
            if report is not None and not report["secondary"]:
                return f"{child.name}: {report['why']}"
        return None

    def _report_of(self, name: str) -> str:
        report = self.run.read_report(f"failed-{name}")
        return f": {report['why']}" if report else ""

    def _result(self, wall_seconds: float) -> RunResult:
        vms = [vm for vm in sorted(self._vms) if vm not in self.lost]
        host, guests = self._read("hostd"), {vm: self._read(f"guest-{vm}") for vm in vms}
        count = range(self.scenario.vm.vcpus)
        vcpus = {(vm, index): self._read(f"vcpu-{vm}-{index}") for vm in vms for index in count}
        messages = {} if self._losses else _messages(host, guests.values(), vcpus.values())
        windows = host["windows"]
        return RunResult.of(
            self.scenario,
            window_ns(self.scenario),
            windows,
            host,
            guests,
            vcpus,
            wall_seconds,
            messages=messages,
            lost=self._losses,
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
    host: dict[str, Any], guests: Iterable[dict[str, Any]], vcpus: Iterable[dict[str, Any]]
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


def _vm_of(child: ForkProcess) -> int | None:
    """The VM a process belongs to; None: the host's."""
    kind, _, vm = child.name.partition("-")
    return int(vm) if kind in ("guest", "vcpud") else None


def _hostd(scenario: Scenario, run: RunDir, vm: int, journals: bool, api: str | None, security: Security) -> None:
    process.settle_polling()
    from hostd.config import HostdConfig
    from hostd.daemon import main

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
