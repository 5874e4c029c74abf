"""The register file of a guest task, as it crosses the wire: it belongs to guestsched while the task does not run.

A fixed array of 16-byte little-endian cells, one a register, in the order of ``NAMES``. The vCPU's engine reads and
writes all of them in one batch.
"""

from __future__ import annotations

NAMES: tuple[str, ...] = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{n}" for n in range(8, 16)),
    *("rip", "rflags", "fs_base", "gs_base", "mxcsr", "fpcw", "fpsw", "fptag"),
    *(f"st{n}" for n in range(8)),
    *(f"xmm{n}" for n in range(16)),
)
CELL_BYTES = 16
FILE_BYTES = CELL_BYTES * len(NAMES)
_INDEX = {name: index for index, name in enumerate(NAMES)}
_RESET = {"rflags": 0x202, "mxcsr": 0x1F80, "fpcw": 0x37F, "fptag": 0xFFFF}


def new(**values: int) -> bytes:
    """A register file at reset with ``values`` set by name (non-negative, at most 16 bytes each)."""
    cells = bytearray(FILE_BYTES)
    for name, value in {**_RESET, **values}.items():
        start = _INDEX[name] * CELL_BYTES
        cells[start : start + CELL_BYTES] = value.to_bytes(CELL_BYTES, "little")
    return bytes(cells)


def get(registers: bytes, name: str) -> int:
    """The value of register ``name``."""
    start = _INDEX[name] * CELL_BYTES
    return int.from_bytes(registers[start : start + CELL_BYTES], "little")


def replace(registers: bytes, **values: int) -> bytes:
    """``registers`` with some registers changed."""
    cells = bytearray(registers)
    for name, value in values.items():
        start = _INDEX[name] * CELL_BYTES
        cells[start : start + CELL_BYTES] = value.to_bytes(CELL_BYTES, "little")
    return bytes(cells)
