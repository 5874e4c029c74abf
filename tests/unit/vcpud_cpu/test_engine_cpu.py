"""The CPU as a task sees it: CPL 3, no host state, exceptions it survives, system calls, registers, its clock."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest

from apf import registers
from apf.clockpage import ClockPage
from apf.messages import PAGE_SIZE, AddressSpace, Extent
from vcpud.cpu import hooks
from vcpud.cpu.engine import ExitCause, Publisher

PRIVILEGED = (
    *("cli", "sti", "hlt", "wrmsr", "rdmsr", "mov cr3, rax", "mov rax, cr0", "mov cr8, rax", "mov dr7, rax"),
    *("lgdt [rdi]", "lidt [rdi]", "invlpg [rdi]", "clts", "wbinvd", "lmsw ax", "ltr ax", "swapgs", "sysexit"),
    *("sysret", "iretq", "xsetbv", "mov rax, dr0"),
)
UNDEFINED = ("ud2", "rdrand eax", "rdseed rax", "xgetbv", "xsave [rdi]", "vaddps ymm0, ymm1, ymm2", "vmcall", "rdpmc")
UNDEFINED += ("rdfsbase rax", "monitor", "mwait", "xtest", "vmmcall")


@pytest.mark.parametrize(
    ("text", "vector"),
    [*((text, 13) for text in PRIVILEGED), *((text, 6) for text in UNDEFINED), ("xor ecx, ecx; div ecx", 0)],
)
def test_what_user_code_may_not_do_is_an_exception_at_the_instruction(rig, text: str, vector: int) -> None:
    rig.start(f"nop; nop; {text}; nop; hlt", rsp=rig.DATA + 64)
    before = 2 + text.count(";")
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.vector, exit_.retired) == (ExitCause.EXCEPTION, vector, before)
    assert exit_.rip == rig.CODE + len(rig.assemble("; ".join(f"nop; nop; {text}".split("; ")[:before])))


@pytest.mark.parametrize("text", ["in al, dx", "out dx, al", "in eax, 0x40", "sysenter"])
def test_ports_and_sysenter_end_the_task_too(rig, text: str) -> None:
    rig.start(f"nop; {text}; l: jmp l")
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.vector) == (ExitCause.EXCEPTION, 13)


def test_software_interrupts_are_exceptions_behind_the_instruction(rig) -> None:
    for text, vector, length in (("int3", 3, 1), ("int 0x80", 0x80, 2)):
        rig.start(f"nop; {text}; nop; hlt")
        rig.engine.flush_translations()
        exit_ = rig.engine.run(100, 0)
        assert (exit_.vector, exit_.retired, exit_.rip) == (vector, 2, rig.CODE + 1 + length)


def test_exceptions_never_add_up_to_a_double_fault(rig) -> None:
    vectors = []
    for text in ("cli", "hlt", "xor ecx, ecx; div ecx", "cli", "ud2", "xor ecx, ecx; div ecx", "hlt"):
        rig.store_code(text + "; l: jmp l")
        rig.memory.generation[0] += 1
        rig.engine.open_window()
        rig.start(b"", rbx=7)
        vectors.append(rig.engine.run(100, 0).vector)
        assert rig.get("rbx") == 7
    assert vectors == [13, 13, 0, 13, 6, 0, 13]


def test_other_tasks_go_on_after_an_exception(rig) -> None:
    rig.store_code("l: inc rbx; jmp l", rig.CODE + 0x800)
    for _ in range(4):
        rig.start("hlt")
        assert rig.engine.run(100, 0).vector == 13
        rig.start(b"", rig.CODE + 0x800)
        assert rig.engine.run(100, 0).cause is ExitCause.BUDGET
        assert rig.get("rbx") == 50


def test_descriptors_are_never_read_from_guest_memory(rig) -> None:
    """A process that maps address 0 cannot make itself a ring-0 code segment there."""
    low = Extent(0, rig.DATA_GFN, 1, writable=True, executable=False)
    rig.engine.set_space(AddressSpace(2, (low, *rig.space.extents[:1])))
    rig.engine.use_space(2)
    rig.memory.frames[rig.DATA_PFN, 8:16] = np.frombuffer(bytes.fromhex("0000000000982000"), np.uint8)
    stack = rig.CODE.to_bytes(8, "little") + b"\x08" + bytes(7)
    rig.memory.frames[rig.DATA_PFN, 256:272] = np.frombuffer(stack, np.uint8)
    rig.start(b"\x48\xcb", rsp=256)  # lretq to selector 8
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.vector) == (ExitCause.EXCEPTION, 13)


def test_a_system_call_leaves_rip_behind_the_instruction_and_goes_on(rig) -> None:
    rig.start("mov eax, 60; syscall; mov rbx, rax; mov rdx, cs; syscall")
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.retired, exit_.rip) == (ExitCause.SYSCALL, 2, rig.CODE + 7)
    rig.engine.load_registers(registers.replace(rig.engine.save_registers(), rax=5))
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.retired) == (ExitCause.SYSCALL, 3)
    assert (rig.get("rbx"), rig.get("rdx") & 3) == (5, 3)


def test_a_system_call_at_the_end_of_mapped_memory_is_one(rig) -> None:
    rig.start("syscall", rig.CODE + 8 * PAGE_SIZE - 2)
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.retired, exit_.rip) == (ExitCause.SYSCALL, 1, rig.CODE + 8 * PAGE_SIZE)


def test_pause_does_not_end_a_run(rig) -> None:
    rig.start("l: pause; inc rbx; jmp l")
    exit_ = rig.engine.run(3000, 0)
    assert (exit_.cause, exit_.retired, rig.get("rbx")) == (ExitCause.BUDGET, 3000, 1000)


def test_cpuid_names_a_fixed_cpu(rig) -> None:
    rig.start("mov eax, 1; cpuid; hlt")
    rig.engine.run(100, 0)
    ecx = rig.get("rcx")
    assert rig.get("rax") == 0x206A1  # Sandy Bridge
    assert not ecx >> 30 & 1 and not ecx >> 28 & 1 and ecx >> 20 & 1  # RDRAND, AVX; SSE4.2


def test_cpuid_answers_the_same_on_every_host(rig) -> None:
    """All leaves and the first subleaves of each, as one number."""
    answers = []
    for leaf in (*range(0xF), *range(0x80000000, 0x8000000B), 0x40000000, 0x40000001):
        for subleaf in range(4):
            rig.start("cpuid; mov esi, ecx; syscall", rax=leaf, rcx=subleaf)
            rig.engine.run(100, 0)
            saved = rig.engine.save_registers()
            answers.append([registers.get(saved, name) & 0xFFFFFFFF for name in ("rax", "rbx", "rsi", "rdx")])
    digest = hashlib.sha256(repr(answers).encode()).hexdigest()
    assert digest == "bd21cf311491d8473176881a0fc8aa69533289a460026a8afbf34b73b14ee2f7"


def test_syscall_leaves_the_return_address_and_the_flags(rig) -> None:
    rig.start("xor eax, eax; stc; syscall; nop", rcx=1, r11=2)
    rig.engine.run(100, 0)
    assert rig.get("rcx") == rig.CODE + 5 == rig.get("rip")
    assert rig.get("r11") == 0x247  # CF, PF, ZF, IF
    rig.start(b"\x66\x0f\x05\x90", rig.CODE + 0x100)  # a prefix makes it longer
    rig.engine.run(100, 0)
    assert rig.get("rcx") == rig.CODE + 0x103


def test_fs_base_and_rounding_modes_take_effect(rig) -> None:
    rig.memory.frames[rig.DATA_PFN, 16:24] = 7
    text = (
        "mov rax, qword ptr fs:[16]; mov ebx, 3; mov ecx, 2; cvtsi2sd xmm0, rbx; cvtsi2sd xmm1, rcx; divsd xmm0, xmm1"
    )
    for mxcsr, rounded in ((0x1F80, 2), (0x3F80, 1), (0x5F80, 2)):
        rig.start(text + "; cvtsd2si rdx, xmm0; syscall", fs_base=rig.DATA, mxcsr=mxcsr)
        rig.engine.run(100, 0)
        assert (rig.get("rax"), rig.get("rdx")) == (0x0707070707070707, rounded)


def test_all_registers_survive_a_switch(rig, new_rig) -> None:
    values = {name: 0x1111 * (n + 1) for n, name in enumerate(registers.NAMES) if name.startswith(("r", "xmm"))}
    values |= {"rip": rig.CODE, "rflags": 0xA03, "fs_base": 0x1234000, "gs_base": 0x5678000, "mxcsr": 0x1FA0}
    values |= {"xmm7": (1 << 128) - 5}
    rig.start("l: jmp l")
    rig.engine.load_registers(registers.new(**values))
    saved = rig.engine.save_registers()
    assert {name: registers.get(saved, name) for name in values} == values | {"rflags": 0xA03}
    rig.start("fldpi; fld1; fldpi; fmulp; hlt")
    rig.engine.run(100, 0)
    saved = rig.engine.save_registers()
    other = new_rig()
    other.engine.load_registers(saved)
    assert other.engine.save_registers() == saved


def test_registers_cannot_carry_privileged_flags(rig) -> None:
    rig.start("cli", rflags=0x202 | 3 << 12 | 1 << 8)
    assert rig.engine.run(100, 0).vector == 13
    assert rig.get("rflags") == 0x202


def test_the_clock_is_published_while_the_guest_runs(new_rig, tmp_path) -> None:
    page = ClockPage.create(tmp_path / "clock", participants=4)
    rig = new_rig(cpu_mips=2000, publish=Publisher(page.address, slot=3))
    rig.start("l: inc rbx; inc rbx; inc rbx; jmp l")
    rig.engine.run(20_000, 5_000_000)
    retired = (page.slot_ns(3) - 5_000_000) * 2
    assert 20_000 - 2 * hooks.PUBLISH_INTERVAL < retired <= 20_000
    rig.engine.run(20_000, 7_000_000)
    assert 7_000_000 + 15_000 < page.slot_ns(3) <= 7_000_000 + 20_000
    assert [page.slot_ns(n) for n in range(3)] == [0, 0, 0]


def test_two_engines_run_at_once_without_the_gil(new_rig) -> None:
    rigs = [new_rig(), new_rig()]
    for n, rig in enumerate(rigs):
        rig.start("l: add rbx, rdx; dec rcx; jnz l; syscall", rdx=n + 1, rcx=200_000)
    exits = []
    threads = [threading.Thread(target=lambda r=rig: exits.append(r.engine.run(1 << 40, 0))) for rig in rigs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert [exit_.retired for exit_ in exits] == [600_001, 600_001]
    assert [rig.get("rbx") for rig in rigs] == [200_000, 400_000]
