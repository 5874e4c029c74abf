"""What is made of the journals of runs as they end: one file of all events, a Perfetto trace, a recording.

The files are opened before anything runs, so that a place that cannot be written to is told at once. Nothing is
journaled to disk, and no run is slower, unless one of them is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from deploy import journals
from deploy.bench import Keep
from deploy.recording import Recorder
from deploy.result import RunResult

if TYPE_CHECKING:
    from deploy.tracefile import TraceFile

TRACE_LIMIT_BYTES = 512 << 20
"""Of a trace: the browser's importer holds a few GiB at the most, and its tables are several times the file."""


class Keeper:
    """Keeps what was asked for, from the ``with`` on. Raises OSError and ScenarioError for places that will not do.

    ``keep`` is None if nothing was. ``said`` is what the user should know in the end.
    """

    def __init__(
        self,
        journal: Path | None = None,
        traced: Path | None = None,
        record: Path | None = None,
        limit: int = TRACE_LIMIT_BYTES,
    ) -> None:
        self._paths = (journal, traced, record)
        self._limit = limit
        self._stack = ExitStack()
        self._journal: TextIO | None = None
        self._trace_to: BinaryIO | None = None
        self._trace: TraceFile | None = None
        self._recorder: Recorder | None = None
        self._runs = 0
        self.keep: Keep | None = self._keep if any(self._paths) else None

    def __enter__(self) -> Keeper:
        journal, traced, record = self._paths
        with self._stack:
            if journal is not None:
                self._journal = self._stack.enter_context(journal.open("w"))
            if traced is not None:
                self._trace_to = self._stack.enter_context(traced.open("wb"))
            if record is not None:
                self._recorder = Recorder(record)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _keep(self, result: RunResult, paths: Mapping[str, Path]) -> None:
        if self._journal is not None:
            journals.merge(result.mode, paths, self._journal)
        if self._trace_to is not None:
            from deploy import trace  # the format's classes are many: only for who wants a trace
            from deploy.tracefile import TraceFile

            self._trace = self._trace or TraceFile(self._trace_to, self._limit)
            trace.write(self._trace, f"apf = {result.mode}", self._runs, paths, result.scenario.swap.name)
        if self._recorder is not None:
            self._recorder.keep(result, paths)
        self._runs += 1

    def finish(self) -> list[str]:
        """All runs have ended: complete what was begun; lines for the user."""
        said = []
        if self._recorder is not None:
            self._recorder.finish()
            said.append(f"recorded in {self._paths[2]}: apf explain {self._paths[2]}")
        if self._trace is not None:
            said.append(trace_told(self._paths[1], self._trace))
        return said


def trace_told(path: Path | None, written: TraceFile) -> str:
    """What became of a trace: how much there is, and whether it is all."""
    text = f"{path}: {written.events:,} events, {written.written >> 20} MiB"
    if written.cut_ns is None:
        return f"{text}; open it at ui.perfetto.dev"
    return (
        f"{text}; the limit was reached at {written.cut_ns:,} ns of guest time, and {written.left_out:,} events are "
        f"left out. A larger --trace-limit takes more of them"
    )
