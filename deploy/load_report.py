"""What the terminal and the JSON file say of a load generator's jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from deploy.latencies import PERCENTILES, Latencies
from deploy.load import JobRun


def duration(value_ns: float) -> str:
    """A time of ns in the unit that suits it."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value_ns >= size:
            return f"{value_ns / size:.3f} {unit}"
    return f"{value_ns:.0f} ns"


def show(console: Console, runs: Sequence[JobRun]) -> None:
    """Print one table a job, and what is to be said beside it."""
    for run in runs:
        console.print(_table(run))
        for line in _lines(run):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _title(run: JobRun) -> str:
    job = run.job
    how = f"rate {job.rate:g}/s, {job.arrivals}" if job.loop == "open" else f"iodepth {job.iodepth}"
    pattern = f"zipf {job.theta:g}" if job.pattern == "zipf" else job.pattern
    return (
        f"{job.name}: {pattern} on process {job.process}, {job.write_percent} % stores, {job.length} bytes, "
        f"{how}, batch {job.batch}, seed {job.seed}"
    )


def _table(run: JobRun) -> Table:
    table = Table(title=_title(run), title_justify="left")
    table.add_column("latency")
    for percentile in PERCENTILES:
        table.add_column(f"p{percentile:g}", justify="right")
    table.add_column("max", justify="right")
    table.add_column("mean", justify="right")
    rows: list[tuple[str, Latencies]] = [("guest time", run.guest), ("wall time", run.wall)]
    if run.job.loop == "open":
        rows = [*rows, ("wall time, from when due", run.wall_due), ("sent late by", run.late)]
    for name, latencies in rows:
        found = latencies.percentiles()
        cells = [duration(value) for value in found.values()] or ["-"] * len(PERCENTILES)
        ends = [duration(latencies.max_ns), duration(latencies.mean_ns)] if found else ["-", "-"]
        table.add_row(name, *cells, *ends)
    return table


def _lines(run: JobRun) -> list[str]:
    lines = [
        f"  {run.performed:,} accesses in {run.wall_s:.3f} s of wall time ({run.per_wall_s:,.1f}/s) and "
        f"{run.guest_s:.6f} s of guest time ({run.per_guest_s:,.1f}/s), at most {run.in_flight_peak} in flight",
        "  met " + (", ".join(f"{kind} {_share(run, kind)}" for kind in sorted(run.met)) or "nothing"),
    ]
    if run.unsent:
        lines.append(f"  {run.unsent:,} accesses were due and not sent in time: the guest or the generator is behind")
    if run.errors:
        refused = ", ".join(f"{count:,} {code}" for code, count in run.errors.most_common())
        lines.append(f"  refused: {refused}; the first: {run.first_error}")
    if run.unanswered:
        lines.append(f"  {run.unanswered:,} accesses were not answered")
    if run.failed:
        lines.append(f"  ended early: {run.failed}")
    return lines


def _share(run: JobRun, kind: str) -> str:
    return f"{run.met[kind]:,} ({100 * run.met[kind] / run.performed:.2f} %)"


def document(address: str, runs: Sequence[JobRun]) -> dict[str, Any]:
    """The JSON document: the same numbers, and the histograms."""
    return {"api": address, "jobs": {run.job.name: run.document() for run in runs}}


class LoadProgress:
    """How far the jobs are, on one line of a terminal; nothing elsewhere. A context manager; call it with the jobs."""

    def __init__(self, console: Console) -> None:
        self._status = Status("starting", console=console)
        self._console = console

    def __enter__(self) -> LoadProgress:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()

    def __call__(self, runs: Sequence[JobRun]) -> None:
        """Show what the jobs have performed so far."""
        shown = (f"{run.job.name} {run.performed:,} performed, {run.unanswered} in flight" for run in runs)
        self._status.update("; ".join(shown))
