"""``apf explain``: what a recording tells of one fault, step by step, of all faults in sum, and of tasks left waiting.

A run's journals are read once, as a stream, and little more is kept than the fault that was asked for. Every time and
number is a record's; the words are ``deploy.telling``'s, and why a task waits is ``deploy.waiting``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappush, heappushpop

from rich.console import Console
from rich.table import Table

from apf.histogram import Histogram
from apf.scenario import ScenarioError
from apf.stats import FAULT_KINDS, STAGES
from deploy.fault import Fault
from deploy.faults import Faults, latencies
from deploy.journals import events
from deploy.recording import RecordedRun
from deploy.steps import Step, render
from deploy.telling import HEADLINES, Teller
from deploy.waiting import Looping, Waiting, looping, waiting
from hostd import device_profiles


@dataclass(frozen=True, slots=True)
class Choice:
    """Which fault: of those with ``token``, ``gfn`` and ``vm`` (None: any), the ``nth``, or the one that took longest.

    They are counted in the order in which they began, from 1. The longest is one that was over when the run was.
    """

    token: int | None = None
    gfn: int | None = None
    vm: int | None = None
    nth: int = 1
    longest: bool = False

    def allows(self, fault: Fault) -> bool:
        """Whether ``fault`` is one of those."""
        wanted = ((self.token, fault.token), (self.gfn, fault.gfn), (self.vm, fault.vm))
        return all(want is None or want == has for want, has in wanted)

    def __str__(self) -> str:
        named = (("token", self.token), ("gfn", self.gfn), ("vm", self.vm))
        return " ".join(f"--{name} {value:#x}" for name, value in named if value is not None) or "of all faults"


@dataclass(frozen=True, slots=True)
class Explained:
    """A fault in words. ``among``: how many there were to choose from."""

    fault: Fault
    among: int
    steps: list[Step]


def choose_run(runs: list[RecordedRun], mode: str | None) -> RecordedRun:
    """The run of ``mode``; None: the only one there is. Raises ScenarioError."""
    modes = ", ".join(run.mode for run in runs)
    if mode is None and len(runs) > 1:
        raise ScenarioError(f"--apf: which run of the recording: {modes}")
    for run in runs:
        if mode in (None, run.mode):
            return run
    raise ScenarioError(f"--apf = {mode}: the recording has {modes}")


def explain(run: RecordedRun, choice: Choice) -> Explained:
    """Find the fault and tell it. Raises ScenarioError if there is none."""
    found = Faults()
    pick = _longest if choice.longest else _nth
    among, fault = pick((fault for fault in _all(found, run) if choice.allows(fault)), choice.nth)
    if fault is None:
        over = "that is over " if choice.longest else ""
        raise ScenarioError(f"{choice}: no such fault {over}with number {choice.nth}; there are {among}")
    scenario = run.scenario
    reports = scenario.swap.errors == "report"
    synchronous = not device_profiles.load(scenario.swap.device).background
    teller = Teller(run.mode, scenario.gup, found.names, found.end_ns, scenario.host.vms, reports, synchronous)
    return Explained(fault, among, teller.tell(fault))


def _all(found: Faults, run: RecordedRun) -> Iterator[Fault]:
    for event in events(run.journals):
        yield from found.take(event)
    yield from found.open()


def _longest(faults: Iterable[Fault], nth: int) -> tuple[int, Fault | None]:
    """How many there are, and the one that took longest (the first of several)."""
    among, longest = 0, None
    for among, fault in enumerate(faults, start=1):  # noqa: B007 - it is the count when the loop is over
        if fault.latency_ns is not None and (longest is None or _rank(fault) > _rank(longest)):
            longest = fault
    return among, longest


def _rank(fault: Fault) -> tuple[int, int]:
    return (fault.latency_ns or 0, -fault.serial)


def _nth(faults: Iterable[Fault], nth: int) -> tuple[int, Fault | None]:
    """How many there are, and the ``nth`` that began. They come as they end, so that many are kept."""
    among = 0
    first: list[tuple[int, Fault]] = []
    for among, fault in enumerate(faults, start=1):  # noqa: B007 - as above
        if len(first) < nth:
            heappush(first, (-fault.serial, fault))
        else:
            heappushpop(first, (-fault.serial, fault))
    return among, first[0][1] if len(first) == nth else None


@dataclass(frozen=True, slots=True)
class Summary:
    """All faults of a run in sum. ``slowest``: those that took longest, longest first."""

    histograms: dict[str, Histogram]
    kinds: dict[str, int]
    slowest: list[Fault]
    waiting: list[Waiting]
    looping: list[Looping]
    names: dict[tuple[int, int], str]


def summarize(run: RecordedRun, slowest: int = 5) -> Summary:
    """Count all faults of a run by kind and stage, and find the slowest and those that tasks still wait for."""
    found = Faults()
    kinds: dict[str, int] = {}
    longest: list[tuple[tuple[int, int], Fault]] = []

    def seen() -> Iterator[Fault]:
        for fault in _all(found, run):
            kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
            if fault.latency_ns is not None:
                entry = (_rank(fault), fault)
                if len(longest) < slowest:
                    heappush(longest, entry)
                else:
                    heappushpop(longest, entry)
            yield fault

    histograms = latencies(seen())
    left = waiting(found, run.scenario)
    slow = [fault for _, fault in sorted(longest, reverse=True)]
    return Summary(histograms, kinds, slow, left, looping(found), found.names)


def show_fault(console: Console, explained: Explained) -> None:
    """Print a fault's story and its stages."""
    fault = explained.fault
    token = f", token {fault.token:#x}" if fault.token else ""
    where = f"vCPU {fault.vcpu} of VM {fault.vm}"
    console.print(f"Fault {fault.serial} of the run ({fault.kind}): gfn {fault.gfn:#x}{token}, {where}")
    console.print(f"One of {explained.among:,} to choose from.")
    render(explained.steps, console, HEADLINES)
    if fault.latency_ns is None:
        return
    stages = ", ".join(f"{name} {took_ns:,}" for name, took_ns in fault.stages().items() if took_ns)
    console.print(f"\nStages, ns: {stages}; together {fault.latency_ns:,}")


def show_summary(console: Console, run: RecordedRun, summary: Summary) -> None:
    """Print how many faults there were, how long they and their stages took, and which took longest."""
    console.rule(HEADLINES[run.mode])
    console.print(", ".join(f"{count:,} {kind}" for kind, count in sorted(summary.kinds.items())) or "no faults")
    table = Table("latency or stage", "faults", "sum, ns", "mean, ns", "share of all", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    whole_ns = sum(summary.histograms[f"latency_{kind}"].sum_ns for kind in FAULT_KINDS)
    for name in (*(f"latency_{kind}" for kind in FAULT_KINDS), *(f"stage_{stage}" for stage in STAGES)):
        one = summary.histograms[name]
        if one.count:
            mean, share = f"{one.sum_ns // one.count:,}", f"{100 * one.sum_ns / whole_ns:.2f} %"
            table.add_row(name.replace("_", " "), f"{one.count:,}", f"{one.sum_ns:,}", mean, share)
    console.print(table)
    for fault in summary.slowest:
        task = summary.names.get((fault.vm, fault.task), f"task {fault.task}")
        how = f"--token {fault.token:#x}" if fault.token else f"--nth {fault.serial}"
        where = f"vCPU {fault.vcpu} of VM {fault.vm}"
        console.print(f"{fault.latency_ns:>16,} ns  {fault.kind}  gfn {fault.gfn:#x}  {task} on {where}  ({how})")


def show_waiting(console: Console, run: RecordedRun, left: list[Waiting], loops: list[Looping]) -> None:
    """Print the tasks that still wait for a page ready when the run is over, or go round in circles, and why."""
    console.rule(HEADLINES[run.mode])
    if not left:
        console.print("No task waits for a page ready.")
    for loop in loops:
        console.print(
            f"{loop.name} (task {loop.task} of VM {loop.vm}) has faulted {loop.faults:,} times on gfn {loop.gfn:#x} "
            f"since {loop.since_ns:,} ns, and will for ever: {loop.error.words}; the fault-in worker's error reaches "
            f'nobody, so page ready wakes the task, and its access faults again (swap.errors = "report" would kill it)'
        )
    for one in left:
        never = "will not come" if one.lost else "had not come yet"
        console.print(
            f"{one.name} (task {one.fault.task} of VM {one.fault.vm}) waits for token {one.fault.token:#x} since "
            f"{one.since_ns:,} ns, {one.waited_ns:,} ns; page ready {never}: {one.why}"
        )
