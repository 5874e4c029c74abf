"""Every metric there is, of all daemons of a real run, against the run's own results; and scrapes change nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import children_of, small, state_of, tiny_memory, until, until_running
from guest_runs import guests
from scrapes import Scrape, check_histograms, scrape

from apf import metrics
from apf.messages import ApfMode
from apf.scenario import Scenario
from apf.stats import FIELDS, VcpuStats
from deploy import twin
from deploy.local import LocalCluster
from deploy.result import CAUSES
from hostd.core.mm import COUNTERS
from hostd.metrics import STATES
from vcpud.metrics import VcpuMetrics

DAEMONS = ("hostd", "guest-0", "vcpud-0")
TYPES = {"gauge": "G", "counter": "C", "histogram": "H"}
LABELS = re.compile(r"[a-z_]+(?= |,|$)")
NS = 1e9
Held = tuple[dict[str, Scrape], dict[str, Any], dict[str, Any]]


def table() -> dict[str, tuple[str, set[str]]]:
    """The table in apf/metrics.py: type and labels by name."""
    named: dict[str, tuple[str, str]] = {}
    name = ""
    for line in (metrics.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or cells[1] == "t":
            continue
        if cells[0].startswith("apf_"):
            name = cells[0]
            named[name] = (cells[1], cells[2])
        elif name:
            named[name] = (named[name][0], f"{named[name][1]} {cells[2]}".strip())
    counters = named.pop("apf_host_NAME_total")
    named |= {f"apf_host_{counter}_total": counters for counter in COUNTERS if counter != "border"}
    return {name: (kind, set(LABELS.findall(re.sub(r"\([^)]*\)", "", text)))) for name, (kind, text) in named.items()}


def serving(apf: str, **overrides: Any) -> Scenario:
    """A guest that does what is asked for, in too little memory, until it is told to end."""
    process = {"name": "kv", "memory": "6MiB", "populate": False, "access_threads": 3}
    counting = {"name": "count", "thread": [{"program": "work_thread", "lifetime_s": "0.005"}]}
    return guests(apf, process, counting, duration_s=0, **overrides)


@pytest.fixture(scope="module", params=["off", "pv2010"])
def held(request: pytest.FixtureRequest) -> Held:
    """Scrapes of all daemons when all load is done and all idle; what the load saw; the run's JSON."""
    with LocalCluster(serving(request.param), api="127.0.0.1:0") as cluster:
        until("the API", lambda: cluster.api_address() is not None)
        command = [sys.executable, str(Path(__file__).parent / "hold_calls.py"), str(cluster.api_address())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
            assert load.stdin and load.stdout
            said = json.loads(load.stdout.readline())
            last: list[Any] = [None]

            def still() -> bool:
                found = [scrape(cluster, name).samples for name in DAEMONS]
                for samples in found:
                    samples.pop(("apf_virtual_wall_ratio", ()), None)
                same, last[0] = found == last[0], found
                return same

            until("all counters stand still", still)
            scrapes = {name: scrape(cluster, name) for name in DAEMONS}
            load.stdin.write("end\n")
            load.stdin.close()
            document = cluster.wait().document()
    return scrapes, said, document


def test_the_table_is_what_is_exported(held: Held) -> None:
    scrapes, _, _ = held
    found: dict[str, tuple[str, set[str]]] = {}
    for one in scrapes.values():
        check_histograms(one.families)
        for family in one.families:
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            kind, before = found.get(name, (TYPES[family.type], set()))
            assert kind == TYPES[family.type] and family.documentation
            found[name] = (kind, before | labels)
    assert found == table()


def test_what_the_host_did(held: Held) -> None:
    scrapes, _, document = held
    host, totals = scrapes["hostd"], document["host"]
    for name in COUNTERS:
        if name != "border":
            assert host.sum(f"apf_host_{name}_total") == totals[name], name
    assert host.sum("apf_borders_total") <= totals["border"] and host.sum("apf_windows_total") <= document["windows"]
    assert host.sum("apf_reclaim_scanned_pages_total", vm=0) == totals["pgscan_direct"] > 0
    assert host.sum("apf_reclaim_stolen_pages_total", vm=0) == totals["pgsteal_direct"] > 0
    for kind, name in (("read", "pswpin"), ("write", "pswpout")):
        assert host.sum("apf_swap_io_total", device="nvme", kind=kind, result="ok") == totals[name] > 0
        assert host.sum("apf_swap_io_seconds_count", device="nvme", kind=kind) == totals[name]
    pages = {state: host.sum("apf_host_memory_pages", vm=0, state=state) for state in STATES.values()}
    assert sum(pages.values()) - pages["swapped"] + host.sum("apf_host_frames", state="free") == host.sum(
        "apf_host_frames"
    )
    assert 0 < pages["resident"] <= host.sum("apf_host_memory_limit_pages") == 1024
    assert pages["swap_cache"] > 0, "written, and not yet freed"
    assert pages["swapped"] > 300 and host.sum("apf_swap_slots", state="used") >= pages["swapped"]
    for group, kinds in document["pressure_ns"].items():
        for kind, ns in kinds.items():
            assert host.sum("apf_pressure_seconds_total", vm=group, kind=kind) == ns / NS
    assert 0 < host.sum("apf_virtual_time_seconds") <= document["virtual_seconds"]
    apf = document["apf"] == "pv2010"
    assert (document["pressure_ns"]["root"]["some"] > 0) is apf
    assert document["pressure_ns"]["0"]["some"] > 0, "who reclaims waits, and who faults at CPL 0"


def test_what_the_vcpus_did(held: Held) -> None:
    scrapes, _, document = held
    vcpus, counters = scrapes["vcpud-0"], document["vcpu_counters"]
    apf = document["apf"] == "pv2010"
    assert vcpus.sum("apf_mode_info", mode=document["apf"]) == 1
    for kind in ("minor", "major", "async"):
        assert vcpus.sum("apf_faults_total", vm=0, kind=kind) == document["faults"][kind]
    for kind in ("not_present", "ready"):
        assert vcpus.sum("apf_events_total", kind=kind) == counters.get(kind, 0)
    assert (vcpus.sum("apf_events_total", kind="ready") > 0) is apf
    assert vcpus.sum("apf_in_flight") == 0
    assert vcpus.sum("apf_repeated_faults_total") == counters.get("repeated", 0)
    assert vcpus.sum("apf_vcpu_exits_total") == counters["exits"]
    reasons = {
        reason: vcpus.sum("apf_sync_fallbacks_total", reason=reason) for reason in ("disabled", "limit", "kernel")
    }
    assert reasons["kernel"] == counters.get("sync_kernel", 0) and reasons["limit"] == counters.get("sync_limit", 0)
    assert (
        (reasons["disabled"] == 0)
        if apf
        else (reasons["disabled"] + reasons["kernel"] == document["host"]["pf_taken"])
    )
    for vcpu, time in document["vcpu_time"].items():
        spent = {state: vcpus.sum("apf_vcpu_seconds_total", vcpu=vcpu, state=state) for state in CAUSES}
        assert spent.keys() == time.keys()
        for state in CAUSES:
            late = state in {"idle", "kernel"}  # the end of the run: a posted interrupt, and idle until then
            assert spent[state] <= time[state] if late else spent[state] == time[state], state
    work = vcpus.sum("apf_work_counted_total")
    assert 0 < document["total"] < work < vcpus.sum("apf_guest_instructions_total")


def test_how_long_faults_took(held: Held) -> None:
    scrapes, _, document = held
    vcpus, times = scrapes["vcpud-0"], document["fault_times"]
    sums = {"latency": 0, "stage": 0}
    for name, told in times.items():
        family, _, value = name.partition("_")
        label = {"latency": "kind", "stage": "stage"}[family]
        sample = f"apf_fault_{family}_seconds"
        assert vcpus.sum(f"{sample}_count", vm=0, **{label: value}) == told["count"], name
        assert vcpus.sum(f"{sample}_sum", vm=0, **{label: value}) == told["sum_ns"] / NS
        assert sum(count for _, count in told["histogram"]) == told["count"]
        sums[family] += told["sum_ns"]
    assert sums["latency"] == sums["stage"] > 0
    faults = document["faults"]
    kernel = document["vcpu_counters"].get("kernel_faults", 0)
    user = sum(times[f"latency_{kind}"]["count"] for kind in ("minor", "major", "async"))
    assert user + kernel == sum(faults.values()) + document["vcpu_counters"].get("retries", 0)
    assert times["latency_async"]["count"] == faults["async"]


def test_what_the_guest_did(held: Held) -> None:
    scrapes, said, document = held
    guest, totals = scrapes["guest-0"], document["guest"]
    assert guest.sum("apf_context_switches_total", vm=0) == totals["nr_switches"] > 0
    assert guest.sum("apf_ticks_total") == totals["ticks"] and guest.sum("apf_pulled_tasks_total") == totals["pulled"]
    assert 0 < guest.sum("apf_interrupts_total") <= totals["interrupts"]
    assert guest.sum("apf_tasks", state="wait") == 3 and guest.sum("apf_tasks") == 4
    assert guest.sum("apf_tasks", state="dead") == 1 and guest.sum("apf_run_queue_length") == 0
    assert guest.sum("apf_task_counts_total") == document["total"] > 0
    assert guest.sum("apf_oldest_wait_seconds") == 0
    for kind in ("hit", "minor", "major", "async"):
        assert guest.sum("apf_accesses_total", kind=kind) == said["met"].get(kind, 0)
    latencies_ns = said["latencies_ns"]
    assert guest.sum("apf_access_latency_seconds_count") == len(latencies_ns)
    assert guest.sum("apf_access_latency_seconds_sum") == sum(latencies_ns) / NS
    for sample, value in guest.of("apf_access_latency_seconds_bucket").items():
        bound_ns = float(dict(sample)["le"]) * NS
        assert value == sum(latency <= bound_ns * (1 + 1e-12) for latency in latencies_ns)


def test_what_was_said(held: Held) -> None:
    scrapes, said, document = held
    host, guest = scrapes["hostd"], scrapes["guest-0"]
    load = "apf.v1.LoadService"
    assert said["refused"][0] == "INVALID_ARGUMENT"
    assert guest.sum("apf_grpc_calls_total", method=f"{load}/Access", code="OK") == 150
    assert guest.sum("apf_grpc_calls_total", method=f"{load}/Access", code="INVALID_ARGUMENT") == 1
    assert guest.sum("apf_grpc_calls_total", method=f"{load}/AccessStream", code="OK") == 1
    assert guest.sum("apf_grpc_messages_total", method=f"{load}/Access", kind="in") == 151
    assert guest.sum("apf_grpc_messages_total", method=f"{load}/AccessStream", kind="in") == 600 / 24
    assert guest.sum("apf_grpc_messages_total", method=f"{load}/Replay", kind="in") == 1 + -(-1400 // 500)
    assert host.sum("apf_grpc_calls_total", method="apf.v1.HostService/LoadVm", code="OK") == 1
    servers = document["messages"]["servers"]
    for one, server, method in ((host, "host", "HostService/RunVcpu"), (guest, "guest", "GuestService/TakeTraps")):
        for kind, seen in (("in", "out"), ("out", "in")):  # as the vCPUs see it
            told = sum(count for name, count in servers.items() if name.startswith(f"{server}.{seen}."))
            count = one.sum("apf_grpc_messages_total", method=f"apf.v1.{method}", kind=kind)
            assert told - 8 <= count <= told + 2, "an attachment of each vCPU more; the last traps had not come"
    vcpus = scrapes["vcpud-0"].sum("apf_vcpu_messages_total")
    assert 0 < vcpus <= sum(document["messages"]["vcpus"].values())


@pytest.mark.parametrize("apf", ["off", "pv2010"])
@pytest.mark.parametrize("gup", ["fast", "noio", "nowait"])
def test_stages_add_up_under_retries(apf: str, gup: str) -> None:
    """In the twin, where memory is so short that faults are retried."""
    result = twin.run(tiny_memory(apf, gup=gup, host__reserve_frames=256))
    times = result.fault_times()
    stages = sum(told["sum_ns"] for name, told in times.items() if name.startswith("stage"))
    assert stages == sum(told["sum_ns"] for name, told in times.items() if name.startswith("latency")) > 0
    for vcpu in result.vcpus:
        seen = vcpu["observed"]
        for kind in ("minor", "major"):
            assert seen[f"latency_{kind}"]["count"] <= vcpu["counters"][f"faults_{kind}"]
        assert seen["latency_async"]["count"] == vcpu["counters"]["ready"]


@pytest.mark.parametrize("apf", ["off", "pv2010"])
def test_scrapes_change_nothing(apf: str) -> None:
    """Beside four threads that scrape all daemons as fast as they can: the twin's digest, and no counter goes back."""
    scenario = small(apf)
    expected = twin.run(scenario)
    seen: list[int] = []
    with LocalCluster(scenario) as cluster:
        until_running(cluster)
        over = threading.Event()

        def hammer() -> None:
            last: dict[Any, float] = {}
            while not over.is_set():
                for name in DAEMONS:
                    try:
                        samples = scrape(cluster, name).samples
                    except (OSError, HTTPException):  # it has ended, perhaps in mid-answer
                        return
                    for (sample, labels), value in samples.items():
                        if sample.endswith(("_total", "_count", "_sum", "_bucket")):
                            key = (name, sample, labels)
                            assert value >= last.get(key, 0.0), key
                            last[key] = value
                    seen.append(len(samples))

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        result = cluster.wait()
        over.set()
        for thread in threads:
            thread.join()
    assert len(seen) > 4 and result.digest == expected.digest
    assert result.fault_times() == expected.fault_times() and result.pressure_ns == expected.pressure_ns


def test_a_dead_worker_leaves_its_counts() -> None:
    """Killed within a run, while the supervisor cannot notice yet: what it counted is there, and exported."""
    with LocalCluster(small(duration_s="20")) as cluster:
        until_running(cluster, 10_000_000)
        supervisor = next(child.pid or 0 for child in cluster.processes if child.name == "vcpud-0")
        stats = VcpuStats.attach(cluster.run.vcpu_stats(0), 4)
        workers = children_of(supervisor)
        os.kill(supervisor, signal.SIGSTOP)
        os.kill(workers[0], signal.SIGKILL)
        until("its death", lambda: state_of(workers[0]) == "Z")
        assert all(row[FIELDS.index("retired")] > 0 for row in stats.rows.tolist())
        exported = Scrape(tuple(VcpuMetrics(stats, 0, ApfMode.PV2010)()))
        assert exported.sum("apf_faults_total", kind="async") >= exported.sum("apf_events_total", kind="ready") > 0
        assert exported.sum("apf_fault_latency_seconds_count", kind="async") > 0
        os.kill(supervisor, signal.SIGCONT)


def test_each_vm_has_its_labels() -> None:
    with LocalCluster(
        small("pv2010", host__vms=2, vm__vcpus=2, host__reserve_frames=1024, duration_s="20")
    ) as cluster:
        until_running(cluster, 5_000_000)
        host = scrape(cluster, "hostd")
        for vm in range(2):
            vcpus, guest = scrape(cluster, f"vcpud-{vm}"), scrape(cluster, f"guest-{vm}")
            assert vcpus.sum("apf_faults_total", vm=vm) == vcpus.sum("apf_faults_total") > 0
            assert len(vcpus.of("apf_in_flight", vm=vm)) == len(guest.of("apf_run_queue_length", vm=vm)) == 2
            assert host.sum("apf_host_memory_pages", vm=vm, state="resident") > 0
            assert host.sum("apf_pressure_seconds_total", vm=vm) >= 0
