"""A process of one VM on the real engine. Where a program calls its kernel, the test answers."""

from __future__ import annotations

import numpy as np

from apf import registers
from apf.hostmem import Geometry, HostMemory, ept_entry
from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE, AddressSpace, Extent
from guestsched.programs import BUILTINS
from guestsched.programs.zipf import TABLE_BYTES
from vcpud.cpu.engine import Engine, ExitCause

CODE, TABLE, RING, DATA, PAGES = 0x400000, 0x800000, 0x900000, 0x10000000, 64
TABLE_PAGES = -(-TABLE_BYTES // PAGE_SIZE)
DATA_GFN = 2 + TABLE_PAGES
OFFSET, BASE, STRIDE = 96, 0x5A00_0007_0000_0000, 0x10_0000_0000
SEED = 88172645463325252
MASK = (1 << 64) - 1
COUNT, CHECK, FREE = OFFSET // 8, OFFSET // 8 + 1, OFFSET // 8 + 2
MEMORY = ("fault_thread", "sequential", "strided", "zipfian", "pointer_chase", "shifting")


class Process:
    """A process that runs built-in programs on a buffer: frame 0 code, 1 the ring, then the table, then the buffer."""

    def __init__(self, name: str, pages: int = PAGES, populate: bool = True, **parameters: int) -> None:
        self.program, self.pages, self.populate, self.parameters = BUILTINS[name], pages, populate, parameters
        frames = DATA_GFN + pages
        self.memory = HostMemory.anonymous(Geometry(frames, (frames,)))
        self.memory.epts[0][:] = [ept_entry(n, n > 0) for n in range(frames)]
        self.engine = Engine(self.memory, 0, 1000, None)
        extents = (
            Extent(CODE, 0, 1, writable=False, executable=True),
            Extent(TABLE, 2, TABLE_PAGES, writable=False, executable=False),
            Extent(RING, 1, 1, writable=True, executable=False),
            Extent(DATA, DATA_GFN, pages, writable=True, executable=False),
        )
        self.engine.set_space(AddressSpace(1, extents))
        self.engine.use_space(1)
        raw = self.program.code
        self.memory.frames[0, : len(raw)] = np.frombuffer(raw, np.uint8)
        table = self.program.table_bytes(parameters, pages)
        self.memory.frames[2:DATA_GFN].reshape(-1)[: len(table)] = np.frombuffer(table, np.uint8)
        self.ring = self.memory.frames[1].view(np.uint64)
        self.buffer = self.memory.frames[DATA_GFN:]
        self.words = self.buffer.view(np.uint64)
        for page in range(pages if populate else 0):
            word = BASE + STRIDE * page & MASK
            self.words[page, COUNT], self.words[page, CHECK] = word, word * CHECK_MULTIPLIER & MASK
        self.start()

    def start(self) -> None:
        """The program from its first instruction, with all its arguments."""
        there = {
            "buffer": DATA + OFFSET,
            "pages": self.pages,
            "rng_seed": SEED,
            "table": TABLE,
            "counter": DATA,
            "stamp_base": BASE,
            "stamp_stride": STRIDE,
            "multiplier": CHECK_MULTIPLIER,
            "zero_ok": int(not self.populate),
            "ring": RING,
            "items": 8,
            "room": 9,
        }
        there |= self.program.argument_values(self.parameters, self.pages)
        passed = {register: there[name] for name, register in self.program.arguments.items()}
        self.engine.load_registers(registers.new(rip=CODE, **passed))

    def get(self, name: str) -> int:
        return registers.get(self.engine.save_registers(), self.program.results[name])

    def answer(self, value: int) -> None:
        """Return ``value`` from the system call. What the ABI lets it destroy is destroyed already."""
        self.engine.load_registers(registers.replace(self.engine.save_registers(), rax=value))

    def visited(self, accesses: int) -> list[tuple[int, str]]:
        """Page and kind of all faults when every access is to a page that was just taken away."""
        seen: list[tuple[int, str]] = []
        while self.get("accesses") < accesses:
            self.memory.epts[0][DATA_GFN:] = 0
            self.engine.open_window()
            before = self.get("accesses")
            kind = ""
            while self.get("accesses") == before:
                exit_ = self.engine.run(1, 0)
                if exit_.cause is ExitCause.EPT_VIOLATION:
                    if not kind:
                        seen.append((exit_.gfn - DATA_GFN, exit_.access.name))
                    kind = exit_.access.name
                    self.engine.map_overlay(exit_.gfn, exit_.gfn, True)
        return seen


def xorshift(seed: int) -> int:
    seed ^= seed << 13 & MASK
    seed ^= seed >> 7
    return seed ^ seed << 17 & MASK


def reference_pages(accesses: int, seed: int = SEED) -> list[int]:
    """The pages fault_thread visits, by the definition of xorshift64."""
    pages = []
    for _ in range(accesses):
        seed = xorshift(seed)
        pages.append((seed >> 32) * PAGES >> 32)
    return pages
