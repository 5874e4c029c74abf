"""Processes made while the guest runs: what is asked for, checked, and the plan that follows.

A wish is kept with the arrivals of a run, so that the same plan can be made when the run is replayed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apf import refusal
from apf.messages import PAGE_SIZE
from apf.scenario import ScenarioError
from guestsched.core.process import ProcessPlan
from guestsched.elf import ElfProgram, load_elf
from guestsched.plan import Wanted, builtin, plan
from guestsched.programs import BUILTINS, BuiltIn

IMAGE_BYTES_MAX = 2 << 20
"""What the programs of a process made later may bring along: it travels in one dispatch."""
_WORD_MAX = (1 << 63) - 1


class SpawnWish(BaseModel):
    """A process to be made: fields as in SpawnRequest."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]*$", max_length=64)] = ""
    program: Annotated[str, Field(max_length=64)] = ""
    elf: Annotated[bytes, Field(max_length=IMAGE_BYTES_MAX)] = b""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    access_threads: Annotated[int, Field(ge=0, le=64)] = 0
    memory: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    nice: Annotated[int, Field(ge=-20, le=19)] = 0
    vcpus: tuple[Annotated[int, Field(ge=0, le=63)], ...] = ()
    parameters: dict[str, Annotated[int, Field(ge=0, le=_WORD_MAX)]] = {}
    lifetime_ns: Annotated[int, Field(ge=0, le=_WORD_MAX)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.program and self.elf:
            raise ValueError(f"program = {self.program!r} and elf = {len(self.elf)} bytes: one of the two")
        if not (self.program or self.elf or self.access_threads):
            raise ValueError("program = '', elf = b'', access_threads = 0: at least one task")
        if self.threads and not (self.program or self.elf):
            raise ValueError(f"threads = {self.threads}: without a program there are none")
        if self.parameters and not self.program:
            raise ValueError(f"parameters = {self.parameters}: for built-in programs only")
        if self.memory % PAGE_SIZE:
            raise ValueError(f"memory = {self.memory}: a multiple of {PAGE_SIZE}")
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> SpawnWish:
        """Checked. Raises ScenarioError that names field, value and what is allowed."""
        return refusal.checked(cls, fields, ScenarioError)

    def plan(self, seed: int, vcpus: int) -> ProcessPlan:
        """The plan for a VM with so many vCPUs. Raises ScenarioError."""
        absent = [vcpu for vcpu in self.vcpus if vcpu >= vcpus]
        if absent:
            raise ScenarioError(f"vcpus = {list(self.vcpus)}: this VM has 0 to {vcpus - 1}")
        wanted: list[Wanted] = []
        program: BuiltIn | ElfProgram | None = None
        label = self.program
        if self.program:
            program = builtin(self.program, "program")
            program.checked(self.parameters)
        elif self.elf:
            program, label = self._elf(), "elf"
        if program is not None:
            wanted += [self._wanted(program, label, instance) for instance in range(self.threads or 1)]
        access = BUILTINS["access_thread"]
        wanted += [self._wanted(access, access.name, instance) for instance in range(self.access_threads)]
        uses_memory = self.access_threads or (isinstance(program, BuiltIn) and program.stamps)
        if uses_memory and not self.memory:
            raise ScenarioError(f"memory = {self.memory}: at least {PAGE_SIZE}, for the tasks access it")
        made = plan(seed, self.name or label or "load", wanted, self.memory // PAGE_SIZE, populate=False)
        size = sum(len(region.data) for region in made.regions)
        if size > IMAGE_BYTES_MAX:
            raise ScenarioError(f"program = {self.program!r}: it brings {size} bytes; at most {IMAGE_BYTES_MAX}")
        return made

    def _wanted(self, program: BuiltIn | ElfProgram, label: str, instance: int) -> Wanted:
        parameters = self.parameters if label == self.program else {}
        return Wanted(
            *(program, label, instance, parameters, (), self.nice, self.vcpus), lifetime_ns=self.lifetime_ns
        )

    def _elf(self) -> ElfProgram:
        with tempfile.NamedTemporaryFile(suffix=".elf") as file:
            file.write(self.elf)
            file.flush()
            try:
                return load_elf(Path(file.name))
            except ScenarioError as error:
                raise ScenarioError(str(error).replace(file.name, "elf")) from error
