"""The built-in programs on the real engine, and that the committed bytes are those of the sources.

``Process`` is a process of one VM with a buffer of stamped pages; where a program calls its kernel, the test answers.
"""

from __future__ import annotations

import _pydecimal
import hashlib
from collections import Counter, deque
from collections.abc import Iterator
from fractions import Fraction
from math import gcd

import numpy as np
import pytest

from apf import registers
from apf.hostmem import Geometry, HostMemory, ept_entry
from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE, AddressSpace, Extent
from apf.scenario import ScenarioError
from guestsched.programs import BUILTINS, coprime_scatter, zipf
from guestsched.programs.assemble import OUTPUT, built
from guestsched.programs.zipf import PARTS, TABLE_BYTES, zipf_table
from vcpud.cpu.engine import Engine, ExitCause

CODE, TABLE, RING, DATA, PAGES = 0x400000, 0x800000, 0x900000, 0x10000000, 64
TABLE_PAGES = -(-TABLE_BYTES // PAGE_SIZE)
DATA_GFN = 2 + TABLE_PAGES
OFFSET, BASE, STRIDE = 96, 0x5A00_0007_0000_0000, 0x10_0000_0000
SEED = 88172645463325252
MASK = (1 << 64) - 1
COUNT, CHECK, FREE = OFFSET // 8, OFFSET // 8 + 1, OFFSET // 8 + 2
MEMORY = ("fault_thread", "sequential", "strided", "zipfian", "pointer_chase", "shifting")


class Process:
    """A process that runs built-in programs on a buffer: frame 0 code, 1 the ring, then the table, then the buffer."""

    def __init__(self, name: str, pages: int = PAGES, populate: bool = True, **parameters: int) -> None:
        self.program, self.pages, self.populate, self.parameters = BUILTINS[name], pages, populate, parameters
        frames = DATA_GFN + pages
        self.memory = HostMemory.anonymous(Geometry(frames, (frames,)))
        self.memory.epts[0][:] = [ept_entry(n, n > 0) for n in range(frames)]
        self.engine = Engine(self.memory, 0, 1000, None)
        extents = (
            Extent(CODE, 0, 1, writable=False, executable=True),
            Extent(TABLE, 2, TABLE_PAGES, writable=False, executable=False),
            Extent(RING, 1, 1, writable=True, executable=False),
            Extent(DATA, DATA_GFN, pages, writable=True, executable=False),
        )
        self.engine.set_space(AddressSpace(1, extents))
        self.engine.use_space(1)
        raw = self.program.code
        self.memory.frames[0, : len(raw)] = np.frombuffer(raw, np.uint8)
        table = self.program.table_bytes(parameters, pages)
        self.memory.frames[2:DATA_GFN].reshape(-1)[: len(table)] = np.frombuffer(table, np.uint8)
        self.ring = self.memory.frames[1].view(np.uint64)
        self.buffer = self.memory.frames[DATA_GFN:]
        self.words = self.buffer.view(np.uint64)
        for page in range(pages if populate else 0):
            word = BASE + STRIDE * page & MASK
            self.words[page, COUNT], self.words[page, CHECK] = word, word * CHECK_MULTIPLIER & MASK
        self.start()

    def start(self) -> None:
        """The program from its first instruction, with all its arguments."""
        there = {
            "buffer": DATA + OFFSET,
            "pages": self.pages,
            "rng_seed": SEED,
            "table": TABLE,
            "counter": DATA,
            "stamp_base": BASE,
            "stamp_stride": STRIDE,
            "multiplier": CHECK_MULTIPLIER,
            "zero_ok": int(not self.populate),
            "ring": RING,
            "items": 8,
            "room": 9,
        }
        there |= self.program.argument_values(self.parameters, self.pages)
        passed = {register: there[name] for name, register in self.program.arguments.items()}
        self.engine.load_registers(registers.new(rip=CODE, **passed))

    def get(self, name: str) -> int:
        return registers.get(self.engine.save_registers(), self.program.results[name])

    def answer(self, value: int) -> None:
        """Return ``value`` from the system call. What the ABI lets it destroy is destroyed already."""
        self.engine.load_registers(registers.replace(self.engine.save_registers(), rax=value))

    def visited(self, accesses: int) -> list[tuple[int, str]]:
        """Page and kind of all faults when every access is to a page that was just taken away."""
        seen: list[tuple[int, str]] = []
        while self.get("accesses") < accesses:
            self.memory.epts[0][DATA_GFN:] = 0
            self.engine.open_window()
            before = self.get("accesses")
            kind = ""
            while self.get("accesses") == before:
                exit_ = self.engine.run(1, 0)
                if exit_.cause is ExitCause.EPT_VIOLATION:
                    if not kind:
                        seen.append((exit_.gfn - DATA_GFN, exit_.access.name))
                    kind = exit_.access.name
                    self.engine.map_overlay(exit_.gfn, exit_.gfn, True)
        return seen


@pytest.fixture
def new_process() -> Iterator[type[Process]]:
    made: list[Process] = []

    def new(*arguments: object, **parameters: object) -> Process:
        made.append(Process(*arguments, **parameters))  # type: ignore[arg-type]
        return made[-1]

    yield new  # type: ignore[misc]
    for process in made:
        process.engine.close()


@pytest.fixture
def faulting(new_process) -> Process:
    return new_process("fault_thread")


def xorshift(seed: int) -> int:
    seed ^= seed << 13 & MASK
    seed ^= seed >> 7
    return seed ^ seed << 17 & MASK


def reference_pages(accesses: int, seed: int = SEED) -> list[int]:
    """The pages fault_thread visits, by the definition of xorshift64."""
    pages = []
    for _ in range(accesses):
        seed = xorshift(seed)
        pages.append((seed >> 32) * PAGES >> 32)
    return pages


def test_the_committed_bytes_are_those_of_the_sources() -> None:
    assert OUTPUT.read_text() == built(), "run: python -m guestsched.programs.assemble"


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_a_program_is_a_function_with_local_labels_and_a_register_for_each_argument(name: str) -> None:
    program = BUILTINS[name]
    assert program.name == name and program.symbols[name] == 0
    assert all(0 <= offset <= len(program.code) for offset in program.symbols.values())
    assert all(label == name or label.startswith(f"{name}_") for label in program.symbols)
    assert 0 < len(program.code) <= PAGE_SIZE
    taken = list(program.arguments.values())
    assert len(set(taken)) == len(taken) and set(taken) | set(program.results.values()) <= set(registers.NAMES)
    assert program.stamps == (name in MEMORY)
    program.argument_values({}, 100)


def test_no_programs_label_extends_another_programs_name() -> None:
    for name in BUILTINS:
        others = [label for other in BUILTINS if other != name for label in BUILTINS[other].symbols]
        assert not [label for label in others if label == name or label.startswith(f"{name}_")]


def test_parameters_out_of_range_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(ScenarioError, match=r"strided: stride = 0; allowed: 1 to \d+"):
        BUILTINS["strided"].argument_values({"stride": 0}, 10)
    with pytest.raises(ScenarioError, match=r"idle: there is no parameter 'x'; allowed: none"):
        BUILTINS["idle"].checked({"x": 1})
    with pytest.raises(ScenarioError, match=r"zipfian: theta = 151; allowed: 0 to 150"):
        BUILTINS["zipfian"].table_bytes({"theta": 151}, 10)


def test_work_thread_counts_all_it_retires_but_its_loops_and_shows_it_in_its_page(new_process) -> None:
    process = new_process("work_thread")
    assert process.engine.run(1_000_000, 0).cause is ExitCause.SYSCALL  # what time is it?
    began_ns = 123_456_789
    process.answer(began_ns)
    exit_ = process.engine.run(1_000_000, 0)
    count = process.get("count")
    assert exit_.cause is ExitCause.BUDGET
    assert int(process.words[0, 1]) == began_ns
    assert 0.99 * exit_.retired < count < exit_.retired
    assert 0 <= count - int(process.words[0, 0]) <= 4096


def test_fault_thread_visits_and_stamps_the_pages_its_generator_names(faulting: Process) -> None:
    faulting.engine.run(200_000, 0)
    accesses = faulting.get("accesses")
    assert accesses > 5000 and faulting.get("corrupt") == 0
    pages = reference_pages(accesses + 1)
    visits = np.bincount(pages[:accesses], minlength=PAGES)
    words = faulting.words.copy()
    if int(words[pages[-1], COUNT]) & 0xFFFFFFFF == visits[pages[-1]] + 1:
        visits[pages[-1]] += 1  # stopped between the stamp and the count
    for page in range(PAGES):
        word = (BASE + STRIDE * page & MASK) + int(visits[page])
        assert int(words[page, COUNT]) == word & MASK
        assert int(words[page, CHECK]) == word * CHECK_MULTIPLIER & MASK
        words[page, COUNT : FREE + 1] = 0
    assert not words.any(), "it wrote outside its stamps"


@pytest.mark.parametrize("writes", [0, 100, 256])
@pytest.mark.parametrize("populate", [True, False])
@pytest.mark.parametrize("name", [name for name in MEMORY if name != "fault_thread"])
def test_a_memory_program_counts_its_writes_in_its_stamps_and_verifies_them(
    new_process, name: str, populate: bool, writes: int
) -> None:
    process = new_process(name, populate=populate, writes=writes, think=7)
    process.engine.run(400_000, 0)
    while process.engine.run(1, 0).rip != CODE:  # between two accesses
        pass
    accesses, words = process.get("accesses"), process.words.copy()
    assert accesses > 5000 and process.get("corrupt") == 0
    written = 0
    for page in range(PAGES):
        count, check = int(words[page, COUNT]), int(words[page, CHECK])
        if count or check:
            assert check == count * CHECK_MULTIPLIER & MASK
            assert count >> 32 == (BASE + STRIDE * page & MASK) >> 32
            written += count & 0xFFFFFFFF
        else:
            assert not populate
        words[page, COUNT : FREE + 1] = 0
    assert not words.any(), "it wrote outside its stamps"
    first_round = PAGES if name == "pointer_chase" else 0
    share = (written - first_round) / (accesses - first_round)
    assert {0: share == 0, 100: 0.36 < share < 0.42, 256: share == 1}[writes]


@pytest.mark.parametrize("writes", [0, 128, 256])
@pytest.mark.parametrize("byte", [0, 3, 4, 7, 8, 15])
@pytest.mark.parametrize("name", MEMORY)
def test_a_flipped_bit_is_counted_once_and_made_good(new_process, name: str, byte: int, writes: int) -> None:
    parameters = {} if name == "fault_thread" else {"writes": writes}
    process = new_process(name, **parameters)
    process.engine.run(50_000, 0)
    for page in (5, 17, 40):
        process.buffer[page, OFFSET + byte] ^= 0x40
    process.engine.run(300_000, 0)
    assert process.get("corrupt") == 3


@pytest.mark.parametrize("name", MEMORY)
def test_a_page_in_anothers_place_and_a_lost_page_are_found(new_process, name: str) -> None:
    process = new_process(name)
    process.engine.run(50_000, 0)
    process.words[9] = process.words[10]
    process.words[30] = 0
    process.engine.run(300_000, 0)
    assert process.get("corrupt") == 2


def test_a_broken_link_is_found_and_mended(new_process) -> None:
    process = new_process("pointer_chase", populate=False, writes=0)
    process.engine.run(50_000, 0)
    process.words[9, FREE] += 3
    process.words[20] = 0
    process.engine.run(50_000, 0)
    assert process.get("corrupt") == 2
    assert [page for page, _ in process.visited(process.get("accesses") + PAGES)].count(9) == 1


def test_an_access_to_an_absent_page_is_one_write_violation(faulting: Process) -> None:
    faulting.memory.epts[0][DATA_GFN:] = 0
    seen = []
    for _ in range(200):
        exit_ = faulting.engine.run(10_000, 0)
        if exit_.cause is ExitCause.BUDGET:
            break
        assert (exit_.cause, exit_.access.name) == (ExitCause.EPT_VIOLATION, "WRITE")
        seen.append(exit_.gfn - DATA_GFN)
        faulting.engine.map_overlay(exit_.gfn, exit_.gfn, True)
    assert seen == list(dict.fromkeys(reference_pages(2000)))


@pytest.mark.parametrize("name", ["sequential", "strided", "zipfian", "shifting"])
def test_the_first_touch_is_of_the_kind_of_the_access(new_process, name: str) -> None:
    for writes, kind in ((256, "WRITE"), (0, "READ")):
        assert {kind for _, kind in new_process(name, writes=writes).visited(100)} == {kind}
    kinds = Counter(kind for _, kind in new_process(name, writes=64).visited(400))
    assert 60 < kinds["WRITE"] < 140


def test_sequential_goes_round(new_process) -> None:
    pages = [page for page, _ in new_process("sequential", pages=10, first=23).visited(25)]
    assert pages == [n % 10 for n in range(3, 28)]


@pytest.mark.parametrize(
    ("pages", "stride"), [(10, 3), (10, 5), (10, 1), (10, 10), (10, 99), (64, 16), (1, 7), (7, 6)]
)
def test_strided_visits_every_page_once_a_round(new_process, pages: int, stride: int) -> None:
    visited = [page for page, _ in new_process("strided", pages=pages, stride=stride).visited(2 * pages)]
    assert visited == 2 * [page for column in range(stride) for page in range(column, pages, stride)]


@pytest.mark.parametrize("pages", [1, 2, 3, 64, 97, 100])
def test_pointer_chase_goes_through_all_pages_in_one_cycle(new_process, pages: int) -> None:
    process = new_process("pointer_chase", pages=pages, populate=False, writes=0, first=pages + 5)
    seen = process.visited(3 * pages)
    assert seen[0][0] == 5 % pages
    rounds = [[page for page, _ in seen[n : n + pages]] for n in range(0, 3 * pages, pages)]
    assert rounds[0] == rounds[1] == rounds[2] and sorted(rounds[0]) == list(range(pages))
    assert [kind for _, kind in seen] == pages * ["WRITE"] + 2 * pages * ["READ"]
    follows = rounds[0][1:] + rounds[0][:1]
    assert [int(process.words[page, FREE]) - 1 for page in rounds[0]] == follows


def test_shifting_stays_in_its_window_which_moves_on(new_process) -> None:
    window, step, period, pages = 8, 20, 50, 64
    process = new_process("shifting", pages=pages, window=window, step=step, period=period)
    seen = [page for page, _ in process.visited(6 * period)]
    for n in range(6):
        start = n * step % pages
        places = {(page - start) % pages for page in seen[n * period : (n + 1) * period]}
        assert places <= set(range(window)) and len(places) > window // 2


def test_shifting_in_a_buffer_smaller_than_its_window_and_step(new_process) -> None:
    process = new_process("shifting", pages=5, window=100, step=12, period=1)
    assert {page for page, _ in process.visited(100)} == set(range(5))


def test_zipfian_draws_ranks_as_the_table_says(new_process) -> None:
    process = new_process("zipfian", pages=100)
    points = np.frombuffer(zipf_table(100, 99), "<u8").tolist()
    scatter, seed, expected = coprime_scatter(100), SEED, []
    for _ in range(300):
        seed = xorshift(seed)
        part, place = divmod((seed >> 32) * PARTS, 1 << 32)
        rank = points[part] + ((points[part + 1] - points[part]) * place >> 32) >> 32
        expected.append(rank * scatter % 100)
    assert [page for page, _ in process.visited(300)] == expected
    assert expected.count(0) > 30


@pytest.mark.parametrize("theta", [0, 50, 99, 100, 150])
@pytest.mark.parametrize("pages", [1, 7, 511, 512, 513, 20_000])
def test_the_table_is_the_inverse_of_the_distribution(pages: int, theta: int) -> None:
    """In floats, which is near enough to see a mistake."""
    points = np.frombuffer(zipf_table(pages, theta), "<u8").astype(float) / 2**32
    below = np.concatenate(([0.0], np.cumsum(np.arange(1, pages + 1) ** (-theta / 100))))
    expected = np.interp(np.linspace(0, below[-1], PARTS + 1), below, np.arange(pages + 1))
    assert np.abs(points - expected).max() <= 1e-5 * pages
    assert points[0] == 0 and points[-1] == pages and (np.diff(points) >= 0).all()


@pytest.mark.parametrize(
    ("pages", "theta", "digest"),
    [
        (64, 99, "90a833bc5be13f12"),
        (262_144, 99, "2d841def77c72f1f"),
        (64, 100, "8360388f2a5d578e"),
        (262_144, 100, "d871fae645c9b769"),
    ],
)
def test_the_table_is_the_same_on_every_machine(pages: int, theta: int, digest: str) -> None:
    assert hashlib.sha256(zipf_table(pages, theta)).hexdigest().startswith(digest)


def test_the_table_is_the_same_with_another_decimal_library(monkeypatch) -> None:
    expected = zipf_table(530, 99)
    for name in ("Context", "Decimal", "localcontext"):
        monkeypatch.setattr(zipf, name, getattr(_pydecimal, name))
    monkeypatch.setattr(zipf, "_CONTEXT", _pydecimal.Context(prec=40, Emin=-999999, Emax=999999))
    assert zipf_table.__wrapped__(530, 99) == expected


def test_an_even_table_is_exact() -> None:
    points = np.frombuffer(zipf_table(PARTS * 3, 0), "<u8").tolist()
    for part, point in enumerate(points):
        assert abs(Fraction(point, 1 << 32) - 3 * part) <= Fraction(1, 1 << 32)


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 6, 64, 97, 30_030, 1 << 20])
def test_a_scatter_is_a_bijection(pages: int) -> None:
    scatter = coprime_scatter(pages)
    assert gcd(scatter, pages) == 1 and 1 <= scatter <= pages


@pytest.mark.parametrize("think", [0, 1, 2, 63, 64, 65, 1000, 12_345])
@pytest.mark.parametrize("name", ["sequential", "producer"])
def test_thinking_takes_that_many_instructions(new_process, name: str, think: int) -> None:
    def until_it_acts(think: int) -> int:
        process = new_process(name, think=think)
        process.memory.epts[0][DATA_GFN:] = 0
        exit_ = process.engine.run(1_000_000, 0)
        assert exit_.cause in {ExitCause.EPT_VIOLATION, ExitCause.SYSCALL}
        return exit_.retired

    assert abs(until_it_acts(think) - until_it_acts(0) - think) <= 1


class Pair:
    """A producer and a consumer in one process, which share one ring; the kernel's semaphores are the test's."""

    def __init__(self, producer: Process, think: int) -> None:
        self.process = producer
        consumer = BUILTINS["consumer"]
        start = PAGE_SIZE - len(consumer.code)  # behind the producer
        producer.memory.frames[0, start:] = np.frombuffer(consumer.code, np.uint8)
        there = {"ring": RING, "items": 8, "room": 9, "multiplier": CHECK_MULTIPLIER, "think": think}
        passed = {register: there[name] for name, register in consumer.arguments.items()}
        self.registers = {
            "producer": producer.engine.save_registers(),
            "consumer": registers.new(rip=CODE + start, **passed),
        }
        self.values = Counter[int]()
        self.waiting: dict[int, deque[str]] = {8: deque(), 9: deque()}
        self.ready = deque(self.registers)

    def get(self, name: str, result: str) -> int:
        return registers.get(self.registers[name], BUILTINS[name].results[result])

    def step(self, budget: int) -> None:
        """Let the first ready task run until its budget's end or a system call, which is answered."""
        name = self.ready.popleft()
        engine = self.process.engine
        engine.load_registers(self.registers[name])
        exit_ = engine.run(budget, 0)
        saved = self.registers[name] = engine.save_registers()
        if exit_.cause is ExitCause.BUDGET:
            self.ready.append(name)
            return
        assert exit_.cause is ExitCause.SYSCALL
        number, semaphore, n = (registers.get(saved, register) for register in ("rax", "rdi", "rsi"))
        self.registers[name] = registers.replace(saved, rax=0)
        if number == 4097:
            if not self.values[semaphore]:
                self.waiting[semaphore].append(name)
                return
            self.values[semaphore] -= 1
        else:
            assert number == 4098
            self.values[semaphore] += n
            while self.values[semaphore] and self.waiting[semaphore]:
                self.values[semaphore] -= 1
                self.ready.append(self.waiting[semaphore].popleft())
        self.ready.append(name)


@pytest.mark.parametrize(("produce", "consume"), [(0, 0), (0, 500), (500, 0)])
def test_a_consumer_gets_what_its_producer_puts_in(new_process, produce: int, consume: int) -> None:
    process = new_process("producer", think=produce)
    pair = Pair(process, think=consume)
    between = 0
    while pair.get("consumer", "consumed") < 1000:
        pair.step(100)
        between = pair.get("producer", "produced") - pair.get("consumer", "consumed")
        assert -1 <= between <= 256  # a program counts after it has told the other
    assert between > 200 if consume else between < 10
    assert pair.get("consumer", "corrupt") == 0


@pytest.mark.parametrize("word", [0, 1])
def test_a_consumer_finds_each_corrupt_item(new_process, word: int) -> None:
    process = new_process("producer")
    pair = Pair(process, think=0)
    pair.ready.reverse()  # the consumer makes room, and waits
    while not pair.waiting[8]:
        pair.step(100)
    while not pair.waiting[9]:
        pair.ready = deque(["producer"])
        pair.step(100)
    for item in (3, 100, 256):  # item 256 is in place 0
        process.ring[2 * (item % 256) + word] ^= np.uint64(1 << 40)
    pair.ready = deque(["consumer"])
    while pair.get("consumer", "consumed") < 256:
        pair.ready = deque(["consumer"])
        pair.step(100)
    assert pair.get("consumer", "corrupt") == 3


def test_idle_sleeps_and_sleeps(new_process) -> None:
    process = new_process("idle")
    for _ in range(3):
        assert process.engine.run(100, 0).cause is ExitCause.SYSCALL
        saved = process.engine.save_registers()
        assert (registers.get(saved, "rax"), registers.get(saved, "rdi")) == (35, 3_600_000_000_000)
        process.answer(0)


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
