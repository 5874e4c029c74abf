"""The host's memory as a message: every figure of the group's files and of /proc/vmstat, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.memory import document
from hostd import memory
from hostd.showing import memory_out
from tests.unit.hostd.rig import WINDOW_NS, Rig

NewRig = Callable[..., Rig]


@pytest.mark.parametrize("high", [0, 50])
def test_what_is_shown_is_what_the_results_have(new_rig: NewRig, high: int) -> None:
    rig = new_rig(vms=2, high=high)
    rig.load(256)
    rig.load(100, vm=1)
    rig.thrashes(0, 1)
    first = rig.mapped(0, 1_000)
    rig.mapped(1, first.at_ns + 1)
    rig.in_progress(2, first.at_ns + 2, vcpu=1)
    mm, now_ns = rig.core.watched(), 300_000 * WINDOW_NS
    rig.border(now_ns)
    for vm in (0, 1):
        found = document(vm, memory_out(mm, vm, now_ns))
        assert found["now_ns"] == now_ns and found["vmstat"] == memory.vmstat(mm)
        root = memory.pressure_file(mm.root_pressure.totals(now_ns))
        assert found["memory"] == {str(vm): memory.group_files(mm, vm, now_ns), "root": {"memory.pressure": root}}
    files = memory.group_files(mm, 0, now_ns)
    assert files["memory.stat"]["pgmajfault"] == 3 and files["memory.pressure"]["some"]["total"] > 0
    assert (files["memory.high"] == "max") is not bool(high)
