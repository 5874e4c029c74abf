"""``apf policies``: how many pages every reclaim policy brings in, against the fewest possible, program by program.

One task on one vCPU, without asynchronous page faults, in the twin: each run is the program and the policy, nothing
else. The uses of each run are recorded, and Belady's optimum is found for that very string of uses, with as many frames
as the host has: the group's limit and the reserve, in which pages on their way out can be found again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from apf.scenario import RESERVE_FRAMES_MIN, Scenario, ScenarioError, load
from deploy.bench import prepare
from deploy.optimum import fewest_faults
from deploy.twin import Twin
from hostd.reclaim_policies import BUILT_IN

PROGRAMS = ("zipfian", "shifting", "sequential")
_MEMORY = "16MiB"

Told = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. ``page_ins``: pages brought in from swap, ``fewest``: as many as were needed, for ``accesses``."""

    program: str
    policy: str
    accesses: int
    page_ins: int
    fewest: int
    digest: str

    @property
    def rate(self) -> float:
        """Page-ins in 1000 accesses."""
        return 1000 * self.page_ins / self.accesses

    @property
    def fewest_rate(self) -> float:
        """Likewise of the optimum."""
        return 1000 * self.fewest / self.accesses

    def document(self) -> dict[str, Any]:
        """For the JSON document."""
        return {name: getattr(self, name) for name in (*self.__slots__, "rate", "fewest_rate")}


def compare(
    programs: Sequence[str],
    policies: Sequence[str],
    seed: int,
    duration_s: str,
    device: str,
    group_memory: str,
    told: Told,
) -> list[Measured]:
    """Run each program under each policy, ``told`` before it. ScenarioError if one of them is unknown."""
    scenarios = [
        (program, policy, _scenario(program, policy, seed, duration_s, device, group_memory))
        for program in programs
        for policy in policies
    ]
    for _program, _policy, scenario in scenarios:
        prepare(scenario)
    found = []
    for program, policy, scenario in scenarios:
        told(program, policy)
        found.append(_measure(program, policy, scenario))
    return found


def _scenario(program: str, policy: str, seed: int, duration_s: str, device: str, group_memory: str) -> Scenario:
    return load(
        None,
        {
            "seed": seed,
            "duration_s": duration_s,
            "apf": ["off"],
            "vm.vcpus": 1,
            "vm.guest_memory": "96MiB",
            "vm.group_memory": group_memory,
            "host.reserve_frames": RESERVE_FRAMES_MIN,
            "host.reclaim": policy,
            "swap.device": device,
            "process": [{"name": program, "memory": _MEMORY, "thread": [{"program": program}]}],
        },
    )


def _measure(program: str, policy: str, scenario: Scenario) -> Measured:
    windows: list[npt.NDArray[np.int64]] = []
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        twin = Twin(scenario, Path(scratch) / "swap")
        try:
            core = twin.host.core
            owner = np.frombuffer(core.watched().frames.owner, dtype=np.int64)
            resident = owner[owner >= 0].tolist()
            core.every_border = True
            twin.host.on_use = lambda _now_ns, pfns: windows.append(owner[pfns])
            twin.start()
            while twin.run_window():
                pass
            twin.host.border(twin.border_ns)
            result = twin.result(time.monotonic() - began_s)
        finally:
            twin.close()
    accesses = sum(task["values"]["accesses"] for task in result.tasks)
    if not accesses:
        raise ScenarioError(f"{program} under {policy}: no access in {scenario.duration_s} s; a longer --duration")
    return Measured(
        program,
        policy,
        accesses,
        result.host_counters["pswpin"] + result.host_counters["swpin_zero"],
        fewest_faults(windows, resident, core.config.frames),
        result.digest,
    )


def table(found: Sequence[Measured]) -> Table:
    """Programs by policies: page-ins in 1000 accesses, and how many times the optimum's that is."""
    programs = list(dict.fromkeys(one.program for one in found))
    shown = Table(title="page-ins in 1000 accesses, of the policy and of Belady's optimum for the same uses")
    shown.add_column("reclaim", no_wrap=True)
    for program in programs:
        shown.add_column(program, justify="right")
        shown.add_column("optimum", justify="right")
        shown.add_column("ratio", justify="right")
    for policy in dict.fromkeys(one.policy for one in found):
        row = []
        for program in programs:
            one = next(one for one in found if (one.program, one.policy) == (program, policy))
            ratio = f"{one.page_ins / one.fewest:.2f}" if one.fewest else "-"
            row += [f"{one.rate:.2f}", f"{one.fewest_rate:.2f}", ratio]
        shown.add_row(policy, *row)
    return shown


def plot(found: Sequence[Measured], path: Path) -> None:
    """The same as bars, into ``path``, by whose suffix its format goes. ValueError for one that cannot be written."""
    from matplotlib.figure import Figure

    programs = list(dict.fromkeys(one.program for one in found))
    policies = list(dict.fromkeys(one.policy for one in found))
    figure = Figure(figsize=(3 * len(programs) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(programs), squeeze=False)[0]
    labels = [*policies, "optimum"]
    for axes, program in zip(panels, programs, strict=True):
        mine = [one for one in found if one.program == program]
        heights = [one.rate for one in mine] + [min(one.fewest_rate for one in mine)]
        drawn = axes.bar(labels, heights, color=["C0"] * len(policies) + ["black"])
        axes.bar_label(drawn, labels=[f"{height:.4g}" for height in heights], fontsize=8)
        axes.set_title(program)
        axes.margins(y=0.12)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("pages brought in, of 1000 accesses")
    figure.savefig(path, dpi=150)


def names(given: str | None, default: Sequence[str], option: str) -> tuple[str, ...]:
    """The names in ``given``, with commas between; ScenarioError for none or one twice."""
    if given is None:
        return tuple(default)
    found = [name.strip() for name in given.split(",")]
    if "" in found or len(set(found)) != len(found):
        raise ScenarioError(f"{option} = {given!r}: names with commas between, each once")
    return tuple(found)


POLICIES = tuple(BUILT_IN)
