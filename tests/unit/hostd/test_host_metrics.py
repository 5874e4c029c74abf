"""What hostd exports, from a core in a known state."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from apf.clockpage import ClockPage
from hostd.core.io_faults import Failure
from hostd.metrics import HostMetrics, WallRatio
from tests.unit.hostd.rig import READ_NS, WINDOW_NS, Rig

NewRig = Callable[..., Rig]


def get(rig: Rig, name: str, **labels: str) -> float:
    rig.core.watched().settle_figures(rig.core.now_ns)  # as at a border every now and then
    clock = SimpleNamespace(now_ns=lambda: 10**9, windows=7)
    families = list(HostMetrics(rig.core, cast(ClockPage, clock))())
    (value,) = (s.value for family in families for s in family.samples if s.name == name and s.labels == labels)
    return float(value)


def test_pages_by_where_they_are(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    rig.load(256)
    rig.load(10, vm=1)
    reads = rig.mapped(0, 1_000)

    def pages(vm: int) -> dict[str, float]:
        states = ("resident", "swap_cache", "writeback", "swapped", "reading")
        return {state: get(rig, "apf_host_memory_pages", vm=str(vm), state=state) for state in states}

    assert pages(0) == {"resident": 64, "swap_cache": 0, "writeback": 0, "swapped": 191, "reading": 1}
    rig.border(WINDOW_NS)
    assert pages(0) == {"resident": 32, "swap_cache": 0, "writeback": 32, "swapped": 191, "reading": 1}
    rig.mapped(200, reads.at_ns + 100 * READ_NS)
    assert pages(0) == {"resident": 34, "swap_cache": 30, "writeback": 0, "swapped": 192, "reading": 0}
    assert pages(1)["resident"] == 10 and sum(pages(1).values()) == 10, "what was never touched is nowhere"
    assert get(rig, "apf_host_frames", state="used") == 74 and get(rig, "apf_host_frames", state="free") == 192 - 74
    assert get(rig, "apf_host_memory_limit_pages", vm="1") == 64


def test_reclaim_by_group_and_io(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    rig.load(256)
    rig.load(256, vm=1)
    rig.mapped(0, 1_000, vm=1)
    rig.border(WINDOW_NS)
    assert get(rig, "apf_reclaim_scanned_pages_total", vm="0") == 0
    assert get(rig, "apf_reclaim_scanned_pages_total", vm="1") == get(rig, "apf_host_pgscan_direct_total") == 32
    assert get(rig, "apf_reclaim_stolen_pages_total", vm="1") == 0, "all are being written"
    assert get(rig, "apf_swap_io_total", device="test", kind="read", result="ok") == 1
    assert get(rig, "apf_swap_io_seconds_sum", device="test", kind="read") == READ_NS / 1e9
    assert get(rig, "apf_swap_io_seconds_count", device="test", kind="write") == 32
    assert get(rig, "apf_pressure_seconds_total", vm="1", kind="some") > 0
    assert get(rig, "apf_pressure_seconds_total", vm="0", kind="some") == 0
    assert get(rig, "apf_windows_total") == 7 and get(rig, "apf_borders_total") == 1


def test_the_files_of_each_group_and_vmstat(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    rig.load(256)
    rig.load(10, vm=1)
    rig.mapped(0, 1_000)
    sizes = {kind: get(rig, "apf_memory_bytes", vm="0", kind=kind) / 4096 for kind in ("current", "max", "anon")}
    assert sizes == {"current": 33, "max": 64, "anon": 32}
    assert get(rig, "apf_memory_bytes", vm="0", kind="swap.current") == 192 * 4096 + 32 * 4096
    assert math.isinf(get(rig, "apf_memory_bytes", vm="0", kind="high"))
    assert get(rig, "apf_memory_stat_total", vm="0", kind="pgscan") == 32
    assert get(rig, "apf_memory_stat_total", vm="1", kind="pgscan") == 0
    assert get(rig, "apf_memory_events_total", vm="0", kind="max") == 1
    assert get(rig, "apf_memory_events_total", vm="1", kind="max") == 0
    assert get(rig, "apf_vmstat_pages", kind="nr_swapcached") == 33
    assert get(rig, "apf_pressure_ratio", vm="root", kind="full", window="avg300") == 0


def test_virtual_seconds_a_wall_second() -> None:
    wall_s = 100.0
    ratio = WallRatio(lambda: wall_s)
    assert ratio.look(0) == 0.0
    looks = []
    for second in range(1, 21):
        wall_s = 100.0 + second
        looks.append(ratio.look(min(second, 10) * 500_000_000))
    assert looks[:10] == [pytest.approx(0.5)] * 10
    assert looks[10:] == [pytest.approx(0.5 * max(0, 4 - late) / 5) for late in range(10)], (
        "the last five seconds count"
    )
    wall_s += 1000.0
    assert ratio.look(505_000_000_000) == pytest.approx(0.5, rel=0.01), "a scrape after a long time sees all of it"


def test_ios_by_what_became_of_them(new_rig: NewRig) -> None:
    failures = (Failure("read_error", 0), Failure("torn_write", 0, count=2), Failure("write_error", 0, nth=3))
    rig = new_rig(failures=failures)
    rig.load(256)
    rig.fault(0, 1_000)
    rig.border(WINDOW_NS)
    told = {
        (kind, result): get(rig, "apf_swap_io_total", device="test", kind=kind, result=result)
        for kind, results in (("read", ("ok", "error", "checksum")), ("write", ("ok", "error", "torn", "lost")))
        for result in results
    }
    assert told == {
        ("read", "ok"): 0,
        ("read", "error"): 1,
        ("read", "checksum"): 0,
        ("write", "ok"): 29,
        ("write", "error"): 1,
        ("write", "torn"): 2,
        ("write", "lost"): 0,
    }
    assert get(rig, "apf_host_swap_read_error_total") == get(rig, "apf_host_page_error_total") == 1
