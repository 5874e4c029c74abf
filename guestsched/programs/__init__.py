"""Built-in guest programs, as assembled bytes, and the registers through which guestsched talks to them.

The sources are the ``.asm`` files beside this file; ``assemble`` makes ``builtin.json`` of them, which is committed.
Programs are position-independent and start at their first byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

WORK_PAGE = "rdi"
"""work_thread, in: guest-virtual address of the thread's own page: its counter, and when it began (u64 each)."""
WORK_COUNT = "r8"
"""work_thread, in and out: the counter."""

FAULT_BUFFER = "rdi"
"""fault_thread, in: guest-virtual address of the buffer plus the offset of the thread's stamp in a page."""
FAULT_PAGES = "rsi"
"""fault_thread, in: pages of the buffer, below 2**32."""
FAULT_RANDOM = "rbx"
"""fault_thread, in and out: state of its random generator (xorshift64), seeded with anything but 0."""
FAULT_STAMP_BASE = "r9"
FAULT_STAMP_STRIDE = "r10"
FAULT_CHECK_MULTIPLIER = "r11"
"""fault_thread, in: ``Stamp.base``, ``Stamp.stride`` and ``CHECK_MULTIPLIER`` of ``apf.messages``."""
FAULT_ZERO_OK = "r8"
"""fault_thread, in: 1 if a stamp of zeros is one not written yet (demand-zero buffer), 0 if it is corrupt."""
FAULT_ACCESSES = "r14"
"""fault_thread, out: accesses done."""
FAULT_CORRUPT = "r15"
"""fault_thread, out: corrupt stamps found, each once."""


@dataclass(frozen=True, slots=True)
class Program:
    """Code that runs at any address, and offsets of its labels."""

    name: str
    code: bytes
    symbols: dict[str, int]


@cache
def _programs() -> dict[str, Program]:
    stored = json.loads(files(__name__).joinpath("builtin.json").read_text(encoding="ascii"))
    return {name: Program(name, bytes.fromhex(fields["code"]), fields["symbols"]) for name, fields in stored.items()}


def names() -> tuple[str, ...]:
    """Names of all built-in programs, sorted."""
    return tuple(sorted(_programs()))


def load(name: str) -> Program:
    """The built-in program ``name``. Raises KeyError if there is none."""
    return _programs()[name]
