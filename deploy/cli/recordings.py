"""Commands about what runs left behind, recordings and journals; and the story of one page, which is run to be told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.cli.options import Seed, TraceLimit, trace_limit_bytes
from deploy.cli.terminal import named_files, say, told
from deploy.clusters import BadInput

_Recording = Annotated[Path, typer.Argument(metavar="RECORDING", help="A directory that --record made.")]


def walk(
    seed: Seed = 1,
    processes: Annotated[bool, typer.Option("--processes", help="On real processes; without, in the twin.")] = False,
) -> None:
    """Tell the life of one page: first touch, swap-out, and its next access without and with APF."""
    from deploy.walk import command

    with told():
        command(seed, processes)


def explain(
    recorded: _Recording,
    apf: Annotated[str | None, typer.Option(help="Mode of the run, if the recording has several.")] = None,
    token: Annotated[str | None, typer.Option(metavar="N", help="The fault with this token, as 0x1001.")] = None,
    gfn: Annotated[str | None, typer.Option(metavar="N", help="Faults on this guest frame.")] = None,
    vm: Annotated[int | None, typer.Option(metavar="N", help="Faults of this VM.")] = None,
    nth: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of these, the Nth; without, the first.")
    ] = None,
    longest: Annotated[bool, typer.Option("--longest", help="Of these, the one that took longest.")] = False,
    stuck: Annotated[bool, typer.Option("--stuck", help="Tasks that wait for a page ready at the end; why.")] = False,
) -> None:
    """Tell one fault of a recorded run step by step; without a choice, how long its faults and their stages took."""
    from deploy import explain as explaining
    from deploy import recording

    chosen = [
        name for name, given in (("--nth", nth is not None), ("--longest", longest), ("--stuck", stuck)) if given
    ]
    with told():
        if len(chosen) > 1:
            raise BadInput(f"{' and '.join(chosen)}: one of them")
        run = explaining.choose_run(recording.read(recorded), apf)
        console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
        if stuck:
            summary = explaining.summarize(run)
            explaining.show_waiting(console, run, summary.waiting, summary.looping)
        elif token is None and gfn is None and vm is None and not chosen:
            explaining.show_summary(console, run, explaining.summarize(run))
        else:
            choice = explaining.Choice(_number("--token", token), _number("--gfn", gfn), vm, nth or 1, longest)
            explaining.show_fault(console, explaining.explain(run, choice))


def _number(option: str, given: str | None) -> int | None:
    try:
        return None if given is None else int(given, 0)
    except ValueError as error:
        raise BadInput(f"{option} = {given!r}: a number, as 4097 or 0x1001") from error


def trace(
    recorded: _Recording,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the trace goes.")],
    trace_limit: TraceLimit = None,
) -> None:
    """Make a Perfetto trace (ui.perfetto.dev) of a recording, as --trace does while it runs."""
    from deploy import recording
    from deploy import trace as tracing
    from deploy.keeping import trace_told
    from deploy.tracefile import TraceFile

    with told(), named_files():
        limit = trace_limit_bytes(trace_limit)
        runs = recording.read(recorded)
        with file.open("wb") as out:
            written = TraceFile(out, limit)
            for number, run in enumerate(runs):
                tracing.write(written, f"apf = {run.mode}", number, run.journals, run.scenario.swap.name)
            say([trace_told(file, written)])


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A journal that apf bench --journal wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Print the first event in which two journals differ; exits 0 if there is none, 1 if there is."""
    from deploy.journals import first_difference

    with told():
        try:
            with a.open() as left, b.open() as right:
                found = first_difference(left, right)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(str(error)) from error
    if found is None:
        print("the journals are the same")
        return
    print(f"first difference: event {found.number}")
    for line in found.before:
        print(f"  {line}")
    print(f"- {'(end)' if found.left is None else found.left}")
    print(f"+ {'(end)' if found.right is None else found.right}")
    raise typer.Exit(1)
