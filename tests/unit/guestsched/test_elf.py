"""ELF files: what is loaded of a good one, and what is said about every other kind. Files are made by hand here."""

from __future__ import annotations

import hashlib
import random
import shutil
import struct
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from apf.scenario import ScenarioError
from guestsched import elf
from guestsched.elf import ElfSegment, Symbol, load_elf

EXECUTABLE, WRITABLE, READABLE = 1, 2, 4
LOAD, DYNAMIC, INTERP, NOTE, TLS, GNU_STACK = 1, 2, 3, 4, 7, 0x6474E551
ET_REL, ET_EXEC, ET_DYN, ET_CORE = range(1, 5)
X86_64, AARCH64 = 62, 183


@dataclass(frozen=True)
class Part:
    """A program header and its bytes."""

    address: int
    data: bytes = b""
    flags: int = READABLE
    size: int | None = None
    kind: int = LOAD
    stored: int | None = None

    def header(self, offset: int) -> bytes:
        stored = len(self.data) if self.stored is None else self.stored
        size = stored if self.size is None else self.size
        return struct.pack("<IIQQQQQQ", self.kind, self.flags, offset, self.address, 0, stored, size, 0x1000)


CODE = Part(0x401000, b"\x0f\x05" * 8, READABLE | EXECUTABLE)


def elf_file(*parts: Part, entry: int = 0x401000, kind: int = ET_EXEC, machine: int = X86_64, bits: int = 2) -> bytes:
    """An ELF64 file without sections."""
    offset = 64 + 56 * len(parts)
    head = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, len(parts), 64, 0, 0)
    headers = body = b""
    for part in parts:
        headers += part.header(offset + len(body))
        body += part.data
    return head + headers + body


def loaded(tmp_path: Path, raw: bytes) -> elf.ElfProgram:
    path = tmp_path / "program"
    path.write_bytes(raw)
    return load_elf(path)


def test_segments_are_whole_pages_with_zeros_around(tmp_path: Path) -> None:
    raw = elf_file(
        Part(0x403FF8, b"data" * 4, READABLE | WRITABLE, size=0x3000),
        CODE,
        Part(0x402008, b"const", READABLE),
        Part(0x400000, b"", NOTE, kind=NOTE),
        Part(0x500000, b"", READABLE, size=0),
        Part(0, b"", READABLE | WRITABLE, kind=GNU_STACK),
        entry=0x401002,
    )
    program = loaded(tmp_path, raw)
    assert program.entry == 0x401002
    assert program.segments == (
        ElfSegment(0x401000, 1, CODE.data, writable=False, executable=True),
        ElfSegment(0x402000, 1, bytes(8) + b"const", writable=False, executable=False),
        ElfSegment(0x403000, 4, bytes(0xFF8) + b"data" * 4, writable=True, executable=False),
    )
    assert program.symbols == ()
    assert program.sha256 == hashlib.sha256(raw).hexdigest()


def test_segments_of_one_permission_may_share_a_page(tmp_path: Path) -> None:
    parts = (
        Part(0x402000, b"a", READABLE | WRITABLE, size=16),
        Part(0x402010, b"b", READABLE | WRITABLE, size=0x1000),
        Part(0x403010, b"c", READABLE | WRITABLE),
        Part(0x404000, b"d", READABLE | WRITABLE),
    )
    assert loaded(tmp_path, elf_file(CODE, *parts)).segments[1:] == (
        ElfSegment(0x402000, 2, b"a" + bytes(15) + b"b" + bytes(0xFFF) + b"c", writable=True, executable=False),
        ElfSegment(0x404000, 1, b"d", writable=True, executable=False),
    )


REFUSED: dict[str, tuple[bytes, str]] = {
    "text": (b"#!/bin/sh\n", r"not an ELF file .*allowed: a static x86-64 executable, gcc -static"),
    "nothing": (b"", r"not an ELF file|malformed"),
    "cut off": (elf_file(CODE)[:40], r"not an ELF file|malformed"),
    "32 bits": (elf_file(CODE, bits=1), r"32 bits; allowed: 64 bits.*-m64"),
    "another machine": (elf_file(CODE, machine=AARCH64), r"for machine EM_AARCH64; allowed: EM_X86_64"),
    "pie": (elf_file(CODE, kind=ET_DYN), r"position-independent.*allowed: ET_EXEC.*-fno-pie -no-pie"),
    "object": (elf_file(CODE, kind=ET_REL), r"of type ET_REL, not linked; allowed: ET_EXEC"),
    "core": (elf_file(CODE, kind=ET_CORE), r"of type ET_CORE"),
    "interpreter": (elf_file(CODE, Part(0, kind=INTERP)), r"dynamically linked \(PT_INTERP\); allowed: static"),
    "dynamic": (elf_file(CODE, Part(0, kind=DYNAMIC)), r"dynamically linked \(PT_DYNAMIC\).*-nostdlib"),
    "tls": (elf_file(CODE, Part(0, kind=TLS)), r"PT_TLS.*FS base is free for the program"),
    "executable stack": (
        elf_file(CODE, Part(0, flags=7, kind=GNU_STACK)),
        r"executable stack; allowed: -z noexecstack",
    ),
    "writable code": (elf_file(replace(CODE, flags=7)), r"0x401000 is both writable and executable.*-Wl,-z,separate"),
    "no segment": (elf_file(), r"no segment to load"),
    "overlap": (elf_file(CODE, Part(0x40100F, b"x")), r"0x40100f of 1 bytes overlaps.*ends at 0x401010"),
    "shared page": (elf_file(CODE, Part(0x401010, b"x")), r"shares the page 0x401000.*-Wl,-z,max-page-size=4096"),
    "too low": (elf_file(CODE, Part(0xFFFF, b"x")), r"0xffff of 1 bytes is not in 0x10000 to 0x700000000000"),
    "too high": (elf_file(CODE, Part((7 << 44) - 1, b"xy")), r"0x6fffffffffff of 2 bytes is not in"),
    "wraps": (elf_file(CODE, Part((1 << 64) - 8, bytes(16))), r"is not in 0x10000"),
    "too large": (elf_file(CODE, Part(0x500000, size=(1 << 30) - 15, stored=0)), r"larger than 1073741824 bytes"),
    "huge": (elf_file(CODE, Part(0x500000, size=(1 << 64) - 1, stored=0)), r"larger than 1073741824 bytes"),
    "no data": (elf_file(CODE, Part(0x500000, stored=100)), r"is cut off: it has 100 bytes"),
    "more data than memory": (elf_file(CODE, Part(0x500000, bytes(9), size=8)), r"is cut off"),
    "no entry": (elf_file(CODE, entry=0), r"no entry: 0x0 is in no executable segment; define void _start"),
    "entry in data": (elf_file(CODE, Part(0x402000, b"x"), entry=0x402000), r"no entry: 0x402000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_with_what_can(tmp_path: Path, name: str) -> None:
    raw, message = REFUSED[name]
    with pytest.raises(ScenarioError, match=message) as refusal:
        loaded(tmp_path, raw)
    assert str(refusal.value).startswith(f"{tmp_path / 'program'}: ")


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScenarioError, match="program: cannot be read: No such file"):
        load_elf(tmp_path / "program")
    with pytest.raises(ScenarioError, match="cannot be read: Is a directory"):
        load_elf(tmp_path)
    monkeypatch.setattr(elf, "BYTES_MAX", 50)
    with pytest.raises(ScenarioError, match="more than 50 bytes"):
        loaded(tmp_path, elf_file(CODE))


def test_damaged_files_are_loaded_or_refused(tmp_path: Path) -> None:
    good = elf_file(CODE, Part(0x402000, b"data", READABLE | WRITABLE, size=100))
    random_, refused = random.Random(5), 0
    for _ in range(1500):
        damaged = bytearray(good)
        for _ in range(random_.randrange(1, 4)):
            damaged[random_.randrange(len(good))] = random_.choice(
                (0, 1, 2, 0x7F, 0x80, 0xFF, random_.randrange(256))
            )
        try:
            loaded(tmp_path, bytes(damaged[: random_.choice((len(good), len(good), random_.randrange(len(good))))]))
        except ScenarioError:
            refused += 1
    assert 500 < refused < 1500


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
SOURCE = """
const long table[3] = {1, 2, 3};
long counter = 5;
long zeros[5000];
__attribute__((noinline)) static long helper(long n) { return n * table[n % 3]; }
void _start(void) { zeros[3] = helper(counter++); for (;;) ; }
"""


def compiled(tmp_path: Path, source: str, *flags: str) -> Path:
    path = tmp_path / "made"
    (tmp_path / "made.c").write_text(source)
    command: list[Any] = ["gcc", "-w", *flags, "-o", path, tmp_path / "made.c"]
    subprocess.run(command, check=True, capture_output=True)
    return path


@needs_gcc
def test_what_gcc_makes_with_the_flags_that_messages_name(tmp_path: Path) -> None:
    program = load_elf(compiled(tmp_path, SOURCE, *elf.FLAGS.split()))
    names = {symbol.name: symbol for symbol in program.symbols}
    assert names.keys() == {"_start", "helper"}
    assert names["_start"] == Symbol("_start", program.entry, names["_start"].size) and names["_start"].size > 0
    kinds = {(segment.writable, segment.executable) for segment in program.segments}
    assert kinds == {(False, False), (False, True), (True, False)}
    (data,) = [segment for segment in program.segments if segment.writable]
    assert (5).to_bytes(8, "little") in data.data and data.pages >= 10


@needs_gcc
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-nostdlib -static-pie -fPIE", "position-independent"),
        ("-nostdlib -pie -fPIE", "position-independent"),
        ("-nostartfiles -no-pie -Wl,--no-as-needed", "dynamically linked"),
        ("-c", "ET_REL"),
        ("-nostdlib -static -no-pie -fno-pie -Wl,-N", "both writable and executable"),
        ("-nostdlib -static -no-pie -fno-pie -z execstack", "executable stack"),
        ("-nostdlib -static -no-pie -fno-pie -Wl,-Ttext-segment=0x1000", "is not in 0x10000"),
    ],
)
def test_what_gcc_makes_with_others_is_refused(tmp_path: Path, flags: str, message: str) -> None:
    path = compiled(tmp_path, SOURCE, *flags.split())
    with pytest.raises(ScenarioError, match=message):
        load_elf(path)


@needs_gcc
def test_thread_local_variables_of_gcc_are_refused(tmp_path: Path) -> None:
    path = compiled(tmp_path, "__thread long x = 4; void _start(void) { x++; for (;;) ; }", *elf.FLAGS.split())
    with pytest.raises(ScenarioError, match="PT_TLS"):
        load_elf(path)
