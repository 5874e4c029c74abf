"""Speed of the real processes, against bare gRPC streams (``bare_stream``) or against themselves in the same run."""

from __future__ import annotations

import os
import statistics
from typing import Any

from apf.scenario import load
from deploy.local import LocalCluster
from deploy.result import RunResult
from tests.bench.bare_stream import Stack, ping_pong
from tests.bench.figure import Figure, Target
from tests.bench.twin_rate import rate

_SMALL: dict[str, Any] = {
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "16MiB",
    "bench.buffer": "32MiB",
    "host.reserve_frames": 256,
}
_NVME = {**_SMALL, "swap.device": "nvme"}
FAULTS_ONLY: dict[str, Any] = {**_NVME, "bench.work_threads": 0}
"""Four vCPUs that do nothing but fault."""
_LONG_WINDOW_NS = 1_000_000
_ROUNDS = 5
_STACKS: dict[Stack, str] = {"aio": "4 bare streams", "own": "4 of them without event loops"}
_TWIN_RUNS = 9
_TWIN_WANTED = 15_000


def _run(mode: str, overrides: dict[str, Any]) -> tuple[RunResult, float]:
    """A run on real processes, and its wall seconds from window 0 to the end of the last vCPU."""
    scenario = load(None, {**overrides, "apf": [mode]})
    with LocalCluster(scenario) as cluster:
        result = cluster.wait()
    return result, result.run_seconds


def _requests(result: RunResult) -> int:
    """Ordered requests: what the servers took from the vCPUs."""
    return sum(count for kind, count in result.messages["servers"].items() if ".out." in kind)


def fault_round_trip() -> list[Figure]:
    """One vCPU faults, the others idle: what hostd and the order add to a bare stream."""
    bare_us, _ = ping_pong(1, 3)
    own_us, _ = ping_pong(1, 3, "own")
    result, _ = _run("off", {**_NVME, "duration_s": "0.4", "bench.fault_threads": 1, "bench.work_threads": 0})
    again_us, _ = ping_pong(1, 3)
    ours_us = float(result.vcpus[0]["host_round_trip_us"])
    bare_us = statistics.mean((bare_us, again_us))
    name = "fault round trip, p50"
    return [
        Figure(name, f"{ours_us:.0f} us", ours_us / bare_us, f"bare stream, {bare_us:.0f} us", Target(1.6, "<=")),
        Figure(name, f"{ours_us:.0f} us", ours_us / own_us, f"bare stream without event loops, {own_us:.0f} us"),
    ]


def ordered_requests() -> list[Figure]:
    """Four vCPUs that fault and count on nvme, with APF: the order lets few requests go on at once."""
    _, bare = ping_pong(4, 3)
    result, seconds = _run("pv2010", {**_NVME, "duration_s": "0.1"})
    _, again = ping_pong(4, 3)
    bare = statistics.mean((bare, again))
    rate = _requests(result) / seconds
    return [
        Figure("ordered requests, 4 vCPUs", f"{rate:,.0f}/s", rate / bare, f"4 bare streams, {bare:,.0f}/s"),
        Figure("windows with requests", f"{result.windows / seconds:,.0f}/s"),
    ]


def windows() -> list[Figure]:
    """Four counting vCPUs and nothing else: every window wakes all of them."""
    result, seconds = _run("off", {**_NVME, "duration_s": "0.4", "bench.fault_threads": 0})
    return [Figure("windows without requests, 4 vCPUs", f"{result.windows / seconds:,.0f}/s")]


def default_bench() -> list[Figure]:
    """The published setting, ten guest seconds shortened to three, in both modes; loading and audit included."""
    figures = []
    for mode in ("off", "pv2010"):
        result, seconds = _run(mode, {"duration_s": "3"})
        fixed = result.wall_seconds - seconds
        figures.append(
            Figure(
                f"default bench, {mode}",
                f"{seconds / result.virtual_seconds:.2f} s a guest second, and {fixed:.1f} s",
                seconds / result.virtual_seconds,
                "guest time",
            )
        )
    return figures


def counting_vcpus() -> list[Figure]:
    """Counting threads only: what a vCPU-second takes, and what the second core is good for."""
    seconds: dict[int, float] = {}
    for vcpus in (1, 2, 4, 8, 16):
        overrides = {
            **_SMALL,
            "vm.vcpus": vcpus,
            "bench.fault_threads": 0,
            "bench.work_threads": vcpus,
            "duration_s": "2" if vcpus <= 2 else "1",
        }
        result, wall = _run("off", overrides)
        seconds[vcpus] = wall / result.virtual_seconds
    cores = os.cpu_count() or 1
    figures = [
        Figure(f"{vcpus} counting vCPU{'s' * (vcpus > 1)}", f"{wall / vcpus:.3f} s a vCPU-second", wall, "guest time")
        for vcpus, wall in seconds.items()
    ]
    figures.append(
        Figure("2 counting vCPUs", f"on {cores} cores", seconds[2] / seconds[1], "1 vCPU", Target(1.25, "<="))
    )
    return figures


def cluster_faults() -> list[Figure]:
    """Four vCPUs that do nothing but fault, synchronously: a fault is one ordered request, so one round trip.

    With windows of a fifth of a fault, this device's default, hardly ever two vCPUs run in the same one. In windows of
    ten faults all of them do. Bare streams before and after each run, and medians over several runs.
    """
    figures = []
    for window_ns, seconds in ((0, "0.15"), (250_000, "0.3"), (500_000, "0.3"), (_LONG_WINDOW_NS, "0.3")):
        overrides = {**FAULTS_ONLY, "duration_s": seconds, "window_ns": window_ns}
        rates: list[float] = []
        against: dict[Stack, list[float]] = {"aio": [], "own": []}
        _, before = ping_pong(4, 1)
        for _ in range(_ROUNDS):
            result, wall = _run("off", overrides)
            _, after = ping_pong(4, 1)
            rates.append(result.counter("faults_major") / wall)
            against["aio"].append(statistics.mean((before, after)))
            against["own"].append(ping_pong(4, 1, "own")[1])
            before = after
        name = f"major faults, 4 vCPUs, windows of {result.window_ns // 1000} us"
        figure = f"{min(rates):,.0f}-{max(rates):,.0f}/s"
        for stack, what in _STACKS.items():
            ratios = sorted(rate / bare for rate, bare in zip(rates, against[stack], strict=True))
            target = Target(0.5, ">=") if stack == "aio" else None
            bare = f"{what}, {statistics.median(against[stack]):,.0f}/s: {ratios[0]:.2f}-{ratios[-1]:.2f}"
            figures.append(Figure(name, figure, statistics.median(ratios), bare, target))
    return figures


def twin_faults() -> list[Figure]:
    """The twin on nvme, where every fault is a major one: without its assertions, with them, and while others count.

    The fastest of some runs: what others do on the machine only makes them slower. CPU time, and wall time beside it.
    """
    figures = []
    for name, overrides, flags in (
        ("no assertions", FAULTS_ONLY, ("-O",)),
        (
            f"no assertions, windows of {_LONG_WINDOW_NS // 1000} us",
            {**FAULTS_ONLY, "window_ns": _LONG_WINDOW_NS},
            ("-O",),
        ),
        ("with assertions", FAULTS_ONLY, ()),
        ("with assertions, and counting threads", _NVME, ()),
    ):
        cpu_s, wall_s, faults = rate({**overrides, "duration_s": "0.3", "apf": ["off"]}, _TWIN_RUNS, *flags)
        figures.append(
            Figure(
                f"twin, major faults on nvme, {name}",
                f"{faults / cpu_s:,.0f} a second of CPU time, {faults / wall_s:,.0f}/s",
                faults / cpu_s / _TWIN_WANTED,
                f"{_TWIN_WANTED:,}",
                Target(1, ">=") if flags else None,
            )
        )
    return figures
