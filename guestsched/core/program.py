"""What the guest kernel has to know about a guest program: its bytes, and which register holds which argument.

A program is position-independent machine code that is entered at ``entry`` with its arguments in registers. Which
register holds which argument is the program's choice; the names of the arguments are those of the dataclasses here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

from apf import registers as register_file


class Program(Protocol):
    """Assembled code. ``symbols`` are byte offsets into it."""

    @property
    def name(self) -> str:
        """The program's name, as users see it."""

    @property
    def code(self) -> bytes:
        """The machine code."""

    @property
    def symbols(self) -> Mapping[str, int]:
        """Label -> byte offset."""


@dataclass(frozen=True, slots=True)
class FaultArguments:
    """What ``fault_thread`` is told: the buffer and its own stamp there (see apf.messages.Stamp).

    It touches random pages of a buffer of ``pages`` pages, drawn from a generator seeded with ``rng_seed`` (never 0).
    Its stamp word in page p, at gva ``buffer + p * 4096``, starts as ``stamp_base + stamp_stride * p``, and the word
    behind it is the stamp word times ``multiplier`` (all mod 2**64). With ``zero_ok`` 1 a page where both words are
    zero is one it has not used yet; with 0 it is corrupt.
    """

    buffer: int
    pages: int
    rng_seed: int
    stamp_base: int
    stamp_stride: int
    multiplier: int
    zero_ok: int


@dataclass(frozen=True, slots=True)
class WorkArguments:
    """What ``work_thread`` is told: the gva of the 8-byte counter that is its own."""

    counter: int


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program and its contract: argument name -> register, result name -> register, byte offset of its entry.

    An argument that ``arguments`` does not name is not passed; a name no argument has is an error.
    """

    program: Program
    arguments: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)
    entry: int = 0

    def registers(self, code_gva: int, values: FaultArguments | WorkArguments) -> bytes:
        """The registers a task of this program starts with, its code being at ``code_gva``."""
        known = {item.name: getattr(values, item.name) for item in fields(values)}
        unknown = sorted(self.arguments.keys() - known.keys())
        assert not unknown, f"program {self.program.name} wants {unknown}; there is {sorted(known)}"
        passed = {register: known[name] for name, register in self.arguments.items()}
        assert len(passed) == len(self.arguments), f"program {self.program.name}: two arguments in one register"
        return register_file.new(rip=code_gva + self.entry, **passed)
