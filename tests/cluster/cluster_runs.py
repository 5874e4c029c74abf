"""What tests of whole runs share: small scenarios, runs on real processes, waiting for a condition."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest

from apf.messages import PAGE_SIZE
from apf.scenario import GUEST_KERNEL_BYTES, Scenario, load
from deploy.local import LocalCluster
from deploy.result import RunResult
from guestsched.core.process import ProcessPlan

MEMORY = {
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "16MiB",
    "bench.buffer": "32MiB",
    "host.reserve_frames": 256,
    "host.patience_s": 60,
}
DURATION_S = {"nvme": "0.02", "hdd-7200": "0.2"}
"""Long enough for some hundred faults on nvme, some ten on hdd-7200."""

DEADLINE_S = 60.0
_POLL_S = 0.01


def small(apf: str = "pv2010", device: str = "nvme", **overrides: Any) -> Scenario:
    """A run of one mode that takes the twin a moment; ``vm__vcpus=2`` sets ``vm.vcpus``."""
    chosen: dict[str, Any] = {**MEMORY, "duration_s": DURATION_S[device], "swap.device": device, "apf": [apf]}
    chosen |= {name.replace("__", "."): value for name, value in overrides.items()}
    return load(None, chosen)


def tiny_memory(apf: str = "pv2010", **overrides: Any) -> Scenario:
    """A run that does little but evict: 16 faulting threads on a buffer of twice the smallest memory group."""
    chosen: dict[str, Any] = {
        "vm__guest_memory": GUEST_KERNEL_BYTES + (8 << 20),
        "vm__group_memory": "4MiB",
        "bench__buffer": "8MiB",
        "bench__fault_threads": 16,
        "bench__work_threads": 0,
        "host__reserve_frames": 1024,
    }
    return small(apf, **(chosen | overrides))


def on_processes(scenario: Scenario) -> RunResult:
    """The run on real processes."""
    with LocalCluster(scenario) as cluster:
        return cluster.wait()


def until(what: str, condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Wait until ``condition`` holds; fails, saying ``what`` did not come, at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {deadline_s} s in vain: {what}"
        connection.wait([], _POLL_S)


def until_running(cluster: LocalCluster, at_ns: int = 1) -> None:
    """Wait until virtual time has reached ``at_ns``; a run that failed says why."""

    def reached() -> bool:
        for child in cluster.processes:
            if child.exitcode:
                cluster.wait()
        snapshot = cluster.snapshot()
        return snapshot is not None and snapshot.now_ns >= at_ns

    until(f"virtual time {at_ns} ns", reached)


def state_of(pid: int) -> str:
    """State of a process as in /proc: R, S, D, T, Z; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def children_of(pid: int) -> list[int]:
    """Process ids of the living children."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextmanager
def busy_cores() -> Iterator[None]:
    """A busy loop on every core this process may use."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL)
        for _ in os.sched_getaffinity(0)
    ]
    try:
        yield
        assert all(loop.poll() is None for loop in loops), "a busy loop ended by itself"
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def use_plans(monkeypatch: pytest.MonkeyPatch, plans: Callable[[Scenario], tuple[ProcessPlan, ...]]) -> None:
    """Let twins and, through the fork, real processes boot ``plans(scenario)`` instead of the scenario's processes."""
    monkeypatch.setattr("guestsched.build.plans", plans)


def pages_of(code: bytes) -> int:
    """How many pages ``code`` takes."""
    return -(-len(code) // PAGE_SIZE)
