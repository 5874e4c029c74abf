"""SIGSTOP on hostd stops every vCPU within a window; SIGCONT lets the run end as if nothing had happened."""

from __future__ import annotations

import os
import signal

import pytest
from cluster_runs import children_of, small, state_of, until, until_running

from apf.clockpage import ClockPage
from apf.scenario import Scenario
from apf.stats import VcpuStats
from deploy import twin
from deploy.local import LocalCluster
from hostd.build import window_ns

STILL_POLLS = 40


class Watch:
    """What virtual time and the guests do, seen from outside."""

    def __init__(self, cluster: LocalCluster, scenario: Scenario) -> None:
        self.clock = ClockPage.attach(cluster.run.clock)
        self.stats = VcpuStats.attach(cluster.run.vcpu_stats(0), scenario.vm.vcpus)
        self.workers = children_of(next(c.pid or 0 for c in cluster.processes if c.name == "vcpud-0"))
        self._seen: object = None
        self._same = 0

    def state(self) -> tuple[int, int, list[int], list[int]]:
        slots = [self.clock.slot_ns(vcpu) for vcpu in range(self.clock.participants)]
        return self.clock.windows, self.clock.border_ns, slots, self.stats.rows[:, 0].tolist()

    def still(self) -> bool:
        """Whether nothing has moved, and every worker slept, each of the last times one looked."""
        seen = self.state()
        asleep = all(state_of(pid) == "S" for pid in self.workers)
        self._same = self._same + 1 if seen == self._seen and asleep else 0
        self._seen = seen
        return self._same >= STILL_POLLS


@pytest.mark.parametrize(("apf", "device"), [("off", "nvme"), ("pv2010", "nvme"), ("pv2010", "hdd-7200")])
def test_sigstop_and_sigcont(apf: str, device: str) -> None:
    scenario = small(apf, device, duration_s={"nvme": "0.03", "hdd-7200": "0.5"}[device])
    expected = twin.run(scenario)
    with LocalCluster(scenario) as cluster:
        until_running(cluster, scenario.duration_ns // 20)
        hostd = cluster.processes[0].pid or 0
        watch = Watch(cluster, scenario)
        assert len(watch.workers) == scenario.vm.vcpus
        os.kill(hostd, signal.SIGSTOP)
        until("hostd stopped", lambda: state_of(hostd) == "T")
        windows, border_ns, slots, retired = watch.state()
        until("every vCPU asleep", watch.still)
        still = watch.state()

        assert still[0] == windows and still[1] == border_ns, "a window was opened, though nobody could"
        assert min(still[2]) < scenario.duration_ns, "the run was over before it could be stopped"
        # Whoever waits for a reply of hostd is inside the window; all others stand at its border or beyond.
        for vcpu, (before, after) in enumerate(zip(slots, still[2], strict=True)):
            assert after >= before, f"vCPU {vcpu} went back"
        # A window's worth of instructions, and the block in which it ended; the counter may be a window behind.
        room = 2 * window_ns(scenario) * scenario.vm.cpu_mips // 1000 + 2 * 300
        for vcpu, (before, after) in enumerate(zip(retired, still[3], strict=True)):
            assert after - before <= room, f"vCPU {vcpu} retired {after - before} instructions without hostd"

        os.kill(hostd, signal.SIGCONT)
        result = cluster.wait()
    assert result.digest == expected.digest
    assert result.corrupt_pages == result.lost_writes == 0


def test_a_stopped_worker_stops_all_too() -> None:
    """Virtual time waits for everybody: nobody is left behind, nobody runs ahead."""
    scenario = small(duration_s="0.03")
    expected = twin.run(scenario)
    with LocalCluster(scenario) as cluster:
        until_running(cluster, scenario.duration_ns // 20)
        watch = Watch(cluster, scenario)
        stopped = watch.workers.pop()
        os.kill(stopped, signal.SIGSTOP)
        until("the worker stopped", lambda: state_of(stopped) == "T")
        windows = watch.clock.windows
        until("every other vCPU asleep", watch.still)
        assert watch.clock.windows <= windows + 1
        assert min(watch.state()[2]) < scenario.duration_ns
        os.kill(stopped, signal.SIGCONT)
        assert cluster.wait().digest == expected.digest
