"""How far a bench is, while it runs: a live line on a terminal, a line now and then elsewhere. On standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from apf.scenario import Scenario
from deploy.result import Snapshot

_LINE_EVERY_S = 5.0


class BenchProgress:
    """A context manager; call it with every snapshot."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            TextColumn("{task.fields[virtual]:>16}  {task.fields[rates]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, tuple[float, Snapshot]] = {}
        self._line_s = time.monotonic()

    def __enter__(self) -> BenchProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, scenario: Scenario, snapshot: Snapshot) -> None:
        """Show how far the run of ``scenario`` (one mode) is."""
        mode, now_s = scenario.apf[0], time.monotonic()
        before_s, before = self._last.get(mode, (now_s, snapshot))
        virtual = f"{snapshot.now_ns / 1e9:.2f} of {scenario.duration_s} s"
        rates = "starting" if snapshot.now_ns == 0 else _rates(scenario, before, snapshot, now_s - before_s)
        if now_s - before_s >= 1.0 or mode not in self._last:
            self._last[mode] = (now_s, snapshot)
        if self._console.is_terminal:
            self._show_bar(scenario, snapshot, virtual, rates)
        elif now_s - self._line_s >= _LINE_EVERY_S:
            self._line_s = now_s
            self._console.print(f"{mode}: {virtual}, {rates}", highlight=False)

    def _show_bar(self, scenario: Scenario, snapshot: Snapshot, virtual: str, rates: str) -> None:
        mode = scenario.apf[0]
        if mode not in self._tasks:
            self._tasks[mode] = self._bars.add_task(mode, total=scenario.duration_ns, virtual="", rates="")
        self._bars.update(self._tasks[mode], completed=snapshot.now_ns, virtual=virtual, rates=rates)


def _rates(scenario: Scenario, before: Snapshot, after: Snapshot, wall_s: float) -> str:
    """Faults per wall second, and work per guest second."""
    faults = (after.faults - before.faults) / wall_s if wall_s > 0 else 0.0
    counted = after.counting_ns * scenario.vm.cpu_mips / 1000
    work = counted / (after.now_ns / 1e9) if after.now_ns else 0.0
    return f"{faults:,.0f} faults/s, work {work / 1e9:.2f}e9 per guest s"
