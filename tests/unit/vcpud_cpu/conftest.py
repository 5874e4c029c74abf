"""A small host memory, an engine on it, and a process with a few pages of code and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from apf import registers
from apf.hostmem import Geometry, HostMemory, ept_entry
from apf.messages import PAGE_SIZE, AddressSpace, Extent
from vcpud.cpu.engine import Engine, Publisher

CODE = 0x400000
DATA = 0x600000
CODE_PAGES = 8
DATA_PAGES = 8
DATA_GFN = 32
DATA_PFN = 40


class Rig:
    """Engine, memory and one address space: code gfn n is frame n, data gfn 32+n is frame 40+n."""

    CODE, DATA, DATA_GFN, DATA_PFN = CODE, DATA, DATA_GFN, DATA_PFN
    DATA_PAGES = DATA_PAGES

    def __init__(self, cpu_mips: int = 1000, publish: Publisher | None = None, shadow: bool = False) -> None:
        self.memory = HostMemory.anonymous(Geometry(frames=64, guest_pages=(64,)))
        self.engine = Engine(self.memory, 0, cpu_mips, publish, shadow=shadow)
        code = Extent(CODE, 0, CODE_PAGES, writable=False, executable=True)
        data = Extent(DATA, DATA_GFN, DATA_PAGES, writable=True, executable=False)
        self.space = AddressSpace(1, (code, data))
        self.engine.set_space(self.space)
        self.engine.use_space(1)
        self.map_all()

    @staticmethod
    def assemble(text: str, address: int = CODE) -> bytes:
        """Intel-syntax ``text`` as code for ``address``."""
        return bytes(Ks(KS_ARCH_X86, KS_MODE_64).asm(text, address)[0])

    def map_all(self) -> None:
        """All of the process's pages in the EPT."""
        for n in range(CODE_PAGES):
            self.memory.epts[0][n] = ept_entry(n, writable=False)
        for n in range(DATA_PAGES):
            self.memory.epts[0][DATA_GFN + n] = ept_entry(DATA_PFN + n, writable=True)

    def pfn_of(self, gfn: int) -> int:
        """The frame that backs a guest page of the process."""
        return gfn if gfn < CODE_PAGES else gfn - DATA_GFN + DATA_PFN

    def store_code(self, code: str | bytes, address: int = CODE) -> None:
        """Put code into its frames, as the host would, without telling the engine."""
        raw = code if isinstance(code, bytes) else self.assemble(code, address)
        start = address - CODE
        self.memory.frames.reshape(-1)[start : start + len(raw)] = np.frombuffer(raw, np.uint8)

    def start(self, code: str | bytes, address: int = CODE, **values: int) -> None:
        """Load a program and point the task at it; rdi is the data, rsp its third page."""
        self.store_code(code, address)
        values = {"rdi": DATA, "rsp": DATA + 2 * PAGE_SIZE, "rip": address, **values}
        self.engine.load_registers(registers.new(**values))

    def get(self, name: str) -> int:
        """A register of the running task."""
        return registers.get(self.engine.save_registers(), name)


@pytest.fixture
def new_rig() -> Iterator[Callable[..., Rig]]:
    """Make rigs; they are closed after the test."""
    made: list[Rig] = []

    def new(cpu_mips: int = 1000, publish: Publisher | None = None, shadow: bool = False) -> Rig:
        made.append(Rig(cpu_mips, publish, shadow))
        return made[-1]

    yield new
    for rig in made:
        rig.engine.close()


@pytest.fixture
def rig(new_rig: Callable[..., Rig]) -> Rig:
    """A rig without a clock page."""
    return new_rig()
