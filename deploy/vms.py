"""VMs of a cluster in the background: which there are, and how one more joins.

Only the supervisor can fork a VM's processes. ``apf join`` leaves it a wish in the run's directory, which is this
user's only, and waits for the answer beside it; the supervisor looks whenever it looks at the run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apf.process import Failure
from apf.rundir import RunDir
from deploy.clusters import ENDED, HERE, BadInput, Clusters, Record

if TYPE_CHECKING:
    from deploy.local import LocalCluster
    from deploy.result import Snapshot

_POLL_S = 0.05
_WISHES = "join-*.wish"


class VmWatch:
    """Called by ``LocalCluster.wait`` now and then: fulfils wishes, and keeps the cluster's file up to date."""

    def __init__(self, cluster: LocalCluster, record: Record, replace: Callable[[Record], None]) -> None:
        self._cluster = cluster
        self._replace = replace
        self._answers: dict[int, list[Path]] = {}  # wishes whose VM is starting
        self.record = record

    def __call__(self, _: Snapshot) -> None:
        """Look around."""
        for path in sorted(self._cluster.run.files.glob(_WISHES)):
            self._take(path)
        for vm, waiting in list(self._answers.items()):
            if vm in self._cluster.lost:
                self._answer(vm, waiting, {"error": self._cluster.lost[vm]})
            elif self._cluster.api_sockets(vm):
                self._answer(vm, waiting, {"vm": vm, "sockets": self._cluster.api_sockets(vm)})
        self._tell()

    def _take(self, path: Path) -> None:
        path.unlink()
        free = self._cluster.free_places()
        if not free:
            places = self._cluster.scenario.host.places
            error = f"host.max_vms: all {places} places of the host are taken; give it more at its start"
            _leave(path, {"error": error})
            return
        self._cluster.join(free[0])
        self._answers.setdefault(free[0], []).append(path)

    def _answer(self, vm: int, waiting: list[Path], answer: dict[str, Any]) -> None:
        for path in waiting:
            _leave(path, answer)
        del self._answers[vm]

    def _tell(self) -> None:
        cluster = self._cluster
        vms = {str(vm): cluster.lost.get(vm, HERE if cluster.is_alive(vm) else ENDED) for vm in cluster.vms}
        metrics = dict(self.record.metrics)
        for vm in cluster.vms:
            for name in (f"guest-{vm}", f"vcpud-{vm}"):
                report = cluster.run.read_report(f"metrics-{name}")
                if report is not None and vm not in cluster.lost:
                    metrics[name] = f"127.0.0.1:{report['port']}"
                else:
                    metrics.pop(name, None)
        if (vms, metrics) != (self.record.vms, self.record.metrics):
            self.record = self.record.model_copy(update={"vms": vms, "metrics": metrics})
            self._replace(self.record)


def _leave(wish: Path, answer: dict[str, Any]) -> None:
    scratch = wish.with_suffix(".part")
    scratch.write_text(json.dumps(answer))
    os.replace(scratch, wish.with_suffix(".answer"))


def join(clusters: Clusters, name: str, deadline_s: float) -> dict[str, Any]:
    """Let one more VM join a running cluster; its number and its sockets by role. Raises BadInput or Failure."""
    record = clusters.find(name)
    if record is None or record.status != "running":
        raise BadInput(
            f"--name = {name}: no such cluster is running; there are {', '.join(clusters.names()) or 'none'}"
        )
    wish = RunDir(Path(record.run_memory), Path(record.run_files)).files / f"join-{os.getpid()}.wish"
    answer = wish.with_suffix(".answer")
    wish.touch(mode=0o600)
    end_s = time.monotonic() + deadline_s
    try:
        while not answer.exists():
            if not record.alive:
                raise Failure(f"cluster {name} has ended")
            if time.monotonic() > end_s:
                raise Failure(f"cluster {name}: no VM has joined within {deadline_s:g} s")
            time.sleep(_POLL_S)
        told: dict[str, Any] = json.loads(answer.read_text())
    finally:
        wish.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
    if "error" in told:
        raise Failure(f"cluster {name}: {told['error']}")
    return told
