"""The talk's rows about guest processes, T7, T8, T12 and T13, for processes A, B and C of a scenario.

All are read from journals, once of a run of the twin and once of one on real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from talk_runs import Ran, on_processes, on_twin

from apf.journal import Journal
from apf.messages import Extent
from apf.scenario import Scenario, load
from deploy import twin
from deploy.journals import KINDS_OF_VCPU, Record
from guestsched.build import guest_core
from guestsched.plan import MEMORY_GVA

COUNTS_PER_NS = 4096 / (16 * (256 + 2) + 3)
"""Of work_thread at 1000 MIPS."""


def scenario(apf: str, vcpus: int, duration_s: str, *processes: dict[str, Any]) -> Scenario:
    sizes = {"vm.guest_memory": "96MiB", "vm.group_memory": "4MiB", "host.reserve_frames": 256}
    chosen = {"apf": [apf], "duration_s": duration_s, "swap.device": "nvme", "vm.vcpus": vcpus}
    return load(None, {"seed": 7, **sizes, **chosen, "process": list(processes)})


def pinned(apf: str) -> Scenario:
    """A, whose pages are mostly swapped out, and B, which counts, on vCPU 0; C is as A, but alone on vCPU 1."""
    return scenario(
        apf,
        2,
        "0.02",
        {"name": "A", "memory": "6MiB", "thread": [{"program": "fault_thread", "vcpus": [0]}]},
        {"name": "B", "thread": [{"program": "work_thread", "vcpus": [0]}]},
        {"name": "C", "memory": "6MiB", "thread": [{"program": "fault_thread", "vcpus": [1]}]},
    )


def roaming() -> Scenario:
    """Six of A's tasks on any of three vCPUs; B never leaves vCPU 0."""
    return scenario(
        "pv2010",
        3,
        "0.01",
        {"name": "A", "memory": "6MiB", "thread": [{"program": "fault_thread", "count": 6}]},
        {"name": "B", "thread": [{"program": "work_thread", "vcpus": [0]}]},
    )


def run(chosen: Scenario, where: str, factory: pytest.TempPathFactory) -> Ran:
    ran = on_processes(chosen) if where == "processes" else on_twin(chosen, factory.mktemp("journals"))
    assert ran.journals.result.corrupt_pages == ran.journals.result.lost_writes == 0
    return ran


@pytest.fixture(scope="module", params=["twin", "processes"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def off(where: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(pinned("off"), where, tmp_path_factory)


@pytest.fixture(scope="module")
def pv(where: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(pinned("pv2010"), where, tmp_path_factory)


@pytest.fixture(scope="module")
def roamed(where: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(roaming(), where, tmp_path_factory)


def tasks_of(ran: Ran, process: str) -> set[int]:
    return {row["id"] for row in ran.journals.result.tasks if row["process"] == process}


def on_vcpu(ran: Ran, vcpu: int) -> list[Record]:
    """The guest kernel's records of one vCPU."""
    return [r for r in ran.journals.guest if r.kind in KINDS_OF_VCPU and r.fields[0] == vcpu]


def memory(ran: Ran, process: str) -> Extent:
    """Where a process's memory is."""
    core = guest_core(ran.scenario, Journal())
    (found,) = (each for each in core.processes.values() if each.name == process)
    extent = found.extent_of(MEMORY_GVA)
    assert extent is not None
    return extent


def faults(ran: Ran, process: str) -> list[Record]:
    """Faults on a process's memory; fields: vm, vcpu, gfn, how, outcome, ..."""
    extent = memory(ran, process)
    return [r for r in ran.host("fault") if extent.gfn <= r.fields[2] < extent.gfn + extent.pages]


def turns(ran: Ran, vcpu: int, task: int) -> Iterator[tuple[int, int]]:
    """When ``task`` was let run on ``vcpu``: from its dispatch to the next trap."""
    for record, following in pairwise(on_vcpu(ran, vcpu)):
        if record.kind == "dispatch" and record.fields[1] == task:
            yield record.fields[2], min(following.time_ns, ran.scenario.duration_ns)


def counted(ran: Ran, process: str) -> int:
    """What the process's one counting task counted."""
    (row,) = (row for row in ran.journals.result.tasks if row["process"] == process)
    return int(row["values"]["count"])


def test_t07_one_virtual_address_is_another_page_in_each_process(off: Ran, pv: Ran) -> None:
    for ran in (off, pv):
        a, c = memory(ran, "A"), memory(ran, "C")
        assert a.gva == c.gva == MEMORY_GVA and a.pages == c.pages
        assert a.gfn + a.pages <= c.gfn or c.gfn + c.pages <= a.gfn
        for process in ("A", "C"):
            own = tasks_of(ran, process)
            touched = faults(ran, process)
            assert len(touched) > 50
            assert all(ran.journals.current(r.fields[1], r.time_ns) in own for r in touched), "nobody else's"


def test_t08_b_could_run_but_the_vcpu_stands_still(off: Ran) -> None:
    (a,), (b,) = tasks_of(off, "A"), tasks_of(off, "B")
    duration_ns = off.scenario.duration_ns
    ours = on_vcpu(off, 0)
    stalled_ns = stalls = 0
    for fault in faults(off, "A"):
        _vm, vcpu, _gfn, _how, outcome, at_ns, _pfn, _writable, stall_ns = fault.fields
        if outcome != "major":
            continue
        until_ns = min(at_ns, duration_ns)
        assert vcpu == 0 and off.journals.current(0, fault.time_ns) == a
        assert not [r for r in ours if fault.time_ns < r.time_ns < until_ns], "no trap, no other task"
        assert not [r for r in off.journals.vcpu(0) if fault.time_ns < r.time_ns < until_ns], "the vCPU did nothing"
        stalled_ns += min(stall_ns, until_ns - fault.time_ns)
        stalls += 1
    assert stalls > 30
    assert not any(r.kind == "leave" for r in off.journals.guest), "A never slept, and B was ready all the time"
    # B ran in its own turns only: its counter and the vCPU's account have nothing beside them.
    own_ns = sum(end - begin for begin, end in turns(off, 0, b))
    assert 0 < own_ns < duration_ns - stalled_ns
    assert counted(off, "B") / COUNTS_PER_NS == pytest.approx(own_ns, rel=0.005)
    assert off.journals.result.vcpus[0]["time_ns"]["counting"] == pytest.approx(own_ns, rel=0.005)
    assert stalled_ns > 0.3 * duration_ns, "A's half of the vCPU is little else"


def test_t12_a_sleeps_and_b_runs_at_once(pv: Ran) -> None:
    (a,), (b,) = tasks_of(pv, "A"), tasks_of(pv, "B")
    costs = pv.scenario.costs
    ours = on_vcpu(pv, 0)
    left = {r.time_ns for r in pv.journals.guest if r.kind == "leave" and r.fields == (a, "NOT_PRESENT")}
    waits = 0
    for place, not_present in enumerate(ours):
        if not_present.kind != "not_present":
            continue
        assert not_present.time_ns in left, "A is put to sleep"
        dispatch = ours[place + 1]
        assert (dispatch.kind, dispatch.time_ns, dispatch.fields[1]) == ("dispatch", not_present.time_ns, b)
        assert dispatch.fields[2] == not_present.time_ns + costs.apf_handler_ns + costs.context_switch_ns
        for record in ours[place + 2 :]:
            if record.kind == "page_ready" and record.fields[1] == not_present.fields[1]:
                waits += 1
                break
            assert record.kind != "dispatch" or record.fields[1] == b, "until the page is ready only B runs"
    assert waits > 50
    own_ns = sum(end - begin for begin, end in turns(pv, 0, b))
    # A turn that page ready ends has in it what announcing that costs: some 4 us of 100.
    assert counted(pv, "B") / COUNTS_PER_NS == pytest.approx(own_ns, rel=0.03), "it retires all the time"
    assert own_ns > 0.7 * pv.scenario.duration_ns
    # C has nobody beside it: its vCPU idles, and that is no stall.
    alone = pv.journals.result.vcpus[1]["time_ns"]
    assert alone["idle"] > 0.7 * pv.scenario.duration_ns > 0.01 * pv.scenario.duration_ns > alone["stall"]


def test_t13_a_is_scheduled_back_possibly_on_a_vcpu_that_idles(roamed: Ran) -> None:
    tasks = tasks_of(roamed, "A")
    window_ns = roamed.journals.result.window_ns
    slept_on: dict[int, int] = {}
    running = dict.fromkeys(range(3), 0)
    trapped = 0
    woken: dict[int, tuple[Record, bool]] = {}
    back = moved = 0
    for record in roamed.journals.guest:
        match record.kind:
            case "not_present" | "page_ready":
                trapped = record.fields[0]
            case "leave" if record.fields[1] == "NOT_PRESENT":
                slept_on[record.fields[0]] = trapped
            case "wake":
                task, target = record.fields
                home = slept_on.pop(task)
                assert task in tasks and trapped == home, "page ready comes to the vCPU that faulted"
                assert target == home or running[target] == 0, "a vCPU that idles, or the same"
                woken[task] = (record, target != home)
            case "dispatch":
                vcpu, task, *_ = record.fields
                running[vcpu] = task
                if task in woken:
                    wake, elsewhere = woken.pop(task)
                    back += 1
                    if elsewhere and vcpu == wake.fields[1]:
                        moved += 1
                        assert record.time_ns - wake.time_ns <= window_ns + 20_000, "interrupted at the next border"
    assert back > 200 and moved > 20
    unfinished = [wake for wake, _ in woken.values()]
    assert all(roamed.scenario.duration_ns - wake.time_ns < 2_000_000 for wake in unfinished), (
        "woken, never run again"
    )
    assert {row["vcpu"] for row in roamed.journals.result.tasks if row["process"] == "A"} >= {1, 2}


@pytest.mark.parametrize("where", ["processes"], indirect=True)
def test_the_processes_ran_what_the_twin_runs(off: Ran, pv: Ran, roamed: Ran) -> None:
    for ran in (off, pv, roamed):
        assert twin.run(ran.scenario).digest == ran.journals.result.digest
