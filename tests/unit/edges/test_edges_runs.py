"""Edge cases that take a whole run to show, in the twin, by their numbers in the KVM reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apf.messages import PageError
from apf.process import Failure
from apf.scenario import Scenario, ScenarioError, load
from apf.swapdevice import ERRORS_OF
from deploy import twin
from deploy.faults import faults
from deploy.journals import events
from deploy.result import RunResult
from hostd.core.device import Op
from hostd.core.io_faults import chances

THREADS = {"program": "zipfian", "count": 3}
BIG = {"memory": "16MiB", "thread": [{"program": "sequential", "count": 3}]}
"""Written once from end to end: what is evicted stays out."""
QUIET = {"name": "quiet", "memory": "6MiB", "thread": [{"program": "zipfian"}]}
IDLE = {"name": "idle", "memory": "1MiB", "thread": [{"program": "idle"}]}


def scenario(apf: str, overrides: dict[str, Any]) -> Scenario:
    """Three tasks that read and write 6 MiB, of which 4 fit, on one vCPU."""
    chosen: dict[str, Any] = {
        "apf": [apf],
        "duration_s": "0.006",
        "swap.device": "nvme",
        "gup": "nowait",
        "vm.vcpus": 1,
        "vm.guest_memory": "96MiB",
        "vm.group_memory": "4MiB",
        "host.reserve_frames": 512,
        "process": [{"memory": "6MiB", "thread": [THREADS]}],
    }
    return load(None, chosen | overrides)


def run(apf: str, *injects: dict[str, Any], **overrides: Any) -> RunResult:
    """A run of the twin; ``vm__vcpus=2`` sets ``vm.vcpus``."""
    overridden = {name.replace("__", "."): value for name, value in overrides.items()}
    return twin.run(scenario(apf, {"inject": list(injects), **overridden}))


@pytest.fixture(scope="module")
def well() -> RunResult:
    """The run in ``pv`` that nothing was injected into."""
    return run("pv")


def asleep(result: RunResult) -> int:
    """Tasks that wait for a page at the end of the run."""
    return [task["state"] for task in result.tasks].count("APF_WAIT")


def accesses(result: RunResult) -> int:
    return sum(task["values"]["accesses"] for task in result.tasks)


@pytest.mark.parametrize("apf", ["halt", "pv2010", "pv"])
def test_e38_a_guest_under_pressure_gets_on(apf: str) -> None:
    """Eviction, refault, eviction: every task of eight, on twice what fits, has got somewhere, and goes on to."""
    process = [{"memory": "8MiB", "thread": [{"program": "sequential", "count": 8}]}]
    first, second = (run(apf, process=process, duration_s=duration_s, vm__hz=1000) for duration_s in ("0.02", "0.04"))
    for before, after in zip(first.tasks, second.tasks, strict=True):
        assert 0 < before["values"]["accesses"] < after["values"]["accesses"]
    assert second.host_counters["pgsteal_direct"] > 100 and second.corrupt_pages == 0


@pytest.mark.parametrize("gup", ["noio", "nowait"])
@pytest.mark.parametrize("apf", ["halt", "pv2010", "pv"])
def test_e13_a_vcpu_alone_sees_no_apf_from_compressed_memory(apf: str, gup: str) -> None:
    on = {device: run(apf, swap__device=device, gup=gup) for device in ("zram", "zswap", "nvme")}
    assert on.pop("nvme").host_counters["kvm_try_async_get_page"] > 10
    for result in on.values():
        assert result.host_counters["pgmajfault"] > 100 and accesses(result) > 100
        assert result.host_counters["kvm_try_async_get_page"] == result.guest_counters["not_present"] == 0


@pytest.mark.parametrize("gup", ["noio", "nowait"])
@pytest.mark.parametrize("device", ["zram", "zswap"])
def test_e13_each_apf_from_compressed_memory_is_on_a_page_that_another_holds_locked(
    device: str, gup: str, tmp_path: Path
) -> None:
    """Two vCPUs touch the same pages in the same order, so that mostly one comes while the other reads."""
    trace = tmp_path / "same.trace"
    trace.write_text("".join(f"0 {page} w\n" for page in range(1500)))
    thread = [{"trace": str(trace), "vcpus": [vcpu]} for vcpu in (0, 1)]
    chosen = {"vm.vcpus": 2, "process": [{"memory": "12MiB", "thread": thread}], "swap.device": device, "gup": gup}
    result = twin.run(scenario("pv", chosen), journals=tmp_path)
    found = list(faults(events({path.stem: path for path in tmp_path.glob("*.journal")})))
    asynchronous = [fault for fault in found if fault.kind == "async"]
    assert len(asynchronous) == result.counter("faults_async") > 20
    by_page: dict[int, list[tuple[int, int]]] = {}
    for fault in found:
        if fault.kind == "major" and fault.own_read and fault.read is not None:
            assert fault.stall_ns > 0
            by_page.setdefault(fault.gfn, []).append((fault.vcpu, fault.read.done_ns))
    for fault in asynchronous:
        assert fault.read is not None and not fault.own_read
        (holder,) = {vcpu for vcpu, done_ns in by_page[fault.gfn] if done_ns == fault.read.done_ns}
        assert holder != fault.vcpu and fault.read.submitted_ns <= fault.raised_ns < fault.read.done_ns


def test_e13_get_user_pages_fast_reads_nothing_so_that_the_worker_does_on_any_device() -> None:
    result = run("pv2010", swap__device="zram", gup="fast")
    assert result.host_counters["kvm_try_async_get_page"] >= result.host_counters["pgmajfault"] > 100


@pytest.mark.parametrize("apf", ["halt", "pv2010", "pv"])
def test_e54_a_run_ends_with_work_under_way(apf: str) -> None:
    """Nobody waits for a worker that the end of the run has overtaken."""
    result = run(apf, swap__device="hdd-7200", duration_s="0.005")
    assert result.counter("faults_async") > result.counter("ready")
    assert result.virtual_seconds == 0.005


def test_e47_a_lost_ready_stops_its_task_and_with_one_slot_every_task_of_the_vcpu(well: RunResult) -> None:
    lost = {"what": "lost_ready", "at_s": "0.001"}
    spoiled = run("pv", lost)
    assert asleep(spoiled) == 3 and accesses(spoiled) < accesses(well) / 2
    of_2010 = run("pv2010", lost)
    assert asleep(of_2010) >= 1 and accesses(of_2010) > accesses(spoiled), "then only its own task is lost"


@pytest.mark.parametrize("apf", ["pv2010", "pv"])
def test_e30_a_duplicated_ready_harms_nobody(apf: str, well: RunResult) -> None:
    result = run(apf, {"what": "duplicate_ready", "at_s": "0.001", "count": 5})
    assert result.counter("injected") == 5 and result.corrupt_pages == 0
    assert accesses(result) > accesses(well) * 0.8


def test_e22_dropped_acks_make_every_later_ready_wait_for_an_exit_that_comes_by_itself(well: RunResult) -> None:
    spoiled = run("pv", {"what": "dropped_ack", "at_s": "0.001", "count": 1 << 30})
    assert spoiled.counter("injected") > 0
    assert accesses(spoiled) < accesses(well), "pages are told of late"
    assert spoiled.counter("ready") > 2, "but they are"


def test_e16_without_memory_for_items_the_vcpu_sleeps() -> None:
    result = run("pv", {"what": "alloc_failure", "at_s": "0.001", "count": 1 << 30})
    assert result.counter("sync_alloc") == result.counter("injected") > 10
    assert result.counter("faults_major") > 10 and asleep(result) == 0


def test_e33_after_a_restore_every_waiter_faults_again(well: RunResult) -> None:
    result = run("pv", *({"what": "restore", "at_s": f"0.00{n}"} for n in range(1, 6)))
    assert result.counter("wake_all") == 6 and result.counter("dropped") > 0
    assert accesses(result) > accesses(well) * 0.8


@pytest.mark.parametrize("what", ["restore_without_int", "restore_int_late", "token_left", "msr_lost"])
def test_e34_e35_what_a_bad_restore_leaves_is_stuck(what: str) -> None:
    work = {"name": "work", "thread": [{"program": "work_thread", "nice": 19}]}
    late = {"name": "late", "memory": "6MiB", "thread": [{"program": "zipfian", "start_s": "0.003"}]}
    process = [{"memory": "6MiB", "thread": [THREADS]}, work, late]
    result = run("pv", {"what": what, "at_s": "0.002"}, process=process)
    waiters = asleep(result)
    assert waiters >= 1
    assert result.tasks[3]["values"]["count"] > 0, "who touches no page that is out goes on"
    late_state = result.tasks[4]["state"]
    if what == "msr_lost":
        assert result.counter("halts") > 0 and late_state != "APF_WAIT", "who comes later faults as in halt"
    else:
        assert waiters == 4 and late_state == "APF_WAIT", "nobody who faults comes back any more"


@pytest.mark.parametrize("what", ["lapic_off", "paging_off"])
def test_e24_e25_a_window_without_lapic_or_paging_loses_nobody(what: str, well: RunResult) -> None:
    result = run("pv", {"what": what, "at_s": "0.001", "for_s": "0.001"})
    assert accesses(result) > accesses(well) * 0.5
    assert result.counter("ready") > 20


def test_e46_a_guest_that_wants_not_present_in_the_kernel_panics_of_it(tmp_path: Path) -> None:
    """Its first system call reads a page that a worker has to bring."""
    trace = tmp_path / "some.trace"
    trace.write_text("0 0 w\n")
    process = [{"memory": "1MiB", "thread": [{"trace": str(trace)}]}]
    result = run("pv", kvm__send_always=True, process=process, gup="fast")
    assert any("Kernel panic - not syncing: Host injected async #PF in kernel mode" in line for line in result.told)
    assert result.end_ns < 1_000_000, "every vCPU stops"
    harmless = run("pv", process=process, gup="fast")
    assert harmless.counter("halts") > 0 and not harmless.told, "without SEND_ALWAYS the vCPU halts (E04)"


def test_e04_e07_halting_lets_others_run_only_from_the_next_tick_on() -> None:
    process = [{"memory": "6MiB", "thread": [THREADS]}, {"name": "work", "thread": [{"program": "work_thread"}]}]
    runs = {
        apf: run(apf, process=process, swap__device="hdd-7200", duration_s="0.4") for apf in ("off", "halt", "pv")
    }
    off, halt, pv = (runs[apf].tasks[3]["values"]["count"] for apf in ("off", "halt", "pv"))
    assert runs["halt"].counter("repeated") > 0 and runs["halt"].time_ns("stall") > 0
    assert pv > 1.5 * max(off, halt), "what is halted is charged to the task that faulted, as a stall is"


@pytest.mark.parametrize(
    ("inject", "named"),
    [
        ({"what": "restore", "apf": "pv"}, "inject.0.apf: no such field"),
        ({"what": "fire"}, "inject.0.what = 'fire'"),
        ({"what": "restore", "nth": 2}, "nth = 2"),
        ({"what": "lapic_off"}, "for_s = 0"),
        ({"what": "lost_ready", "for_s": 1}, "for_s = 1"),
        ({"what": "restore", "vcpu": 1}, "inject.0.vcpu = 1: 0 to 0"),
        ({"what": "restore", "vm": 1}, "inject.0.vm = 1: 0 to 0"),
        ({"what": "restore", "at_s": -1}, "inject.0.at_s = "),
    ],
)
def test_an_injection_that_makes_no_sense_is_refused(inject: dict[str, Any], named: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        run("pv", inject)
    assert named in str(refused.value)


def test_send_always_is_not_for_the_guest_of_2010() -> None:
    with pytest.raises(ScenarioError, match=r"kvm\.send_always = true, apf = \['pv2010'\]"):
        run("pv2010", kvm__send_always=True)


@pytest.mark.parametrize("apf", ["off", "halt"])
def test_a_restore_is_nothing_to_a_guest_that_has_enabled_nothing(apf: str) -> None:
    result = run(apf, {"what": "restore", "at_s": "0.001"})
    assert result.counter("injected") == 1 and result.counter("msr_gp") == result.counter("wake_all") == 0


# A page that cannot be had -------------------------------------------------------------------------------------------


def fails(**fault: Any) -> list[dict[str, Any]]:
    return [{"at_s": "0.001", **fault}]


def killed(result: RunResult) -> list[str]:
    return [task["killed"] for task in result.tasks if task["killed"]]


def test_e39_in_sync_mode_a_page_that_cannot_be_read_is_the_end_of_the_vm() -> None:
    result = run("off", swap__fault=fails(what="read_error"))
    assert "KVM_RUN: Bad address" in result.failed[0] and "its read from the swap device failed" in result.failed[0]
    ((error,), counters) = (result.page_errors, result.host_counters)
    assert f"gfn {error['gfn']:#x}, which task" in result.failed[0]
    assert 0.001 < result.virtual_seconds < 0.006 and not killed(result)
    assert (counters["swap_read_error"], counters["page_error"]) == (1, 1)


@pytest.mark.parametrize("apf", ["halt", "pv2010", "pv"])
def test_e39_asynchronously_it_is_never_an_error_to_the_vmm_but_a_loop_without_end(apf: str) -> None:
    shorter, longer = (
        run(apf, swap__fault=fails(what="read_error"), duration_s=duration_s) for duration_s in ("0.003", "0.006")
    )
    assert not longer.failed and not killed(longer)
    (first,), (second,) = shorter.page_errors, longer.page_errors
    assert first["gfn"] == second["gfn"] and 50 < first["faults"] < second["faults"] - 50
    assert longer.host_counters["swap_read_error"] == 1, "the device was asked once"
    assert any("faults on it were in vain" in line for line in longer.told)


@pytest.mark.parametrize("apf", ["off", "halt", "pv2010", "pv"])
@pytest.mark.parametrize("what", ["read_error", "torn_write", "lost_write"])
def test_reported_one_task_dies_of_it_and_the_others_go_on(what: str, apf: str) -> None:
    """Every write of some is spoilt, so that one of those pages is read again; only so many reads."""
    fault = {"what": what, "count": 1 if what == "read_error" else 20}
    result = run(apf, swap__fault=fails(**fault), swap__errors="report", duration_s="0.012")
    assert not result.failed and result.corrupt_pages == 0
    dead = killed(result)
    assert dead and all(why.startswith("SIGBUS") for why in dead)
    assert all(error["why"] == PageError[what.partition("_")[0].upper()].words for error in result.page_errors)
    if len(dead) < len(result.tasks):
        assert any(task["state"] != "DEAD" and task["values"]["accesses"] > 100 for task in result.tasks)


SSD = {"servers": 8, "read_ns": [60_000, 90_000, 200_000], "write_ns": [20_000, 40_000]}


@pytest.mark.parametrize("apf", ["off", "pv"])
@pytest.mark.parametrize("errors", ["kernel", "report"])
def test_what_fails_by_chance_is_what_a_scenario_that_names_those_very_ios_lets_fail(apf: str, errors: str) -> None:
    """To the digest."""
    rates, first = (ERRORS_OF // 12, ERRORS_OF // 8), range(1, 1001)
    read_fails, write_fails = chances(rates, 1)
    named = [{"what": "read_error", "nth": nth} for nth in first if read_fails()]
    named += [{"what": "write_error", "nth": nth} for nth in first if write_fails()]
    spoilt = SSD | {"read_errors": rates[Op.READ], "write_errors": rates[Op.WRITE]}
    by_chance = run(apf, swap__device=spoilt, swap__errors=errors)
    wanted = run(apf, swap__device=SSD, swap__errors=errors, swap__fault=named)
    counters = by_chance.host_counters
    assert max(counters["pswpin"], counters["pswpout"]) <= len(first)
    assert counters["swap_read_error"] >= 1 and (counters["swap_write_error"] > 3 or by_chance.failed)
    assert (by_chance.digest, counters) == (wanted.digest, wanted.host_counters)
    assert (by_chance.page_errors, by_chance.told) == (wanted.page_errors, wanted.told)


def test_a_profile_that_says_nothing_of_errors_and_bandwidth_says_that_there_are_none() -> None:
    silent = run("pv", swap__device=SSD)
    says = run("pv", swap__device=SSD | {"read_errors": 0, "write_errors": 0, "bandwidth": 0})
    assert silent.digest == says.digest and silent.host_counters["swap_read_error"] == 0
    rare = run("pv", swap__device=SSD | {"read_errors": 1})
    assert rare.digest == silent.digest, "that there could have been an error changes nothing"


def test_a_link_that_is_too_slow_for_the_servers_is_what_the_guest_waits_for() -> None:
    page_s = 0.00005
    free, capped = (run("pv", swap__device=SSD | {"bandwidth": rate}) for rate in (0, round(4096 / page_s)))
    moved = capped.host_counters["pswpin"] + capped.host_counters["pswpout"]
    assert 0.8 * 0.006 / page_s < moved <= 0.006 / page_s + 64, "64: submitted, and not done before the end"
    assert free.host_counters["pswpin"] > 1.3 * capped.host_counters["pswpin"]


def test_one_vm_dies_of_it_and_the_other_goes_on_or_goes_with_it() -> None:
    two = {"host__vms": 2, "swap__fault": fails(what="read_error", vm=1)}
    result = run("off", host__on_vm_loss="leave", **two)
    assert list(result.failed) == [1] and result.host_counters["page_error"] == 1
    done = [sum(task["values"]["accesses"] for task in result.tasks if task["vm"] == vm) for vm in (0, 1)]
    assert done[0] > 2 * done[1] > 0
    with pytest.raises(Failure, match=r"^VM 1: at [0-9]+ ns: vCPU 0: KVM_RUN: Bad address: gfn 0x"):
        run("off", **two)
    audit = result.audit
    assert audit["pages"] and not audit["corrupt"]


def test_pages_that_cannot_be_had_are_lost_by_reason_and_not_corrupt() -> None:
    fault = [{"what": "torn_write", "nth": 3, "count": 9}, {"what": "lost_write", "nth": 20, "count": 7}]
    result = run("off", swap__fault=fault, swap__errors="report", duration_s="0.004", process=[BIG])
    lost, counters = result.lost_pages, result.host_counters
    assert 0 < lost["torn"] <= 9 and 0 < lost["lost"] <= 7
    assert (counters["swap_torn_write"], counters["swap_lost_write"]) == (9, 7)
    assert result.corrupt_pages == 0 and result.audit["corrupt"] == 0


def test_a_failed_write_loses_nothing() -> None:
    result = run("off", swap__fault=fails(what="write_error", count=40))
    assert result.host_counters["swap_write_error"] == 40
    assert result.corrupt_pages == result.lost_writes == 0 and not result.lost_pages
    told = [line for line in result.told if "Write-error on swap-device" in line]
    assert len(told) == 10, "and of the others only how many there were, once five seconds have passed"


def test_what_waits_for_a_device_that_has_stopped_waits_and_the_run_ends_at_its_end() -> None:
    ever, moment = (run("off", swap__fault=fails(what="stop", for_s=for_s)) for for_s in ("0", "0.002"))
    assert accesses(ever) < accesses(moment) < accesses(run("off"))
    assert ever.virtual_seconds == moment.virtual_seconds == 0.006


def test_e47_a_task_that_waits_for_a_stopped_device_for_two_minutes_is_told_of() -> None:
    for apf, who in (("off", "task CPU 0/KVM of VM 0 blocked"), ("pv", "INFO: task zipfian/")):
        result = run(apf, swap__fault=fails(what="stop"), duration_s="241", vm__hz=100, process=[IDLE, QUIET])
        assert any(who in line and "blocked for more than 120 seconds" in line for line in result.told), result.told
