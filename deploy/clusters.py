"""Which clusters of this user run in the background: one JSON file each, by name.

The files lie in a directory of the user's own. A file is written by ``apf up`` before anything starts (status
``starting``), replaced by the supervisor when the cluster answers (``running``) and when the run is over (``ended`` or
``failed``), and removed by ``apf down``. Changes are made under a lock on the directory, so that two commands cannot
both take a name. A pid alone may belong to somebody else by now; with the time the process started (``/proc``) it
cannot: that is how a file whose supervisor is dead is recognised. It is cleaned by whoever finds it.

Beside it, as long as the cluster runs, lies a file for Prometheus (file_sd) with the addresses of its metrics.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from apf.process import Failure
from apf.roles import Role
from apf.rundir import RunDir
from deploy import scraper

Status = Literal["starting", "running", "ended", "failed"]
DEFAULT_NAME = "default"
HERE, ENDED = "here", "ended"
"""States of a VM that was not lost."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LOCK_S = 5.0
_POLL_S = 0.01


class BadInput(Exception):
    """What was asked for cannot be done as asked; the message names field, value and what is allowed, a line each."""


class Record(BaseModel):
    """One cluster, as its file says. Addresses are ``HOST:PORT`` or ``unix:PATH``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pid: int
    # When process `pid` started, clock ticks since boot.
    started_ticks: int
    status: Status = "starting"
    # Wall time at which it was started, seconds since 1970.
    since_s: float
    mode: str
    # "the defaults", or where the scenario came from.
    scenario: str
    fingerprint: str
    # gRPC address of the API; empty until the cluster answers.
    api: str = ""
    # Those of its sockets, by role.
    sockets: dict[str, str] = {}
    # Address of /metrics by daemon: hostd, guest-0, vcpud-0, guest-1, and so on.
    metrics: dict[str, str] = {}
    # Its VMs: "here", "ended", or why one was lost.
    vms: dict[str, str] = {}
    # How many it may have at a time.
    places: int = 1
    # Address of its Prometheus; empty: it has none.
    prometheus: str = ""
    # The run's two directories.
    run_memory: str = ""
    run_files: str = ""
    log: str
    # Where the results are written at the end, and whether they stay there after `apf down`.
    result: str
    keep_result: bool
    # Why the run failed.
    why: str = ""

    @property
    def address(self) -> str:
        """Where this user's own commands find the API: at the operator's socket, which nobody else may use."""
        return self.sockets.get(Role.OPERATOR, self.api)

    def address_of(self, vm: int) -> str:
        """The same for a VM of it. Raises BadInput if there is none of this number, or not any more."""
        if not vm:
            return self.address
        here = [number for number, state in self.vms.items() if state == HERE]
        if str(vm) not in here:
            raise BadInput(f"--vm = {vm}: cluster {self.name} has {', '.join(here)}")
        return RunDir(Path(self.run_memory), Path(self.run_files)).address(Role.OPERATOR, f"guestsched-{vm}")

    @property
    def host_address(self) -> str:
        """Where this user's own commands find hostd: at the operator's socket."""
        return RunDir(Path(self.run_memory), Path(self.run_files)).host_operator_address

    @property
    def alive(self) -> bool:
        """Whether its supervisor (or who is starting it) still runs."""
        return started_ticks(self.pid) == self.started_ticks

    @property
    def over(self) -> bool:
        """Whether the run has ended, and its results wait for ``apf down``."""
        return self.status in {"ended", "failed"}


def started_ticks(pid: int) -> int:
    """When process ``pid`` started, clock ticks since boot; 0 if there is none, or only what is left of one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def check_name(name: str) -> str:
    """``name`` if it may name a cluster, else BadInput."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"--name = {name!r}: 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-', not starting with a sign")
    return name


class Clusters:
    """The files of this user's clusters."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of_user(cls) -> Clusters:
        """In ``$XDG_RUNTIME_DIR/apf``, or in ``apf-UID`` under the temporary directory. Raises Failure.

        Refused is a directory that others may write to: they could name processes to be ended by ``apf down``.
        """
        base = os.environ.get("XDG_RUNTIME_DIR")
        path = Path(base) / "apf" if base else Path(tempfile.gettempdir()) / f"apf-{os.getuid()}"
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
        except OSError as error:
            raise Failure(f"state directory {path}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise Failure(f"state directory {path}: must be a directory of uid {os.getuid()} with mode 0700")
        return cls(path)

    def log(self, name: str) -> Path:
        """Log file of a cluster."""
        return self.directory / f"{name}.log"

    def result(self, name: str) -> Path:
        """Where a cluster's results go if nobody wants them elsewhere."""
        return self.directory / f"{name}.result"

    def targets(self, name: str) -> Path:
        """For Prometheus: the addresses of a cluster's metrics. With name ``*`` the pattern of all such files."""
        return self.directory / f"{name}.targets.yml"

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def names(self) -> list[str]:
        """Names of all clusters."""
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def claim(self, record: Record) -> None:
        """Take ``record.name``; the files of a run that is over are removed. Raises BadInput if it is taken."""
        with self._locked():
            other = self._read(record.name)
            if other is not None and other.alive and not other.over:
                raise BadInput(
                    f"--name = {record.name}: a cluster of this name runs already (pid {other.pid}); "
                    f"end it with 'apf down --name {record.name}', or choose another name"
                )
            if other is not None:
                self._clean(other)
            self._write(record)

    def replace(self, record: Record) -> None:
        """Write ``record`` in place of what its name's file holds."""
        with self._locked():
            self._write(record)

    def find(self, name: str) -> Record | None:
        """The cluster of this name. One whose supervisor has died is cleaned away first."""
        with self._locked():
            record = self._read(name)
            if record is not None and not record.over and not record.alive:
                self._clean(record)
                return None
        return record

    def remove(self, record: Record) -> None:
        """Remove whatever belongs to ``record``: file, log, results nobody asked for, directories of the run."""
        with self._locked():
            self._clean(record)

    def _read(self, name: str) -> Record | None:
        path = self._file(check_name(name))
        try:
            return Record.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError) as error:
            raise Failure(f"{path}: not written by this version of apf; remove it if nothing runs") from error

    def _write(self, record: Record) -> None:
        self._put(self._file(record.name), record.model_dump_json(indent=2) + "\n")
        if record.status == "running":
            self._put(self.targets(record.name), scraper.target_file(record.name, record.metrics.values()))
        else:
            self.targets(record.name).unlink(missing_ok=True)

    def _put(self, path: Path, text: str) -> None:
        """Let ``path`` hold ``text``, whole or not at all."""
        scratch = path.with_suffix(".part")
        scratch.write_text(text)
        os.replace(scratch, path)

    def _clean(self, record: Record) -> None:
        leftovers = [self._file(record.name), self.targets(record.name), Path(record.log)]
        if not record.keep_result:
            leftovers.append(Path(record.result))
        for path in leftovers:
            path.unlink(missing_ok=True)
        if record.run_memory and record.run_files:
            RunDir(Path(record.run_memory), Path(record.run_files)).remove()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Under the directory's lock, which is held for moments only."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline_s = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise Failure(f"{self.directory}: locked by another process for {_LOCK_S:g} s") from None
                    time.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)
