"""The MMU: extents, overlay, EPT; accessed and dirty bytes; windows; stale code."""

from __future__ import annotations

import pytest

from apf.hostmem import ept_entry
from apf.messages import PAGE_SIZE, Access, AddressSpace, Extent
from vcpud.cpu.engine import Exit, ExitCause

TOUCH_ALL = "start: mov rax, [rdi]; mov [rdi + 4096], rax; add qword ptr [rdi + 8192], 1; jmp start"


def used(rig) -> tuple[list[int], list[int]]:
    """Accessed and dirty pfns; both are cleared, as the host does at a border."""
    pair = [int(n) for n in rig.memory.accessed.nonzero()[0]], [int(n) for n in rig.memory.dirty.nonzero()[0]]
    rig.memory.accessed[:] = 0
    rig.memory.dirty[:] = 0
    return pair


def test_every_first_touch_of_an_unmapped_page_is_an_ept_violation(rig) -> None:
    rig.memory.epts[0][:] = 0
    rig.start(TOUCH_ALL)
    seen = []
    while (exit_ := rig.engine.run(50, 0)).cause is ExitCause.EPT_VIOLATION:
        seen.append((exit_.gfn, exit_.access, exit_.retired, exit_.address))
        rig.engine.map_overlay(exit_.gfn, rig.pfn_of(exit_.gfn), exit_.gfn >= rig.DATA_GFN)
    assert seen == [
        (0, Access.EXEC, 0, rig.CODE),
        (32, Access.READ, 0, rig.DATA),
        (33, Access.WRITE, 1, rig.DATA + 0x1000),
        (34, Access.READ, 1, rig.DATA + 0x2000),
    ]


def test_a_write_to_a_read_only_mapping_is_a_violation_and_the_new_mapping_counts_at_once(rig) -> None:
    rig.memory.epts[0][rig.DATA_GFN] = ept_entry(60, writable=False)
    rig.memory.frames[rig.DATA_PFN, 0] = 7
    rig.start("start: mov rax, [rdi]; mov rbx, [rdi]; mov [rdi + 8], rax; mov rcx, [rdi]; jmp start")
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.access, exit_.gfn, exit_.retired) == (ExitCause.EPT_VIOLATION, Access.WRITE, 32, 2)
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)  # the zero page gives way to a frame of its own
    assert rig.engine.run(3, 0).cause is ExitCause.BUDGET
    assert (rig.get("rax"), rig.get("rcx")) == (0, 7)
    assert used(rig) == ([0, rig.DATA_PFN, 60], [rig.DATA_PFN])


def test_a_read_after_a_new_mapping_sees_the_new_frame(rig) -> None:
    rig.memory.epts[0][rig.DATA_GFN] = ept_entry(60, writable=False)
    rig.memory.frames[rig.DATA_PFN, 0] = 7
    rig.start("start: mov rax, [rdi]; jmp start")
    rig.engine.run(10, 0)
    assert rig.get("rax") == 0
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)
    rig.engine.run(10, 0)
    assert rig.get("rax") == 7


def test_an_upgrade_of_the_same_frame_counts_at_once(rig) -> None:
    rig.memory.epts[0][rig.DATA_GFN] = ept_entry(rig.DATA_PFN, writable=False)
    rig.start("start: mov rax, [rdi]; mov [rdi], rax; jmp start")
    assert rig.engine.run(100, 0).cause is ExitCause.EPT_VIOLATION
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)
    assert rig.engine.run(100, 0).cause is ExitCause.BUDGET


def test_an_overlay_ends_with_its_window(rig) -> None:
    rig.memory.epts[0][rig.DATA_GFN] = 0
    rig.engine.map_overlay(rig.DATA_GFN, rig.DATA_PFN, True)
    rig.start("start: mov rax, [rdi]; jmp start")
    assert rig.engine.run(100, 0).cause is ExitCause.BUDGET
    rig.engine.open_window()
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.gfn) == (ExitCause.EPT_VIOLATION, rig.DATA_GFN)


def test_an_unmapped_page_is_not_used_after_a_window_opened(rig) -> None:
    rig.start(TOUCH_ALL)
    assert rig.engine.run(100, 0).cause is ExitCause.BUDGET
    rig.memory.epts[0][0] = 0
    rig.engine.open_window()
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.access, exit_.gfn, exit_.retired) == (ExitCause.EPT_VIOLATION, Access.EXEC, 0, 0)


def test_accessed_and_dirty_mean_used_since_the_window_opened(rig) -> None:
    rig.start(TOUCH_ALL)
    everything = ([0, 40, 41, 42], [41, 42])
    rig.engine.run(100, 0)
    assert used(rig) == everything
    for _ in range(3):
        rig.engine.open_window()
        assert used(rig) == ([], [])
        rig.engine.run(100, 0)
        assert used(rig) == everything


def test_code_pages_reached_by_chained_jumps_are_marked_in_every_window(rig) -> None:
    rig.store_code("inc rbx; jmp 0x400000", rig.CODE + 0x2000)
    rig.store_code("nop; jmp 0x402000", rig.CODE + 0x1000)
    rig.start("inc rax; jmp 0x401000")
    for _ in range(3):
        assert rig.engine.run(1000, 0).cause is ExitCause.BUDGET
        assert used(rig) == ([0, 1, 2], [])
        rig.engine.open_window()


def test_both_pages_of_a_block_across_a_page_end_are_marked_in_every_window(rig) -> None:
    address = rig.CODE + PAGE_SIZE - 9
    rig.start("inc rax; inc rax; inc rax; inc rax; jmp 0x400ff7", address)
    for _ in range(3):
        assert rig.engine.run(1000, 0).cause is ExitCause.BUDGET
        assert used(rig) == ([0, 1], [])
        rig.engine.open_window()


@pytest.mark.parametrize(
    ("text", "access", "address"),
    [
        ("mov rax, [r9 + 0x10]", Access.READ, 0),
        ("mov [rdi - 8], rax", Access.WRITE, 0x5FF000),
        ("mov byte ptr [rip + 1], 1", Access.WRITE, 0x400000),
        ("jmp rdi", Access.EXEC, 0x600000),
        ("jmp r8", Access.EXEC, 0x8000000000000000),
    ],
)
def test_what_the_extents_do_not_allow_is_a_page_fault(rig, text: str, access: Access, address: int) -> None:
    rig.start(text, r8=1 << 63)
    exit_ = rig.engine.run(100, 0)
    assert (exit_.cause, exit_.vector, exit_.access, exit_.address) == (ExitCause.EXCEPTION, 14, access, address)


def test_code_in_a_reused_frame_is_never_stale(rig) -> None:
    """Two programs take turns at one address, in one frame or in two, evicted in between."""
    programs = {value: f"start: mov eax, {value}; inc rbx; jmp start" for value in (1, 2)}
    for turn in range(12):
        value = 1 + turn % 2
        pfn = 50 + turn // 4 % 2
        rig.memory.generation[pfn] += 1
        rig.store_code(programs[value])
        rig.memory.frames[pfn] = rig.memory.frames[0]
        rig.memory.epts[0][0] = ept_entry(pfn, writable=False)
        rig.engine.open_window()
        rig.start(programs[value])
        exit_ = rig.engine.run(30, 0)
        assert exit_ == Exit(ExitCause.BUDGET, 30, 0, Access.READ, 0, 0, rig.CODE)
        assert rig.get("rax") == value


def test_code_translated_after_a_flush_can_become_stale_too(rig) -> None:
    """A page that was in the TLB when translations were flushed: its generation has to be noted again."""
    rig.start("start: inc rbx; jmp start")
    rig.engine.run(10, 0)
    rig.engine.flush_translations()
    rig.engine.run(10, 0)
    rig.store_code("start: inc rcx; jmp start")
    rig.memory.generation[0] += 1
    rig.engine.open_window()
    rig.engine.run(10, 0)
    assert (rig.get("rbx"), rig.get("rcx")) == (10, 5)


def test_a_stale_page_met_in_mid_run_is_counted_exactly(rig) -> None:
    rig.store_code("inc rbx; jmp 0x400000", rig.CODE + 0x1000)
    rig.start("inc rax; jmp 0x401000")
    assert rig.engine.run(40, 0).retired == 40
    rig.store_code("inc rcx; jmp 0x400000", rig.CODE + 0x1000)
    rig.memory.generation[1] += 1
    rig.engine.open_window()
    assert rig.engine.run(40, 0).retired == 40
    assert [rig.get(name) for name in ("rax", "rbx", "rcx")] == [20, 10, 10]


def test_spaces_of_two_processes_at_one_address(rig) -> None:
    rig.store_code("start: inc rbx; jmp start")
    rig.store_code("start: inc rcx; inc rcx; inc rcx; jmp start", rig.CODE + PAGE_SIZE)
    rig.engine.set_space(AddressSpace(2, (Extent(rig.CODE, 1, 1, writable=False, executable=True),)))
    for asid, retired in ((1, 10), (2, 12), (1, 10), (2, 12)):
        rig.engine.use_space(asid)
        rig.start(b"")
        assert rig.engine.run(9, 0).retired == retired
        assert (rig.get("rbx"), rig.get("rcx")) == ((5, 0) if asid == 1 else (0, 9))


@pytest.mark.parametrize(
    "extents",
    [
        (Extent(0x1000, 0, 1, writable=True, executable=True),),
        (Extent(0x1001, 0, 1, writable=True, executable=False),),
        (Extent(0x1000, 0, 2, True, False), Extent(0x2000, 2, 1, True, False)),
        (Extent(0x1000, 63, 2, True, False),),
        (Extent((1 << 47) - 4096, 0, 2, True, False),),
    ],
)
def test_malformed_address_spaces_are_refused(rig, extents: tuple[Extent, ...]) -> None:
    with pytest.raises(ValueError, match="Extent"):
        rig.engine.set_space(AddressSpace(3, extents))


def test_the_guest_kernels_own_accesses_use_the_same_mappings(rig) -> None:
    engine, gpa = rig.engine, rig.DATA_GFN * PAGE_SIZE + 64
    assert engine.write_u32(gpa, 0xDEADBEEF)
    assert engine.read_u32(gpa) == 0xDEADBEEF
    assert used(rig) == ([rig.DATA_PFN], [rig.DATA_PFN])
    assert engine.read_u32(0) == 0 and not engine.write_u32(0, 1)  # read-only
    rig.memory.epts[0][rig.DATA_GFN] = 0
    assert engine.read_u32(gpa) is None and not engine.write_u32(gpa, 1)
    engine.map_overlay(rig.DATA_GFN, 63, True)
    assert engine.write_u32(gpa, 5) and rig.memory.frames[63, 64] == 5
    with pytest.raises(ValueError, match="4 bytes at 0x20ffe cross a page"):
        engine.read_u32(gpa + PAGE_SIZE - 66)
