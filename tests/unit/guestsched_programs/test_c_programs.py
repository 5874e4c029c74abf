"""Programs in C with apf_guest.h, compiled by the local gcc, on the real engine; the test is their kernel."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from apf import registers
from apf.hostmem import Geometry, HostMemory, ept_entry
from apf.messages import PAGE_SIZE, AddressSpace, Extent
from guestsched.elf import FLAGS, ElfProgram, load_elf
from vcpud.cpu.engine import Engine, Exit, ExitCause

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

HEADER = files("guestsched.programs").joinpath("apf_guest.h")
STACK_PAGES, HEAP_PAGES = 4, 32
STACK_END, HEAP = 0x6000_0000_0000, 0x5000_0000_0000
WRITE, MAP, YIELD, SLEEP, EXIT, CLOCK, COUNT, WAIT, WAKE = 1, 9, 24, 35, 60, 228, 4096, 4097, 4098


@dataclass
class Run:
    """What one run of a program came to."""

    log: str = ""
    status: int | None = None
    counter: int = 0
    retired: int = 0
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    end: Exit | None = None


class Kernel:
    """A process of one task, and answers to its system calls. Time costs nothing but instructions and sleep."""

    def __init__(self, program: ElfProgram, evict: int = 0) -> None:
        self.extents, contents, gfn = [], [], 0
        for segment in program.segments:
            self.extents.append(Extent(segment.gva, gfn, segment.pages, segment.writable, segment.executable))
            contents.append((gfn, segment.data))
            gfn += segment.pages
        for gva, pages in ((HEAP, HEAP_PAGES), (STACK_END - STACK_PAGES * PAGE_SIZE, STACK_PAGES)):
            self.extents.append(Extent(gva, gfn, pages, writable=True, executable=False))
            gfn += pages
        self.memory = HostMemory.anonymous(Geometry(gfn, (gfn,)))
        for at, data in contents:
            self.memory.frames[at:].reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        self.engine = Engine(self.memory, 0, 1000, None)
        self.engine.set_space(AddressSpace(1, tuple(self.extents)))
        self.engine.use_space(1)
        self.entry, self.evict, self.heap, self.base_ns = program.entry, evict, HEAP, 0
        if not evict:
            for extent in self.extents:
                for gfn in range(extent.gfn, extent.gfn + extent.pages):
                    self.memory.epts[0][gfn] = ept_entry(gfn, extent.writable)

    def run(self, *arguments: int, budget: int = 1_000_000) -> Run:
        """From _start to exit, an exception, or 50 million instructions."""
        passed = dict(zip(("rdi", "rsi", "rdx"), (value % 2**64 for value in arguments), strict=False))
        self.engine.load_registers(registers.new(rip=self.entry, rsp=STACK_END - 8, **passed))
        run, faults = Run(), 0
        while self.engine.retired < 50_000_000 and run.status is None:
            exit_ = self.engine.run(budget, self.base_ns)
            match exit_.cause:
                case ExitCause.SYSCALL:
                    self._answer(run)
                case ExitCause.EPT_VIOLATION:
                    faults += 1
                    if faults % 3 == 0 and self.evict:
                        self.engine.open_window()
                    writable = any(e.writable and 0 <= exit_.gfn - e.gfn < e.pages for e in self.extents)
                    self.engine.map_overlay(exit_.gfn, exit_.gfn, writable)
                case ExitCause.EXCEPTION:
                    run.end = exit_
                    break
                case ExitCause.BUDGET:
                    pass
        run.retired = self.engine.retired
        return run

    def _answer(self, run: Run) -> None:
        saved = self.engine.save_registers()
        number, a, b, c = (registers.get(saved, name) for name in ("rax", "rdi", "rsi", "rdx"))
        run.calls.append((number, a, b))
        value = 0
        if number == WRITE:
            assert a == 1 and c <= 4096
            value, run.log = c, run.log + self._bytes(b, c).decode()
        elif number == MAP:
            pages = -(-a // PAGE_SIZE)
            value = self.heap if self.heap + pages * PAGE_SIZE <= HEAP + HEAP_PAGES * PAGE_SIZE else 2**64 - 12
            self.heap += pages * PAGE_SIZE
        elif number == SLEEP:
            self.base_ns += a
        elif number == EXIT:
            run.status = a
        elif number == CLOCK:
            value = self.base_ns + self.engine.retired
        elif number == COUNT:
            run.counter += a
        self.engine.load_registers(registers.replace(saved, rax=value))

    def _bytes(self, gva: int, length: int) -> bytes:
        extent = next(e for e in self.extents if e.gva <= gva < e.gva + e.pages * PAGE_SIZE)
        start = extent.gfn * PAGE_SIZE + gva - extent.gva
        return bytes(self.memory.frames.reshape(-1)[start : start + length])


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., ElfProgram]:
    def compile_(source: str, *flags: str) -> ElfProgram:
        (tmp_path / "program.c").write_text('#include "apf_guest.h"\n' + source)
        (tmp_path / "apf_guest.h").write_text(HEADER.read_text())
        command = ["gcc", *FLAGS.split(), "-Wall", "-Wextra", "-Werror", *flags, "-o", "program", "program.c"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return load_elf(tmp_path / "program")

    return compile_


DOUBLES = r"""
static double a[N * N], b[N * N];
struct pair { double x, y; };
__attribute__((noinline)) static struct pair turn(struct pair p, double by)
{
	struct pair q = { p.x - by * p.y, p.y + by * p.x };
	return q;
}
static void hexadecimal(unsigned long value)
{
	char text[18];
	for (int n = 15; n >= 0; n--, value >>= 4)
		text[n] = "0123456789abcdef"[value & 15];
	text[16] = '\n';
	text[17] = 0;
	apf_log(text);
}
static void show(double value)
{
	union { double value; unsigned long bits; } both = { value };
	hexadecimal(both.bits);
}
void _start(long instance, long first, long second)
{
	double *c = apf_map(sizeof a), sum = 0;
	struct pair p = { 1.0 / 3.0, -0.25 };
	long before = apf_clock_ns();
	for (int n = 0; n < N * N; n++) {
		a[n] = (double)(n + first) / 7.0;
		b[n] = 1.0 / (double)(n + 1);
	}
	for (int i = 0; i < N; i++)
		for (int k = 0; k < N; k++)
			for (int j = 0; j < N; j++)
				c[i * N + j] += a[i * N + k] * b[k * N + j];
	for (int n = 0; n < N * N; n++)
		sum += c[n];
	for (int n = 0; n < 1000; n++)
		p = turn(p, 1.0 / 64.0);
	apf_count(7);
	apf_count(second);
	apf_sleep_ns(1000000);
	show(sum);
	show(p.x);
	show(__builtin_sqrt(sum));
	hexadecimal(apf_clock_ns() - before);
	hexadecimal(apf_time_ns() - before);
	apf_exit(instance);
}
"""
N = 24


def expected_doubles(first: int) -> list[float]:
    """The same operations in the same order; Python's floats are the same doubles."""
    a = [(n + first) / 7.0 for n in range(N * N)]
    b = [1.0 / (n + 1) for n in range(N * N)]
    c = [0.0] * (N * N)
    for i in range(N):
        for k in range(N):
            for j in range(N):
                c[i * N + j] += a[i * N + k] * b[k * N + j]
    total = 0.0
    for value in c:
        total += value
    x, y = 1.0 / 3.0, -0.25
    for _ in range(1000):
        x, y = x - 1.0 / 64.0 * y, y + 1.0 / 64.0 * x
    return [total, x, total**0.5]


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_doubles_and_time_are_exact_and_the_same_in_every_run(build, level: str) -> None:
    # Without a library there is no sqrt() to set errno.
    program = build(DOUBLES, level, f"-DN={N}", "-fno-math-errno")
    runs = [
        Kernel(program).run(3, 11, 35),
        Kernel(program).run(3, 11, 35),
        Kernel(program).run(3, 11, 35, budget=97),
        Kernel(program, evict=3).run(3, 11, 35),
    ]
    assert runs[0].status == 3 and runs[0].counter == 42
    assert all((run.log, run.retired, run.calls) == (runs[0].log, runs[0].retired, runs[0].calls) for run in runs)
    *values, by_call, by_rdtsc = runs[0].log.split()
    assert [struct.unpack(">d", bytes.fromhex(value))[0] for value in values] == expected_doubles(11)
    assert 1_000_000 < int(by_call, 16) < int(by_rdtsc, 16) < 1_000_000 + runs[0].retired


START = r"""
typedef double two __attribute__((vector_size(16)));
static long zeros[700], ones[700] = {1};
void _start(long instance, long a, long b)
{
	volatile two local = { 1.0, 2.0 };
	volatile char text[33] __attribute__((aligned(16))) = "";
	local += local;
	apf_count(((unsigned long)&local & 15) + ((unsigned long)text & 15));
	for (int n = 0; n < 700; n++)
		apf_count(zeros[n]);
	apf_count(ones[0] * 1000 + (long)local[1] * 100000);
	if (instance == 5 && a == -2 && b == 1L << 40)
		apf_exit(-1);
	apf_exit(1);
}
"""


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3"])
def test_start_is_called_with_an_aligned_stack_and_arguments(build, level: str) -> None:
    run = Kernel(build(START, level)).run(5, -2, 1 << 40)
    assert (run.status, run.counter) == (2**64 - 1, 401_000)


CALLS = r"""
static char text[10001];
void _start(long instance, long a, long b)
{
	(void)instance;
	for (int n = 0; n < 10000; n++)
		text[n] = 'a' + n % 26;
	apf_log(text);
	apf_log("");
	apf_yield();
	apf_wait(4294967295u);
	apf_wake(7, 3);
	char *one = apf_map(1), *two = apf_map(8192), *none = apf_map(1L << 40);
	apf_count(none == 0 && two == one + 4096);
	memset(one, 'x', 100);
	memcpy(two, one, 100);
	memmove(one + 3, one, 50);
	memmove(one, one + 3, 47);
	apf_count(memcmp(one, two, 100) == 0 && memcmp("abc", "abd", 3) < 0 && one[100] == 0);
	for (long n = 0; n < a; n++)
		one[n] = n;
	memmove(one + 1, one, 60);
	memmove(one + 17, one + 20, 30);
	apf_count(one[0] == 0 && one[1] == 0 && one[60] == 59 && one[17] == 19 && one[46] == 48);
	apf_exit(apf_syscall(b, 1, 2, 3));
}
"""


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_every_call_of_the_header(build, level: str) -> None:
    run = Kernel(build(CALLS, level)).run(0, 100, 9999)
    assert run.log == "".join(chr(ord("a") + n % 26) for n in range(10_000))
    pieces = [call[0] for call in run.calls].count(WRITE)
    assert pieces == 3
    kinds = [call for call in run.calls if call[0] not in {WRITE, COUNT}]
    assert [call[0] for call in kinds] == [YIELD, WAIT, WAKE, MAP, MAP, MAP, 9999, EXIT]
    assert kinds[1][1] == 2**32 - 1 and kinds[2][1:] == (7, 3)
    assert run.counter == 3 and run.status == 0


def test_a_start_that_returns_ends_at_address_0(build) -> None:
    run = Kernel(build("void _start(long n, long a, long b) { apf_count(n + a + b); }")).run(1, 2, 3)
    assert run.counter == 6
    assert run.end is not None and (run.end.vector, run.end.address, run.end.rip) == (14, 0, 0)


def test_the_header_is_fine_as_cpp_and_in_strict_c(build) -> None:
    source = "void _start(long n, long a, long b) { apf_exit(n + a + b); }"
    assert Kernel(build(source, "-std=c99", "-pedantic")).run(1, 2, 3).status == 6
    if shutil.which("g++"):
        source = 'extern "C" ' + source
        assert Kernel(build(source, "-x", "c++", "-fno-exceptions")).run(1, 2, 3).status == 6


def test_symbols_are_the_functions_and_sizes_cover_the_entry(build) -> None:
    program = build(DOUBLES, "-O3", f"-DN={N}", "-fno-math-errno")
    (start,) = [symbol for symbol in program.symbols if symbol.name == "_start"]
    assert start.start == program.entry and start.size > 50
    assert [symbol.start for symbol in program.symbols] == sorted(symbol.start for symbol in program.symbols)
