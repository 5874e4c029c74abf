"""What hostd exports (see ``apf.metrics``): read from the core and the clock page when somebody asks.

A scrape runs in a thread of its own beside the core. It reads plain integers, and copies what can grow in one go, so
every figure is one that was true at some moment of the scrape; two figures may be a few requests apart. Pages by state
are counted here, at each scrape, so that no fault pays for it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from apf.clockpage import ClockPage
from apf.metrics import NS_PER_S, add_histogram, seconds
from hostd import memory
from hostd.core import averages
from hostd.core.device import Op
from hostd.core.host import HostCore
from hostd.core.io_faults import IoResult
from hostd.core.mm import COUNTERS, Mm
from hostd.core.page import PageState

STATES = {
    PageState.RESIDENT: "resident",
    PageState.EVICTING: "resident",
    PageState.CACHED: "swap_cache",
    PageState.WRITEBACK: "writeback",
    PageState.SWAPPED: "swapped",
    PageState.READING: "reading",
}
"""A page picked for eviction is in a frame, usable by all, until the border. Pages never touched are nowhere."""
_OP = {Op.READ: "read", Op.WRITE: "write"}
SIZES = ("current", "high", "max", "swap.current")
"""Files of a memory group that hold a size, without their ``memory.``."""
AVERAGES = tuple(f"avg{seconds}" for seconds in averages.SECONDS)
_RESULTS = {
    Op.READ: (IoResult.ERROR, IoResult.CHECKSUM),
    Op.WRITE: (IoResult.ERROR, IoResult.TORN, IoResult.LOST),
}
_RATIO_S = 5.0


class WallRatio:
    """Virtual seconds a wall second since the last look that is at least five seconds old, or the first one."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._looks: deque[tuple[float, int]] = deque([(clock_s(), 0)])

    def look(self, now_ns: int) -> float:
        """The ratio as of now, at virtual time ``now_ns``."""
        now_s, looks = self._clock_s(), self._looks
        while len(looks) > 1 and looks[1][0] <= now_s - _RATIO_S:
            looks.popleft()
        then_s, then_ns = looks[0]
        looks.append((now_s, now_ns))
        return (now_ns - then_ns) / NS_PER_S / (now_s - then_s) if now_s > then_s else 0.0


class HostMetrics:
    """Collects for one host."""

    def __init__(
        self,
        core: HostCore,
        clock: ClockPage,
        present: Collection[int] = (),
        vm_events: Mapping[str, int] | None = None,
    ) -> None:
        """``present``: VMs that are on the host; ``vm_events``: how many have joined, ended and been lost so far."""
        self._present = present
        self._vm_events = vm_events if vm_events is not None else {}
        self._core = core
        self._clock = clock
        self._ratio = WallRatio()

    def __call__(self) -> Iterator[Metric]:
        """All families."""
        core, mm, now_ns = self._core, self._core.watched(), self._clock.now_ns()
        yield GaugeMetricFamily("apf_virtual_time_seconds", "Virtual time.", value=now_ns / NS_PER_S)
        ratio = self._ratio.look(now_ns)
        yield GaugeMetricFamily("apf_virtual_wall_ratio", "Virtual seconds a wall second, lately.", value=ratio)
        yield CounterMetricFamily("apf_windows", "Windows opened.", value=self._clock.windows)
        counters = dict(core.counters)
        yield CounterMetricFamily("apf_borders", "Borders at which the host had work.", value=counters["border"])
        for name in COUNTERS:
            if name != "border":
                text = f"Counter {name} of the host's memory management."
                yield CounterMetricFamily(f"apf_host_{name}", text, value=counters[name])
        yield GaugeMetricFamily("apf_host_vms", "VMs on the host.", value=len(self._present))
        events = CounterMetricFamily("apf_host_vm_events", "VMs that have come and gone, by how.", labels=["kind"])
        for kind in ("joined", "ended", "lost"):
            events.add_metric([kind], self._vm_events.get(kind, 0))
        yield events
        yield from _memory(mm)
        yield from _groups(mm, now_ns)
        yield _vmstat(mm)
        yield from _io(mm)
        yield _pressure(mm, now_ns)


def _memory(mm: Mm) -> Iterator[Metric]:
    pages = GaugeMetricFamily("apf_host_memory_pages", "Pages of a VM by where they are.", labels=["vm", "state"])
    limits = GaugeMetricFamily("apf_host_memory_limit_pages", "Limit of a VM's memory group.", labels=["vm"])
    scanned = CounterMetricFamily("apf_reclaim_scanned_pages", "Pages reclaim has looked at.", labels=["vm"])
    stolen = CounterMetricFamily("apf_reclaim_stolen_pages", "Pages reclaim has taken away.", labels=["vm"])
    states = np.frombuffer(mm.pages.state, dtype=np.uint8)
    for vm, config in enumerate(mm.config.vms):
        first, group = mm.pages.first_key[vm], mm.groups[vm]
        counts = np.bincount(states[first : first + config.guest_pages], minlength=len(PageState))
        shown = dict.fromkeys(STATES.values(), 0)
        for state, name in STATES.items():
            shown[name] += int(counts[state])
        for name, count in shown.items():
            pages.add_metric([str(vm), name], count)
        limits.add_metric([str(vm)], group.limit)
        scanned.add_metric([str(vm)], group.stat["pgscan_direct"] + group.stat["pgscan_kswapd"])
        stolen.add_metric([str(vm)], group.stat["pgsteal_direct"] + group.stat["pgsteal_kswapd"])
    frames = GaugeMetricFamily("apf_host_frames", "Frames of the host.", labels=["state"])
    free = len(mm.frames.free)
    frames.add_metric(["free"], free)
    frames.add_metric(["used"], mm.frames.total - free)
    slots = GaugeMetricFamily("apf_swap_slots", "Slots of the swap area.", labels=["state"])
    used = mm.swap.in_use
    slots.add_metric(["free"], mm.swap.total - used)
    slots.add_metric(["used"], used)
    yield from (pages, limits, scanned, stolen, frames, slots)


def _groups(mm: Mm, now_ns: int) -> Iterator[Metric]:
    """Files of the groups of cgroup v2; a limit that is not set is infinite."""
    sizes = GaugeMetricFamily("apf_memory_bytes", "Sizes of a VM's memory group.", labels=["vm", "kind"])
    stat = CounterMetricFamily("apf_memory_stat", "Counters of memory.stat.", labels=["vm", "kind"])
    events = CounterMetricFamily("apf_memory_events", "memory.events.", labels=["vm", "kind"])
    ratios = GaugeMetricFamily(
        "apf_pressure_ratio", "Memory pressure of a group, averaged by the kernel.", labels=["vm", "kind", "window"]
    )
    for vm in range(len(mm.groups)):
        files = memory.group_files(mm, vm, now_ns)
        for name in SIZES:
            value = files[f"memory.{name}"]
            sizes.add_metric([str(vm), name], math.inf if value == memory.NO_LIMIT else value)
        for name, value in files["memory.stat"].items():
            if name in memory.STAT_SIZES:
                sizes.add_metric([str(vm), name], value)
            else:
                stat.add_metric([str(vm), name], value)
        for name, value in files["memory.events"].items():
            events.add_metric([str(vm), name], value)
        _averages(ratios, str(vm), files["memory.pressure"])
    _averages(ratios, "root", memory.pressure_file(mm.root_pressure.totals(now_ns)))
    yield from (sizes, stat, events, ratios)


def _averages(family: GaugeMetricFamily, vm: str, found: dict[str, dict[str, Any]]) -> None:
    for kind, line in found.items():
        for window in AVERAGES:
            family.add_metric([vm, kind, window], float(line[window]) / 100)


def _vmstat(mm: Mm) -> Metric:
    """Gauges of /proc/vmstat; its counters are apf_host_NAME_total."""
    family = GaugeMetricFamily("apf_vmstat_pages", "Pages of the host, by /proc/vmstat's names.", labels=["kind"])
    for name, pages in memory.vmstat_sizes(mm).items():
        family.add_metric([name], pages)
    return family


def _io(mm: Mm) -> Iterator[Metric]:
    labels = ["device", "kind"]
    done = CounterMetricFamily("apf_swap_io", "I/Os submitted, by how they end.", labels=[*labels, "result"])
    took = HistogramMetricFamily("apf_swap_io_seconds", "From arrival at the device to completion.", labels=labels)
    device = mm.config.profile.name
    for op, kind in _OP.items():
        histogram = mm.page_io.times(op)
        failed = {result: mm.page_io.failed_ios[op, result] for result in _RESULTS[op]}
        done.add_metric([device, kind, "ok"], histogram.count - sum(failed.values()))
        for result, count in failed.items():
            done.add_metric([device, kind, result.value], count)
        add_histogram(took, [device, kind], histogram)
    yield from (done, took)


def _pressure(mm: Mm, now_ns: int) -> Metric:
    family = CounterMetricFamily("apf_pressure_seconds", "Memory pressure of a group.", labels=["vm", "kind"])
    groups = {str(vm): pressure for vm, pressure in enumerate(mm.pressure)} | {"root": mm.root_pressure}
    for vm, pressure in groups.items():
        totals = pressure.totals(now_ns)
        family.add_metric([vm, "some"], seconds(totals.some_ns))
        family.add_metric([vm, "full"], seconds(totals.full_ns))
    return family
