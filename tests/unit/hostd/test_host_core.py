"""The core's contract: time, refusals, journal, imports."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from importlib import resources

import pytest

from apf.core import CoreError
from apf.messages import Access, FaultMode, FaultRaised
from apf.scenario import Scenario
from hostd import device_profiles
from hostd.core.config import HostConfig, VmConfig
from hostd.core.events import RequestTaken
from tests.unit.hostd.rig import COSTS, READ_NS, WINDOW_NS, Rig

NewRig = Callable[..., Rig]


def test_time_never_goes_back(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.mapped(0, 100)
    with pytest.raises(CoreError, match="at 99, but the core is at 100"):
        rig.fault(1, 99)


@pytest.mark.parametrize(("vm", "gfn"), [(0, 256), (0, -1), (1, 0)])
def test_a_page_that_does_not_exist_is_refused(new_rig: NewRig, vm: int, gfn: int) -> None:
    with pytest.raises(CoreError, match="no such guest page"):
        new_rig().core.step(RequestTaken(vm, 0, FaultRaised(gfn, Access.READ, FaultMode.BLOCKING)), 0)


def test_a_prefault_before_its_time_or_of_another_page_is_refused(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    ready = rig.in_progress(0, 0)
    with pytest.raises(CoreError):
        rig.prefault(0, ready.ready_at_ns - 1)
    with pytest.raises(CoreError):
        rig.prefault(1, ready.ready_at_ns)
    rig.prefault(0, ready.ready_at_ns)


def test_own_events_come_before_requests_of_the_same_time(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    first = rig.mapped(0, 0)
    done_ns = first.at_ns - COSTS.host_fault_ns
    assert rig.core.deadline_ns() == done_ns
    second = rig.mapped(0, done_ns, vcpu=1)
    assert second.stall_ns == 0


def test_border_work_is_known_before_it_is_due(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    reply = rig.mapped(0, 0)
    rig.border(WINDOW_NS)
    assert reply.at_ns > READ_NS
    assert rig.core.border_work and rig.core.border_due_ns() == reply.at_ns
    rig.border((reply.at_ns // WINDOW_NS + 1) * WINDOW_NS)
    assert not rig.core.border_work and rig.core.border_due_ns() is None


def test_the_journal_ends_with_the_counters(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.mapped(0, 0)
    before = rig.core.journal.records
    rig.core.finish(10**9)
    assert rig.core.journal.records == before + len(rig.core.counters) + 2
    assert rig.core.deadline_ns() is None


def test_a_scenario_makes_a_host() -> None:
    config = HostConfig.of(Scenario(), device_profiles.load("hdd-7200"), vms=2)
    assert config.vms == (VmConfig(524_288, 131_072, 4),) * 2
    assert config.frames == 2 * 131_072 + 4096
    assert config.window_ns == 637_305


def test_a_host_that_cannot_work_is_refused_by_field(new_rig: NewRig) -> None:
    good = new_rig().core.config
    for bad, message in (
        (replace(good, vms=()), "vms: at least one"),
        (replace(good, vms=(VmConfig(1, 0, 1),)), r"vms\[0\]"),
        (replace(good, window_ns=0), "window_ns = 0"),
        (replace(good, reserve_frames=0), "reserve_frames = 0"),
    ):
        with pytest.raises(CoreError, match=message):
            bad.verify()


def test_the_core_imports_nothing_that_could_tell_it_the_time_or_do_io() -> None:
    forbidden = {"grpc", "asyncio", "threading", "time", "os", "socket", "logging", "prometheus_client", "random"}
    files = [path for path in resources.files("hostd.core").iterdir() if path.name.endswith(".py")]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, path.name
            assert not {name.split(".")[0] for name in names} & {"vcpud", "guestsched"}, path.name
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{path.name}: a float"
