"""A run's journals as one file in the order of virtual time, and the first event in which two such files differ.

A line: ``<mode> <time_ns> <core> <kind> <field> ...``; events of the same time by core, and in each core's own order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

_CONTEXT = 3


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
