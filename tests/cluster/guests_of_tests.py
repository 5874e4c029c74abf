"""Guests with programs of the tests' own: images beside the benchmark's.

Code is a few instructions, encoded by hand and commented, so that no assembler is needed.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from apf import registers as register_file
from apf.messages import PAGE_SHIFT, PAGE_SIZE, Account, AddressSpace, Extent, Segment
from apf.scenario import Scenario
from guestsched.build import guest_image
from guestsched.core.image import BUFFER_GFN, PER_CPU_GFN, Image
from guestsched.core.task import TaskSpec

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


def with_task(image: Image, name: str, code: bytes, vcpu: int, **registers: int) -> Image:
    """``image`` with one more task, in an address space of its own, that runs ``code``; RBX is its result ``rbx``."""
    gfn = max(s.gfn + s.pages for s in image.segments if s.gfn < BUFFER_GFN)
    asid = max(space.asid for space in image.spaces) + 1
    pages = -(-len(code) // PAGE_SIZE)
    space = AddressSpace(asid, (Extent(OWN_CODE_GVA, gfn, pages, writable=False, executable=True),))
    task = TaskSpec(
        name=name,
        program=name.partition("/")[0],
        vcpu=vcpu,
        asid=asid,
        account=Account.OTHER,
        registers=register_file.new(rip=OWN_CODE_GVA, **registers),
        results=(("rbx", "rbx"),),
    )
    return Image((*image.segments, Segment(gfn, pages, code)), (*image.spaces, space), (*image.tasks, task))


def with_data(image: Image, pages: int) -> Image:
    """``image`` whose last address space also has ``pages`` pages that hold nothing yet, at OWN_DATA_GVA."""
    gfn = max(s.gfn + s.pages for s in image.segments if s.gfn < BUFFER_GFN)
    *others, space = image.spaces
    extent = Extent(OWN_DATA_GVA, gfn, pages, writable=True, executable=False)
    return replace(image, spaces=(*others, replace(space, extents=(*space.extents, extent))))


def first_touches(scenario: Scenario) -> Image:
    """The benchmark and, on vCPU 0, a task that touches 64 new pages, one after the other, and yields after each."""
    image = with_task(guest_image(scenario), "toucher/0", TOUCH_AND_YIELD, 0, rdi=OWN_DATA_GVA, rsi=64)
    return with_data(image, 64)


def offenders(scenario: Scenario) -> Image:
    """The benchmark and two tasks that do what user code may not."""
    image = with_task(guest_image(scenario), "illegal/0", ILLEGAL_INSTRUCTION, 0)
    return with_task(image, "stray/0", TOUCH_BAD_ADDRESS, scenario.vm.vcpus - 1, rdi=BAD_ADDRESS + 0x123)


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


def code_walkers(scenario: Scenario) -> Image:
    """Four tasks on each vCPU, each with a program of its own, all at one address, of ``CODE_PAGES`` pages each.

    More code than the smallest memory group holds: code pages are evicted and their frames refilled with other code.
    """
    gfn = BUFFER_GFN
    segments, spaces, tasks = [Segment(PER_CPU_GFN, scenario.vm.vcpus)], [], []
    for program in range(4 * scenario.vm.vcpus):
        segments.append(Segment(gfn, CODE_PAGES, walker_code(program)))
        extent = Extent(OWN_CODE_GVA, gfn, CODE_PAGES, writable=False, executable=True)
        spaces.append(AddressSpace(program + 1, (extent,)))
        tasks.append(
            TaskSpec(
                name=f"walker/{program}",
                program="walker",
                vcpu=program % scenario.vm.vcpus,
                asid=program + 1,
                account=Account.OTHER,
                registers=register_file.new(rip=OWN_CODE_GVA),
                results=(("sum", "rbx"), ("pages", "r13")),
            )
        )
        gfn += CODE_PAGES
    assert gfn << PAGE_SHIFT <= scenario.vm.guest_memory
    return Image(tuple(segments), tuple(spaces), tuple(tasks))
