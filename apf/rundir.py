"""Where the processes of one run meet: names of sockets, shared memory and files.

Two directories of the run's own, so that runs never collide: ``memory`` on a tmpfs (guest RAM, clock page, counters) and
``files`` (sockets, the swap file, results, journals). Who made them removes them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHM = Path("/dev/shm")


class AlreadyClaimed(Exception):
    """Another process is what this one wants to be; the message says where."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """The two directories of a run."""

    memory: Path
    files: Path

    @classmethod
    def make(cls) -> RunDir:
        """New directories, for this user only."""
        memory = Path(tempfile.mkdtemp(prefix="apf-", dir=SHM if SHM.is_dir() else None))
        try:
            return cls(memory, Path(tempfile.mkdtemp(prefix="apf-")))
        except OSError:
            memory.rmdir()
            raise

    def remove(self) -> None:
        """Remove both; what is already gone is no error."""
        shutil.rmtree(self.memory, ignore_errors=True)
        shutil.rmtree(self.files, ignore_errors=True)

    def claim(self, name: str, leftovers: Sequence[Path]) -> None:
        """Be the only daemon ``name`` here, as long as this process lives. Raises AlreadyClaimed.

        A daemon that was killed has left its files, which nobody else may still use: ``leftovers`` are removed.
        """
        fd = os.open(self.files / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise AlreadyClaimed(f"{self.files}: another {name} runs there") from None
        for path in leftovers:
            path.unlink(missing_ok=True)

    @property
    def host_memory(self) -> Path:
        """Frames and EPTs (``apf.hostmem``)."""
        return self.memory / "host-memory"

    @property
    def clock(self) -> Path:
        """The clock page (``apf.clockpage``)."""
        return self.memory / "clock"

    def vcpu_stats(self, vm: int) -> Path:
        """Counters of a VM's vCPUs (``apf.stats``)."""
        return self.memory / f"vcpu-stats-{vm}"

    @property
    def swap(self) -> Path:
        """The swap file."""
        return self.files / "swap"

    def address(self, role: str, daemon: str) -> str:
        """GRPC address at which ``daemon`` answers peers of a role; a role's sockets have a directory of their own."""
        return f"unix:{self.files / role / f'{daemon}.sock'}"

    @property
    def host_address(self) -> str:
        """GRPC address of hostd, for vCPUs."""
        return self.address("vcpu", "hostd")

    @property
    def host_load_address(self) -> str:
        """GRPC address of hostd, for guests."""
        return self.address("guest", "hostd")

    @property
    def host_operator_address(self) -> str:
        """GRPC address of hostd, for operators."""
        return self.address("operator", "hostd")

    def guest_address(self, vm: int) -> str:
        """GRPC address of a VM's guestsched, for its vCPUs."""
        return self.address("vcpu", f"guestsched-{vm}")

    def arrivals(self, vm: int) -> Path:
        """What came to a VM from outside (``guestsched.arrival_log``)."""
        return self.files / f"arrivals-{vm}.jsonl"

    @property
    def io_faults(self) -> Path:
        """What operators have asked the swap device to do (``hostd.io_fault_log``); there if they have."""
        return self.files / "io-faults.jsonl"

    def journal(self, name: str) -> Path:
        """Journal of one core."""
        return self.files / f"{name}.journal"

    def report(self, name: str) -> Path:
        """A process's last word."""
        return self.files / f"{name}.json"

    def write_report(self, name: str, report: dict[str, Any]) -> None:
        """Leave a process's last word: results, or why it failed. Appears whole or not at all."""
        path = self.report(name)
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(report))
        os.replace(scratch, path)

    def read_report(self, name: str) -> dict[str, Any] | None:
        """What ``name`` left, or None."""
        try:
            report: dict[str, Any] = json.loads(self.report(name).read_text())
        except FileNotFoundError:
            return None
        return report
