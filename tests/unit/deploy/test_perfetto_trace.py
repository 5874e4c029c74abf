"""The Perfetto trace of a run: complete, well formed, and limited."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig
from perfetto_import import Imported, Slice, read

from apf.scenario import Scenario, load
from deploy import trace, twin
from deploy.fault import Fault
from deploy.faults import WAKE_ALL, faults
from deploy.journals import events
from deploy.result import RunResult
from deploy.tracefile import TraceFile
from deploy.walk import small

TRACEPOINTS = {
    "kvm_exit": {"exit_reason", "rip"},
    "kvm_page_fault": {"address", "access", "mode"},
    "kvm_try_async_get_page": {"gva", "gfn"},
    "kvm_async_pf_not_present": {"token", "gva"},
    "kvm_async_pf_completed": {"address", "gva", "token"},
    "kvm_async_pf_ready": {"token", "gva"},
    "kvm_inj_exception": {"exception", "error_code"},
    "kvm_inj_virq": {"vec"},
    "kvm_msr": {"write", "ecx", "data", "outcome"},
    "sched_switch": {
        *("prev_comm", "prev_pid", "prev_prio", "prev_state", "next_comm", "next_pid", "next_prio"),
    },
    "sched_wakeup": {"comm", "pid", "prio", "target_cpu"},
    "sched_wakeup_new": {"comm", "pid", "prio", "target_cpu"},
    "block_rq_issue": {"sector", "nr_sector", "rwbs"},
    "block_rq_complete": {"sector", "nr_sector", "rwbs"},
}


@dataclass
class Traced:
    """A run on the twin, its journals, and its trace as bytes and imported."""

    result: RunResult
    journals: dict[str, Path]
    data: bytes
    trace: Imported
    end_ns: int
    """When the last record was made: the vCPUs go on for what their last trap costs."""

    @property
    def faults(self) -> list[Fault]:
        return list(faults(events(self.journals)))


def traced(scenario: Scenario, directory: Path) -> Traced:
    result = twin.run(scenario, journals=directory)
    journals = {path.stem: path for path in directory.glob("*.journal")}
    data, _ = traced_again(journals)
    end_ns = max(event.record.time_ns for event in events(journals))
    return Traced(result, journals, data, read(data), end_ns)


def traced_again(journals: dict[str, Path], limit: int = 1 << 30) -> tuple[bytes, TraceFile]:
    out = io.BytesIO()
    file = TraceFile(out, limit)
    trace.write(file, "a run", 0, journals, "nvme")
    return out.getvalue(), file


@pytest.fixture(scope="module")
def pv(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(small(7).for_mode("pv2010"), tmp_path_factory.mktemp("pv"))


@pytest.fixture(scope="module")
def since_58(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(small(7).model_copy(update={"apf": ("pv",)}), tmp_path_factory.mktemp("since_58"))


@pytest.fixture(scope="module")
def halt(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(small(7).model_copy(update={"apf": ("halt",)}), tmp_path_factory.mktemp("halt"))


@pytest.fixture(scope="module", params=["pv", "since_58", "halt"])
def with_apf(request: pytest.FixtureRequest) -> Traced:
    run: Traced = request.getfixturevalue(request.param)
    return run


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced(small(7).for_mode("off"), tmp_path_factory.mktemp("off"))


def test_tracepoints_have_the_field_s_names(pv: Traced, since_58: Traced) -> None:
    found: dict[str, set[str]] = {}
    for one in [*pv.trace.slices, *since_58.trace.slices]:
        if one.dur == 0 and one.name in TRACEPOINTS:
            assert found.setdefault(one.name, set(one.args)) == set(one.args)
    assert found == TRACEPOINTS


def test_as_many_events_as_the_run_counted(with_apf: Traced) -> None:
    counts = Counter(one.name for one in with_apf.trace.slices)
    result, faulted = with_apf.result, with_apf.result.counter("faults_async")
    told, by_interrupt = result.mode != "halt", result.mode == "pv"
    assert faulted > 100
    assert counts["kvm_exit"] == result.counter("exits")
    assert counts["kvm_try_async_get_page"] == faulted + result.counter("repeated")
    assert counts["kvm_async_pf_not_present"] == faulted
    assert bool(result.counter("not_present")) == bool(result.counter("ready")) == told
    assert counts["kvm_async_pf_ready"] >= result.counter("ready")
    assert counts["kvm_inj_virq"] == by_interrupt * result.counter("ready")
    exceptions = result.counter("not_present") + (not by_interrupt) * result.counter("ready")
    assert counts["kvm_inj_exception"] == exceptions
    assert counts["APF halt"] == (not told) * faulted + result.counter("repeated")
    assert counts["kvm_async_pf_completed"] == result.host_counters["kvm_async_pf_completed"]
    reads = [event.record for event in events(with_apf.journals) if event.record.kind in ("read", "readahead")]
    assert len(reads) == result.host_counters["pswpin"]
    assert counts["read"] == sum(record.fields[5] <= with_apf.end_ns for record in reads), "those that began"
    # Switches from and to the idle task count too; the first task of a vCPU is not switched to.
    assert counts["sched_switch"] == result.guest_counters["nr_switches"] - len(result.vcpus)


def test_each_not_present_leads_to_one_ready_of_its_token(with_apf: Traced) -> None:
    imported = with_apf.trace
    not_present = imported.named("kvm_async_pf_not_present")
    for begin, end in imported.flows:
        assert (begin.name, end.name) == ("kvm_async_pf_not_present", "kvm_async_pf_ready")
        assert begin.args == end.args and begin.track == end.track and begin.ts < end.ts
    ready = [one for one in imported.named("kvm_async_pf_ready") if one.args["token"] != WAKE_ALL]
    assert len({begin.id for begin, _ in imported.flows}) == len(imported.flows) == len(ready)
    under_way = [fault.token for fault in with_apf.faults if fault.kind == "async" and fault.sent_ns is None]
    assert sorted(one.args["token"] for one in imported.dangling) == sorted(under_way)
    assert len(not_present) == len(imported.flows) + len(under_way)


def test_tracks_of_all_who_take_part(pv: Traced) -> None:
    tracks = set(pv.trace.tracks)
    assert {"a run / VM 0 / vCPU 0", "a run / VM 0 / vCPU 1", "a run / host / fault-in worker 0"} <= tracks
    assert "a run / host / nvme, I/O 0" in tracks
    for task in pv.result.tasks:
        assert f"a run / VM 0 / {task['name']} {task['id']}" in tracks


def own(imported: Imported, track: str) -> Iterator[Slice]:
    return (one for one in imported.slices if one.track == track)


@pytest.mark.parametrize("mode", ["pv", "since_58", "halt", "off"])
def test_slices_nest_and_end(mode: str, request: pytest.FixtureRequest) -> None:
    run: Traced = request.getfixturevalue(mode)
    assert run.trace.in_order
    for one in run.trace.slices:
        assert one.dur >= 0, f"{one.name} at {one.ts} does not end"
        if one.parent is not None:
            assert one.parent.ts <= one.ts and one.ts + one.dur <= one.parent.ts + one.parent.dur
    assert max(one.ts + one.dur for one in run.trace.slices) == run.end_ns


def test_task_states_follow_each_other_without_a_gap(pv: Traced) -> None:
    for task in pv.result.tasks:
        states = [one for one in own(pv.trace, f"a run / VM 0 / {task['name']} {task['id']}") if one.parent is None]
        slices = [one for one in states if one.category == "sched" and not one.name.startswith("sched_")]
        for one, after in pairwise(slices):
            assert one.ts + one.dur == after.ts and one.name != after.name
    waits = [one for one in pv.trace.slices if one.name == "asynchronous page fault (D)"]
    assert len(waits) == pv.result.guest_counters["not_present"]


def test_a_vcpu_runs_one_thing_at_a_time_all_the_time(with_apf: Traced) -> None:
    pv = with_apf
    for vcpu in range(2):
        runs = [one for one in own(pv.trace, f"a run / VM 0 / vCPU {vcpu}") if one.parent is None and one.dur]
        assert runs[0].ts == 0 and runs[-1].ts + runs[-1].dur == pv.end_ns
        assert all(one.ts + one.dur == after.ts for one, after in pairwise(runs))


def test_workers_and_servers_do_one_thing_at_a_time(pv: Traced) -> None:
    for track in pv.trace.tracks:
        if track.startswith("a run / host / "):
            slices = [one for one in own(pv.trace, track) if one.category in ("kvm", "block") and one.parent is None]
            assert all(one.ts + one.dur <= after.ts for one, after in pairwise(slices))


def longest(run: Traced) -> tuple[int, int, int]:
    """As the vCPUs' journals have it."""
    told = [
        (fault.sent_ns - fault.injected_ns, fault.token, fault.injected_ns)
        for fault in run.faults
        if fault.injected_ns is not None and fault.sent_ns is not None
    ]
    return max(told)


def test_longest_not_present_to_ready(pv: Traced, since_58: Traced) -> None:
    for run in (pv, since_58):
        (row,) = run.trace.query(trace.LONGEST)
        assert row == longest(run)


def test_longest_by_trace_processor(pv: Traced, tmp_path: Path) -> None:
    binary = os.environ.get("TRACE_PROCESSOR") or shutil.which("trace_processor_shell")
    if binary is None:
        pytest.skip("no trace_processor_shell in PATH, nor in $TRACE_PROCESSOR")
    file = tmp_path / "trace.pftrace"
    file.write_bytes(pv.data)
    with TraceProcessor(trace=str(file), config=TraceProcessorConfig(bin_path=binary)) as processor:
        (row,) = processor.query(trace.LONGEST)
        assert (row.ns, row.token, row.ts) == longest(pv)
        assert [r.n for r in processor.query("SELECT count(*) AS n FROM slice")] == [len(pv.trace.slices)]


def test_without_apf_there_are_stalls_and_no_tokens(off: Traced) -> None:
    names = Counter(one.name for one in off.trace.slices)
    assert names["page fault: major"] == off.result.counter("faults_major") > 50
    assert not any(name.startswith("kvm_async_pf") for name in names) and not off.trace.flows


def test_beyond_the_limit_events_are_counted_and_said(pv: Traced) -> None:
    whole, file = traced_again(pv.journals)
    assert whole == pv.data and file.cut_ns is None and file.left_out == 0
    assert file.events == len(pv.trace.slices)
    limit = len(whole) // 3
    cut, short = traced_again(pv.journals, limit)
    assert limit <= len(cut) < limit + 4096
    assert short.cut_ns is not None and short.events + short.left_out == file.events
    imported = read(cut)
    assert [one.name for one in own(imported, "trace cut short")] == [f"limit of {limit} bytes reached"]
    assert len(imported.slices) == short.events + 1 and all(one.dur >= 0 for one in imported.slices)
    assert max(one.ts for one in imported.slices) == short.cut_ns


def test_two_vms_on_one_host_keep_their_tokens_apart(tmp_path: Path) -> None:
    sizes = {"vm.vcpus": 1, "vm.guest_memory": "96MiB", "vm.group_memory": "4MiB", "bench.buffer": "32MiB"}
    bench = {"bench.fault_threads": 2, "bench.work_threads": 1, "host.vms": 2, "host.reserve_frames": 512}
    scenario = load(None, {"apf": ["pv2010"], "duration_s": "0.01", "swap.device": "nvme", **sizes, **bench})
    run = traced(scenario, tmp_path)
    tokens = [{begin.args["token"] for begin, _ in run.trace.flows if f"VM {vm} " in begin.track} for vm in range(2)]
    assert len(tokens[0] & tokens[1]) > 10, "both VMs count from 1"
    assert all(begin.track == end.track for begin, end in run.trace.flows)
