"""The system calls of the guest kernel: numbers and results as in the x86-64 ABI.

The number is in RAX, arguments in RDI.., the result goes to RAX. RIP is past the instruction when the trap arrives,
and RCX and R11 are the CPU's business.
"""

from __future__ import annotations

from enum import IntEnum


class Syscall(IntEnum):
    """What there is. CLOCK_GETTIME departs from the ABI: its result is the guest's time in ns, in RAX."""

    SCHED_YIELD = 24
    EXIT = 60
    CLOCK_GETTIME = 228


_ENOSYS = 38
MINUS_ENOSYS = (1 << 64) - _ENOSYS
"""RAX after a number that is no system call."""
