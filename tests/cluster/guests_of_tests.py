"""Guests with programs of the tests' own: processes beside the benchmark's.

Code is a few instructions, encoded by hand and commented, so that no assembler is needed.
"""

from __future__ import annotations

import struct

from apf import registers as register_file
from apf.messages import PAGE_SIZE, Account
from apf.scenario import Scenario
from guestsched.core.process import ProcessPlan, Region
from guestsched.core.task import TaskSpec
from guestsched.plan import plans

OWN_CODE_GVA = 0x2000_0000
OWN_DATA_GVA = 0x3000_0000
BAD_ADDRESS = 0x6666_0000
"""Mapped by no extent."""

ILLEGAL_INSTRUCTION = b"\x0f\x0b"  # ud2
TOUCH_BAD_ADDRESS = b"\x48\x89\x07\xeb\xfb"  # mov [rdi], rax; jmp .-3
YIELD_FOR_EVER = (
    b"\xb8\x18\x00\x00\x00"  # mov eax, 24 (sched_yield)
    b"\x0f\x05"  # syscall
    b"\x48\xff\xc3"  # inc rbx
    b"\xeb\xf4"  # jmp to the start
)
TOUCH_AND_YIELD = (
    b"\x48\x89\x1f"  # mov [rdi], rbx: a page that was never there
    b"\x48\x81\xc7\x00\x10\x00\x00"  # add rdi, 4096
    b"\xb8\x18\x00\x00\x00"  # mov eax, 24 (sched_yield)
    b"\x0f\x05"  # syscall
    b"\x48\xff\xc3"  # inc rbx
    b"\x48\x39\xf3"  # cmp rbx, rsi
    b"\x75\xe7"  # jne to the start
    b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
    b"\x0f\x05"  # syscall
)


def own_process(name: str, code: bytes, vcpu: int, data_pages: int = 0, **registers: int) -> ProcessPlan:
    """A process of one task that runs ``code``; RBX is its result ``rbx``. Its data, if any, is at OWN_DATA_GVA."""
    regions = [Region(OWN_CODE_GVA, -(-len(code) // PAGE_SIZE), code, writable=False, executable=True)]
    if data_pages:
        regions.append(Region(OWN_DATA_GVA, data_pages, demand_zero=True))
    task = TaskSpec(
        name=name,
        program=name.partition("/")[0],
        account=Account.OTHER,
        registers=register_file.new(rip=OWN_CODE_GVA, **registers),
        results=(("rbx", "rbx"),),
        vcpus=(vcpu,),
    )
    return ProcessPlan(name, tuple(regions), (task,))


def first_touches(scenario: Scenario) -> tuple[ProcessPlan, ...]:
    """The benchmark and, on vCPU 0, a task that touches 64 new pages, one after the other, and yields after each."""
    return (*plans(scenario), own_process("toucher/0", TOUCH_AND_YIELD, 0, 64, rdi=OWN_DATA_GVA, rsi=64))


def offenders(scenario: Scenario) -> tuple[ProcessPlan, ...]:
    """The benchmark and two tasks that do what user code may not."""
    illegal = own_process("illegal/0", ILLEGAL_INSTRUCTION, 0)
    stray = own_process("stray/0", TOUCH_BAD_ADDRESS, scenario.vm.vcpus - 1, rdi=BAD_ADDRESS + 0x123)
    return (*plans(scenario), illegal, stray)


CODE_PAGES = 600
"""Code pages of one program of ``code_walkers``."""


def walker_step(program: int, page: int) -> int:
    """What page ``page`` of a program of ``code_walkers`` adds to the sum."""
    return 1 + program * 1_000_003 + page * 17


def walker_sum(program: int, pages: int) -> int:
    """The sum after ``pages`` pages have run, from the first, round and round."""
    rounds, rest = divmod(pages, CODE_PAGES)
    whole = sum(walker_step(program, page) for page in range(CODE_PAGES))
    return (rounds * whole + sum(walker_step(program, page) for page in range(rest))) % (1 << 64)


def walker_code(program: int) -> bytes:
    """A page: add its own number to RBX, count it in R13, go to the next page; the last goes to the first."""
    code = bytearray()
    for page in range(CODE_PAGES):
        body = b"\x48\x81\xc3" + struct.pack("<i", walker_step(program, page))  # add rbx, imm32
        body += b"\x49\x83\xc5\x01"  # add r13, 1
        target = (page + 1) % CODE_PAGES * PAGE_SIZE
        body += b"\xe9" + struct.pack("<i", target - (page * PAGE_SIZE + len(body) + 5))  # jmp rel32
        code += body.ljust(PAGE_SIZE, b"\xcc")  # int3: nobody comes here
    return bytes(code)


def code_walkers(scenario: Scenario) -> tuple[ProcessPlan, ...]:
    """Four tasks on each vCPU, each with a program of its own, all at one address, of ``CODE_PAGES`` pages each.

    More code than the smallest memory group holds: code pages are evicted and their frames refilled with other code.
    """
    made = []
    for program in range(4 * scenario.vm.vcpus):
        task = TaskSpec(
            name=f"walker/{program}",
            program="walker",
            account=Account.OTHER,
            registers=register_file.new(rip=OWN_CODE_GVA),
            results=(("sum", "rbx"), ("pages", "r13")),
            vcpus=(program % scenario.vm.vcpus,),
        )
        code = Region(OWN_CODE_GVA, CODE_PAGES, walker_code(program), writable=False, executable=True)
        made.append(ProcessPlan(f"walker/{program}", (code,), (task,)))
    return tuple(made)
