"""All registers of a task (``apf.registers``), in and out of an engine in one call each."""

from __future__ import annotations

import ctypes

from unicorn import x86_const

from apf.registers import CELL_BYTES, FILE_BYTES, NAMES
from vcpud.cpu import binding

_IDS = tuple(getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in NAMES)
_RIP_WORD = NAMES.index("rip") * CELL_BYTES // 8
_RFLAGS_WORD = NAMES.index("rflags") * CELL_BYTES // 8

RFLAGS_USER = 0x244CD5
"""What user code can change: CF PF AF ZF SF DF OF NT AC ID. TF is left out: nobody single-steps a task."""
RFLAGS_FIXED = 0x202
"""IF and the bit that is always one."""


class RegisterFile:
    """Buffers for the whole register file of one engine."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._count = len(_IDS)
        self._ids = (ctypes.c_int * self._count)(*_IDS)
        self._cells = (ctypes.c_uint64 * (FILE_BYTES // 8))()
        start = self._address = ctypes.addressof(self._cells)
        self._pointers = (ctypes.c_void_p * self._count)(*(start + CELL_BYTES * n for n in range(self._count)))

    def load(self, registers: bytes) -> int:
        """Write all registers to the engine and return RIP. Flags that user code cannot change keep their value."""
        if len(registers) != FILE_BYTES:
            raise ValueError(f"a register file has {FILE_BYTES} bytes, not {len(registers)}")
        ctypes.memmove(self._address, registers, FILE_BYTES)
        self._cells[_RFLAGS_WORD] = self._cells[_RFLAGS_WORD] & RFLAGS_USER | RFLAGS_FIXED
        error = binding.reg_write_batch(self._handle, self._ids, self._pointers, self._count)
        if error:
            raise OSError(f"uc_reg_write_batch: Unicorn error {error}")
        return self._cells[_RIP_WORD]

    def save(self) -> bytes:
        """All registers of the engine."""
        error = binding.reg_read_batch(self._handle, self._ids, self._pointers, self._count)
        if error:
            raise OSError(f"uc_reg_read_batch: Unicorn error {error}")
        return ctypes.string_at(self._address, FILE_BYTES)
