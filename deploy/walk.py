"""``apf walk``: one page's life in words, from a small real run: first touch, swap-out, re-access in each mode.

Every time, frame, slot, token and task is read from the run's journals (``deploy.story``). The functions named are
those of Linux that do the same, some by names they had in 2010 (``gfn_to_pfn``, ``kvm_async_pf_task_wait``);
``get_user_pages_noio`` was proposed then and never went in. T1 to T14 are the statements of the 2010 talk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from apf.journal import Journal
from apf.messages import PAGE_SHIFT
from apf.scenario import ApfName, Scenario, ScenarioError, load
from deploy import twin
from deploy.local import LocalCluster
from deploy.steps import Step, render
from deploy.story import FirstTouch, Journals, Life, SwapOut, lives
from deploy.telling import HEADLINES, Teller
from guestsched.build import guest_core, memory_gfn
from guestsched.plan import MEMORY_GVA
from hostd import device_profiles

_SMALL = {
    "duration_s": "0.03",
    "vm.vcpus": 2,
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "4MiB",
    "bench.buffer": "8MiB",
    "bench.fault_threads": 2,
    "bench.work_threads": 2,
    "bench.populate": False,
    "host.reserve_frames": 256,
    "swap.device": "nvme",
}


def small(seed: int) -> Scenario:
    """A run of 30 guest ms in which every page of the buffer starts untouched and the group soon is full."""
    return load(None, {"seed": seed, **_SMALL})


def walk(scenario: Scenario, on_processes: bool = False) -> list[Step]:
    """Run ``scenario`` in each of its modes and tell the life of the first page that goes through all stages in each.

    On the twin, or on the real processes: it is the same story, for the journals are the same. A page that the same
    task touches first and again is preferred, for then A is one task throughout. Raises ScenarioError for a scenario
    that cannot have such a page.
    """
    _verify(scenario)
    runs = {mode: _run(scenario.for_mode(mode), on_processes) for mode in scenario.apf}
    found = {
        mode: {life.gfn: life for life in lives(journals, _first_gfn(journals))} for mode, journals in runs.items()
    }
    gfn = _choose(list(found.values()))
    return [step for mode, journals in runs.items() for step in _tell(mode, journals, found[mode][gfn])]


def command(seed: int, processes: bool) -> None:
    """What ``apf walk`` does: run, choose a page, print its life."""
    scenario = small(seed)
    render(walk(scenario, processes), Console(highlight=False), HEADLINES)


def _verify(scenario: Scenario) -> None:
    bench = scenario.bench
    if bench.populate:
        raise ScenarioError("bench.populate = true: a page's first touch can be shown only with false")
    if not bench.fault_threads or not bench.work_threads:
        raise ScenarioError(
            f"bench.fault_threads = {bench.fault_threads}, bench.work_threads = {bench.work_threads}: at least 1 each"
        )
    if bench.buffer <= scenario.vm.group_memory:
        raise ScenarioError(f"bench.buffer = {bench.buffer}: more than vm.group_memory, or nothing is swapped out")
    if "halt" in scenario.apf:
        raise ScenarioError(f"apf = {list(scenario.apf)}: the guest is told nothing in halt; off, pv2010 or pv")
    is_told = {"pv2010", "pv"} & set(scenario.apf)
    if is_told and not device_profiles.load(scenario.swap.device).background:
        raise ScenarioError(
            f"swap.device = {scenario.swap.name!r}: there the vCPU reads the page itself, so no access is asynchronous; "
            f"a device with background = true"
        )
    if scenario.gup == "fast" and is_told:
        raise ScenarioError("gup = fast: even a first touch goes to the fault-in worker; noio or nowait")


def _run(scenario: Scenario, on_processes: bool) -> Journals:
    if on_processes:
        with LocalCluster(scenario, journals=True) as cluster:
            result = cluster.wait()
            return Journals.read(result, cluster.journals())
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        result = twin.run(scenario, journals=Path(scratch))
        return Journals.read(result, {path.stem: path for path in Path(scratch).glob("*.journal")})


def _first_gfn(journals: Journals) -> int:
    """Of the buffer."""
    return memory_gfn(guest_core(journals.result.scenario, Journal()))


def _choose(found: list[dict[int, Life]]) -> int:
    common = [gfn for gfn in found[0] if all(gfn in lived for lived in found)]
    if not common:
        raise ScenarioError(
            "no page lived through all stages: a longer duration_s or a smaller vm.group_memory helps"
        )
    ofone = [gfn for gfn in common if all(lived[gfn].first.task == lived[gfn].again.task for lived in found)]
    return (ofone or common)[0]


def _tell(mode: ApfName, journals: Journals, life: Life) -> list[Step]:
    teller = _Teller(mode, journals, life)
    return [*teller.first_touch(life.first), *teller.swap_out(life.out), *teller.again()]


class _Teller:
    """Puts one life into words."""

    def __init__(self, mode: ApfName, journals: Journals, life: Life) -> None:
        self._mode: ApfName = mode
        self._journals = journals
        self._life = life
        self._page = f"gfn {life.gfn:#x}"
        self._first_gfn = _first_gfn(journals)
        self._gva = f"{MEMORY_GVA + (life.gfn - self._first_gfn << PAGE_SHIFT):#x}"

    def _step(self, stage: str, time_ns: int, process: str, functions: str, rows: str, text: str) -> Step:
        return Step(self._mode, stage, time_ns, process, tuple(functions.split()), tuple(rows.split()), text)

    def _task(self, task: int) -> str:
        return self._journals.task_name(task)

    def first_touch(self, first: FirstTouch) -> Iterator[Step]:
        """T1 to T4."""
        stage, worker = "First touch", f"vcpud worker {first.vcpu}"
        gup = "get_user_pages_fast" if first.how.endswith("BLOCKING") else f"get_user_pages_{self._gup}"
        border_ns = self._border_after(first.mapped_ns)
        yield self._step(
            stage,
            first.fault_ns,
            worker,
            "kvm_mmu_page_fault gfn_to_pfn",
            "T1 T2",
            f"{self._task(first.task)} writes to {self._gva} for the first time. No journal has named {self._page} "
            f"before, and the nested page table has no entry for it: VM exit.",
        )
        yield self._step(
            stage,
            first.fault_ns,
            "hostd",
            f"{gup} do_anonymous_page",
            "T2",
            f"{gup}() finds neither a mapping nor a swap entry. An empty page is allocated: host frame {first.pfn}, "
            f"zeroed.",
        )
        yield self._step(
            stage,
            first.mapped_ns,
            worker,
            "__direct_map",
            "T2 T3",
            f"The new mapping is made, of this one page: {self._page} is host frame {first.pfn}. "
            f"(In the table that all vCPUs share from {border_ns:,} ns on.) {self._task(first.task)} goes on.",
        )
        full_ns, touched, faults, mapped = self._until_full()
        yield self._step(
            stage,
            full_ns,
            "hostd",
            "",
            "T3 T4",
            f"By now {touched} pages of the buffer have been touched, by {faults} page faults (vCPUs that touch the "
            f"same page in the same window fault each), and {mapped} are mapped: all that are in use. The memory "
            f"group is full.",
        )

    def swap_out(self, out: SwapOut) -> Iterator[Step]:
        """T5."""
        stage = "Swap-out"
        yield self._step(
            stage,
            out.picked_ns,
            "hostd",
            "try_charge_memcg shrink_folio_list",
            "T5",
            f"A fault on another page has to charge it to the full group, and so reclaims {out.picked_with} pages. "
            f"{self._page} is one of them: old on the inactive list, and not used lately.",
        )
        yield self._step(
            stage,
            out.border_ns,
            "hostd",
            "add_to_swap try_to_unmap pageout",
            "T5",
            f"At the border of the window the page gets swap slot {out.slot} and is removed from the nested page "
            f"table; all TLBs are flushed. Its bytes go to the swap file, from {out.write_start_ns:,} to "
            f"{out.write_done_ns:,} ns; then its frame is free.",
        )

    def again(self) -> Iterator[Step]:
        """T6 to T14: the fault, with what there is to say of it here."""
        life, journals = self._life, self._journals
        names = {(0, row["id"]): row["name"] for row in journals.result.tasks}
        teller = Teller(self._mode, self._gup, names, journals.result.end_ns)
        for step in teller.tell(life.again, life.others):
            rows, remark = self._remarks().get(step.what, ("", ""))
            stage = "Re-access" if self._mode == "off" else f"Re-access: {step.stage.lower()}"
            text = f"{step.text} {remark}".rstrip()
            yield replace(step, stage=stage, rows=tuple(rows.split()), text=text)

    def _remarks(self) -> dict[str, tuple[str, str]]:
        """Rows of the talk, and what else can be said, by kind of step."""
        fault, others = self._life.again, self._life.others
        theirs = ", ".join(self._task(other) for other in others)
        own = f"It is a page of A's data and none of {theirs}'s (B)."
        if self._mode == "off":
            rows = {"read": "T6", "sleep": "T6 T8", "unheard": "T8", "mapped": "T6"}
            return {"violation": ("T6 T7", own)} | {what: (row, "") for what, row in rows.items()}
        assert fault.other_ns is not None and fault.exited_ns is not None
        other_ns = fault.exited_ns - fault.other_ns
        cached = (
            "(A page that is still in the swap cache it does get; get_user_pages_fast() does not, and so is not good "
            "enough.)"
        )
        return {
            "violation": ("T7 T11", own),
            "gup": ("T14", cached),
            "work": ("T11", ""),
            "not present": ("T9 T10 T11", ""),
            "asleep": ("T10 T12", ""),
            "completed": ("T11 T13", "All the while B has run."),
            "prefault": ("T13", ""),
            "ready": ("T9 T10 T13", ""),
            "woken": ("T13", "A preempts B."),
            "back": (
                "T9 T13",
                f"The page is there, and so no exit. B had the vCPU for {other_ns:,} ns of that.",
            ),
        }

    @property
    def _gup(self) -> str:
        return self._journals.result.scenario.gup

    def _border_after(self, now_ns: int) -> int:
        """The first border at or after ``now_ns`` at which mappings were published."""
        return next(r.time_ns for r in self._journals.host if r.kind == "border" and r.time_ns >= now_ns)

    def _until_full(self) -> tuple[int, int, int, int]:
        """When the group was first full; until then: pages of the buffer touched, faults on them, pages mapped."""
        touched: set[int] = set()
        mapped: set[int] = set()
        faults = 0
        for record in self._journals.host:
            if record.kind == "reclaim":
                return record.time_ns, len(touched), faults, len(mapped)
            if record.kind == "fault" and record.fields[2] >= self._first_gfn:
                faults += 1
                touched.add(record.fields[2])
                if record.fields[4] == "minor":
                    mapped.add(record.fields[2])
        raise AssertionError("a page was evicted without a reclaim")
