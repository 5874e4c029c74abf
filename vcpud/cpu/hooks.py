"""The native hooks Unicorn calls while guest code runs: block starts, TLB fills, interrupts, system calls.

Theory of operation. An engine and its hooks share one array of int64 words (``Word``), whose address is every hook's
user data. Python writes parameters into it before ``uc_emu_start`` and reads the reason of the stop afterwards; no
Python runs in between, and no GIL is held.

Counting. The block hook adds the instruction count of the block that is about to run; what a fault cuts short is
taken off again by the engine. Counts come from Unicorn's own translation (``UC_CTL_TB_REQUEST_CACHE``), kept in a
direct-mapped table. The hook's fast path is one compare with ``NEXT_CHECK``, which stands for both the budget and
the next publication of the clock; all else is a call to ``on_block_slow``. The fast path is LLVM assembly, because
the wrapper that numba puts around a hook would double its cost.

Paging. The fill hook is the MMU: process extents (guest-virtual to guest-physical, the guest's page tables), then
the vCPU's private overlay, then the VM's EPT. Write permission is given on write fills only, so that the first write
to a page always comes here, where its dirty byte is set (as KVM write-protects pages to log them as dirty).

Time. RDTSC shows the vCPU's virtual time at the start of the block that executes it. Where in its block an instruction
stands is not known here, and a count that includes the whole block would run ahead: after a fault in mid-block takes
the rest off again, the next reading, of another task or on another vCPU, could be an earlier one. What a block's start
shows has been reached by the vCPU's clock, whatever happens later, so time never goes back. An instruction reached by
a jump starts its block and reads the exact time.

All functions compile when this module is imported and are cached beside it. numba does not see that a cached
function's *callee* in another file changed: touch this file after changing ``publish`` or ``native``.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Any, Final

import llvmlite.binding as llvm
from numba import cfunc, njit, types
from unicorn import unicorn_const, x86_const

from apf.clockcells import NOBODY, publish
from vcpud.cpu.binding import TLB_FLUSH, uclib
from vcpud.cpu.native import load32, load64, store8, store32, store64


class Word(IntEnum):
    """Words of the array that an engine shares with its hooks; all addresses are of this process."""

    RETIRED = 0
    """Instructions retired by the engine; inside a block, with that block's."""
    NEXT_CHECK = 1
    """``RETIRED`` at which the block hook takes its slow path."""
    TAG = 2
    """What distinguishes this address space's blocks in that table, exclusive-ored with the block's address."""
    LAST_BLOCK = 3
    """Address of the block started last."""
    STOP_AT = 4
    """``RETIRED`` at which the budget is reached."""
    REASON = 5
    """Why the hooks stopped the engine: a ``Reason``. The first one of a run stands."""
    ADDRESS = 6
    """Page address (guest-virtual) of the fill that failed."""
    GFN = 7
    """Its guest frame, if it has one."""
    ACCESS = 8
    """Its kind of access, as Unicorn's ``UC_MEM_READ``, ``_WRITE``, ``_FETCH``."""
    VECTOR = 9
    """x86 vector of the exception."""
    EXTENTS = 10
    """Address of the extents in use: rows of (first gva, end gva, first gfn, ``UC_PROT`` permissions), ascending."""
    EXTENTS_COUNT = 11
    OVERLAY = 12
    """Address of the vCPU's private mappings, an EPT entry per gfn, 0 for none."""
    EPT = 13
    ACCESSED = 14
    DIRTY = 15
    GENERATION = 16
    """Addresses of host memory's arrays of those names."""
    SEEN = 17
    """Address of an int64 per frame: ``EPOCH << 32 | generation`` when last executed from."""
    EPOCH = 18
    """Number of translation flushes so far, from 1: what was seen in an earlier epoch has no translation left."""
    PAGE_ADDRESS = 19
    """Address of the clock page, 0 if the clock is not published."""
    SLOT = 20
    BASE_NS = 21
    """Costs and waits in the vCPU's clock: its time is this plus the time of the retired instructions."""
    CPU_MIPS = 22
    TB_PC = 23
    TB_SIZES = 24
    """Both: a ``struct uc_tb`` for ``UC_CTL_TB_REQUEST_CACHE``: pc u64, instructions u16, bytes u16."""
    SCRATCH = 25
    """Where a hook puts the value of a register it writes."""
    RIP = 26
    """Where the task goes on, unsigned."""
    STALE_TLB = 27
    """Not 0: the TLB is to be flushed before the engine runs again."""


class Reason(IntEnum):
    """Why a hook stopped the engine (``Word.REASON``)."""

    NONE = 0
    BUDGET = 1
    EPT_VIOLATION = 2
    PAGE_FAULT = 3
    STALE_CODE = 4
    SYSCALL = 5
    INTERRUPT = 6


TABLE_START = 32
"""Word of the shared array at which the table of block sizes starts."""
TABLE_ROWS = 8192
"""Rows of (key int64, instructions u32, bytes u32), found by the low bits of a block's address."""
WORDS = TABLE_START + 2 * TABLE_ROWS
EXTENT_BYTES = 32
PUBLISH_INTERVAL = 4096
"""Instructions between two publications of the clock while a vCPU runs, give or take a block."""
NS_PER_US = 1000

CTL_TB_REQUEST_CACHE = unicorn_const.UC_CTL_TB_REQUEST_CACHE | 2 << 26 | 3 << 30
"""``uc_ctl`` control word: type, two arguments, read and write (``UC_CTL`` in unicorn.h); a signed int below."""

# numba freezes globals of these plain types into the code; enum members it would look up.
_RETIRED: Final = Word.RETIRED * 8
_NEXT_CHECK: Final = Word.NEXT_CHECK * 8
_TAG: Final = Word.TAG * 8
_LAST_BLOCK: Final = Word.LAST_BLOCK * 8
_STOP_AT: Final = Word.STOP_AT * 8
_REASON: Final = Word.REASON * 8
_ADDRESS: Final = Word.ADDRESS * 8
_GFN: Final = Word.GFN * 8
_ACCESS: Final = Word.ACCESS * 8
_VECTOR: Final = Word.VECTOR * 8
_EXTENTS: Final = Word.EXTENTS * 8
_EXTENTS_COUNT: Final = Word.EXTENTS_COUNT * 8
_OVERLAY: Final = Word.OVERLAY * 8
_EPT: Final = Word.EPT * 8
_ACCESSED: Final = Word.ACCESSED * 8
_DIRTY: Final = Word.DIRTY * 8
_GENERATION: Final = Word.GENERATION * 8
_SEEN: Final = Word.SEEN * 8
_EPOCH: Final = Word.EPOCH * 8
_PAGE_ADDRESS: Final = Word.PAGE_ADDRESS * 8
_SLOT: Final = Word.SLOT * 8
_BASE_NS: Final = Word.BASE_NS * 8
_CPU_MIPS: Final = Word.CPU_MIPS * 8
_TABLE: Final = TABLE_START * 8
_TB: Final = Word.TB_PC * 8
_TB_SIZES: Final = Word.TB_SIZES * 8
_SCRATCH: Final = Word.SCRATCH * 8
_RIP: Final = Word.RIP * 8
_STALE_TLB: Final = Word.STALE_TLB * 8
_BUDGET: Final = int(Reason.BUDGET)
_EPT_VIOLATION: Final = int(Reason.EPT_VIOLATION)
_PAGE_FAULT: Final = int(Reason.PAGE_FAULT)
_STALE_CODE: Final = int(Reason.STALE_CODE)
_SYSCALL: Final = int(Reason.SYSCALL)
_INTERRUPT: Final = int(Reason.INTERRUPT)
_TB_REQUEST: Final = CTL_TB_REQUEST_CACHE - (1 << 32)
_GENERAL_PROTECTION: Final = 13
_READ: Final = unicorn_const.UC_PROT_READ
_WRITE: Final = unicorn_const.UC_PROT_WRITE
_EXEC: Final = unicorn_const.UC_PROT_EXEC
_MEM_WRITE: Final = unicorn_const.UC_MEM_WRITE
_MEM_FETCH: Final = unicorn_const.UC_MEM_FETCH
_NO_BLOCK: Final = -1
_TLB_FLUSH: Final = TLB_FLUSH
_REG_RIP: Final = x86_const.UC_X86_REG_RIP
_RAX: Final = x86_const.UC_X86_REG_RAX
_RCX: Final = x86_const.UC_X86_REG_RCX
_RDX: Final = x86_const.UC_X86_REG_RDX

# Symbols have to be there before a cached function is loaded. With a ctypes pointer instead numba would not cache.
for _name in ("uc_emu_start", "uc_emu_stop", "uc_ctl", "uc_reg_read", "uc_reg_write"):
    llvm.add_symbol(f"apf_{_name}", ctypes.cast(getattr(uclib, _name), ctypes.c_void_p).value)
_uc_emu_stop: Any = types.ExternalFunction("apf_uc_emu_stop", types.int32(types.int64))
_uc_emu_start: Any = types.ExternalFunction("apf_uc_emu_start", types.int32(*[types.int64] * 5))
_uc_reg_read: Any = types.ExternalFunction("apf_uc_reg_read", types.int32(types.int64, types.int32, types.int64))
_uc_reg_write: Any = types.ExternalFunction("apf_uc_reg_write", types.int32(types.int64, types.int32, types.int64))
# Variadic in C; on x86-64 Linux integers travel in the same registers either way.
_uc_ctl: Any = types.ExternalFunction("apf_uc_ctl", types.int32(types.int64, types.int32, types.int64, types.int64))


@cfunc(types.int32(types.int64, types.int64), cache=True)
def enter(uc: int, state: int) -> int:
    """Run the guest from ``RIP`` on until a hook stops it; Unicorn's error. One call where Python would make three."""
    if load64(state + _STALE_TLB) != 0:
        _uc_ctl(uc, _TLB_FLUSH, 0, 0)
        store64(state + _STALE_TLB, 0)
    store64(state + _LAST_BLOCK, _NO_BLOCK)
    store64(state + _REASON, 0)
    store64(state + _NEXT_CHECK, min(load64(state + _STOP_AT), load64(state + _RETIRED) + PUBLISH_INTERVAL))
    error = _uc_emu_start(uc, load64(state + _RIP), 0, 0, 0)
    _uc_reg_read(uc, _REG_RIP, state + _RIP)
    return error  # type: ignore[no-any-return]  # an external function


_BLOCK_TYPE = types.void(types.int64, types.int64, types.uint32, types.int64)


@cfunc(_BLOCK_TYPE, cache=True, error_model="numpy")
def on_block_slow(uc: int, pc: int, size: int, state: int) -> None:
    """The block hook when something is due: the budget's end, a publication, or an unknown block's size."""
    retired = load64(state + _RETIRED)
    if retired >= load64(state + _NEXT_CHECK):
        stop_at = load64(state + _STOP_AT)
        if retired >= stop_at:
            store64(state + _REASON, _BUDGET)
            _uc_emu_stop(uc)  # takes effect before the block runs, so it is not counted
            return
        page_address = load64(state + _PAGE_ADDRESS)
        if page_address != 0:
            now_ns = load64(state + _BASE_NS) + retired * NS_PER_US // load64(state + _CPU_MIPS)
            publish(page_address, load64(state + _SLOT), now_ns, NOBODY)
            store64(state + _NEXT_CHECK, min(stop_at, retired + PUBLISH_INTERVAL))
        else:
            store64(state + _NEXT_CHECK, stop_at)
    row = state + _TABLE + ((pc & (TABLE_ROWS - 1)) << 4)
    key = pc ^ load64(state + _TAG)
    if load64(row) != key:
        _uc_ctl(uc, _TB_REQUEST, pc, state + _TB)
        sizes = load64(state + _TB_SIZES)
        store64(row, key)
        store32(row + 8, sizes & 0xFFFF)
        store32(row + 12, (sizes >> 16) & 0xFFFF)
    store64(state + _LAST_BLOCK, pc)
    store64(state + _RETIRED, retired + load32(row + 8))


# The block hook's fast path. numba would put a wrapper around it, which costs as much as the hook itself.
_ON_BLOCK = f"""
define void @on_block(i64 %uc, i64 %pc, i32 %size, i64 %state) {{
  %retired_at = inttoptr i64 %state to ptr
  %check_at = getelementptr i64, ptr %retired_at, i64 {int(Word.NEXT_CHECK)}
  %tag_at = getelementptr i64, ptr %retired_at, i64 {int(Word.TAG)}
  %last_at = getelementptr i64, ptr %retired_at, i64 {int(Word.LAST_BLOCK)}
  %low = and i64 %pc, {TABLE_ROWS - 1}
  %pair = shl i64 %low, 1
  %index = add i64 %pair, {TABLE_START}
  %key_at = getelementptr i64, ptr %retired_at, i64 %index
  %size_at = getelementptr i64, ptr %key_at, i64 1
  %retired = load i64, ptr %retired_at
  %check = load i64, ptr %check_at
  %due = icmp sge i64 %retired, %check
  br i1 %due, label %slow, label %lookup
lookup:
  %tag = load i64, ptr %tag_at
  %wanted = xor i64 %pc, %tag
  %key = load i64, ptr %key_at
  %known = icmp eq i64 %key, %wanted
  br i1 %known, label %fast, label %slow
fast:
  %instructions32 = load i32, ptr %size_at
  %instructions = zext i32 %instructions32 to i64
  %sum = add i64 %retired, %instructions
  store i64 %pc, ptr %last_at
  store i64 %sum, ptr %retired_at
  ret void
slow:
  %function = inttoptr i64 {on_block_slow.address} to ptr
  tail call void %function(i64 %uc, i64 %pc, i32 %size, i64 %state)
  ret void
}}
"""


def _compile(assembly: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=3)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(assembly), machine)
    engine.finalize_object()
    return engine


_native_block = _compile(_ON_BLOCK)  # owns the code
ON_BLOCK: Final[int] = _native_block.get_function_address("on_block")
"""Address of ``UC_HOOK_BLOCK``: count the block, unless something is due."""


_FILL_TYPE = types.int32(types.int64, types.int64, types.int32, types.int64, types.int64)


@cfunc(_FILL_TYPE, cache=True, error_model="numpy")
def on_fill(uc: int, gva: int, access: int, result: int, state: int) -> int:
    """``UC_HOOK_TLB_FILL``: translate page address ``gva``; False leaves emulation at the instruction.

    ``result`` is a ``uc_tlb_entry``: physical address u64, permissions u32. Unicorn passes page addresses only, so
    a fault's address is known to the page.
    """
    if access == _MEM_FETCH:
        needed = _EXEC
        granted = _READ | _EXEC
    elif access == _MEM_WRITE:
        needed = _WRITE
        granted = _READ | _WRITE
    else:
        needed = _READ
        granted = _READ
    extents = load64(state + _EXTENTS)
    low = 0
    high = load64(state + _EXTENTS_COUNT)
    while low < high:  # the first extent that ends beyond gva
        middle = (low + high) >> 1
        if load64(extents + middle * EXTENT_BYTES + 8) <= gva:
            low = middle + 1
        else:
            high = middle
    extent = extents + low * EXTENT_BYTES
    gfn = 0
    reason = 0
    if low == load64(state + _EXTENTS_COUNT) or gva < load64(extent) or not load64(extent + 24) & needed:
        reason = _PAGE_FAULT
    else:
        gfn = load64(extent + 16) + ((gva - load64(extent)) >> 12)
        entry = load64(load64(state + _OVERLAY) + gfn * 8)
        if entry == 0:
            entry = load64(load64(state + _EPT) + gfn * 8)
        if entry == 0 or (access == _MEM_WRITE and not entry & 2):
            reason = _EPT_VIOLATION
        else:
            pfn = entry >> 12
            if access == _MEM_FETCH:
                seen = load64(state + _SEEN) + pfn * 8
                epoch = load64(state + _EPOCH)
                mark = epoch << 32 | load32(load64(state + _GENERATION) + pfn * 4)
                if load64(seen) != mark and load64(seen) >> 32 == epoch:
                    reason = _STALE_CODE
                else:
                    store64(seen, mark)
            if reason == 0:
                store8(load64(state + _ACCESSED) + pfn, 1)
                if access == _MEM_WRITE:
                    store8(load64(state + _DIRTY) + pfn, 1)
                store64(result, pfn << 12)
                store32(result + 8, granted)
                return 1
    if load64(state + _REASON) == 0:
        store64(state + _REASON, reason)
        store64(state + _ADDRESS, gva)
        store64(state + _GFN, gfn)
        store64(state + _ACCESS, access)
    return 0


@cfunc(types.void(types.int64, types.uint32, types.int64), cache=True)
def on_interrupt(uc: int, vector: int, state: int) -> None:
    """``UC_HOOK_INTR``: the guest raised exception ``vector``, which nobody in this engine handles."""
    if load64(state + _REASON) == 0:
        store64(state + _REASON, _INTERRUPT)
        store64(state + _VECTOR, types.int64(vector))
    _uc_emu_stop(uc)


@cfunc(types.void(types.int64, types.int64), cache=True)
def on_syscall(uc: int, state: int) -> None:
    """``UC_HOOK_INSN`` of SYSCALL, which always ends its block."""
    if load64(state + _REASON) == 0:
        store64(state + _REASON, _SYSCALL)
    _uc_emu_stop(uc)


@cfunc(types.void(types.int64, types.int64), cache=True)
def on_sysenter(uc: int, state: int) -> None:
    """``UC_HOOK_INSN`` of SYSENTER, which there is no entry for: #GP. It always ends its block."""
    if load64(state + _REASON) == 0:
        store64(state + _REASON, _INTERRUPT)
        store64(state + _VECTOR, _GENERAL_PROTECTION)
    _uc_emu_stop(uc)


@njit(types.void(types.int64, types.int64), cache=True, error_model="numpy")
def _show_time(uc: int, state: int) -> None:
    """EDX:EAX = the time in ns at which the running block started."""
    row = state + _TABLE + ((load64(state + _LAST_BLOCK) & (TABLE_ROWS - 1)) << 4)  # the block hook has just used it
    retired = load64(state + _RETIRED) - load32(row + 8)
    now_ns = load64(state + _BASE_NS) + retired * NS_PER_US // load64(state + _CPU_MIPS)
    store64(state + _SCRATCH, now_ns & 0xFFFFFFFF)
    _uc_reg_write(uc, _RAX, state + _SCRATCH)
    store64(state + _SCRATCH, now_ns >> 32)
    _uc_reg_write(uc, _RDX, state + _SCRATCH)


@cfunc(types.int32(types.int64, types.int64), cache=True)
def on_rdtsc(uc: int, state: int) -> int:
    """``UC_HOOK_INSN`` of RDTSC. True: Unicorn does no more about it."""
    _show_time(uc, state)
    return 1


@cfunc(types.int32(types.int64, types.int64), cache=True)
def on_rdtscp(uc: int, state: int) -> int:
    """``UC_HOOK_INSN`` of RDTSCP, likewise. IA32_TSC_AUX is 0: it would name the vCPU, and tasks migrate."""
    store64(state + _SCRATCH, 0)
    _uc_reg_write(uc, _RCX, state + _SCRATCH)
    _show_time(uc, state)
    return 1


@cfunc(types.uint32(types.int64, types.uint32, types.int32, types.int64), cache=True)
def on_in(uc: int, port: int, size: int, state: int) -> int:
    """``UC_HOOK_INSN`` of IN and INS: Unicorn does them at any privilege. #GP, once the rest of the block has run."""
    if load64(state + _REASON) == 0:
        store64(state + _REASON, _INTERRUPT)
        store64(state + _VECTOR, _GENERAL_PROTECTION)
    _uc_emu_stop(uc)
    return 0


@cfunc(types.void(types.int64, types.uint32, types.int32, types.uint32, types.int64), cache=True)
def on_out(uc: int, port: int, size: int, value: int, state: int) -> None:
    """``UC_HOOK_INSN`` of OUT and OUTS, likewise."""
    if load64(state + _REASON) == 0:
        store64(state + _REASON, _INTERRUPT)
        store64(state + _VECTOR, _GENERAL_PROTECTION)
    _uc_emu_stop(uc)
