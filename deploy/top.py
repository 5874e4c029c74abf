"""``apf top``: a running guest on a terminal, as top(1) shows a machine.

A view is what is known at one moment: a snapshot of WatchCounters, the list of tasks, and what the daemons' /metrics
say. A frame is made of two views, since rates are differences, and is a pure function of them. Whatever a daemon does
not tell is shown as ``-``; a /metrics that does not answer is named.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apf.process import Failure
from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import LoadServiceStub
from deploy import client, top_memory
from deploy.load_report import duration

INTERVAL_MS_MIN, INTERVAL_MS_MAX = 50, 60_000
_SCRAPE_S = 2.0
_SCRAPE_BYTES_MAX = 16 << 20
_FIRST_S = 15.0
_PAGE_KIB = 4
_STATES = ("RUNNING", "READY", "APF_WAIT", "SLEEP", "WAIT", "NEW", "DEAD")
_KINDS = ("minor", "major", "async")
_MEMORY = {
    "resident": "apf_host_memory_pages.resident",
    "limit": "apf_host_memory_limit_pages",
    "swap cache": "apf_host_memory_pages.swap_cache",
    "swapped": "apf_host_memory_pages.swapped",
    "being read": "apf_host_memory_pages.reading",
    "free frames": "apf_host_frames.free",
}


@dataclass(frozen=True, slots=True)
class View:
    """What is known at wall time ``wall_s`` (monotonic).

    ``metrics`` sums the samples by name; of a family with label ``kind`` or ``state`` also by ``sample.label``, and if
    it has label ``vm`` too by ``sample[vm].label``, of averages by ``sample[vm].label.window``.
    """

    wall_s: float
    counters: Any
    listed: Any
    metrics: Mapping[str, float] = field(default_factory=dict)
    silent: tuple[str, ...] = ()


def scrape(addresses: Mapping[str, str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Sums of samples of all daemons' /metrics, and who did not answer. Addresses are HOST:PORT by daemon."""
    sums: dict[str, float] = {}
    silent = []
    for name, address in addresses.items():
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=_SCRAPE_S) as answer:
                text = answer.read(_SCRAPE_BYTES_MAX).decode()
            samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        except (OSError, ValueError, HTTPException):  # not there, or it ended in mid-answer
            silent.append(name)
            continue
        for sample in samples:
            label = sample.labels.get("kind") or sample.labels.get("state")
            keys = [sample.name]
            if label:
                keys.append(f"{sample.name}.{label}")
                if vm := sample.labels.get("vm"):
                    window = sample.labels.get("window")
                    keys.append(f"{sample.name}[{vm}].{label}" + (f".{window}" if window else ""))
            for key in keys:
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums, tuple(silent)


def frame(name: str, before: View, after: View, rows: int = 15) -> RenderableType:
    """What is shown of two views of cluster ``name``; ``rows`` of the busiest tasks."""
    wall_s = max(after.wall_s - before.wall_s, 1e-9)
    guest_ns = max(after.counters.now_ns - before.counters.now_ns, 0)
    parts: list[RenderableType] = [
        _heading(name, after, guest_ns / 1e9 / wall_s),
        _faults(before, after, wall_s, guest_ns),
        _memory(after),
        _latency(after),
    ]
    if after.silent:
        parts.append(Text(f"no answer from /metrics of {', '.join(after.silent)}", style="red"))
    if top_memory.vms(after.metrics):
        parts.append(top_memory.table(before.metrics, after.metrics))
    parts += [_vcpus(before, after, guest_ns), _tasks(before, after, guest_ns, rows)]
    return Group(*parts)


def _heading(name: str, view: View, ratio: float) -> Text:
    tasks = dict(view.counters.tasks)
    order = [*(state for state in _STATES if state in tasks), *sorted(tasks.keys() - set(_STATES))]
    states = ", ".join(f"{tasks[state]} {state}" for state in order) or "none"
    return Text(
        f"{name}: guest time {view.counters.now_ns / 1e9:.3f} s, {ratio:.3f} guest s a wall s; tasks: {states}",
        style="bold",
    )


def _faults(before: View, after: View, wall_s: float, guest_ns: int) -> Text:
    told = []
    for kind in _KINDS:
        key = f"apf_faults_total.{kind}"
        if key not in after.metrics:
            told.append(f"{kind} -")
            continue
        count = after.metrics[key] - before.metrics.get(key, 0.0)
        per_guest = f"{count / (guest_ns / 1e9):,.0f}" if guest_ns else "-"
        told.append(f"{kind} {count / wall_s:,.0f} a wall s, {per_guest} a guest s")
    return Text("faults: " + "; ".join(told))


def _memory(view: View) -> Text:
    told = []
    for what, key in _MEMORY.items():
        value = view.metrics.get(key)
        shown = "-" if value is None else f"{value:,.0f} ({value * _PAGE_KIB / 1024:,.1f} MiB)"
        told.append(f"{what} {shown}")
    return Text("memory, pages: " + ", ".join(told))


def _latency(view: View) -> Text:
    order = sorted(view.counters.latency_ns.items(), key=lambda item: float(item[0].lstrip("p")))
    told = ", ".join(f"{name} {duration(value)}" for name, value in order)
    return Text("latency of the last accesses, guest time: " + (told or "-"))


def _vcpus(before: View, after: View, guest_ns: int) -> Table:
    names = {task.task: task.name for process in after.listed.processes for task in process.tasks}
    earlier = {vcpu.vcpu: vcpu for vcpu in before.counters.vcpus}
    running = sum(vcpu.task != 0 for vcpu in after.counters.vcpus)
    table = Table(
        "vcpu",
        "runs",
        title=f"vCPUs: {running} with a task, {len(after.counters.vcpus) - running} idle",
        title_justify="left",
    )
    for heading in ("on queue", "idle", "switches a guest s", "switches"):
        table.add_column(heading, justify="right")
    for vcpu in after.counters.vcpus:
        was = earlier.get(vcpu.vcpu, vcpu)
        runs = f"{vcpu.task} {names.get(vcpu.task, '')}".rstrip() if vcpu.task else "idle"
        idle = rate = "-"
        if guest_ns:
            idle = f"{100 * (vcpu.idle_ns - was.idle_ns) / guest_ns:.1f} %"
            rate = f"{(vcpu.nr_switches - was.nr_switches) / (guest_ns / 1e9):,.0f}"
        table.add_row(str(vcpu.vcpu), runs, str(vcpu.nr_running), idle, rate, f"{vcpu.nr_switches:,}")
    return table


def _tasks(before: View, after: View, guest_ns: int, rows: int) -> Table:
    earlier = {task.task: task for process in before.listed.processes for task in process.tasks}
    tasks = [(process, task) for process in after.listed.processes for task in process.tasks]

    def grown(task: Any, what: str) -> int:
        was = earlier.get(task.task)
        return int(getattr(task, what) - (getattr(was, what) if was is not None else 0))

    def busiest(pair: tuple[Any, Any]) -> tuple[int, int, int, int]:
        task = pair[1]
        flt = grown(task, "min_flt") + grown(task, "maj_flt")
        return (-grown(task, "sum_exec_ns"), -flt, -task.sum_exec_ns, task.task)

    shown = sorted(tasks, key=busiest)[:rows]
    title = f"tasks, the {len(shown)} busiest of {len(tasks)}"
    table = Table("task", "process", "name", "program", "state", title=title, title_justify="left")
    for heading in ("vcpu", "nice", "cpu", "cpu time", "minor", "major", "queued"):
        table.add_column(heading, justify="right")
    for process, task in shown:
        cpu = f"{100 * grown(task, 'sum_exec_ns') / guest_ns:.1f} %" if guest_ns else "-"
        cells = (str(task.task), process.name, task.name, task.program, task.state, str(task.vcpu), str(task.nice))
        faults = (f"{grown(task, 'min_flt'):,}", f"{grown(task, 'maj_flt'):,}")
        table.add_row(*cells, cpu, duration(task.sum_exec_ns), *faults, f"{process.queued:,}")
    return table


async def _views(address: str, metrics: Mapping[str, str], interval_ms: int) -> AsyncGenerator[View, None]:
    """View after view, an interval apart, until the run ends. Raises BadInput or Failure."""
    async with client.aio_channel(address) as channel:
        service = LoadServiceStub(channel)
        request = load_pb2.WatchCountersRequest(interval_ms=interval_ms)
        limit_s = _FIRST_S + interval_ms / 1000
        watching = service.WatchCounters(request)
        try:
            while True:
                counters: Any = await asyncio.wait_for(watching.read(), limit_s)
                if counters is grpc.aio.EOF:
                    return
                wall_s = time.monotonic()
                listed = await service.List(load_pb2.ListRequest(), timeout=client.CALL_S)
                sums, silent = await asyncio.to_thread(scrape, metrics)
                yield View(wall_s, counters, listed, sums, silent)
        except grpc.RpcError as error:
            raise client.refused(error, address) from error
        except TimeoutError:
            raise Failure(f"{address}: no counters within {limit_s:g} s") from None
        finally:
            watching.cancel()


async def _show(name: str, address: str, metrics: Mapping[str, str], interval_ms: int, console: Console) -> None:
    before: View | None = None
    with Live(Text(f"{name}: waiting for counters"), console=console, auto_refresh=False, screen=True) as live:
        async for after in _views(address, metrics, interval_ms):
            if before is not None:
                lines = len(after.counters.vcpus) + len(top_memory.vms(after.metrics)) + 22
                rows = max(3, console.height - lines)
                live.update(frame(name, before, after, rows), refresh=True)
            before = after
    console.print(f"{name}: the run has ended")


async def _show_once(name: str, address: str, metrics: Mapping[str, str], interval_ms: int, console: Console) -> None:
    before: View | None = None
    views = _views(address, metrics, interval_ms)
    try:
        async for after in views:
            if before is not None:
                console.print(frame(name, before, after))
                return
            before = after
    finally:
        await views.aclose()
    raise Failure(f"{name}: the run ended before there were two snapshots")


def top(
    name: str, address: str, metrics: Mapping[str, str], *, interval_ms: int, once: bool, console: Console
) -> None:
    """Show a guest until its run ends or Ctrl-C; ``once``: one frame, after one interval (wall ms).

    Raises BadInput or Failure.
    """
    show = _show_once if once else _show
    asyncio.run(show(name, address, metrics, interval_ms, console))
