"""What the guest kernel has to know about a guest program: its bytes, and which register holds which argument.

A program is position-independent machine code that is entered at ``entry`` with its arguments in registers. Which
register holds which argument is the program's choice; ``guestsched.programs`` lists the names and what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class LoadedProgram:
    """A program and its contract: argument name -> register, result name -> register, byte offset of its entry.

    A value that ``arguments`` does not name is not passed; a name without a value is an error.
    """

    program: Program
    arguments: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)
    entry: int = 0

    def registers(self, code_gva: int, values: Mapping[str, int]) -> bytes:
        """The registers a task of this program starts with, its code being at ``code_gva``.

        ``values`` are arguments by name; raises AssertionError if one that the program wants is not there.
        """
        unknown = sorted(self.arguments.keys() - values.keys())
        assert not unknown, f"program {self.program.name} wants {unknown}; there is {sorted(values)}"
        passed = {register: values[name] for name, register in self.arguments.items()}
        assert len(passed) == len(self.arguments), f"program {self.program.name}: two arguments in one register"
        return register_file.new(rip=code_gva + self.entry, **passed)
