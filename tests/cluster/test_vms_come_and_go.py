"""VMs that join a host that runs, leave it, are lost, and come again; the others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_runs import until

from apf.process import Failure
from apf.scenario import Scenario, load
from deploy import replay, twin
from deploy.local import LocalCluster, processes_of
from deploy.result import Snapshot

SMALL = {
    "apf": ["pv2010"],
    "seed": 5,
    "swap.device": "nvme",
    "host.reserve_frames": 1024,
    "vm.vcpus": 2,
    "vm.guest_memory": "80MiB",
    "vm.group_memory": "8MiB",
    "bench.buffer": "16MiB",
    "bench.fault_threads": 1,
    "bench.work_threads": 2,
}


SHUT_DOWN = """
import sys
import grpc
from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import LoadServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    LoadServiceStub(channel).Shutdown(load_pb2.ShutdownRequest(), timeout=60)
"""


def scenario(**overrides: object) -> Scenario:
    return load(None, {**SMALL, **{name.replace("__", "."): value for name, value in overrides.items()}})


def until_ns(cluster: LocalCluster, time_ns: int) -> None:
    def there() -> bool:
        snapshot = cluster.snapshot()
        return snapshot is not None and snapshot.now_ns >= time_ns

    until(f"{time_ns} ns", there)


def boot_ns(cluster: LocalCluster, vm: int) -> int:
    report = cluster.run.read_report(f"guest-{vm}")
    assert report is not None
    return int(report["boot_ns"])


def test_when_a_vm_joins_is_part_of_the_run() -> None:
    chosen = scenario(host__vms=1, host__max_vms=2, duration_s="0.01")
    alone = twin.run(chosen)
    early, again, late = (twin.run(chosen, joins={1: at_ns * alone.window_ns}) for at_ns in (50, 50, 51))
    assert early.digest == again.digest and len({alone.digest, early.digest, late.digest}) == 3
    assert {task["vm"] for task in early.tasks} == {0, 1} and early.corrupt_pages == 0
    ends_ns = [vcpu["end_ns"] for vcpu in early.vcpus]
    assert all(end_ns >= chosen.end_ns for end_ns in ends_ns)
    starts_ns = [vcpu["end_ns"] - sum(vcpu["time_ns"].values()) for vcpu in early.vcpus]
    assert [max(0, start_ns // early.window_ns) for start_ns in starts_ns] == [0, 0, 50, 50], "time from there on"


def shut_down(cluster: LocalCluster, *vms: int) -> None:
    for vm in vms:
        subprocess.run([sys.executable, "-c", SHUT_DOWN, cluster.api_sockets(vm)["operator"]], check=True)


def worker_of(cluster: LocalCluster, vm: int) -> int:
    """A vCPU worker's pid."""
    vcpud = next(child for child in cluster.processes if child.name == f"vcpud-{vm}")
    return int(Path(f"/proc/{vcpud.pid}/task/{vcpud.pid}/children").read_text().split()[0])


@pytest.mark.parametrize("killed", ["worker", "guest", "vcpud"])
def test_a_lost_vm_leaves_the_others_alone(killed: str) -> None:
    chosen = scenario(host__vms=2, host__on_vm_loss="leave", duration_s="0.1")
    with LocalCluster(chosen) as cluster:
        until_ns(cluster, 1)
        if killed == "worker":
            pid = worker_of(cluster, 1)
        else:
            pid = next(child.pid for child in cluster.processes if child.name == f"{killed}-1") or 0
        os.kill(pid, signal.SIGKILL)
        result = cluster.wait()
    assert list(result.lost) == [1] and "SIGKILL" in result.lost[1]
    assert any("VM 1 was lost" in line for line in result.told)
    assert {task["vm"] for task in result.tasks} == {0}
    assert result.virtual_seconds == 0.1 and result.corrupt_pages == 0
    assert all(vcpu["end_ns"] >= chosen.end_ns for vcpu in result.vcpus)


def test_the_place_of_a_lost_vm_is_taken_again() -> None:
    """It lasts until the VM is there again: how long that takes is the machine's."""
    chosen = scenario(host__vms=2, host__on_vm_loss="leave", duration_s=0)
    with LocalCluster(chosen, api="unix") as cluster:
        until("the APIs", lambda: all(cluster.api_sockets(vm) for vm in (0, 1)))
        until_ns(cluster, 1)
        os.kill(worker_of(cluster, 1), signal.SIGKILL)
        lost: list[str] = []
        told: list[int] = []

        def come_again(_: Snapshot) -> None:
            if 1 in cluster.lost and not lost:
                lost.append(cluster.lost[1])
                cluster.join(1)
            elif lost and not told and cluster.api_sockets(1):
                told.append(1)
                shut_down(cluster, 1, 0)

        result = cluster.wait(come_again)
        assert lost and "SIGKILL" in lost[0]
        assert boot_ns(cluster, 1) > 0
    assert list(result.lost) == [1] and {task["vm"] for task in result.tasks} == {0, 1}
    assert result.corrupt_pages == 0
    assert processes_of(cluster) == []


def test_without_others_a_loss_is_the_end() -> None:
    chosen = scenario(host__vms=1, host__on_vm_loss="leave", duration_s="5")
    with LocalCluster(chosen) as cluster:
        until_ns(cluster, 1)
        os.kill(worker_of(cluster, 0), signal.SIGKILL)
        with pytest.raises(Failure, match=r"SIGKILL|every VM was lost"):
            cluster.wait()


def test_a_vm_that_is_shut_down_leaves_and_its_run_replays(tmp_path: Path) -> None:
    chosen = scenario(host__vms=2, host__max_vms=3, duration_s=0)
    with LocalCluster(chosen, api="unix") as cluster:
        until("the APIs", lambda: all(cluster.api_sockets(vm) for vm in (0, 1)))
        until_ns(cluster, 1)
        cluster.join(2)
        until("the API of VM 2", lambda: bool(cluster.api_sockets(2)))
        shut_down(cluster, 1, 0, 2)
        result = cluster.wait()
        assert boot_ns(cluster, 2) > 0 and boot_ns(cluster, 2) % result.window_ns == 0
        for vm in range(3):
            (tmp_path / f"{vm}.jsonl").write_text(cluster.arrivals(vm).read_text())
    assert result.corrupt_pages == 0
    again, digests = replay.run([tmp_path / f"{vm}.jsonl" for vm in range(3)])
    assert all(recorded == now for recorded, now in digests)
    assert (again.digest, again.windows) == (result.digest, result.windows)
