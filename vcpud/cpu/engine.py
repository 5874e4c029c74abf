"""One vCPU's processor: runs a task's x86-64 code at CPL 3 until it exits, counting instructions exactly.

Theory of operation. Unicorn runs the code; ``vcpud.cpu.hooks`` are its MMU and its instruction counter, native code
that shares an array of words with this class. Python takes part only between two ``run()``. Physical memory is the
host's pool of frames: physical address = pfn * 4096 (as if the vCPU walked guest page tables and EPT at once).

Within one ``run()`` nothing but the guest changes what it sees: the EPT is rewritten at borders only, and mappings
made in a window come through ``map_overlay``. What Unicorn's TLB happens to keep is therefore invisible: dropping a
translation only repeats a fill with the same answer. All translations go at ``open_window``, so that accessed and
dirty bytes are set anew by what is used in the new window. That holds for code too: a flush also empties the cache of
jump targets, and Unicorn chains blocks only within a page, which has to be looked up before its first block runs.

Departures from a real CPU:
- A fault's address is known to the page. ``run()`` reports the page address.
- A block of instructions that runs on into the next page is fetched whole: its fetch fault on that page comes before
  the block's first instruction, not in its middle. It depends on the guest's state alone, like any other fault.
- An exception goes to the caller; nothing is delivered through an IDT. After ``int n`` (vector n) and ``int3`` RIP is
  past the instruction, which counts as retired; every other exception leaves it at the instruction.
- A repeated string instruction counts once per repetition.
- IN and OUT raise #GP only after the rest of their block has run, and count as retired; SYSENTER counts as retired.
- RDTSC and RDTSCP give the vCPU's time in ns at the start of the block they are in (``hooks`` says why), and ECX = 0.
- CPUID answers with the fixed values of ``CPU_MODEL``, whatever the host.
- There is no AVX (CPUID says so): 256-bit forms are undefined, but Unicorn takes the 128-bit VEX form of an SSE
  instruction for the old two-operand one. Programs must not be compiled with -mavx.
- The transcendental x87 instructions (FSIN, FYL2X, F2XM1, ...) are those of the host's math library, so their last bits
  may differ between hosts. All other floating point is exact, SSE's too.
- Alignment checks, debug registers and single-stepping are not there.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from unicorn import unicorn_const, x86_const

from apf.hostmem import EPT_WRITE, HostMemory, ept_entry
from apf.messages import NEVER_NS, PAGE_SHIFT, PAGE_SIZE, Access, AddressSpace
from vcpud.core.effects import ExitCause
from vcpud.cpu import binding, hooks
from vcpud.cpu.exits import EngineError, Exit, Publisher
from vcpud.cpu.extents import rows_of
from vcpud.cpu.hooks import Reason, Word
from vcpud.cpu.registers import RegisterFile
from vcpud.cpu.ruler import Ruler
from vcpud.cpu.shadow import Shadow
from vcpud.cpu.user_mode import new_user_cpu

# Plain names for the hot path: an enum member takes as long to look up as a word to read.
_ACCESS = int(Word.ACCESS)
_ADDRESS = int(Word.ADDRESS)
_BASE_NS = int(Word.BASE_NS)
_EPOCH = int(Word.EPOCH)
_EPT = int(Word.EPT)
_EXTENTS = int(Word.EXTENTS)
_EXTENTS_COUNT = int(Word.EXTENTS_COUNT)
_GFN = int(Word.GFN)
_LAST_BLOCK = int(Word.LAST_BLOCK)
_OVERLAY = int(Word.OVERLAY)
_REASON = int(Word.REASON)
_RETIRED = int(Word.RETIRED)
_RIP = int(Word.RIP)
_STALE_TLB = int(Word.STALE_TLB)
_STOP_AT = int(Word.STOP_AT)
_TAG = int(Word.TAG)
_VECTOR = int(Word.VECTOR)
_R_BUDGET = int(Reason.BUDGET)
_R_EPT_VIOLATION = int(Reason.EPT_VIOLATION)
_R_INTERRUPT = int(Reason.INTERRUPT)
_R_NONE = int(Reason.NONE)
_R_PAGE_FAULT = int(Reason.PAGE_FAULT)
_R_STALE_CODE = int(Reason.STALE_CODE)
_R_SYSCALL = int(Reason.SYSCALL)

_ACCESS_OF = {
    unicorn_const.UC_MEM_READ: Access.READ,
    unicorn_const.UC_MEM_WRITE: Access.WRITE,
    unicorn_const.UC_MEM_FETCH: Access.EXEC,
}
_READ, _EXEC = Access.READ, Access.EXEC
_BUDGET, _EPT_VIOLATION = ExitCause.BUDGET, ExitCause.EPT_VIOLATION
_READ_ONLY, _WRITABLE = ept_entry(0, False), ept_entry(0, True)
_PAGE_FAULT_VECTOR = 14
_UNDEFINED_OPCODE_VECTOR = 6
_NO_BLOCK = -1
_REMEMBERED = 4096
_OFFSET_MASK = PAGE_SIZE - 1
_KEY_MASK = (1 << 64) - 1

_enter = binding.entry_of(hooks.enter.address)

__all__ = ("Engine", "EngineError", "Exit", "ExitCause", "Publisher")


class Engine:
    """A vCPU of VM ``vm`` (its index in the host's geometry), at ``cpu_mips`` instructions per us."""

    def __init__(
        self, memory: HostMemory, vm: int, cpu_mips: int, publish: Publisher | None, shadow: bool = False
    ) -> None:
        if cpu_mips < 1:
            raise ValueError(f"cpu_mips must be positive, not {cpu_mips}")
        self._memory = memory
        self._ept = memory.epts[vm]
        self._overlay: npt.NDArray[np.uint64] = np.zeros(len(self._ept), np.uint64)
        # What single entries are looked up in: an item of an array of numpy costs twice that of a memoryview.
        self._entries, self._overlay_entries = self._ept.data, self._overlay.data
        self._overlaid: list[int] = []
        self._shadow = Shadow(len(self._ept)) if shadow else None
        self._bytes = memory.frames.data.cast("B")
        self._shared: npt.NDArray[np.int64] = np.zeros(hooks.WORDS, np.int64)
        self._words = self._shared[: hooks.TABLE_START].data
        self._table = self._shared[hooks.TABLE_START :]
        self._blocks = self._table.data
        self._state = self._shared.ctypes.data
        self._seen: npt.NDArray[np.int64] = np.zeros(memory.geometry.frames, np.int64)
        self._spaces: dict[int, tuple[AddressSpace, npt.NDArray[np.int64]]] = {}
        self._space: AddressSpace | None = None
        self._ruler = Ruler()
        self._cut_short: dict[tuple[int, int, int], int] = {}
        """By address space, block and where it stopped: how many of its instructions were not retired."""
        self._fill_words(cpu_mips, publish)
        self._rip = self._shared[_RIP : _RIP + 1].view(np.uint64).data
        self._rip_address = self._state + 8 * _RIP
        self._flags = ctypes.c_uint64()
        self._flags_address = ctypes.addressof(self._flags)
        self._uc: Any = self._new_cpu()
        self._handle = binding.handle_of(self._uc)
        self._registers = RegisterFile(self._handle)
        self._fresh = self._uc.context_save()

    def _fill_words(self, cpu_mips: int, publish: Publisher | None) -> None:
        words, memory = self._words, self._memory
        if self._shadow is None:
            words[Word.OVERLAY] = self._overlay.ctypes.data
            words[Word.EPT] = self._ept.ctypes.data
        else:
            words[Word.OVERLAY] = words[Word.EPT] = self._shadow.table(0).ctypes.data
        words[Word.ACCESSED] = memory.accessed.ctypes.data
        words[Word.DIRTY] = memory.dirty.ctypes.data
        words[Word.GENERATION] = memory.generation.ctypes.data
        words[Word.SEEN] = self._seen.ctypes.data
        words[Word.EPOCH] = 1
        words[Word.LAST_BLOCK] = _NO_BLOCK
        words[Word.CPU_MIPS] = cpu_mips
        if publish is not None:
            words[Word.PAGE_ADDRESS] = publish.page_address
            words[Word.SLOT] = publish.slot

    def _new_cpu(self) -> Any:
        """A CPU in user mode with all frames and hooks."""
        frames = self._memory.geometry.frames
        uc = new_user_cpu(beyond=frames << PAGE_SHIFT)
        uc.mem_map_ptr(0, frames << PAGE_SHIFT, unicorn_const.UC_PROT_ALL, self._memory.address)
        uc.ctl_exits_enabled(True)  # with no exit set: only hooks end a run, and no address is special
        uc.ctl_set_tlb_mode(unicorn_const.UC_TLB_VIRTUAL)
        state = self._state
        binding.add_hook(uc, unicorn_const.UC_HOOK_BLOCK, hooks.ON_BLOCK, state)
        binding.add_hook(uc, unicorn_const.UC_HOOK_TLB_FILL, hooks.on_fill.address, state)
        binding.add_hook(uc, unicorn_const.UC_HOOK_INTR, hooks.on_interrupt.address, state)
        for instruction, hook in (
            (x86_const.UC_X86_INS_SYSCALL, hooks.on_syscall),
            (x86_const.UC_X86_INS_SYSENTER, hooks.on_sysenter),
            (x86_const.UC_X86_INS_RDTSC, hooks.on_rdtsc),
            (x86_const.UC_X86_INS_RDTSCP, hooks.on_rdtscp),
            (x86_const.UC_X86_INS_IN, hooks.on_in),
            (x86_const.UC_X86_INS_OUT, hooks.on_out),
        ):
            binding.add_hook(uc, unicorn_const.UC_HOOK_INSN, hook.address, state, instruction)
        return uc

    @property
    def retired(self) -> int:
        """Instructions retired in all."""
        return self._words[_RETIRED]

    @property
    def rip(self) -> int:
        """Where the task that runs goes on."""
        return self._rip[0]

    # Address spaces and mappings ------------------------------------------------------------------------------------

    def set_space(self, space: AddressSpace) -> None:
        """Tell the engine of an address space. Raises ValueError if it breaks a rule of ``AddressSpace``."""
        rows = rows_of(space, len(self._ept))
        replaced = self._spaces.get(space.asid)
        self._spaces[space.asid] = (space, rows)
        if replaced is not None:
            self.flush_translations()  # its block sizes are of the old extents' code
            if self._space is replaced[0]:
                self._space = None
                self.use_space(space.asid)

    def use_space(self, asid: int) -> None:
        """Switch to an address space (load CR3). Raises KeyError if ``set_space`` has not told of it."""
        if self._space is not None and self._space.asid == asid:
            return
        self._space, rows = self._spaces[asid]
        words = self._words
        words[_EXTENTS] = rows.ctypes.data
        words[_EXTENTS_COUNT] = len(rows)
        words[_TAG] = asid << 48
        if self._shadow is not None:
            words[_OVERLAY] = words[_EPT] = self._shadow.table(asid).ctypes.data
        self._flush_tlb()

    def open_window(self) -> None:
        """A window opens: the EPT may have been rewritten, private mappings end, use is noted afresh."""
        self._words[_STALE_TLB] = 1
        if self._overlaid:
            for gfn in self._overlaid:
                self._overlay_entries[gfn] = 0
            self._overlaid.clear()
        if self._shadow is not None:
            self._shadow.zap(self._ept)

    def map_overlay(self, gfn: int, pfn: int, writable: bool) -> None:
        """Map ``gfn`` for this vCPU alone until the next window, at once and instead of any mapping it had."""
        before = self._overlay_entries[gfn] or self._entries[gfn]
        entry = pfn << PAGE_SHIFT | (_WRITABLE if writable else _READ_ONLY)
        self._overlay_entries[gfn] = entry
        self._overlaid.append(gfn)
        if self._shadow is not None and self._space is not None:
            before = self._shadow.install(self._space.asid, gfn, entry)
        if before and before != entry:
            self._flush_tlb()

    def fill_shadow(self, gfn: int, access: Access) -> bool:
        """Install what the host maps for ``gfn`` in the running space's shadow table; False if it maps too little."""
        assert self._shadow is not None and self._space is not None
        entry = self._mapping(gfn)
        if not entry or (access is Access.WRITE and not entry & EPT_WRITE):
            return False
        before = self._shadow.install(self._space.asid, gfn, entry)
        if before and before != entry:
            self._flush_tlb()
        return True

    def flush_translations(self) -> None:
        """Forget all translated code, and what was learned from it."""
        binding.control(self._handle, binding.TB_FLUSH)
        # The TLB too: a page that stayed in it would be translated again without a fill that notes its generation.
        self._flush_tlb()
        self._words[_EPOCH] += 1
        self._table.fill(0)
        self._cut_short.clear()

    def _flush_tlb(self) -> None:
        """Before the next run: nobody but the guest looks into the TLB."""
        self._words[_STALE_TLB] = 1

    def _mapping(self, gfn: int) -> int:
        return self._overlay_entries[gfn] or self._entries[gfn]

    # Running --------------------------------------------------------------------------------------------------------

    def load_registers(self, registers: bytes) -> None:
        """Make ``registers`` (see ``apf.registers``) the task that runs."""
        self._rip[0] = self._registers.load(registers)

    def save_registers(self) -> bytes:
        """The registers of the task that runs."""
        return self._registers.save()

    def run(self, budget: int, base_ns: int) -> Exit:
        """Run until ``budget`` instructions are retired (at least one block), or until the task exits otherwise.

        The budget ends a run at the first block start at or past it. ``base_ns`` plus the time of all retired
        instructions is the clock, published as the guest runs.
        """
        words = self._words
        start = words[_RETIRED]
        words[_STOP_AT] = start + (1 if budget <= 1 else budget if budget < NEVER_NS else NEVER_NS)
        words[_BASE_NS] = base_ns
        while True:
            rip_before, retired_before = words[_RIP], words[_RETIRED]
            error = _enter(self._handle, self._state)
            exit_ = self._exit(error, start)
            if exit_ is not None:
                return exit_
            if words[_REASON] == _R_STALE_CODE:
                self.flush_translations()
            elif words[_RETIRED] == retired_before and words[_RIP] == rip_before:
                raise EngineError(f"no progress at {self.rip:#x}, Unicorn error {error}")

    def _exit(self, error: int, start: int) -> Exit | None:
        """What the guest's stop means to the caller; None if the engine can go on by itself."""
        words = self._words
        reason = words[_REASON]
        rip = self._rip[0]
        if reason == _R_BUDGET:
            return Exit(_BUDGET, words[_RETIRED] - start, 0, _READ, 0, 0, rip)
        if reason in (_R_EPT_VIOLATION, _R_PAGE_FAULT):
            access = _ACCESS_OF[words[_ACCESS]]
            if access is not _EXEC:  # a fetch fails between blocks
                self._uncount(rip)
            address = words[_ADDRESS]
            retired = words[_RETIRED] - start
            if reason == _R_EPT_VIOLATION:
                return Exit(_EPT_VIOLATION, retired, words[_GFN], access, address, 0, rip)
            return Exit(ExitCause.EXCEPTION, retired, 0, access, address & _KEY_MASK, _PAGE_FAULT_VECTOR, rip)
        if reason == _R_SYSCALL:
            self._note_return(rip)
            return Exit(ExitCause.SYSCALL, words[_RETIRED] - start, 0, _READ, 0, 0, rip)
        if reason == _R_INTERRUPT or error == unicorn_const.UC_ERR_INSN_INVALID:
            vector = words[_VECTOR] if reason == _R_INTERRUPT else _UNDEFINED_OPCODE_VECTOR
            self._uncount(rip)
            self._forget_exception()
            return Exit(ExitCause.EXCEPTION, words[_RETIRED] - start, 0, _READ, 0, vector, rip)
        if reason == _R_NONE and error != unicorn_const.UC_ERR_OK:
            raise EngineError(f"Unicorn error {error} at {rip:#x}")
        return None

    def _note_return(self, rip: int) -> None:
        """What SYSCALL leaves in registers: the next instruction's address in RCX, the flags in R11."""
        binding.reg_read(self._handle, x86_const.UC_X86_REG_RFLAGS, self._flags_address)
        binding.reg_write(self._handle, x86_const.UC_X86_REG_RCX, self._rip_address)
        binding.reg_write(self._handle, x86_const.UC_X86_REG_R11, self._flags_address)

    def _forget_exception(self) -> None:
        """Bring the CPU back from an exception that was never delivered.

        It still counts as being delivered: the next #GP or #DE would be a double fault, and the one after it the end
        of the CPU. The flag is in no register, hence the whole state is replaced by that of the start.
        """
        registers = self._registers.save()
        self._uc.context_restore(self._fresh)
        self._registers.load(registers)

    def _uncount(self, rip: int) -> None:
        """The block started last got only as far as ``rip``: take off what it did not retire."""
        words = self._words
        block = words[_LAST_BLOCK]
        if block == _NO_BLOCK:
            return
        key = (words[_TAG], block, rip)
        rest = self._cut_short.get(key)
        if rest is None:
            total, size = self._block_size(block)
            if not block <= rip < block + size:  # it ran to its end: a trap, or IN and OUT
                return
            rest = total - self._ruler.instructions_before(self._code(block, size), total, rip - block)
            if len(self._cut_short) >= _REMEMBERED:
                self._cut_short.clear()
            self._cut_short[key] = rest
        words[_RETIRED] -= rest

    def _block_size(self, block: int) -> tuple[int, int]:
        """(instructions, bytes) of a block the hook has counted."""
        row = (block & (hooks.TABLE_ROWS - 1)) * 2
        sizes = self._blocks[row + 1]
        return sizes & 0xFFFFFFFF, sizes >> 32

    def _code(self, gva: int, size: int) -> bytes:
        """``size`` bytes of the running address space; they were executed in this window, so they are mapped."""
        assert self._space is not None
        code = b""
        while size > 0:
            extent = next(e for e in self._space.extents if e.gva <= gva < e.gva + e.pages * PAGE_SIZE)
            entry = self._mapping(extent.gfn + ((gva - extent.gva) >> PAGE_SHIFT))
            offset = gva & _OFFSET_MASK
            length = min(size, PAGE_SIZE - offset)
            start = (entry & ~_OFFSET_MASK) + offset
            code += self._bytes[start : start + length]
            gva += length
            size -= length
        return code

    # The guest kernel's and KVM's own accesses ----------------------------------------------------------------------

    def read_bytes(self, gpa: int, length: int) -> bytes | None:
        """``length`` bytes at guest-physical ``gpa``, which must not cross a page; None if it is not mapped (yet)."""
        entry = self._mapping(gpa >> PAGE_SHIFT)
        if not entry:
            return None
        pfn = entry >> PAGE_SHIFT
        start = _place(pfn, gpa, length)
        self._memory.accessed[pfn] = 1
        return bytes(self._bytes[start : start + length])

    def write_bytes(self, gpa: int, data: bytes) -> bool:
        """Store ``data`` likewise; False if the page is not mapped writable.

        The page may hold code that has not run yet; code that has is never written (write-xor-execute).
        """
        entry = self._mapping(gpa >> PAGE_SHIFT)
        if not entry & EPT_WRITE:
            return False
        pfn = entry >> PAGE_SHIFT
        start = _place(pfn, gpa, len(data))
        self._memory.accessed[pfn] = 1
        self._memory.dirty[pfn] = 1
        self._bytes[start : start + len(data)] = data
        return True

    def read_u32(self, gpa: int) -> int | None:
        """The u32 at ``gpa``, as ``read_bytes``."""
        data = self.read_bytes(gpa, 4)
        return None if data is None else int.from_bytes(data, "little")

    def write_u32(self, gpa: int, value: int) -> bool:
        """Store a u32, as ``write_bytes``."""
        return self.write_bytes(gpa, value.to_bytes(4, "little"))

    def close(self) -> None:
        """Free the Unicorn engine. The object cannot be used afterwards."""
        self._uc = None
        self._handle = 0


def _place(pfn: int, gpa: int, length: int) -> int:
    offset = gpa & _OFFSET_MASK
    if offset + length > PAGE_SIZE:
        raise ValueError(f"{length} bytes at {gpa:#x} cross a page")
    return pfn << PAGE_SHIFT | offset
