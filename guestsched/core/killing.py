"""What an exception that kills a task is called, so that the message needs no manual.

Follows arch/x86/kernel/traps.c, without signals: the guest kernel kills the task and goes on. Vectors and mnemonics
are those of the Intel SDM, volume 3, table 6-1.
"""

from __future__ import annotations

_VECTORS = {
    0: ("division error", "#DE"),
    1: ("debug exception", "#DB"),
    3: ("breakpoint", "#BP"),
    4: ("overflow", "#OF"),
    5: ("bound exceeded", "#BR"),
    6: ("illegal instruction", "#UD"),
    7: ("no x87 device", "#NM"),
    8: ("double fault", "#DF"),
    10: ("invalid TSS", "#TS"),
    11: ("segment not present", "#NP"),
    12: ("stack fault", "#SS"),
    13: ("privileged instruction or protection violation", "#GP"),
    14: ("bad address", "#PF"),
    16: ("x87 floating-point error", "#MF"),
    17: ("unaligned access", "#AC"),
    18: ("machine check", "#MC"),
    19: ("SIMD floating-point error", "#XM"),
}
_PAGE_FAULT = 14
_MACHINE_CHECK = 18


def page_error(token: int) -> str:
    """Why a task is killed whose page ready says that there is no page."""
    return f"SIGBUS: the host cannot get the page it waits for (page error, token {token:#x})"


def describe(vector: int, address: int, rip: int) -> str:
    """The exception in words: ``bad address 0x10 (#PF, vector 14) at rip 0x400007``."""
    if vector == _MACHINE_CHECK:  # arch/x86/kernel/cpu/mce/core.c:kill_me_maybe
        at = f"rip {rip:#x}" if rip else "an access of the kernel for it"
        return f"SIGBUS: the memory at guest-physical {address:#x} has failed (#MC, vector 18) at {at}"
    words, mnemonic = _VECTORS.get(vector, ("unexpected interrupt", "no exception"))
    if vector == _PAGE_FAULT or address:
        words = f"{words} {address:#x}" if vector == _PAGE_FAULT else f"{words} on address {address:#x}"
    return f"{words} ({mnemonic}, vector {vector}) at rip {rip:#x}"
