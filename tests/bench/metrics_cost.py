"""What counting and scraping cost: the same runs counted and scraped once a second, counted, and not counted at all.

The emulator has no switch for counting, so that nothing branches on one; ``uncounted`` puts empty methods in place of
those that count, before the daemons are forked. What it cannot take out are single additions to integers.

Runs of each kind take turns, and the fastest of each are compared: what others do on the machine only makes runs slower.
The twin is measured in CPU time: it has all that is counted, and nothing of what a fault costs on the wire, so its ratio
is an upper bound of what counting costs. Worth something on an idle machine only.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from unittest import mock

from apf.histogram import Histogram
from apf.scenario import Scenario, load
from deploy import twin
from deploy.local import LocalCluster
from hostd.core.pressure import Pressure
from tests.bench.figure import Figure, Target
from vcpud.core.observed import Observed

_ROUNDS = 7
_FAULTING: dict[str, Any] = {
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "16MiB",
    "bench.buffer": "32MiB",
    "host.reserve_frames": 256,
    "swap.device": "nvme",
    "apf": ["pv2010"],
}
_LIMIT = Target(1.03, "<=")
_EMPTY = {
    Observed: ("raised", "mapped", "in_progress", "injected", "exited", "prefaulted", "delivered"),
    Histogram: ("observe",),
    Pressure: ("waits", "comes_and_waits", "fold"),
}


def _nothing(*_: Any) -> None:
    """In place of what counts."""


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Nothing is counted in here, nor in processes forked in here."""
    from vcpud import worker

    with contextlib.ExitStack() as patched:
        for counts, names in _EMPTY.items():
            for name in names:
                patched.enter_context(mock.patch.object(counts, name, _nothing))
        patched.enter_context(mock.patch.object(worker._Worker, "_count", _nothing))
        yield


def _scrape_each_second(cluster: LocalCluster, over: threading.Event, sizes: list[int]) -> None:
    due_s = time.monotonic()
    while not over.wait(max(0.0, due_s - time.monotonic())):
        due_s += 1.0
        for name in ("hostd", "guest-0", "vcpud-0"):
            report = cluster.run.read_report(f"metrics-{name}")
            if report is not None:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"http://{report['address']}/metrics", timeout=30) as answer,
                ):
                    sizes.append(len(answer.read()))


def _wall_s(scenario: Scenario, scrapes: list[int] | None) -> float:
    """Wall seconds from the first window to the last."""
    with LocalCluster(scenario) as cluster:
        over = threading.Event()
        thread = None
        if scrapes is not None:
            thread = threading.Thread(target=_scrape_each_second, args=(cluster, over, scrapes))
            thread.start()
        try:
            return cluster.wait().run_seconds
        finally:
            over.set()
            if thread is not None:
                thread.join()


def _cpu_s(scenario: Scenario) -> float:
    began_s = time.process_time()
    twin.run(scenario)
    return time.process_time() - began_s


def metrics_cost() -> list[Figure]:
    """Faults on nvme with APF, and the twin."""
    scenario = load(None, {**_FAULTING, "duration_s": "0.05"})
    sizes: list[int] = []
    scraped, counted, bare = [], [], []
    for _ in range(_ROUNDS):
        with uncounted():
            bare.append(_wall_s(scenario, None))
        scraped.append(_wall_s(scenario, sizes))
        counted.append(_wall_s(scenario, None))
    long = load(None, {**_FAULTING, "duration_s": "0.1"})
    cpu_counted, cpu_bare = [], []
    for _ in range(_ROUNDS):
        with uncounted():
            cpu_bare.append(_cpu_s(long))
        cpu_counted.append(_cpu_s(long))
    return [
        _figure("faults, counted and scraped", scraped, bare, f"uncounted; {len(sizes)} scrapes", _LIMIT),
        _figure("faults, counted", counted, bare, "uncounted"),
        _figure("twin's CPU time, counted", cpu_counted, cpu_bare, "uncounted"),
    ]


def _figure(name: str, one: list[float], other: list[float], against: str, target: Target | None = None) -> Figure:
    """The fastest of each: what others do to a machine only ever makes a run slower."""
    return Figure(
        name,
        f"{min(one):.2f} s, median {statistics.median(one):.2f} s",
        min(one) / min(other),
        f"{against}, {min(other):.2f} s, median {statistics.median(other):.2f} s",
        target,
    )
