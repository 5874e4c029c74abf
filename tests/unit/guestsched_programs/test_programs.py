"""The built-in programs on the real engine, and that the committed bytes are those of the sources."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from apf import registers
from apf.hostmem import Geometry, HostMemory, ept_entry
from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE, AddressSpace, Extent
from guestsched import programs
from guestsched.programs.assemble import OUTPUT, built
from vcpud.cpu.engine import Engine, ExitCause

CODE, DATA, PAGES = 0x400000, 0x10000000, 64
OFFSET, BASE, STRIDE = 96, 0x5A00_0007_0000_0000, 0x10_0000_0000
MASK = (1 << 64) - 1
COUNT, CHECK, FREE = OFFSET // 8, OFFSET // 8 + 1, OFFSET // 8 + 2


class Process:
    """A process that runs one program on a buffer of stamped pages, frame n + 1 behind page n."""

    def __init__(self, name: str) -> None:
        self.memory = HostMemory.anonymous(Geometry(PAGES + 1, (PAGES + 1,)))
        self.memory.epts[0][:] = [ept_entry(n, n > 0) for n in range(PAGES + 1)]
        self.engine = Engine(self.memory, 0, 1000, None)
        code = Extent(CODE, 0, 1, writable=False, executable=True)
        data = Extent(DATA, 1, PAGES, writable=True, executable=False)
        self.engine.set_space(AddressSpace(1, (code, data)))
        self.engine.use_space(1)
        raw = programs.load(name).code
        self.memory.frames[0, : len(raw)] = np.frombuffer(raw, np.uint8)
        self.words = self.memory.frames[1:].view(np.uint64)
        for page in range(PAGES):
            word = BASE + STRIDE * page & MASK
            self.words[page, COUNT], self.words[page, CHECK] = word, word * CHECK_MULTIPLIER & MASK

    def start_faulting(self, seed: int = 88172645463325252) -> None:
        arguments = {
            programs.FAULT_BUFFER: DATA + OFFSET,
            programs.FAULT_PAGES: PAGES,
            programs.FAULT_RANDOM: seed,
            programs.FAULT_STAMP_BASE: BASE,
            programs.FAULT_STAMP_STRIDE: STRIDE,
            programs.FAULT_CHECK_MULTIPLIER: CHECK_MULTIPLIER,
        }
        self.engine.load_registers(registers.new(rip=CODE, **arguments))

    def get(self, name: str) -> int:
        return registers.get(self.engine.save_registers(), name)


@pytest.fixture
def faulting() -> Iterator[Process]:
    process = Process("fault_thread")
    process.start_faulting()
    yield process
    process.engine.close()


def reference_pages(accesses: int, seed: int = 88172645463325252) -> list[int]:
    """The pages fault_thread visits, by the definition of xorshift64."""
    pages = []
    for _ in range(accesses):
        seed ^= seed << 13 & MASK
        seed ^= seed >> 7
        seed ^= seed << 17 & MASK
        pages.append((seed >> 32) * PAGES >> 32)
    return pages


def test_the_committed_bytes_are_those_of_the_sources() -> None:
    assert OUTPUT.read_text() == built(), "run: python -m guestsched.programs.assemble"


def test_programs_and_their_symbols() -> None:
    assert programs.names() == ("fault_thread", "work_thread")
    for name in programs.names():
        program = programs.load(name)
        assert program.symbols[name] == 0
        assert all(0 <= offset < len(program.code) for offset in program.symbols.values())
        assert len(program.code) <= PAGE_SIZE
    with pytest.raises(KeyError):
        programs.load("init")


def test_work_thread_counts_all_it_retires_but_its_loops_and_shows_it_in_its_page() -> None:
    process = Process("work_thread")
    process.engine.load_registers(registers.new(rip=CODE, **{programs.WORK_PAGE: DATA}))
    assert process.engine.run(1_000_000, 0).cause is ExitCause.SYSCALL  # what time is it?
    began_ns = 123_456_789
    process.engine.load_registers(registers.replace(process.engine.save_registers(), rax=began_ns))
    exit_ = process.engine.run(1_000_000, 0)
    count = process.get(programs.WORK_COUNT)
    assert exit_.cause is ExitCause.BUDGET
    assert int(process.words[0, 1]) == began_ns
    assert 0.99 * exit_.retired < count < exit_.retired
    assert 0 <= count - int(process.words[0, 0]) <= 4096
    process.engine.close()


def test_fault_thread_visits_and_stamps_the_pages_its_generator_names(faulting: Process) -> None:
    faulting.engine.run(200_000, 0)
    accesses = faulting.get(programs.FAULT_ACCESSES)
    assert accesses > 5000 and faulting.get(programs.FAULT_CORRUPT) == 0
    pages = reference_pages(accesses + 1)
    visits = np.bincount(pages[:accesses], minlength=PAGES)
    words = faulting.words.copy()
    if int(words[pages[-1], COUNT]) & 0xFFFFFFFF == visits[pages[-1]] + 1:
        visits[pages[-1]] += 1  # stopped between the stamp and the count
    for page in range(PAGES):
        word = (BASE + STRIDE * page & MASK) + int(visits[page])
        assert int(words[page, COUNT]) == word & MASK
        assert int(words[page, CHECK]) == word * CHECK_MULTIPLIER & MASK
        words[page, COUNT : FREE + 1] = 0
    assert not words.any(), "it wrote outside its stamps"


@pytest.mark.parametrize("byte", [0, 3, 4, 7, 8, 15])
def test_fault_thread_counts_a_flipped_bit_once(faulting: Process, byte: int) -> None:
    faulting.engine.run(50_000, 0)
    for page in (5, 17, 40):
        faulting.memory.frames[page + 1, OFFSET + byte] ^= 0x40
    faulting.engine.run(300_000, 0)
    assert faulting.get(programs.FAULT_CORRUPT) == 3


def test_fault_thread_finds_a_page_in_anothers_place(faulting: Process) -> None:
    faulting.engine.run(50_000, 0)
    faulting.words[9] = faulting.words[10]
    faulting.engine.run(300_000, 0)
    assert faulting.get(programs.FAULT_CORRUPT) == 1


def test_an_access_to_an_absent_page_is_one_write_violation(faulting: Process) -> None:
    faulting.memory.epts[0][1:] = 0
    seen = []
    for _ in range(200):
        exit_ = faulting.engine.run(10_000, 0)
        if exit_.cause is ExitCause.BUDGET:
            break
        assert (exit_.cause, exit_.access.name) == (ExitCause.EPT_VIOLATION, "WRITE")
        seen.append(exit_.gfn - 1)
        faulting.engine.map_overlay(exit_.gfn, exit_.gfn, True)
    assert seen == list(dict.fromkeys(reference_pages(2000)))
