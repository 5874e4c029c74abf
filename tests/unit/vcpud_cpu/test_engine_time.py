"""RDTSC: the vCPU's virtual time, the same in every run, and never an earlier one than before."""

from __future__ import annotations

import random

import pytest

from apf import registers
from apf.messages import PAGE_SIZE
from vcpud.cpu.engine import ExitCause

BASE_NS = 5_000_000_000
READ = "rdtsc; shl rdx, 32; or rax, rdx"


def shown(rig) -> int:
    """EDX:EAX."""
    assert rig.get("rax") < 1 << 32 and rig.get("rdx") < 1 << 32
    return rig.get("rax") | rig.get("rdx") << 32


@pytest.mark.parametrize("cpu_mips", [1, 3, 1000, 4000])
def test_it_is_the_time_at_the_start_of_its_block(new_rig, cpu_mips: int) -> None:
    rig = new_rig(cpu_mips)
    rig.start(
        "inc rbx; jmp l; l: inc rbx; inc rbx; rdtsc; inc rbx; syscall; rdtscp; syscall", rax=2**64 - 1, rdx=2**64 - 1
    )
    rig.engine.run(100, BASE_NS)
    assert shown(rig) == BASE_NS + 2 * 1000 // cpu_mips
    rig.engine.run(100, BASE_NS + 77)
    assert shown(rig) == BASE_NS + 77 + 7 * 1000 // cpu_mips
    assert rig.get("rcx") == rig.get("rip")  # of SYSCALL


def test_rdtscp_names_no_vcpu(rig) -> None:
    rig.start("mov rcx, -1; rdtscp; mov rbx, rcx; syscall")
    rig.engine.run(100, 0)
    assert rig.get("rbx") == 0


def test_behind_a_jump_it_is_exact(rig) -> None:
    rig.start("inc rbx; " * 300 + "mov rcx, [rdi]; jmp l; l: rdtsc; syscall")
    rig.memory.epts[0][rig.DATA_GFN] = 0
    assert rig.engine.run(10_000, BASE_NS).retired == 300
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)
    rig.engine.run(10_000, BASE_NS + 1000)
    assert shown(rig) == BASE_NS + 1000 + 302


def test_a_fault_in_mid_block_does_not_take_time_back_from_another_task(rig) -> None:
    """The first task reads the time early in a long block and faults; the second reads it at once."""
    rig.store_code("rdtsc; syscall", rig.CODE + PAGE_SIZE)
    rig.start("inc rbx; " + READ + "; mov rcx, [rdi]; " + "inc rbx; " * 400 + "syscall")
    rig.memory.epts[0][rig.DATA_GFN] = 0
    assert rig.engine.run(10_000, BASE_NS).cause is ExitCause.EPT_VIOLATION
    first, task = rig.get("rax"), rig.engine.save_registers()
    assert first == BASE_NS
    rig.start(b"", rig.CODE + PAGE_SIZE)
    rig.engine.run(10_000, BASE_NS)
    assert shown(rig) == BASE_NS + 4
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)
    rig.engine.load_registers(task)
    assert rig.engine.run(10_000, BASE_NS).cause is ExitCause.SYSCALL


LOOP = f"""start:
        {READ}
        mov     r9, rax
        mov     rcx, qword ptr [r12 + rbx * 8]
        {READ}
        mov     r10, rax
        mov     qword ptr [r12 + rbx * 8 + 4096], rax
        {READ}
        sub     rax, r10
        setc    al
        sub     r10, r9
        setc    cl
        or      al, cl
        movzx   eax, al
        add     r15, rax
        imul    rbx, rbx, 1103515245
        add     rbx, 12345
        and     rbx, 2047
        inc     r14
        jmp     start
"""


def readings(rig, seed: int, disturb: bool) -> list[object]:
    """What a loop of readings and faulting accesses shows, at every exit of it."""
    random_, noise = random.Random(seed), random.Random(seed)
    rig.start(LOOP, rig.CODE + random_.choice((0, 4000, 4060)), r12=rig.DATA, rdi=0, rsp=0)
    rig.memory.epts[0][:] = 0
    told: list[object] = []
    base_ns = clock_ns = 0
    while rig.engine.retired < 20_000:
        if disturb and noise.random() < 0.3:
            rig.engine._flush_tlb()
        if disturb and noise.random() < 0.05:
            rig.engine.flush_translations()
        exit_ = rig.engine.run(random_.choice((1, 30, 300)), base_ns)
        latest = max(rig.get("r9"), rig.get("r10"))
        assert latest <= base_ns + rig.engine.retired, "it shows a time that the vCPU has not reached"
        clock_ns = base_ns + rig.engine.retired
        told.append((exit_, clock_ns, rig.engine.save_registers()))
        if exit_.cause is ExitCause.EPT_VIOLATION:
            rig.engine.map_overlay(exit_.gfn, rig.pfn_of(exit_.gfn), exit_.gfn >= rig.DATA_GFN)
            base_ns += random_.choice((0, 0, 1, 1000))
        if random_.random() < 0.5:
            rig.engine.open_window()
    assert registers.get(told[-1][2], "r14") > 100  # type: ignore[index]
    assert registers.get(told[-1][2], "r15") == 0, "time went backwards"  # type: ignore[index]
    return told


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_same_in_every_run_and_never_goes_back(new_rig, seed: int) -> None:
    assert readings(new_rig(), seed, disturb=False) == readings(new_rig(), seed, disturb=True)
