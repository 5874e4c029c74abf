"""Several VMs on one host: its frames, device and windows are shared, their memory groups are not."""

from __future__ import annotations

import pytest

from deploy import twin
from tests.cluster.cluster_runs import on_processes, small


@pytest.mark.parametrize(("apf", "vms"), [("pv2010", 2), ("off", 3)])
def test_vms_of_one_host_come_to_the_same_as_in_the_twin(apf: str, vms: int) -> None:
    scenario = small(apf, host__vms=vms, vm__vcpus=2, duration_s="0.01", host__reserve_frames=1024)
    here, there = twin.run(scenario), on_processes(scenario)
    assert (here.digest, here.windows) == (there.digest, there.windows)
    assert here.tasks == there.tasks and here.corrupt_pages == 0
    assert {task["vm"] for task in here.tasks} == set(range(vms))
    assert len(here.vcpus) == 2 * vms


def test_vms_draw_chances_of_their_own() -> None:
    """Else they would fault in step, and queue at the device in step."""
    alone = {"bench__work_threads": 0, "vm__vcpus": 1, "duration_s": "0.01"}
    run = twin.run(small("pv2010", host__vms=2, host__reserve_frames=1024, **alone))
    rows = [[task["maj_flt"] for task in run.tasks if task["vm"] == vm] for vm in range(2)]
    assert len(rows[0]) == len(rows[1]) and rows[0] != rows[1] and all(map(sum, rows))


def test_a_second_vm_slows_the_first_one_down_by_the_device_only() -> None:
    """On a device of one server reads of two VMs queue behind one another."""
    alone = twin.run(small("pv2010", "hdd-7200", vm__vcpus=1))
    both = twin.run(small("pv2010", "hdd-7200", vm__vcpus=1, host__vms=2))

    def waited_ns(run: twin.RunResult) -> float:
        return run.counter("async_wait_ns") / run.counter("faults_async")

    assert waited_ns(both) > 1.5 * waited_ns(alone)
    assert both.host_counters["pgmajfault"] < 1.5 * alone.host_counters["pgmajfault"]
