"""The system calls of the guest kernel: numbers and results as in the x86-64 ABI.

The number is in RAX, arguments in RDI, RSI, RDX, the result goes to RAX (minus errno on error). Those above 4095 are
the emulator's own. A call that needs guest memory first has the vCPU read it (``Cpu.fetching``), and ends when that
was done. A call that sleeps has its result before.

Departures: CLOCK_GETTIME, NANOSLEEP and MMAP take and give plain integers; WAIT and WAKE are counting semaphores of the
process, since a futex's compare would race between vCPUs.
"""

from __future__ import annotations

from enum import IntEnum

from apf import registers as register_file
from apf.messages import NEVER_NS
from guestsched.core.cpu import Cpu
from guestsched.core.feed import Feed
from guestsched.core.kernel import Kernel, Log
from guestsched.core.process import OutOfMemory, Process, Semaphore
from guestsched.core.task import Task, TaskEvent


class Syscall(IntEnum):
    """What there is."""

    WRITE = 1  # (fd, buf, len): text for the run's log
    MMAP = 9  # (bytes) -> address of fresh pages
    SCHED_YIELD = 24
    NANOSLEEP = 35  # (ns)
    EXIT = 60  # (status)
    CLOCK_GETTIME = 228  # () -> guest ns
    COUNT = 4096  # (n): add to the task's counter
    WAIT = 4097  # (id): take one of the semaphore, or sleep until there is one
    WAKE = 4098  # (id, n): add to the semaphore
    TAKE = 4099  # () -> accesses in the ring; access threads only


_EFAULT, _EINVAL, _ENOSYS, _ENOMEM = 14, 22, 38, 12
MINUS_ENOSYS = (1 << 64) - _ENOSYS
"""RAX after a number that is no system call."""
WRITE_MAX = 4096
SEMAPHORE_MAX = (1 << 31) - 1
SEMAPHORES_MAX = 65_536
_MASK = (1 << 64) - 1
_SIGN = 1 << 63


class Syscalls:
    """Carries out system calls of current tasks."""

    def __init__(self, kernel: Kernel, feed: Feed) -> None:
        self._kernel = kernel
        self._feed = feed

    def enter(self, cpu: Cpu, data: bytes, now_ns: int) -> None:
        """The current task of ``cpu`` made a system call; ``data`` is what was to be read with it."""
        kernel = self._kernel
        task = kernel.current(cpu, "system call")
        number, first, second, third = (
            register_file.get(task.registers, name) for name in ("rax", "rdi", "rsi", "rdx")
        )
        kernel.journal.record((now_ns, "syscall", cpu.index, task.id, number))
        process = kernel.processes[task.asid]
        match number:
            case Syscall.EXIT:
                task.status = first - (1 << 64) if first & _SIGN else first
                kernel.leave(cpu, task, TaskEvent.EXITED, now_ns)
            case Syscall.SCHED_YIELD:
                _result(task, 0)
                kernel.schedule(cpu, now_ns, skip=True)
            case Syscall.CLOCK_GETTIME:
                _result(task, now_ns)
            case Syscall.NANOSLEEP:
                _result(task, 0)
                kernel.leave_for(cpu, task, min(now_ns + max(1, first), NEVER_NS), now_ns)
            case Syscall.COUNT:
                task.counted = (task.counted + first) & _MASK
                _result(task, 0)
            case Syscall.MMAP:
                self._mmap(task, process, first)
            case Syscall.WAIT:
                self._wait(cpu, task, process, first, now_ns)
            case Syscall.WAKE:
                self._wake(cpu, task, process, first, second, now_ns)
            case Syscall.WRITE:
                self._write(cpu, task, process, second, third)
            case Syscall.TAKE if task.spec.ring:
                self._take(cpu, task, data, now_ns)
            case _:
                _result(task, -_ENOSYS)

    def fetched(self, cpu: Cpu, data: bytes, now_ns: int) -> None:
        """The memory that the current task's call needed."""
        task = self._kernel.current(cpu, "fetched")
        what, cpu.fetching = cpu.fetching, ""
        assert what == "write", what
        text = data.decode("utf-8", "replace").rstrip("\n")
        self._kernel.effects.append(Log(now_ns, f"task {task.id} {task.spec.name}: {text}", warning=False))
        self._kernel.journal.record((now_ns, "write", task.id, len(data)))
        _result(task, len(data))

    def _mmap(self, task: Task, process: Process, size: int) -> None:
        if not 0 < size < 1 << 47:
            _result(task, -_EINVAL)
            return
        try:
            _result(task, process.map(size, self._kernel.memory))
        except OutOfMemory:
            _result(task, -_ENOMEM)

    def _semaphore(self, process: Process, number: int) -> Semaphore | None:
        if number not in process.semaphores:
            if number >= 1 << 32 or len(process.semaphores) >= SEMAPHORES_MAX:
                return None
            process.semaphores[number] = Semaphore()
        return process.semaphores[number]

    def _wait(self, cpu: Cpu, task: Task, process: Process, number: int, now_ns: int) -> None:
        semaphore = self._semaphore(process, number)
        _result(task, 0 if semaphore else -_EINVAL)
        if semaphore is None:
            return
        if semaphore.count:
            semaphore.count -= 1
            return
        semaphore.waiting.append(task.id)
        self._kernel.leave(cpu, task, TaskEvent.WAITED, now_ns)

    def _wake(self, cpu: Cpu, task: Task, process: Process, number: int, count: int, now_ns: int) -> None:
        semaphore = self._semaphore(process, number)
        if semaphore is None or semaphore.count + count > SEMAPHORE_MAX:
            _result(task, -_EINVAL)
            return
        _result(task, 0)
        while count and semaphore.waiting:
            count -= 1
            self._kernel.wake(self._kernel.tasks[semaphore.waiting.popleft()], TaskEvent.WOKEN, now_ns, cpu)
        semaphore.count += count

    def _write(self, cpu: Cpu, task: Task, process: Process, gva: int, length: int) -> None:
        if length > WRITE_MAX:
            _result(task, -_EINVAL)
        elif not length:
            _result(task, 0)
        elif (pieces := process.pieces(gva, length, write=False)) is None:
            _result(task, -_EFAULT)
        else:
            cpu.fetching, cpu.fetch = "write", tuple(pieces)

    # Access threads --------------------------------------------------------------------------------------------------

    def _take(self, cpu: Cpu, task: Task, ring: bytes, now_ns: int) -> None:
        work = self._kernel.works[task.id]
        if work.batch and work.outside:
            self._feed.retire_outside(task, ring, now_ns)
        else:
            self._feed.retire_own(task, now_ns)
        self._take_next(cpu, task, now_ns)

    def _take_next(self, cpu: Cpu, task: Task, now_ns: int) -> None:
        if self._feed.feed(task, now_ns):
            return
        work = self._kernel.works[task.id]
        if work.resume_ns:
            self._kernel.leave_for(cpu, task, work.resume_ns, now_ns)
        elif task.spec.trace is not None:
            self._kernel.leave(cpu, task, TaskEvent.EXITED, now_ns)
        else:
            self._kernel.processes[task.asid].accesses.idle.append(task.id)
            self._kernel.leave(cpu, task, TaskEvent.WAITED, now_ns)


def _result(task: Task, value: int) -> None:
    task.registers = register_file.replace(task.registers, rax=value & _MASK)
