"""Runs repeated in the twin.

A run with load from outside, from its log of arrivals (``guestsched.arrival_log``); what operators have asked the swap
device to do is in a log of the host's (``hostd.io_fault_log``). And the runs of a recording, on a real device with the
times that were measured then.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from apf.scenario import ScenarioError
from deploy import recording, twin
from deploy.bench import Keep
from deploy.recording import RecordedRun
from deploy.result import RunResult
from deploy.twin import Twin
from guestsched import arrival_log
from hostd import io_fault_log


def run(paths: Sequence[Path], keep: Keep | None = None) -> tuple[RunResult, list[tuple[str | None, str]]]:
    """Repeat the run that ``paths`` were recorded of: one log for each VM that has an API, and the host's if it has one.

    Its result, and for each log the guest's or host's digest as recorded (None: not known) and now. Raises ScenarioError
    for a file that is no such log, or of another run; Failure if the logs end before their run did.
    """
    read = [io_fault_log.read(path) if io_fault_log.is_log(path) else arrival_log.read(path) for path in paths]
    logs = [log for log in read if isinstance(log, arrival_log.Recorded)]
    hosts = [log for log in read if isinstance(log, io_fault_log.Recorded)]
    scenario = read[0].scenario
    whose = [log.vm if isinstance(log, arrival_log.Recorded) else None for log in read]
    for path, log, vm in zip(paths, read, whose, strict=True):
        if log.scenario.fingerprint() != scenario.fingerprint() or whose.count(vm) > 1:
            raise ScenarioError(f"{path}: of another run than {paths[0]}, or of the same VM or host as another log")
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        joins = {log.vm: log.boot_ns for log in logs if log.vm >= scenario.host.vms}
        twin = Twin(scenario, Path(scratch) / "swap", Path(scratch) if keep is not None else None, joins)
        try:
            for host in hosts:
                twin.io_faults = host.asked
            for log in logs:
                twin.arrivals[log.vm] = log.arrivals
            twin.start()
            while twin.run_window():
                pass
            result = twin.result(time.monotonic() - began_s)
        finally:
            twin.close()
        if keep is not None:
            keep(result, {file.stem: file for file in Path(scratch).glob("*.journal")})
        now = (twin.host_journal.digest() if vm is None else twin.guest_of(vm).core_digest() for vm in whose)
        return result, [(log.digest, digest) for log, digest in zip(read, now, strict=True)]


def run_recorded(directory: Path) -> list[tuple[RunResult, str]]:
    """Repeat the runs of a recording: each one's result, and the digest recorded. Raises ScenarioError, Failure."""
    return [
        (twin.run(recorded.scenario, measured=list(_measured(recorded))), recorded.digest)
        for recorded in recording.read(directory)
    ]


def _measured(recorded: RecordedRun) -> Iterator[tuple[str, int, int]]:
    """What the I/Os of a real device took, from the host's journal."""
    with recorded.journals["host"].open() as journal:
        for line in journal:
            _now_ns, kind, *fields = line.split()
            if kind == "measured":
                operation, slot, took_ns = fields
                yield operation, int(slot), int(took_ns)
