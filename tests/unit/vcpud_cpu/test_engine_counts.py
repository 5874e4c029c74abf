"""Retired instructions are exact: at every budget, at every fault, against an instruction hook of plain Unicorn."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_MODE_64, Uc, x86_const

from apf import registers
from apf.hostmem import ept_entry
from apf.messages import PAGE_SIZE, Access
from vcpud.cpu.engine import ExitCause
from vcpud.cpu.user_mode import CPU_MODEL

REFERENCE_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "r8", "r13", "rflags", "xmm0", "xmm1")


def reference_trace(code: bytes, address: int, rig, length: int) -> tuple[list[int], dict[str, int]]:
    """RIP of each of the first ``length`` instructions, nothing ever faulting, and the registers at the end."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(CPU_MODEL)
    uc.reg_write(x86_const.UC_X86_REG_CR4, 1 << 9 | 1 << 10)
    uc.mem_map(rig.CODE, 8 * PAGE_SIZE)
    uc.mem_map(rig.DATA, 8 * PAGE_SIZE)
    uc.mem_write(address, code)
    trace: list[int] = []

    def on_instruction(uc: Uc, rip: int, size: int, data: object) -> None:
        trace.append(rip)
        if len(trace) > length:
            uc.emu_stop()

    uc.hook_add(UC_HOOK_CODE, on_instruction)
    for name, value in (("R12", rig.DATA), ("RFLAGS", 0x202), ("MXCSR", 0x1F80)):
        uc.reg_write(getattr(x86_const, f"UC_X86_REG_{name}"), value)
    uc.emu_start(address, 0)
    values = {n: uc.reg_read(getattr(x86_const, f"UC_X86_REG_{n.upper()}")) for n in REFERENCE_REGISTERS}
    return trace, values


def place(random_: random.Random) -> str:
    """A memory operand somewhere in the data, now and then across a page's end."""
    page = random_.randrange(6)
    offset = random_.choice((0, 8, 64, 1000, 4092, 4093)) if page < 5 else 8
    return f"[r12 + {page * PAGE_SIZE + offset}]"


def instruction(random_: random.Random) -> list[str]:
    """One random piece of straight-line code."""
    a, b = random_.sample(("rax", "rbx", "rdx", "r8", "r13"), 2)
    return random_.choice(
        (
            [f"add {a}, {random_.randrange(1 << 20)}"],
            [f"lea {a}, [{b} + {b} * 2 + 7]"],
            [f"imul {a}, {b}"],
            [f"mov {a}, qword ptr {place(random_)}"],
            [f"mov qword ptr {place(random_)}, {a}"],
            [f"add qword ptr {place(random_)}, {a}"],
            [f"xor {a}, qword ptr {place(random_)}"],
            [f"lock xadd qword ptr {place(random_)}, {a}"],
            [f"xchg qword ptr {place(random_)}, {b}"],
            [f"cvtsi2sd xmm0, {a}", f"movups xmmword ptr {place(random_)}, xmm0"],
            [f"movups xmm1, xmmword ptr {place(random_)}", "paddq xmm0, xmm1"],
            [f"push {a}", f"pop {b}"],
            [f"shl {a}, 3", f"adc {b}, {a}"],
            [f"movabs {a}, 0x1122334455667788"],
        )
    )


def program(random_: random.Random, serial: int) -> str:
    """An endless loop of random pieces with forward branches, calls and rep strings."""
    lines = ["start:", f"lea rsp, [r12 + {6 * PAGE_SIZE + 16}]"]
    for n in range(random_.randrange(3, 9)):
        lines += [line for _ in range(random_.randrange(1, 30)) for line in instruction(random_)]
        match random_.randrange(4):
            case 0:
                lines += ["cmp rax, rbx", f"jb skip{n}", *instruction(random_), f"skip{n}:"]
            case 1:
                lines += [f"lea rsi, {place(random_)}", f"lea rdi, {place(random_)}"]
                lines += [f"mov ecx, {random_.randrange(5)}", f"rep {random_.choice(('movsq', 'stosb', 'movsb'))}"]
            case 2:
                lines += [f"call function{n}", f"jmp after{n}", f"function{n}:", *instruction(random_), "ret"]
                lines += [f"after{n}:"]
            case _:
                lines += ["mov ecx, 3", f"loop{n}:", *instruction(random_), "dec ecx", f"jnz loop{n}"]
    if serial % 8 == 0:
        lines += ["inc rax"] * random_.randrange(500, 1100) + [f"mov qword ptr {place(random_)}, rax"]
    return "; ".join([*lines, "jmp start"])


@pytest.mark.parametrize("seed", range(6))
def test_faults_and_budgets_in_random_programs(new_rig, seed: int) -> None:
    random_ = random.Random(seed)
    mid_block = 0
    for serial in range(10):
        rig = new_rig()
        address = rig.CODE + random_.choice((0, 0, 4000, 4090, 3500))
        text = program(random_, serial)
        rig.start(text, address, r12=rig.DATA, rdi=0, rsp=0)
        code = rig.memory.frames[:8].tobytes()[address - rig.CODE :]
        length = 3000
        trace, values = reference_trace(code, address, rig, length)
        rig.memory.epts[0][:] = 0
        while rig.engine.retired < length:
            before = rig.engine.retired
            exit_ = rig.engine.run(random_.choice((1, 7, 100, 1000)), 0)
            assert rig.engine.retired == before + exit_.retired
            if rig.engine.retired > length:
                break
            assert trace[rig.engine.retired] == exit_.rip, text
            if exit_.cause is ExitCause.EPT_VIOLATION:
                mid_block += exit_.access is not Access.EXEC and exit_.retired > 0
                rig.engine.map_overlay(exit_.gfn, rig.pfn_of(exit_.gfn), exit_.gfn >= rig.DATA_GFN)
                if random_.random() < 0.45:  # everything is evicted
                    rig.engine.open_window()
            else:
                assert exit_.cause is ExitCause.BUDGET, text
        if rig.engine.retired == length:
            saved = rig.engine.save_registers()
            assert {n: registers.get(saved, n) for n in REFERENCE_REGISTERS} == values
    print(f"{mid_block} faults in mid-block")
    assert mid_block > 300


def story(rig, text: str, seed: int, disturb: bool) -> list[object]:
    """All exits of a program under eviction, and the use of pages in each window.

    ``disturb`` drops translations now and then, as Unicorn's own TLB may at any time.
    """
    random_, noise = random.Random(seed), random.Random(seed)
    rig.start(text, rig.CODE + 4000, r12=rig.DATA, rdi=0, rsp=0)
    rig.memory.epts[0][:] = 0
    told: list[object] = []
    while rig.engine.retired < 5000:
        if disturb and noise.random() < 0.5:
            rig.engine._flush_tlb()
        if disturb and noise.random() < 0.1:
            rig.engine.flush_translations()
        exit_ = rig.engine.run(random_.choice((1, 30, 300)), 0)
        told.append(exit_)
        if exit_.cause is ExitCause.EPT_VIOLATION:
            rig.engine.map_overlay(exit_.gfn, rig.pfn_of(exit_.gfn), exit_.gfn >= rig.DATA_GFN)
        elif random_.random() < 0.3:
            told.append((rig.memory.accessed.tobytes(), rig.memory.dirty.tobytes()))
            rig.memory.accessed[:] = 0
            rig.memory.dirty[:] = 0
            rig.engine.open_window()
    return [*told, rig.engine.save_registers(), rig.memory.frames.tobytes()]


@pytest.mark.parametrize("seed", range(12))
def test_dropped_translations_change_nothing(new_rig, seed: int) -> None:
    text = program(random.Random(seed), serial=seed)
    assert story(new_rig(), text, seed, disturb=False) == story(new_rig(), text, seed, disturb=True)


def test_every_budget_stops_at_the_first_block_start_at_or_past_it(rig) -> None:
    code = "start: inc rax; inc rbx; jnz next; next: inc rcx; jmp far; far: " + "inc rdx; " * 600 + "jmp start"
    rig.start(code)
    starts = [0]
    while starts[-1] < 2000:
        starts.append(starts[-1] + rig.engine.run(1, 0).retired)
    assert max(b - a for a, b in pairwise(starts)) == 512
    for budget in range(1, 1300):
        rig.start(code)
        exit_ = rig.engine.run(budget, 0)
        assert exit_.cause is ExitCause.BUDGET
        assert exit_.retired == next(start for start in starts if start >= budget)


def test_a_budget_of_nothing_runs_one_block(rig) -> None:
    rig.start("l: inc rax; jmp l")
    assert [rig.engine.run(budget, 0).retired for budget in (0, -5, 1, 2)] == [2, 2, 2, 2]
    assert rig.get("rax") == 4


def test_a_fault_deep_in_a_block_at_the_translators_limit(rig) -> None:
    rig.start("inc rax; " * 505 + "mov [rdi], rax; " + "inc rax; " * 900 + "hlt")
    rig.memory.epts[0][rig.DATA_GFN] = 0
    exit_ = rig.engine.run(10_000, 0)
    assert (exit_.cause, exit_.retired, exit_.gfn) == (ExitCause.EPT_VIOLATION, 505, rig.DATA_GFN)
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)
    exit_ = rig.engine.run(10_000, 0)
    assert (exit_.cause, exit_.retired, exit_.vector) == (ExitCause.EXCEPTION, 901, 13)


def test_a_repeated_string_instruction_counts_once_per_repetition(rig) -> None:
    """And once more to find RCX at 0, as an instruction hook counts it."""
    rig.start("inc rax; rep stosq; hlt", rcx=1000, rdi=rig.DATA)
    rig.memory.epts[0][rig.DATA_GFN + 1] = 0
    exit_ = rig.engine.run(10_000, 0)
    assert (exit_.cause, exit_.access, exit_.retired) == (ExitCause.EPT_VIOLATION, Access.WRITE, 1 + 512)
    assert rig.get("rcx") == 488
    rig.memory.epts[0][rig.DATA_GFN + 1] = ept_entry(rig.DATA_PFN + 1, True)
    exit_ = rig.engine.run(10_000, 0)
    assert (exit_.cause, exit_.retired) == (ExitCause.EXCEPTION, 488 + 1)
