"""One page's life, found in the journals of a run: first touch, swap-out, re-access.

A journal is what a core did, line by line (``apf.journal``); this module only reads. ``lives`` gives every page of
the buffer that went through all stages and can be told without a gap: nothing here is guessed, and a page of which
the records leave something open is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.fault import Fault
from deploy.faults import faults
from deploy.journals import KINDS_OF_VCPU, Record, events, records
from deploy.result import RunResult

_EVICTIONS = ("write", "drop")
"""What a border does to a page that was picked: its bytes go to the swap file, or are there already."""


@dataclass(frozen=True, slots=True)
class Journals:
    """The journals of one run, by core name, with what the run came to."""

    result: RunResult
    by_core: dict[str, list[Record]]
    faults: list[Fault]

    @classmethod
    def read(cls, result: RunResult, paths: dict[str, Path]) -> Journals:
        """Read the files of a run that has ended."""
        by_core = {name: list(records(path)) for name, path in paths.items()}
        return cls(result, by_core, list(faults(events(paths))))

    @property
    def host(self) -> list[Record]:
        """Of hostd's core."""
        return self.by_core["host"]

    @property
    def guest(self) -> list[Record]:
        """Of guestsched's core."""
        return self.by_core["guest-0"]

    def vcpu(self, vcpu: int) -> list[Record]:
        """Of one vCPU's core."""
        return self.by_core[f"vcpu-0-{vcpu}"]

    def task_name(self, task: int) -> str:
        """As users see it."""
        return str(next(row["name"] for row in self.result.tasks if row["id"] == task))

    def others_on(self, vcpu: int, task: int) -> tuple[int, ...]:
        """Tasks of ``vcpu`` besides ``task``, but for those that died."""
        return tuple(
            row["id"] for row in self.result.tasks if row["vcpu"] == vcpu and row["id"] != task and not row["killed"]
        )

    def current(self, vcpu: int, now_ns: int) -> int:
        """The task that ``vcpu`` runs at ``now_ns`` (0: idle), by the last dispatch before."""
        task = 0
        for record in self.guest:
            if record.time_ns >= now_ns:
                break
            if record.kind == "dispatch" and record.fields[0] == vcpu:
                task = record.fields[1]
        return task


@dataclass(frozen=True, slots=True)
class FirstTouch:
    """An EPT violation on a page that has neither mapping nor swap entry. ``how`` is its access and fault mode."""

    fault_ns: int
    vcpu: int
    task: int
    how: str
    mapped_ns: int
    pfn: int


@dataclass(frozen=True, slots=True)
class SwapOut:
    """The page is picked by a reclaim, leaves the EPT at the next border, and is written to ``slot``."""

    picked_ns: int
    picked_with: int
    border_ns: int
    slot: int
    write_start_ns: int
    write_done_ns: int


@dataclass(frozen=True, slots=True)
class Life:
    """What happened to the page ``gfn`` in one run.

    ``again`` is its next access. ``others``: the tasks that could run while the vCPU slept for it, or the one that did.
    """

    gfn: int
    first: FirstTouch
    out: SwapOut
    again: Fault
    others: tuple[int, ...]


def lives(journals: Journals, first_gfn: int) -> Iterator[Life]:
    """Lives of all pages from ``first_gfn`` on that can be told whole, in the order of their first touch."""
    raised = {(fault.gfn, fault.raised_ns): fault for fault in journals.faults}
    by_gfn: dict[int, list[int]] = {}
    for place, record in enumerate(journals.host):
        gfn = _gfn_of(record)
        if gfn is not None and gfn >= first_gfn:
            by_gfn.setdefault(gfn, []).append(place)
    for gfn, places in by_gfn.items():
        life = _life(journals, raised, gfn, places)
        if life is not None:
            yield life


def _gfn_of(record: Record) -> int | None:
    """The page a host record is about, for the kinds that make a life."""
    match record.kind:
        case "fault" | "prefault":
            return int(record.fields[2])
        case "write" | "drop" | "completed":
            return int(record.fields[1])
        case _:
            return None


def _life(journals: Journals, raised: dict[tuple[int, int], Fault], gfn: int, places: list[int]) -> Life | None:
    host = journals.host
    first = host[places[0]]
    if first.kind != "fault" or first.fields[4] != "minor":
        return None
    touch = FirstTouch(
        fault_ns=first.time_ns,
        vcpu=first.fields[1],
        task=journals.current(first.fields[1], first.time_ns),
        how=first.fields[3],
        mapped_ns=first.fields[5],
        pfn=first.fields[6],
    )
    away = next((n for n, place in enumerate(places) if host[place].kind in _EVICTIONS), None)
    if away is None or host[places[away]].kind != "write":
        return None
    out = _swap_out(host, places[away])
    later = places[away + 1 :]
    if out is None or not later or host[later[0]].kind != "fault" or host[later[0]].time_ns < out.write_done_ns:
        return None
    found = raised.get((gfn, host[later[0]].time_ns))
    if found is None:
        return None
    match journals.result.mode, found.kind:
        case "off", "major":
            others = _stood_still(journals, found)
        case (("pv2010" | "pv"), "async"):
            others = _ran_instead(journals, found, [host[place] for place in later])
        case _:
            return None
    return Life(gfn, touch, out, found, others) if others else None


def _swap_out(host: list[Record], place: int) -> SwapOut | None:
    """The eviction in ``host[place]``, and which reclaim picked it.

    Evictions of a border are in the order in which the reclaims of its window picked them, unless a fault cancelled
    one: None then.
    """
    border = next(n for n in range(place, -1, -1) if host[n].kind == "border")
    number = sum(1 for record in host[border:place] if record.kind in _EVICTIONS)
    opened = next((n for n in range(border - 1, -1, -1) if host[n].kind == "border"), -1)
    reclaims = [record for record in host[opened + 1 : border] if record.kind == "reclaim"]
    if sum(record.fields[4] for record in reclaims) != host[border].fields[2]:
        return None
    for reclaim in reclaims:
        if number < reclaim.fields[4]:
            _vm, _gfn, slot, _pfn, start_ns, done_ns = host[place].fields
            return SwapOut(reclaim.time_ns, reclaim.fields[4], host[place].time_ns, slot, start_ns, done_ns)
        number -= reclaim.fields[4]
    return None


def _stood_still(journals: Journals, fault: Fault) -> tuple[int, ...]:
    """The tasks that could have run while the vCPU slept for a read of this fault's; none if anything else came up."""
    assert fault.replied_ns is not None
    heard = any(
        r.kind in KINDS_OF_VCPU and r.fields[0] == fault.vcpu and fault.raised_ns < r.time_ns < fault.replied_ns
        for r in journals.guest
    )
    if heard or not fault.own_read or not fault.task:
        return ()
    return journals.others_on(fault.vcpu, fault.task)


def _ran_instead(journals: Journals, fault: Fault, later: list[Record]) -> tuple[int, ...]:
    """The task that ran in A's place, all the time until A was back; none unless it is as plain as that."""
    kinds = [record.kind for record in later[:3]]
    if not fault.own_read or kinds != ["fault", "completed", "prefault"] or fault.prefaults[0].outcome != "minor":
        return ()
    after = later[3] if len(later) > 3 else None
    if after is not None and after.kind == "fault" and after.fields[1] == fault.vcpu:
        return ()  # it was not there when the task came back
    plain = fault.back_cpu == fault.vcpu and fault.other not in (0, fault.task) and not fault.repeated
    return (fault.other,) if plain and _at_once(journals, fault) else ()


def _at_once(journals: Journals, fault: Fault) -> bool:
    """Whether page ready was the vCPU's next trap after not-present, and A ran at once."""
    own = [
        r
        for r in journals.guest
        if r.kind in KINDS_OF_VCPU
        and r.fields[0] == fault.vcpu
        and fault.not_present_ns is not None
        and fault.back_ns is not None
        and fault.not_present_ns <= r.time_ns < fault.back_ns
    ]
    return [r.kind for r in own] == ["not_present", "dispatch", "page_ready", "dispatch"]
