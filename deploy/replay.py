"""A run with load from outside, repeated in the twin from its log of arrivals (``guestsched.arrival_log``)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TextIO

from deploy import journals
from deploy.result import RunResult
from deploy.twin import Twin
from guestsched import arrival_log


def run(path: Path, journal: TextIO | None = None) -> tuple[RunResult, str | None, str]:
    """Repeat the run that ``path`` was recorded of: its result, the guest's digest then (None: not known), and now.

    Raises ScenarioError for a file that is no such log, Failure if the log ends before its run did.
    """
    scenario, arrivals, recorded = arrival_log.read(path)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        twin = Twin(scenario, Path(scratch) / "swap", Path(scratch) if journal is not None else None)
        try:
            twin.arrivals = arrivals
            twin.start()
            while twin.run_window():
                pass
            result = twin.result(time.monotonic() - began_s)
        finally:
            twin.close()
        if journal is not None:
            cores = {file.stem: file for file in Path(scratch).glob("*.journal")}
            journals.merge(scenario.apf[0], cores, journal)
        return result, recorded, twin.guest_journal.digest()
