"""A Unicorn CPU at CPL 3.

Unicorn starts at CPL 0, where privileged instructions run silently or look like a normal stop. SYSRETQ is the way
down: it loads CS and SS with the selectors in MSR_STAR and RIP from RCX.
"""

from __future__ import annotations

from typing import Any

from unicorn import UC_ARCH_X86, UC_MODE_64, x86_const

from apf.messages import PAGE_SIZE
from vcpud.cpu import binding
from vcpud.cpu.exits import EngineError

CPU_MODEL = x86_const.UC_CPU_X86_SANDYBRIDGE
"""x86-64-v2: SSE4.2, POPCNT, AES, RDTSCP; neither AVX, which Unicorn lacks, nor RDRAND and RDSEED, which are random."""

_TCG_BUFFER_BYTES = 64 << 20
_SYSRETQ = b"\x48\x0f\x07"
_LANDING_OFFSET = 0x10
_MSR_EFER, _EFER_SCE_LME_LMA = 0xC0000080, 0x501
_MSR_STAR, _STAR_SELECTORS = 0xC0000081, 0x18 << 48 | 0x08 << 32
_CR0_NE = 1 << 5
_CR4_OSFXSR, _CR4_OSXMMEXCPT = 1 << 9, 1 << 10
_RFLAGS = 0x202


def new_user_cpu(beyond: int) -> Any:
    """A CPU in user mode, without memory or hooks; the page at physical address ``beyond`` serves on the way only.

    SSE works, x87 errors are exceptions, XSAVE and XGETBV are undefined (no OSXSAVE). RDTSC and RDTSCP are left to
    hooks: without one they would show the host's counter.
    """
    uc = binding.Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(CPU_MODEL)
    uc.ctl_set_tcg_buffer_size(_TCG_BUFFER_BYTES)
    uc.reg_write(x86_const.UC_X86_REG_MSR, (_MSR_STAR, _STAR_SELECTORS))
    uc.reg_write(x86_const.UC_X86_REG_MSR, (_MSR_EFER, _EFER_SCE_LME_LMA))
    uc.reg_write(x86_const.UC_X86_REG_CR0, uc.reg_read(x86_const.UC_X86_REG_CR0) | _CR0_NE)
    uc.reg_write(x86_const.UC_X86_REG_CR4, _CR4_OSFXSR | _CR4_OSXMMEXCPT)
    for table in (x86_const.UC_X86_REG_GDTR, x86_const.UC_X86_REG_IDTR):
        uc.reg_write(table, (0, 0, 0, 0))  # empty, or guest memory at address 0 would be read as descriptors
    uc.mem_map(beyond, PAGE_SIZE)
    uc.mem_write(beyond, _SYSRETQ)
    uc.reg_write(x86_const.UC_X86_REG_RCX, beyond + _LANDING_OFFSET)
    uc.reg_write(x86_const.UC_X86_REG_R11, _RFLAGS)
    uc.emu_start(beyond, beyond + _LANDING_OFFSET)
    if uc.reg_read(x86_const.UC_X86_REG_CS) & 3 != 3:
        raise EngineError("the CPU did not get to CPL 3")
    uc.mem_unmap(beyond, PAGE_SIZE)
    uc.ctl_flush_tb()  # what is translated before a hook is added never calls it
    binding.control(binding.handle_of(uc), binding.TLB_FLUSH)
    return uc
