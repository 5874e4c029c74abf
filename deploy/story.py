"""One page's life, found in the journals of a run: first touch, swap-out, re-access.

A journal is what a core did, line by line (``apf.journal``); this module only reads. ``lives`` gives every page of
the buffer that went through all stages and can be told without a gap: nothing here is guessed, and a page of which
the records leave something open is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.result import RunResult

_EVICTIONS = ("write", "drop")
"""What a border does to a page that was picked: its bytes go to the swap file, or are there already."""
KINDS_OF_VCPU = frozenset(
    ("boot", "tick", "timer", "interrupt", "not_present", "page_ready", "syscall", "exception", "stop", "dispatch")
)
"""Records of the guest kernel that begin with the number of a vCPU; the others name tasks, tickets and such."""


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a journal. ``fields`` are integers where they look like one."""

    time_ns: int
    kind: str
    fields: tuple[Any, ...]


def read_journal(path: Path) -> list[Record]:
    """All records of the journal in ``path``."""
    records = []
    for line in path.read_text().splitlines():
        time_ns, kind, *words = line.split()
        fields = tuple(int(word) if word.lstrip("-").isdecimal() else word for word in words)
        records.append(Record(int(time_ns), kind, fields))
    return records


@dataclass(frozen=True, slots=True)
class Journals:
    """The journals of one run, by core name, with what the run came to."""

    result: RunResult
    by_core: dict[str, list[Record]]

    @classmethod
    def read(cls, result: RunResult, paths: dict[str, Path]) -> Journals:
        """Read the files of a run that has ended."""
        return cls(result, {name: read_journal(path) for name, path in paths.items()})

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
class Stall:
    """The page's next access where the vCPU sleeps in the host. Tasks in ``ready`` could have run meanwhile."""

    fault_ns: int
    vcpu: int
    task: int
    ready: tuple[int, ...]
    slot: int
    read_start_ns: int
    read_done_ns: int
    stall_ns: int
    mapped_ns: int
    pfn: int


@dataclass(frozen=True, slots=True)
class Async:
    """The page's next access as an asynchronous page fault: ``task`` sleeps, ``other`` runs."""

    fault_ns: int
    vcpu: int
    task: int
    other: int
    token: int
    slot: int
    read_start_ns: int
    read_done_ns: int
    injected_ns: int
    not_present_ns: int
    other_from_ns: int
    completed_ns: int
    prefault_ns: int
    ready_mapped_ns: int
    ready_injected_ns: int
    page_ready_ns: int
    task_from_ns: int
    pfn: int


@dataclass(frozen=True, slots=True)
class Life:
    """What happened to the page ``gfn`` in one run."""

    gfn: int
    first: FirstTouch
    out: SwapOut
    again: Stall | Async


def lives(journals: Journals, first_gfn: int) -> Iterator[Life]:
    """Lives of all pages from ``first_gfn`` on that can be told whole, in the order of their first touch."""
    by_gfn: dict[int, list[int]] = {}
    for place, record in enumerate(journals.host):
        gfn = _gfn_of(record)
        if gfn is not None and gfn >= first_gfn:
            by_gfn.setdefault(gfn, []).append(place)
    for gfn, places in by_gfn.items():
        life = _life(journals, gfn, places)
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


def _life(journals: Journals, gfn: int, places: list[int]) -> Life | None:
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
    again: Stall | Async | None
    match journals.result.mode, host[later[0]].fields[4]:
        case "off", "major":
            again = _stall(journals, later[0])
        case (("pv2010" | "pv"), "async"):
            again = _async(journals, later)
        case _:
            return None
    return None if again is None else Life(gfn, touch, out, again)


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


def _read_before(host: list[Record], place: int) -> Record | None:
    """The read that the fault in ``host[place]`` submitted; None if it waits for somebody else's."""
    before = host[place - 1]
    return before if before.kind == "read" and before.time_ns == host[place].time_ns else None


def _stall(journals: Journals, place: int) -> Stall | None:
    fault, read = journals.host[place], _read_before(journals.host, place)
    if read is None:
        return None
    _vm, vcpu, _gfn, _how, _kind, at_ns, pfn, _writable, stall_ns = fault.fields
    task = journals.current(vcpu, fault.time_ns)
    ready = journals.others_on(vcpu, task)
    heard = any(
        r.kind in KINDS_OF_VCPU and r.fields[0] == vcpu and fault.time_ns < r.time_ns < at_ns for r in journals.guest
    )
    if not task or not ready or heard:
        return None
    _vm, _gfn, slot, _pfn, _arrival_ns, start_ns, done_ns = read.fields
    return Stall(fault.time_ns, vcpu, task, ready, slot, start_ns, done_ns, stall_ns, at_ns, pfn)


def _async(journals: Journals, places: list[int]) -> Async | None:
    host = journals.host
    fault, read = host[places[0]], _read_before(host, places[0])
    kinds = [host[place].kind for place in places[1:3]]
    if read is None or kinds != ["completed", "prefault"]:
        return None
    completed, prefault = host[places[1]], host[places[2]]
    _vm, vcpu, gfn, _how, _kind, injected_ns, token, _ready_ns = fault.fields
    if prefault.fields[3] != token or prefault.fields[4] != "minor":
        return None
    after = host[places[3]] if len(places) > 3 else None
    if after is not None and after.kind == "fault" and after.fields[1] == vcpu:
        return None  # it was not there when the task came back
    told = _told(journals, vcpu, token)
    if told is None:
        return None
    not_present, asleep, page_ready, back = told
    task, other = journals.current(vcpu, fault.time_ns), asleep.fields[1]
    if back.fields[1] != task or other in (0, task):
        return None
    mapped_ns = prefault.fields[5]
    ready = [r for r in journals.vcpu(vcpu) if r.kind == "async_pf_ready" and r.fields == (token, gfn)]
    _vm, _gfn, slot, _pfn, _arrival_ns, start_ns, done_ns = read.fields
    return Async(
        fault_ns=fault.time_ns,
        vcpu=vcpu,
        task=task,
        other=other,
        token=token,
        slot=slot,
        read_start_ns=start_ns,
        read_done_ns=done_ns,
        injected_ns=injected_ns,
        not_present_ns=not_present.time_ns,
        other_from_ns=asleep.fields[2],
        completed_ns=completed.time_ns,
        prefault_ns=prefault.time_ns,
        ready_mapped_ns=mapped_ns,
        ready_injected_ns=ready[0].time_ns,
        page_ready_ns=page_ready.time_ns,
        task_from_ns=back.fields[2],
        pfn=prefault.fields[6],
    )


def _told(journals: Journals, vcpu: int, token: int) -> tuple[Record, Record, Record, Record] | None:
    """What the guest kernel did about ``token``: not-present and the dispatch after it, page-ready and the one after.

    None unless the page-ready is the vCPU's next trap, and the task it wakes runs at once.
    """
    own = [r for r in journals.guest if r.kind in KINDS_OF_VCPU and r.fields[0] == vcpu]
    for place, record in enumerate(own):
        if record.kind == "not_present" and record.fields[1] == token:
            rest = own[place : place + 4]
            if [r.kind for r in rest] == ["not_present", "dispatch", "page_ready", "dispatch"]:
                not_present, asleep, page_ready, back = rest
                if page_ready.fields[1] == token:
                    return not_present, asleep, page_ready, back
            return None
    return None
