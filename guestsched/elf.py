"""Guest programs from ELF files: static, freestanding x86-64 executables.

The guest kernel has no dynamic linker, no C library's start code and no address space randomisation, so a program is
what the linker has laid out: its loadable segments at their addresses, zeros behind them, and an entry point. All that
would need more is refused here, with what to tell the compiler. ``programs/apf_guest.h`` is the other half.

Pages are the unit of protection. A segment begins in the middle of a page as a rule; the bytes of that page outside it
are zero here (Linux shows what the file happens to have there). Segments of the same protection may share a page and
become one; a page is either writable or executable, never both.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.constants import P_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from apf.messages import PAGE_SHIFT, PAGE_SIZE
from apf.scenario import ScenarioError

FLAGS = "-static -nostdlib -ffreestanding -fno-pie -no-pie -O2"
"""What to give to gcc."""
LOWEST = 0x1_0000
END = 0x7000_0000_0000
"""Where a program may be: from ``LOWEST`` to below ``END``."""
BYTES_MAX = 1 << 30
"""Bytes of a file, and of memory that its segments take."""

_X86_64 = "EM_X86_64"
_LOAD = "PT_LOAD"


class Symbol(NamedTuple):
    """A function: its address and its bytes (0 if the file does not say)."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """``pages`` pages from ``gva`` on, whose start is ``data`` and whose rest is zero. Readable always."""

    gva: int
    pages: int
    data: bytes
    writable: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class ElfProgram:
    """A program ready to be loaded. Segments and symbols ascend; ``sha256`` is the file's, in hex."""

    entry: int
    segments: tuple[ElfSegment, ...]
    symbols: tuple[Symbol, ...]
    sha256: str


class _Refused(Exception):
    """What is wrong, and what is allowed."""


def load_elf(path: Path) -> ElfProgram:
    """The program in the file ``path``. Raises ScenarioError that names the file, what is wrong and what is allowed."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise _Refused(f"the file has more than {BYTES_MAX} bytes")
        raw = path.read_bytes()
        return _program(raw)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except _Refused as refused:
        raise ScenarioError(f"{path}: {refused}") from refused


def _program(raw: bytes) -> ElfProgram:
    try:
        elf = ELFFile(io.BytesIO(raw))
    except ELFError as error:
        raise _Refused(f"not an ELF file ({error}); allowed: a static x86-64 executable, gcc {FLAGS}") from error
    except Exception as error:  # pyelftools fails with whatever a malformed file makes it run into
        raise _Refused(f"a malformed ELF file ({error!r})") from error
    _check_kind(elf)
    try:
        headers = [segment.header for segment in elf.iter_segments()]
        symbols = _symbols(elf)
    except Exception as error:
        raise _Refused(f"a malformed ELF file ({error!r})") from error
    for header in headers:
        _check_header(header)
    segments = _segments(raw, [header for header in headers if header.p_type == _LOAD and header.p_memsz])
    entry = int(elf.header.e_entry)
    if not any(s.executable and s.gva <= entry < s.gva + (s.pages << PAGE_SHIFT) for s in segments):
        raise _Refused(
            f"no entry: {entry:#x} is in no executable segment; define void _start(long instance, long a, long b)"
        )
    return ElfProgram(entry, segments, symbols, hashlib.sha256(raw).hexdigest())


def _check_kind(elf: ELFFile) -> None:
    if elf.elfclass != 64 or not elf.little_endian:
        raise _Refused(f"an ELF file of {elf.elfclass} bits; allowed: 64 bits, little-endian (gcc -m64)")
    header = elf.header
    if header.e_machine != _X86_64:
        raise _Refused(f"for machine {header.e_machine}; allowed: {_X86_64}")
    if header.e_type == "ET_DYN":
        raise _Refused(f"position-independent or a shared library (ET_DYN); allowed: ET_EXEC, gcc {FLAGS}")
    if header.e_type != "ET_EXEC":
        raise _Refused(f"of type {header.e_type}, not linked; allowed: ET_EXEC, gcc {FLAGS}")


def _check_header(header: Any) -> None:
    """What no program header may ask for."""
    match header.p_type:
        case "PT_INTERP" | "PT_DYNAMIC":
            raise _Refused(f"dynamically linked ({header.p_type}); allowed: static, gcc {FLAGS}")
        case "PT_TLS":
            raise _Refused(
                "it has thread-local variables (PT_TLS), which nobody sets up; allowed: none "
                "(the FS base is free for the program: wrap a pointer of your own, without __thread)"
            )
        case "PT_GNU_STACK" if header.p_flags & P_FLAGS.PF_X:
            raise _Refused("it wants an executable stack; allowed: -z noexecstack, and no nested functions")
        case "PT_LOAD" if header.p_flags & P_FLAGS.PF_W and header.p_flags & P_FLAGS.PF_X:
            raise _Refused(
                f"its segment at {header.p_vaddr:#x} is both writable and executable; allowed: one of both, "
                f"-Wl,-z,separate-code and -z noexecstack, without -Wl,-N"
            )


def _segments(raw: bytes, headers: list[Any]) -> tuple[ElfSegment, ...]:
    if not headers:
        raise _Refused(f"it has no segment to load; allowed: gcc {FLAGS}")
    total = 0
    segments: list[ElfSegment] = []
    end = 0
    for header in sorted(headers, key=lambda one: int(one.p_vaddr)):
        start, size = int(header.p_vaddr), int(header.p_memsz)
        where = f"its segment at {start:#x} of {size} bytes"
        total += size
        if total > BYTES_MAX:
            raise _Refused(f"{where} makes it larger than {BYTES_MAX} bytes of memory")
        if start < LOWEST or start + size > END:
            raise _Refused(f"{where} is not in {LOWEST:#x} to {END:#x} (-Wl,-Ttext-segment=0x400000)")
        if start < end:
            raise _Refused(f"{where} overlaps the one before it, which ends at {end:#x}")
        offset, stored = int(header.p_offset), int(header.p_filesz)
        if stored > size or offset + stored > len(raw):
            raise _Refused(f"{where} is cut off: it has {stored} bytes at {offset} of a file of {len(raw)}")
        end = start + size
        _append(segments, start, size, raw[offset : offset + stored], int(header.p_flags))
    return tuple(segments)


def _append(segments: list[ElfSegment], start: int, size: int, stored: bytes, flags: int) -> None:
    """Add a segment, to the last one if they share a page."""
    writable, executable = bool(flags & P_FLAGS.PF_W), bool(flags & P_FLAGS.PF_X)
    gva, data = start & -PAGE_SIZE, bytes(start % PAGE_SIZE) + stored
    if segments and gva < segments[-1].gva + (segments[-1].pages << PAGE_SHIFT):
        before = segments.pop()
        if (writable, executable) != (before.writable, before.executable):
            raise _Refused(
                f"its segment at {start:#x} shares the page {gva:#x} with one of other permissions; allowed: pages of "
                f"their own, -Wl,-z,separate-code -Wl,-z,max-page-size=4096"
            )
        gva, data = before.gva, before.data.ljust(start - before.gva, b"\0") + stored
    pages = -(-(start + size - gva) >> PAGE_SHIFT)
    segments.append(ElfSegment(gva, pages, data, writable, executable))


def _symbols(elf: ELFFile) -> tuple[Symbol, ...]:
    """All functions that the file's symbol tables define."""
    found = {
        Symbol(symbol.name, int(symbol.entry.st_value), int(symbol.entry.st_size))
        for section in elf.iter_sections()
        if isinstance(section, SymbolTableSection)
        for symbol in section.iter_symbols()
        if symbol.entry.st_info.type == "STT_FUNC" and symbol.entry.st_shndx != "SHN_UNDEF"
    }
    return tuple(sorted(found, key=lambda symbol: (symbol.start, symbol.size, symbol.name)))
