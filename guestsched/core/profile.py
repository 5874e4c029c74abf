"""The guest's profile: samples by symbol, of programs and of the guest kernel's paths.

A sample is an interrupt. On a path of the kernel it therefore comes where that path lets interrupts in again, and is
booked on the function that does so, as perf's cpu-clock shows it (Linux 2.6.3x to 4.x, x86-64). The paths are those
the emulator models; each row says which.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from apf.messages import KernelPath, Sample

SYMBOL_OF_PATH = {
    # The tick's handler runs with interrupts off; irq_exit runs softirqs with interrupts on.
    KernelPath.TICK: "do_softirq",
    # schedule() holds the run queue's lock, with interrupts off, until finish_task_switch releases it.
    KernelPath.SCHEDULE: "_raw_spin_unlock_irq",
    # Expired hrtimers wake their tasks under a lock taken with irqsave.
    KernelPath.TIMER: "_raw_spin_unlock_irqrestore",
    # The reschedule interrupt does nothing itself; the way back to user mode sees need_resched.
    KernelPath.INTERRUPT: "retint_careful",
    # kvm_async_pf_task_wait: schedule() again.
    KernelPath.NOT_PRESENT: "_raw_spin_unlock_irq",
    # Page ready wakes the task; the way back to user mode sees need_resched, lets interrupts in, and schedules.
    KernelPath.PAGE_READY: "retint_careful",
    KernelPath.SYSCALL: "system_call",
    KernelPath.EXCEPTION: "error_exit",
    KernelPath.IDLE: "native_safe_halt",
}
UNKNOWN = "[unknown]"


@dataclass(frozen=True, slots=True)
class Row:
    """Samples of one symbol; ``program`` is empty for the kernel's."""

    symbol: str
    program: str
    samples: int

    @property
    def kernel(self) -> bool:
        """Whether it is the guest kernel's."""
        return not self.program


class Profile:
    """All samples of a VM."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._paths: Counter[KernelPath] = Counter()
        self.samples = 0

    def add(self, sample: Sample, symbol: str, program: str) -> None:
        """Book samples of a task on a symbol of its program."""
        self._counts[symbol, program] += sample.count
        self.samples += sample.count

    def add_kernel(self, sample: Sample) -> None:
        """Book samples of a path of the kernel."""
        self._counts[SYMBOL_OF_PATH[sample.path], ""] += sample.count
        self._paths[sample.path] += sample.count
        self.samples += sample.count

    def rows(self) -> list[Row]:
        """Most samples first, then by name."""
        rows = [Row(symbol, program, count) for (symbol, program), count in self._counts.items()]
        return sorted(rows, key=lambda row: (-row.samples, row.symbol, row.program))

    def folded(self) -> str:
        """For flame-graph tools: one ``program;symbol count`` a line, the kernel's symbols with the path before."""
        lines = [f"{row.program};{row.symbol} {row.samples}" for row in self.rows() if row.program]
        lines += [
            f"[kernel];{path.name.lower()};{SYMBOL_OF_PATH[path]} {count}"
            for path, count in sorted(self._paths.items())
        ]
        return "\n".join(lines) + ("\n" if lines else "")
