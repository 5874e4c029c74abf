"""A run's journals: as events one after the other, as one file, and the first event in which two such files differ.

In both they are in the order of virtual time. The file has a line an event, ``<mode> <time_ns> <core> <kind> <field>
...``, events of the same time by core. ``events`` gives those of the same time by cause: what a vCPU asks for comes
before what the host and then the guest kernel make of it (an answer is always later than its question). Both read the
journals line by line, so memory does not grow with the run.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

_CONTEXT = 3
_CAUSES = ("vcpu", "host", "guest")
_NUMBERS = {"host": 0, "guest": 1, "vcpu": 2}
KINDS_OF_VCPU = frozenset(
    (
        *("boot", "tick", "timer", "interrupt", "not_present", "page_ready", "syscall", "exception", "run_failed"),
        *("stop", "dispatch"),
    )
)
"""Records of the guest kernel that begin with the number of a vCPU; the others name tasks, tickets and such."""


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a journal. ``fields`` are integers where they look like one."""

    time_ns: int
    kind: str
    fields: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Core:
    """Whose journal it is: ``kind`` is ``host``, ``guest`` or ``vcpu``; 0 for what a kind does not have."""

    kind: str
    vm: int = 0
    vcpu: int = 0

    @classmethod
    def of(cls, name: str) -> Core:
        """From a core's name: ``host``, ``guest-VM`` or ``vcpu-VM-VCPU``."""
        kind, *numbers = name.split("-")
        if _NUMBERS.get(kind) != len(numbers) or not all(number.isdecimal() for number in numbers):
            raise ValueError(f"{name}: no core of this name; they are host, guest-VM and vcpu-VM-VCPU")
        return cls(kind, *map(int, numbers))


@dataclass(frozen=True, slots=True)
class Event:
    """A record, and the core whose it is."""

    core: Core
    record: Record


def records(path: Path) -> Iterator[Record]:
    """The records of the journal in ``path``, one by one."""
    with path.open() as lines:
        for line in lines:
            time_ns, kind, *words = line.split()
            fields = tuple(int(word) if word.lstrip("-").isdecimal() else word for word in words)
            yield Record(int(time_ns), kind, fields)


def events(journals: Mapping[str, Path]) -> Iterator[Event]:
    """All events of a run, from its journals by core name, in the order of time and cause."""
    streams = [_ordered(Core.of(name), path) for name, path in journals.items()]
    return (event for _, _, _, event in heapq.merge(*streams))


def _ordered(core: Core, path: Path) -> Iterator[tuple[int, tuple[int, int, int], int, Event]]:
    place = (_CAUSES.index(core.kind), core.vm, core.vcpu)
    for number, record in enumerate(records(path)):
        yield record.time_ns, place, number, Event(core, record)


def _events(core: str, path: Path) -> Iterator[tuple[int, str, int, str]]:
    with path.open() as lines:
        for number, line in enumerate(lines):
            time_ns, _, rest = line.partition(" ")
            yield int(time_ns), core, number, rest


def merge(mode: str, journals: Mapping[str, Path], into: TextIO) -> None:
    """Append a run's journals, given by core name, to ``into``."""
    streams = [_events(core, path) for core, path in sorted(journals.items())]
    for time_ns, core, _, rest in heapq.merge(*streams):
        into.write(f"{mode} {time_ns} {core} {rest}")


@dataclass(frozen=True, slots=True)
class Difference:
    """Line ``number`` (from 1) is ``left`` in one file and ``right`` in the other; None: the file has ended."""

    number: int
    left: str | None
    right: str | None
    before: tuple[str, ...]


def first_difference(left: Iterable[str], right: Iterable[str]) -> Difference | None:
    """The first line in which two journals differ, with the lines before it; None if they are the same."""
    before: deque[str] = deque(maxlen=_CONTEXT)
    for number, (one, other) in enumerate(zip_longest(left, right), start=1):
        if one != other:
            strip = [None if line is None else line.rstrip("\n") for line in (one, other)]
            return Difference(number, strip[0], strip[1], tuple(before))
        before.append(one.rstrip("\n"))
    return None
