"""access_thread, which performs the accesses that it is given, and times them."""

from __future__ import annotations

import pytest

from apf import registers
from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE
from tests.unit.guestsched_programs.rig import DATA, DATA_GFN, MASK, PAGES, Process
from vcpud.cpu.engine import ExitCause

WRITE = 1 << 63


def pattern(address: int) -> int:
    return address * CHECK_MULTIPLIER & MASK | 1


def perform(process: Process, *entries: tuple[int, int, int], base_ns: int = 0) -> list[int]:
    """Give entries (address, words and write, spin) to an access_thread that takes; the times it stored."""
    for n, entry in enumerate(entries):
        process.ring[4 * n : 4 * n + 4] = [*entry, 0]
    process.answer(len(entries))
    while True:
        exit_ = process.engine.run(1_000_000, base_ns)
        if exit_.cause is ExitCause.SYSCALL:
            assert registers.get(process.engine.save_registers(), "rax") == 4099
            return [int(process.ring[4 * n + 3]) for n in range(len(entries))]
        assert exit_.cause is ExitCause.BUDGET


@pytest.fixture
def accessing(new_process) -> Process:
    process = new_process("access_thread", populate=False)
    assert process.engine.run(100, 0).cause is ExitCause.SYSCALL
    return process


def test_access_thread_writes_patterns_and_verifies_them(accessing: Process) -> None:
    perform(accessing, (DATA, 3, 0), (DATA + 4088, 2 | WRITE, 0), (DATA + 4080, 4, 0))
    assert (accessing.get("accesses"), accessing.get("corrupt")) == (3, 0)
    written = {int(n): int(accessing.words.reshape(-1)[n]) for n in accessing.words.reshape(-1).nonzero()[0]}
    assert written == {511: pattern(DATA + 4088), 512: pattern(DATA + 4096)}
    accessing.words[0, 511] ^= 2
    accessing.words[5, 5] = 4
    perform(accessing, (DATA, 512, 0), (DATA + 5 * PAGE_SIZE, 512, 0), (DATA + PAGE_SIZE, 512, 0))
    assert (accessing.get("accesses"), accessing.get("corrupt")) == (6, 2)
    perform(accessing, (DATA + 4088, 1 | WRITE, 0), (DATA + 4088, 1, 0))
    assert accessing.get("corrupt") == 2


def test_access_thread_fills_a_ring(accessing: Process) -> None:
    entries = [(DATA + PAGE_SIZE * (n % PAGES) + 8 * n, 1 | WRITE * (n % 2), n) for n in range(128)]
    times = perform(accessing, *entries)
    assert times == sorted(times) and len(set(times)) == 128
    assert accessing.get("accesses") == 128


@pytest.mark.parametrize("spin", [0, 1, 64, 1000, 12_345])
def test_access_thread_stores_exact_times(accessing: Process, spin: int) -> None:
    """The time from one access's end to the next's is that of the instructions in between."""
    (idle_from, idle_to) = perform(accessing, (DATA, 1, 0), (DATA, 1, 0))
    (start, end) = perform(accessing, (DATA, 1, 0), (DATA, 1, spin))
    assert abs((end - start) - (idle_to - idle_from) - spin) <= 1
    (start, end) = perform(accessing, (DATA, 1, 0), (DATA, 11, spin))
    assert abs((end - start) - (idle_to - idle_from) - spin - 10 * 14) <= 1, "a word read takes 14 instructions"


def test_access_thread_sees_a_faults_time(accessing: Process) -> None:
    before = perform(accessing, (DATA, 1, 0), (DATA + PAGE_SIZE, 1, 0))
    accessing.memory.epts[0][DATA_GFN + 1] = 0
    accessing.engine.open_window()
    accessing.answer(2)
    assert accessing.engine.run(1000, 0).cause is ExitCause.EPT_VIOLATION
    accessing.engine.map_overlay(DATA_GFN + 1, DATA_GFN + 1, True)
    assert accessing.engine.run(1000, 50_000).cause is ExitCause.SYSCALL
    first, second = int(accessing.ring[3]), int(accessing.ring[7])
    assert second - first == 50_000 + before[1] - before[0]


def test_what_access_thread_reads_changes_nothing_of_its_course(accessing: Process) -> None:
    """Another vCPU may write the word at the same time; the count of instructions must not tell before from after."""
    counts = []
    for value in (0, pattern(DATA), 4):
        accessing.words[0, 0] = value
        before = accessing.engine.retired
        perform(accessing, (DATA, 1, 0))
        counts.append(accessing.engine.retired - before)
    assert len(set(counts)) == 1
    assert accessing.get("corrupt") == 1
