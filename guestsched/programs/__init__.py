"""Built-in guest programs: assembled bytes, and what the guest kernel and the user have to know of each.

The sources are the ``.asm`` files beside this file; ``assemble`` makes ``builtin.json`` of them, which is committed.
Programs are position-independent, use no stack, and start at their first byte. ``BUILTINS`` names them all.

A program's arguments are in registers, by name. The guest kernel supplies

    buffer                gva of the memory to access; with ``stamps``, plus the offset of the task's stamp in a page
    pages                 pages of the buffer, 1 .. 2**32 - 1
    rng_seed              anything but 0, of the task's own
    stamp_base, stamp_stride, multiplier
                          ``Stamp.base``, ``Stamp.stride`` and ``CHECK_MULTIPLIER`` of ``apf.messages``
    zero_ok               1 if a stamp of zeros is one not written yet (demand-zero buffer), 0 if it is corrupt
    table                 gva of the bytes that ``BuiltIn.table`` makes, mapped read-only
    counter, ring         gva of a page of zeros: the task's own, or with ``shared_page`` its pair's
    items, room           two semaphores of the pair's own (system calls 4097 and 4098)

and ``BuiltIn.argument_values`` all others, from what the user has set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import gcd
from types import MappingProxyType

from apf.messages import Account
from apf.scenario import ScenarioError
from guestsched.programs.zipf import zipf_table

_GOLDEN_SHIFT = 64
_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio."""
_COUNT_MAX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Parameter:
    """An integer the user may set: its default, and the least and the greatest value allowed."""

    default: int
    minimum: int
    maximum: int
    doc: str


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A built-in program.

    ``symbols`` are byte offsets into ``code``; ``arguments`` and ``results`` map names to registers. ``stamps``: the
    task wants a buffer with a stamp of its own. ``shared_page``: it shares the page of its argument ``ring`` with the
    task of the same number that runs its counterpart (producer and consumer). ``table`` makes the read-only data, from
    checked parameters and the pages of the buffer; None if there is none.
    """

    name: str
    code: bytes
    symbols: Mapping[str, int]
    arguments: Mapping[str, str]
    results: Mapping[str, str]
    account: Account
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    stamps: bool = False
    shared_page: bool = False
    table: Callable[[Mapping[str, int], int], bytes] | None = None
    derive: Callable[[Mapping[str, int], int], Mapping[str, int]] | None = None
    """Arguments that depend on the buffer's pages."""

    def checked(self, given: Mapping[str, int]) -> dict[str, int]:
        """All parameters: those ``given``, else the defaults. Raises ScenarioError if one is unknown or out of range."""
        problems = [
            f"{self.name}: there is no parameter {name!r}; allowed: {', '.join(self.parameters) or 'none'}"
            for name in sorted(given.keys() - self.parameters.keys())
        ]
        values = {name: given.get(name, parameter.default) for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            if not parameter.minimum <= values[name] <= parameter.maximum:
                allowed = f"{parameter.minimum} to {parameter.maximum} ({parameter.doc})"
                problems.append(f"{self.name}: {name} = {values[name]}; allowed: {allowed}")
        if problems:
            raise ScenarioError("\n".join(problems))
        return values

    def argument_values(self, given: Mapping[str, int], pages: int) -> dict[str, int]:
        """The arguments that follow from the parameters ``given`` and the ``pages`` of the buffer (0: no buffer).

        Raises ScenarioError like ``checked``.
        """
        parameters = self.checked(given)
        values = {name: value for name, value in parameters.items() if name in self.arguments}
        return values | dict(self.derive(parameters, pages) if self.derive else {})

    def table_bytes(self, given: Mapping[str, int], pages: int) -> bytes:
        """The read-only data, empty if there is none. Raises ScenarioError like ``checked``."""
        return self.table(self.checked(given), pages) if self.table else b""


def coprime_scatter(pages: int) -> int:
    """A number below ``pages`` (1 if there is but one) without a common divisor, near ``pages`` / golden ratio.

    ``r * scatter % pages`` visits every page once for r = 0 .. pages - 1, neighbours far apart.
    """
    scatter = max(1, pages * _GOLDEN >> _GOLDEN_SHIFT)
    while gcd(scatter, pages) != 1:
        scatter += 1
    return scatter


_MEMORY_ARGUMENTS = {
    "buffer": "rdi",
    "pages": "rsi",
    "rng_seed": "rbx",
    "stamp_base": "r9",
    "stamp_stride": "r10",
    "multiplier": "r11",
    "zero_ok": "r8",
}
_MEMORY_RESULTS = {"accesses": "r14", "corrupt": "r15"}
_THINK = Parameter(0, 0, _COUNT_MAX, "instructions of pure computation before each access, in pairs")
_WRITES = Parameter(256, 0, 256, "accesses of 256 that write; the others only read and verify")


def _memory(
    own: Mapping[str, str],
    parameters: Mapping[str, Parameter],
    derive: Callable[[Mapping[str, int], int], Mapping[str, int]] | None = None,
    table: Callable[[Mapping[str, int], int], bytes] | None = None,
) -> Callable[[str, bytes, Mapping[str, int]], BuiltIn]:
    """A program that accesses pages of a buffer and verifies its stamp there, with arguments of its ``own``."""
    return lambda name, code, symbols: BuiltIn(
        *(name, code, symbols),
        arguments={**_MEMORY_ARGUMENTS, "writes": "r12", "think": "r13", **own},
        results=_MEMORY_RESULTS,
        account=Account.FAULTING,
        parameters={"writes": _WRITES, "think": _THINK, **parameters},
        stamps=True,
        derive=derive,
        table=table,
    )


def _pair(results: Mapping[str, str]) -> Callable[[str, bytes, Mapping[str, int]], BuiltIn]:
    """One end of a ring."""
    think = Parameter(20_000, 0, _COUNT_MAX, "instructions of pure computation for each item, in pairs")
    return lambda name, code, symbols: BuiltIn(
        *(name, code, symbols),
        arguments={"ring": "r8", "items": "r9", "room": "r10", "multiplier": "r12", "think": "r13"},
        results=results,
        account=Account.OTHER,
        parameters={"think": think},
        shared_page=True,
    )


def _scattered(parameters: Mapping[str, int], pages: int) -> dict[str, int]:
    return {"scatter": coprime_scatter(pages)}


def _first(parameters: Mapping[str, int], pages: int) -> dict[str, int]:
    return {"first": parameters["first"] % pages}


def _chase(parameters: Mapping[str, int], pages: int) -> dict[str, int]:
    return _first(parameters, pages) | _scattered(parameters, pages)


def _shift(parameters: Mapping[str, int], pages: int) -> dict[str, int]:
    """The window is at most the buffer; what it moves on by is a place in it."""
    return _first(parameters, pages) | {
        "window": min(parameters["window"], pages),
        "step": parameters["step"] % pages,
        "left": parameters["period"],
    }


_FIRST = Parameter(0, 0, _COUNT_MAX, "the page to begin with (mod the buffer's pages)")
_MAKERS: dict[str, Callable[[str, bytes, Mapping[str, int]], BuiltIn]] = {
    "work_thread": lambda name, code, symbols: BuiltIn(
        *(name, code, symbols),
        arguments={"counter": "rdi"},
        results={"count": "r8"},
        account=Account.COUNTING,
    ),
    "fault_thread": lambda name, code, symbols: BuiltIn(
        *(name, code, symbols),
        arguments=_MEMORY_ARGUMENTS,
        results=_MEMORY_RESULTS,
        account=Account.FAULTING,
        stamps=True,
    ),
    "sequential": _memory({"first": "rbp"}, {"first": _FIRST}, _first),
    "strided": _memory(
        {"first": "rbp", "stride": "xmm0"},
        {"stride": Parameter(16, 1, _COUNT_MAX, "pages from one access to the next"), "first": _FIRST},
        _first,
    ),
    "zipfian": _memory(
        {"table": "rbp", "scatter": "xmm0"},
        {"theta": Parameter(99, 0, 150, "the exponent in hundredths: 0 is even, 99 is YCSB's")},
        _scattered,
        lambda parameters, pages: zipf_table(pages, parameters["theta"]),
    ),
    "pointer_chase": _memory({"first": "rbp", "scatter": "xmm0"}, {"first": _FIRST}, _chase),
    "shifting": _memory(
        {"first": "rbp", "window": "xmm0", "step": "xmm1", "period": "xmm2", "left": "xmm3"},
        {
            "window": Parameter(256, 1, _COUNT_MAX, "pages of the working set, at most the buffer's"),
            "step": Parameter(64, 0, _COUNT_MAX, "pages it moves on by"),
            "period": Parameter(10_000, 1, _COUNT_MAX, "accesses between two moves"),
            "first": _FIRST,
        },
        _shift,
    ),
    "producer": _pair({"produced": "r14"}),
    "consumer": _pair({"consumed": "r14", "corrupt": "r15"}),
    "idle": lambda name, code, symbols: BuiltIn(name, code, symbols, arguments={}, results={}, account=Account.OTHER),
    "access_thread": lambda name, code, symbols: BuiltIn(
        *(name, code, symbols),
        arguments={"ring": "r8", "multiplier": "r9"},
        results=_MEMORY_RESULTS,
        account=Account.OTHER,
    ),
}


@cache
def _builtins() -> Mapping[str, BuiltIn]:
    stored = json.loads(files(__name__).joinpath("builtin.json").read_text(encoding="ascii"))
    assert stored.keys() == _MAKERS.keys(), "builtin.json has other programs than there are"
    made = {
        name: make(name, bytes.fromhex(stored[name]["code"]), stored[name]["symbols"])
        for name, make in _MAKERS.items()
    }
    return MappingProxyType(made)


BUILTINS: Mapping[str, BuiltIn] = _builtins()
"""All built-in programs by name."""
