"""What runs in the guest, and under which scheduler: ``[[process]]`` or ``[bench]``, and ``[sched]`` of a scenario."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from apf.fields import PluginName, Seconds, Section, Size
from apf.messages import PAGE_SIZE

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", max_length=64)]


class Bench(Section):
    """The published benchmark's guest: threads that fault and threads that count."""

    fault_threads: Annotated[int, Field(ge=0, le=256)] = 4
    work_threads: Annotated[int, Field(ge=0, le=256)] = 4
    buffer: Size = 1 << 30
    # False: the run starts with an untouched buffer, whose pages are demand-zero (apf walk shows their first touch).
    populate: bool = True


class Sched(Section):
    """The guest's scheduler: ``cfs``, ``eevdf``, ``rr``, or an entry point of group ``apf.schedulers``."""

    policy: PluginName = "cfs"


class Thread(Section):
    """Tasks of a process that run one program: a built-in by its name, or a static ELF64 file; or a page-access trace.

    File names are relative to the scenario's file. ``sha256`` is filled in when the scenario is loaded.
    """

    program: Annotated[str, Field(max_length=4096)] = ""
    trace: Annotated[str, Field(max_length=4096)] = ""
    count: Annotated[int, Field(ge=1, le=256)] = 1
    nice: Annotated[int, Field(ge=-20, le=19)] = 0
    # vCPUs the tasks may run on; empty: all.
    vcpus: tuple[Annotated[int, Field(ge=0, le=63)], ...] = ()
    # Parameters of a built-in program.
    parameters: dict[str, Annotated[int, Field(ge=0, lt=1 << 63)]] = Field(default_factory=dict)
    # The two arguments of an ELF program's _start after the instance's number.
    args: Annotated[tuple[Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)], ...], Field(max_length=2)] = ()
    start_s: Seconds = Decimal(0)
    # Guest seconds from the start after which the tasks are killed; 0: they are not.
    lifetime_s: Seconds = Decimal(0)
    sha256: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.program) is bool(self.trace):
            raise ValueError(f"program = {self.program!r}, trace = {self.trace!r}: one of the two")
        if self.trace and (self.parameters or self.args):
            raise ValueError(f"parameters = {self.parameters}, args = {self.args}: a trace takes none")
        return self

    @property
    def elf(self) -> Path | None:
        """The ELF file, if the program is one: its name has a suffix or a directory."""
        path = Path(self.program)
        return path if self.program and (path.suffix or len(path.parts) > 1) else None


class Process(Section):
    """A guest process: an address space, and tasks. ``memory`` is what built-in programs, traces and accesses use."""

    name: Name = "process"
    count: Annotated[int, Field(ge=1, le=256)] = 1
    memory: Size = 16 << 20
    # False: the memory is demand-zero. True: it was all written once before the run, as far as the group's limit allows
    # it is resident, and what its programs use of it is stamped.
    populate: bool = True
    # Tasks that perform accesses from outside (the API for load generators).
    access_threads: Annotated[int, Field(ge=0, le=64)] = 0
    thread: Annotated[tuple[Thread, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if self.memory % PAGE_SIZE:
            raise ValueError(f"memory = {self.memory}: must be a multiple of the page size, {PAGE_SIZE}")
        if not self.thread and not self.access_threads:
            raise ValueError("thread = [] and access_threads = 0: at least one task")
        return self
