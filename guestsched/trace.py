"""Traces of page accesses: text, plain or gzip, one access a line.

    # time  page  kind
    @1500   17    r       starts at 1500 ns of guest time, or as soon as the access before it is over
    +45     0x12  w       after 45 instructions of computation
    45      18    r       the same

Time is ``@`` and guest ns, which never decrease from one ``@`` to the next, or the think time before the access, in
instructions. Pages count from the start of the buffer. ``r`` reads, ``w`` writes. From ``#`` on a line is a comment;
empty lines are skipped.

An access takes 13 bytes in memory. Reading takes some 1.5 us a line.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from apf.messages import NEVER_NS, PAGE_SHIFT
from apf.scenario import ScenarioError
from guestsched.core.task import AccessList, TraceAccess

ACCESSES_MAX = 50_000_000
WRITE = 1
"""Bit of ``Trace.kinds``: the access writes."""
ABSOLUTE = 2
"""Bit of ``Trace.kinds``: its time is guest ns, not think time."""

_LINE_MAX = 1000
_GZIP_MAGIC = b"\x1f\x8b"
_LINE = re.compile(rb"\s*([@+]?)(\d{1,19})\s+(0x[0-9a-fA-F]{1,16}|\d{1,19})\s+([rw])\s*(?:#.*)?", re.DOTALL)
_NOTHING = re.compile(rb"\s*(?:#.*)?", re.DOTALL)
_ALLOWED = "<time> <page> <r|w>, where time is @ns, +instructions or instructions, as in '@1500 17 r' or '+45 0x12 w'"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A trace: three arrays with an element for each access. ``sha256`` is that of the file as it is stored."""

    times: npt.NDArray[np.int64]
    """Guest ns of the start if ``kinds`` has ABSOLUTE, else instructions of computation before it."""
    pages: npt.NDArray[np.uint32]
    kinds: npt.NDArray[np.uint8]
    sha256: str

    def __len__(self) -> int:
        return len(self.times)


class TraceList(AccessList):
    """A trace as an access thread takes it; addresses count from the start of the memory."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(())
        self._trace = trace

    def __len__(self) -> int:
        return len(self._trace)

    def __getitem__(self, index: int) -> TraceAccess:
        trace = self._trace
        kind, time = int(trace.kinds[index]), int(trace.times[index])
        absolute = bool(kind & ABSOLUTE)
        return TraceAccess(
            address=int(trace.pages[index]) << PAGE_SHIFT,
            words=1,
            write=bool(kind & WRITE),
            think=0 if absolute else time,
            at_ns=time if absolute else 0,
        )


def read_trace(path: Path, pages: int) -> Trace:
    """The trace in ``path`` for a buffer of ``pages`` pages (at most 2**32).

    Raises ScenarioError that names file, line, its text and what is allowed; or says why the file cannot be read.
    """
    assert 0 < pages <= 1 << 32, f"a buffer of {pages} pages"
    try:
        with path.open("rb") as stored:
            digest = hashlib.file_digest(stored, "sha256").hexdigest()
            stored.seek(0)
            packed = stored.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            stored.seek(0)
            if packed:
                with gzip.open(stored) as text:
                    return _parsed(path, text, pages, digest)
            return _parsed(path, stored, pages, digest)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ScenarioError(f"{path}: a damaged gzip file: {error}") from error
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(text: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Lines, each of at most one byte more than is allowed, for a file may be one endless line."""
    while line := text.readline(_LINE_MAX + 1):
        yield line


def _parsed(path: Path, text: IO[bytes] | gzip.GzipFile, pages: int, digest: str) -> Trace:
    times, numbers, kinds = array("q"), array("I"), bytearray()
    latest_ns = 0
    for number, line in enumerate(_lines(text), 1):
        if len(line) > _LINE_MAX:
            raise _bad(path, number, line, "it is too long", f"{_LINE_MAX} bytes")
        match = _LINE.fullmatch(line)
        if match is None:
            if _NOTHING.fullmatch(line):
                continue
            raise _bad(path, number, line, "it is not an access", _ALLOWED)
        sign, time_text, page_text, kind = match.groups()
        time = int(time_text)
        page = int(page_text, 16 if page_text.startswith(b"0x") else 10)
        if page >= pages:
            raise _bad(path, number, line, f"page {page} is outside the buffer", f"0 to {pages - 1}")
        if time >= NEVER_NS:
            raise _bad(path, number, line, f"time {time} is too large", f"0 to {NEVER_NS - 1}")
        if sign == b"@":
            if time < latest_ns:
                raise _bad(path, number, line, f"time goes back from {latest_ns} to {time}", f"@{latest_ns} or later")
            latest_ns = time
        if len(times) >= ACCESSES_MAX:
            raise _bad(path, number, line, "there are too many accesses", f"{ACCESSES_MAX}")
        times.append(time)
        numbers.append(page)
        kinds.append((WRITE if kind == b"w" else 0) | (ABSOLUTE if sign == b"@" else 0))
    if not times:
        raise ScenarioError(f"{path}: a trace without an access; allowed: lines of {_ALLOWED}")
    return Trace(
        np.frombuffer(times, np.int64),
        np.frombuffer(numbers, np.uint32),
        np.frombuffer(kinds, np.uint8),
        digest,
    )


def _bad(path: Path, number: int, line: bytes, what: str, allowed: str) -> ScenarioError:
    shown = line[:80].decode("ascii", "backslashreplace").rstrip("\r\n")
    return ScenarioError(f"{path}, line {number}: {shown!r}: {what}; allowed: {allowed}")
