"""A story of a run in steps: what happened when, in which process, and which kernel functions do the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding

_INDENT = (0, 0, 0, 19)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. ``process`` is whose journal says so; ``rows`` are the talk's, if it has any for it.

    ``what`` names the kind of step, for who has to add something to it.
    """

    mode: str
    stage: str
    time_ns: int
    process: str
    functions: tuple[str, ...]
    rows: tuple[str, ...]
    text: str
    what: str = ""


def render(steps: Iterable[Step], console: Console, headlines: dict[str, str]) -> None:
    """Print a story, a mode and a stage after the other. A step that is not a mode's first tells how long it took."""
    mode = stage = ""
    before_ns: int | None = None
    for step in steps:
        if step.mode != mode:
            mode, stage, before_ns = step.mode, "", None
            console.rule(headlines[mode])
        if step.stage != stage:
            stage = step.stage
            console.print(f"\n[bold]{stage}[/bold]")
        functions = " -> ".join(step.functions)
        later = "" if before_ns is None else f"+{step.time_ns - before_ns:,}"
        before_ns = step.time_ns
        marks = ((f"[cyan]{step.process}[/cyan]"), f"[yellow]{', '.join(step.rows)}[/yellow]", f"[dim]{later}[/dim]")
        told = (step.process, step.rows, later)
        head = "  ".join(mark for mark, there in zip(marks, told, strict=True) if there)
        console.print(f"{step.time_ns:>14,} ns  {head}")
        if functions:
            console.print(Padding(f"[dim]{functions}[/dim]", _INDENT, expand=False))
        console.print(Padding(step.text, _INDENT, expand=False))
