"""Random scenarios by seed, for as long as one likes: ``poe soak --seconds 600``.

In the twin every core checks its invariants at every step, the host's too; with ``--processes`` each scenario runs on
the processes as well, and must come to the same digest, or to the same end. A seed that fails is named with the command
that repeats it, and ends the soak with exit code 1. Scenarios that are not allowed (a small swap area under much
memory) are passed over and counted.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections import Counter
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer

from apf import process
from apf.process import Failure
from apf.scenario import Scenario
from deploy import twin
from deploy.local import LocalCluster
from tests.checked_runs import run_checked
from tests.random_scenarios import random_host

_DEADLINE_S = 600
"""Of one seed, in wall time: there are only some ten guest milliseconds in it."""


class Outcome(Enum):
    """What a seed came to."""

    OK = "ran to its end"
    VM_FAILED = "ran until a VM failed for a reason that was asked for"
    REFUSED = "no scenario"
    BAD = "failed"


def _asked_for(scenario: Scenario) -> bool:
    """Whether a VM may fail: of errors of the device, or for lack of swap."""
    return bool(scenario.swap.fault or scenario.swap.size)


def _ended(scenario: Scenario, processes: bool) -> str:
    """How a run of the scenario ends: its digest, or its failure."""
    try:
        if not processes:
            return twin.run(scenario).digest
        with LocalCluster(scenario) as cluster:
            return cluster.wait().digest
    except Failure as failure:
        return f"failed: {failure}"


def _run(seed: int, processes: bool) -> tuple[Outcome, str]:
    scenario = random_host(seed)
    if scenario is None:
        return Outcome.REFUSED, ""
    if processes:
        one, other = _ended(scenario, False), _ended(scenario, True)
        # A failure is told with who told of it, which is a daemon there and the twin here.
        same = one == other or (one.startswith("failed: ") and other.endswith(one.removeprefix("failed: ")))
        outcome = Outcome.VM_FAILED if one.startswith("failed") else Outcome.OK
        if not same or (outcome is Outcome.VM_FAILED and not _asked_for(scenario)):
            return Outcome.BAD, f"twin: {one}\nprocesses: {other}"
        return outcome, one
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        try:
            checked = run_checked(scenario, Path(scratch), host_too=True)
        except Failure as failure:
            return (Outcome.VM_FAILED if _asked_for(scenario) else Outcome.BAD), str(failure)
    failed = [guest.core.failed for guest in checked.guests if guest.core.failed]
    if failed and not _asked_for(scenario):
        return Outcome.BAD, "\n".join(failed)
    return (Outcome.VM_FAILED if failed else Outcome.OK), ""


def _child(seed: int, processes: bool, answer: Connection) -> None:
    try:
        answer.send(_run(seed, processes))
    except BaseException:
        answer.send((Outcome.BAD, traceback.format_exc()))


def run_seed(seed: int, processes: bool) -> tuple[Outcome, str]:
    """Run one seed in a process of its own, for it may hang."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(seed, processes, theirs))
    child.start()
    theirs.close()
    try:
        if not ours.poll(_DEADLINE_S):
            return Outcome.BAD, f"no end within {_DEADLINE_S} s"
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return Outcome.BAD, "its process died"
    finally:
        child.kill()
        child.join()


app = typer.Typer(add_completion=False)


@app.command()
def main(
    seconds: Annotated[float, typer.Option(metavar="S", help="Begin no other seed after so much wall time.")] = 600,
    count: Annotated[int, typer.Option(metavar="N", help="Seeds at most; 0: as many as there is time for.")] = 0,
    first: Annotated[int, typer.Option(metavar="SEED", help="The first of them.")] = 1,
    only: Annotated[int, typer.Option(metavar="SEED", help="Just this one; 0: all.")] = 0,
    processes: Annotated[bool, typer.Option("--processes", help="On the processes, against the twin.")] = False,
) -> None:
    """Run random scenarios until the time is over; see the module."""
    process.start_logging()
    logging.disable(logging.WARNING)  # failures are asked for
    began_s = time.monotonic()
    found: Counter[Outcome] = Counter()
    ran = 0
    for seed in [only] if only else range(first, sys.maxsize):
        if not only and (time.monotonic() - began_s >= seconds or (count and ran == count)):
            break
        outcome, why = run_seed(seed, processes)
        found[outcome] += 1
        ran += outcome is not Outcome.REFUSED
        if outcome is Outcome.BAD:
            how = " --processes" if processes else ""
            print(f"{why}\n\nseed {seed} failed; repeat it:\n    poe soak --only {seed}{how}", file=sys.stderr)
            raise typer.Exit(1)
    told = ", ".join(f"{number} {outcome.value}" for outcome, number in found.items())
    print(f"seeds from {only or first}, {time.monotonic() - began_s:.0f} s: {told}")


if __name__ == "__main__":
    app()
