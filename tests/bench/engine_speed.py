"""How fast the vCPU's engine is, against Unicorn itself on the same machine in the same run.

    python tests/bench/engine_speed.py

The baseline is Unicorn with a virtual TLB and no block hook: it counts nothing and cannot be stopped at a budget.
Ratios are what to compare between machines. Times are CPU times of the thread. Needs keystone-engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keystone import KS_ARCH_X86, KS_MODE_64, Ks
from unicorn import UC_ARCH_X86, UC_HOOK_TLB_FILL, UC_MODE_64, Uc, unicorn_const, x86_const

from apf import registers
from apf.hostmem import Geometry, HostMemory, ept_entry
from apf.messages import PAGE_SIZE, AddressSpace, Extent
from guestsched.programs import BUILTINS
from vcpud.cpu.engine import Engine, Exit, ExitCause

CODE, DATA = 0x400000, 0x600000
CODE_GFN, DATA_GFN = 0, 16
DATA_PAGES = 1 << 15
FRAMES = DATA_GFN + DATA_PAGES

LOOPS: dict[str, tuple[str, int]] = {
    "three instructions": ("l: inc rbx; dec rcx; jnz l", 3),
    "seventeen, straight-line": ("l: " + "inc rbx; " * 15 + "dec rcx; jnz l", 17),
    "only stores": ("l: mov [rdi], rcx; mov [rdi + 8], rcx; dec rcx; jnz l", 4),
}
"""Name -> (assembly, instructions in a round of rcx)."""
MISSES = "l: mov rax, [rdi]; add rdi, 4096; dec rcx; jnz l"
"""Reads a page after the other: every read is a TLB miss once the TLB is smaller than the data."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Millions of instructions a second, with the engine and with plain Unicorn."""

    name: str
    engine_mips: float
    plain_mips: float

    @property
    def ratio(self) -> float:
        """The engine's share of plain Unicorn's speed."""
        return self.engine_mips / self.plain_mips


def _assemble(text: str) -> bytes:
    return bytes(Ks(KS_ARCH_X86, KS_MODE_64).asm(text, CODE)[0])


class _Machine:
    """Host memory with everything mapped, an engine on it, and plain Unicorns on the same frames."""

    def __init__(self) -> None:
        self.memory = HostMemory.anonymous(Geometry(FRAMES, (FRAMES,)))
        self.memory.epts[0][:] = [ept_entry(n, n >= DATA_GFN) for n in range(FRAMES)]
        self.memory.frames[:, 0] = 0  # so that the host's own page faults are over
        self.engine = Engine(self.memory, 0, 1000, None)
        code = Extent(CODE, CODE_GFN, DATA_GFN, writable=False, executable=True)
        data = Extent(DATA, DATA_GFN, DATA_PAGES, writable=True, executable=False)
        self.engine.set_space(AddressSpace(1, (code, data)))
        self.engine.use_space(1)

    def store(self, code: bytes) -> None:
        self.memory.frames.reshape(-1)[: len(code)] = np.frombuffer(code, np.uint8)
        self.memory.generation[0:DATA_GFN] += 1
        self.engine.open_window()

    def time_engine(self, code: bytes, instructions: int, **values: int) -> float:
        """Seconds for about ``instructions``, in budgets of a 50 us window at 1000 MIPS."""
        self.store(code)
        self.engine.load_registers(registers.new(rip=CODE, rdi=DATA, **values))
        self.engine.run(10_000, 0)
        start, stop_at = time.thread_time(), self.engine.retired + instructions
        while self.engine.retired < stop_at:
            exit_ = self.engine.run(50_000, 0)
            assert exit_.cause is ExitCause.BUDGET, exit_
        return time.thread_time() - start

    def plain(self, fill: Callable[..., bool] | None = None) -> Uc:
        uc = Uc(UC_ARCH_X86, UC_MODE_64)
        uc.mem_map_ptr(0, FRAMES * PAGE_SIZE, unicorn_const.UC_PROT_ALL, self.memory.address)
        uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
        uc.hook_add(UC_HOOK_TLB_FILL, fill or _python_fill)
        return uc

    def time_plain(self, code: bytes, milliseconds: int, per_round: int, **values: int) -> float:
        """MIPS of plain Unicorn on a loop of ``per_round`` instructions that counts RCX down."""
        self.store(code)
        uc = self.plain()
        uc.reg_write(x86_const.UC_X86_REG_RDI, DATA)
        uc.reg_write(x86_const.UC_X86_REG_RCX, 1 << 62)
        uc.emu_start(CODE, 0, timeout=1000)
        before = uc.reg_read(x86_const.UC_X86_REG_RCX)
        start = time.thread_time()
        uc.emu_start(uc.reg_read(x86_const.UC_X86_REG_RIP), 0, timeout=milliseconds * 1000)
        elapsed = time.thread_time() - start
        return (before - uc.reg_read(x86_const.UC_X86_REG_RCX)) * per_round / elapsed / 1e6


def _python_fill(uc: Uc, gva: int, access: int, result: object, data: object) -> bool:
    result.paddr = gva - DATA + DATA_GFN * PAGE_SIZE if gva >= DATA else gva - CODE
    # Not both writable and executable: Unicorn then takes its slow path at every store.
    other = unicorn_const.UC_PROT_WRITE if gva >= DATA else unicorn_const.UC_PROT_EXEC
    result.perms = unicorn_const.UC_PROT_READ | other
    return True


def loop_speeds(milliseconds: int = 200) -> list[Speed]:
    """The speed of each of ``LOOPS``, and of ``work_thread``."""
    machine = _Machine()
    speeds = []
    for name, (text, per_round) in LOOPS.items():
        code = _assemble(text)
        plain = machine.time_plain(code, milliseconds, per_round)
        instructions = int(plain * milliseconds * 300)
        speeds.append(Speed(name, instructions / machine.time_engine(code, instructions, rcx=1 << 62) / 1e6, plain))
    return [_work_thread(machine, milliseconds), *speeds]


def _work_thread(machine: _Machine, milliseconds: int) -> Speed:
    program = BUILTINS["work_thread"]
    code = program.code[program.symbols["work_thread_count"] :]  # behind its system call
    machine.store(code)
    uc = machine.plain()
    uc.reg_write(x86_const.UC_X86_REG_RDI, DATA)
    start = time.thread_time()
    uc.emu_start(CODE, 0, timeout=milliseconds * 1000)
    plain = uc.reg_read(x86_const.UC_X86_REG_R8) / (time.thread_time() - start) / 1e6
    instructions = int(plain * milliseconds * 900)
    return Speed("work_thread", instructions / machine.time_engine(code, instructions) / 1e6, plain)


def tlb_misses_per_second(misses: int = 200_000) -> tuple[float, float]:
    """TLB misses a second through the engine's native hook, and through a Python callback."""
    machine = _Machine()
    code = _assemble(MISSES)
    passes = max(1, misses // DATA_PAGES)

    def native() -> float:
        elapsed = 0.0
        machine.store(code)
        for _ in range(passes):
            machine.engine.open_window()
            machine.engine.load_registers(registers.new(rip=CODE, rdi=DATA, rcx=DATA_PAGES))
            start = time.thread_time()
            machine.engine.run(4 * DATA_PAGES - 4, 0)
            elapsed += time.thread_time() - start
        return passes * DATA_PAGES / elapsed

    machine.store(code)
    uc = machine.plain()
    uc.reg_write(x86_const.UC_X86_REG_RDI, DATA)
    uc.reg_write(x86_const.UC_X86_REG_RCX, DATA_PAGES)
    start = time.thread_time()
    uc.emu_start(CODE, CODE + len(code))
    return native(), DATA_PAGES / (time.thread_time() - start)


def fault_round_trip_us(faults: int = 20_000) -> float:
    """Microseconds from a fault of ``fault_thread`` to the next: run, EPT violation, ``map_overlay``."""
    machine = _Machine()
    machine.memory.epts[0][DATA_GFN:] = 0
    machine.store(BUILTINS["fault_thread"].code)
    machine.engine.load_registers(registers.new(rip=CODE, rdi=DATA, rsi=DATA_PAGES, rbx=1, r11=1))
    engine, elapsed, seen = machine.engine, 0.0, 0
    while seen < faults:
        engine.open_window()
        start = time.thread_time()
        for _ in range(500):
            exit_: Exit = engine.run(1_000_000, 0)
            engine.map_overlay(exit_.gfn, exit_.gfn, True)
        elapsed += time.thread_time() - start
        seen += 500
    return elapsed / seen * 1e6


def _timed_us(action: Callable[[], object], times: int = 20_000) -> float:
    start = time.thread_time()
    for _ in range(times):
        action()
    return (time.thread_time() - start) / times * 1e6


def call_costs_us() -> dict[str, float]:
    """Microseconds of what a vCPU does between runs."""
    machine = _Machine()
    engine = machine.engine
    machine.store(_assemble("l: inc rbx; jmp l"))
    engine.load_registers(registers.new(rip=CODE))
    saved = engine.save_registers()

    def run_and_open() -> None:
        engine.run(1, 0)
        engine.open_window()

    return {
        "new engine": _timed_us(lambda: Engine(machine.memory, 0, 1000, None).close(), 10),
        "run of one block": _timed_us(lambda: engine.run(1, 0)),
        "the same after open_window": _timed_us(run_and_open),
        "save_registers": _timed_us(engine.save_registers),
        "load_registers": _timed_us(lambda: engine.load_registers(saved)),
        "read_u32": _timed_us(lambda: engine.read_u32(0)),
        "flush_translations": _timed_us(engine.flush_translations, 2000),
    }


def main() -> None:
    """Print all figures."""
    print(f"{'MIPS':28}{'engine':>10}{'plain':>10}{'ratio':>8}")
    for speed in loop_speeds():
        print(f"{speed.name:28}{speed.engine_mips:10.0f}{speed.plain_mips:10.0f}{speed.ratio:8.2f}")
    native, python = tlb_misses_per_second()
    print(f"TLB misses/s: native hook {native / 1e6:.1f} M, Python callback {python / 1e6:.2f} M")
    print(f"fault round trip: {fault_round_trip_us():.1f} us")
    for name, microseconds in call_costs_us().items():
        print(f"{name:28}{microseconds:10.2f} us")


if __name__ == "__main__":
    main()
