"""Plans of processes: layout, stamps, initial registers, what makes a digest, and what does not fit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from guest_fakes import scenario

from apf import registers as register_file
from apf.chance import stream_key
from apf.journal import Journal
from apf.messages import CHECK_MULTIPLIER, NEVER_NS, PAGE_SHIFT, PAGE_SIZE, Account, Extent, Segment, Stamp
from apf.scenario import Scenario, ScenarioError, load
from guestsched import plan as planning
from guestsched.build import guest_core, memory_gfn
from guestsched.core.core import GuestCore
from guestsched.core.kvm import reason_gpa
from guestsched.core.process import MAP_GVA, Memory, OutOfMemory, Process, ProcessPlan
from guestsched.elf import ElfProgram, ElfSegment, Symbol
from guestsched.plan import (
    CODE_GVA,
    CODE_STEP,
    MEMORY_GVA,
    PAGE_GVA,
    STACK_END_GVA,
    STACK_PAGES,
    STACK_STEP,
    TABLE_GVA,
    Wanted,
    plans,
)
from guestsched.programs import BUILTINS
from guestsched.trace import TraceList

FAULT, WORK = BUILTINS["fault_thread"], BUILTINS["work_thread"]


def core(**overrides: Any) -> GuestCore:
    return guest_core(scenario(**overrides), Journal())


def bench(**overrides: Any) -> ProcessPlan:
    (made,) = plans(scenario(**overrides))
    return made


def tables(*processes: dict[str, Any], **overrides: Any) -> Scenario:
    return scenario(**{"process": list(processes), "vm__vcpus": 4, **overrides})


def planned(*wanted: Wanted, pages: int = 16, populate: bool = True, seed: int = 1) -> ProcessPlan:
    return planning.plan(seed, "made", list(wanted), pages, populate)


def told(made: ProcessPlan, task: int, program: str) -> dict[str, int]:
    """The arguments a task starts with, by name."""
    registers = made.tasks[task].registers
    return {name: register_file.get(registers, register) for name, register in BUILTINS[program].arguments.items()}


def frames(segments: tuple[Segment, ...]) -> list[int]:
    return [gfn for segment in segments for gfn in range(segment.gfn, segment.gfn + segment.pages)]


def elf(gva: int = 0x40_0000, pages: int = 1, entry: int | None = None, data: bytes = b"\xf4") -> ElfProgram:
    segment = ElfSegment(gva, pages, data, writable=False, executable=True)
    symbols = (Symbol("_start", gva, 0), Symbol("loop", gva + 16, 8))
    return ElfProgram(gva if entry is None else entry, (segment,), symbols, "abc")


# The published benchmark ---------------------------------------------------------------------------------------------


def test_layout_of_the_published_benchmark() -> None:
    """T15, T16: 4 vCPUs, 4 faulting and 4 working threads, a buffer of 1 GiB."""
    made = core(vm__vcpus=4)
    buffer_gfn, pages = memory_gfn(made), (1 << 30) // PAGE_SIZE
    assert buffer_gfn == 11
    assert made.segments() == (
        Segment(buffer_gfn, pages, stamps=tuple(Stamp(64 * i, i + 1 << 32, 4 << 32) for i in range(4))),
        Segment(1, 4),
        Segment(5, 1, FAULT.code, read_only=True),
        Segment(6, 1, demand_zero=True),
        Segment(7, 1, WORK.code, read_only=True),
        *(Segment(8 + i, 1, demand_zero=True) for i in range(3)),
    )
    space = made.processes[1].space()
    assert space.asid == 1
    assert space.extents == (
        Extent(CODE_GVA, 5, 1, writable=False, executable=True),
        Extent(CODE_GVA + CODE_STEP, 7, 1, writable=False, executable=True),
        *(
            Extent(PAGE_GVA + i * PAGE_SIZE, gfn, 1, writable=True, executable=False)
            for i, gfn in enumerate((6, 8, 9, 10))
        ),
        Extent(MEMORY_GVA, buffer_gfn, pages, writable=True, executable=False),
    )


def test_threads_start_on_their_vcpus_with_equal_weight() -> None:
    made = bench(vm__vcpus=2, bench__fault_threads=3, bench__work_threads=2)
    assert [(task.name, task.vcpus, task.account) for task in made.tasks] == [
        ("fault_thread/0", (0,), Account.FAULTING),
        ("fault_thread/1", (1,), Account.FAULTING),
        ("fault_thread/2", (0,), Account.FAULTING),
        ("work_thread/0", (0,), Account.COUNTING),
        ("work_thread/1", (1,), Account.COUNTING),
    ]
    assert {(task.nice, task.start_ns, task.lifetime_ns, task.ring) for task in made.tasks} == {(0, 0, 0, 0)}


def test_faulting_thread_is_told_its_part_of_the_buffer() -> None:
    made = bench(seed=7, bench__buffer="64MiB")
    assert told(made, 2, "fault_thread") == {
        "buffer": MEMORY_GVA + 128,
        "pages": 16384,
        "rng_seed": stream_key(7, "guest.bench.fault_thread.2"),
        "stamp_base": 3 << 32,
        "stamp_stride": 4 << 32,
        "multiplier": CHECK_MULTIPLIER,
        "zero_ok": 0,
    }
    assert register_file.get(made.tasks[2].registers, "rip") == CODE_GVA
    assert made.tasks[2].results == tuple(FAULT.results.items())


def test_stamps_of_zeros_are_fine_in_memory_that_starts_untouched() -> None:
    assert told(bench(bench__populate=False), 0, "fault_thread")["zero_ok"] == 1


def test_working_threads_count_in_pages_of_their_own() -> None:
    made = bench()
    counters = [told(made, task, "work_thread")["counter"] for task in range(4, 8)]
    assert counters == [PAGE_GVA + i * PAGE_SIZE for i in range(4)]
    assert {register_file.get(task.registers, "rip") for task in made.tasks[4:]} == {CODE_GVA + CODE_STEP}


@pytest.mark.parametrize("overrides", [{}, {"vm__vcpus": 64, "bench__work_threads": 256, "bench__fault_threads": 63}])
def test_no_frame_twice_none_at_0_and_all_fit(overrides: dict[str, Any]) -> None:
    made = core(**overrides)
    used = frames(made.segments())
    assert len(used) == len(set(used)) and min(used) == 1
    assert max(used) < scenario(**overrides).vm.guest_memory >> PAGE_SHIFT
    extents = made.processes[1].extents
    mapped = [gfn for extent in extents for gfn in range(extent.gfn, extent.gfn + extent.pages)]
    assert sorted(mapped) == sorted(used)[-len(mapped) :], "everything is mapped but the kernel's own pages"


def test_extents_ascend_and_no_page_is_writable_and_executable() -> None:
    extents = core().processes[1].space().extents
    for low, high in pairwise(extents):
        assert low.gva + low.pages * PAGE_SIZE <= high.gva
    assert not any(extent.writable and extent.executable for extent in extents)


@pytest.mark.parametrize("vcpu", [0, 63])
def test_reason_words_are_aligned_and_in_the_per_cpu_pages(vcpu: int) -> None:
    gpa = reason_gpa(vcpu)
    assert gpa % 64 == 0
    per_cpu = core(vm__vcpus=64).segments()[1]  # behind the buffer's
    assert gpa >> PAGE_SHIFT in range(per_cpu.gfn, per_cpu.gfn + per_cpu.pages) and per_cpu.pages == 64


def test_no_two_stamps_have_a_tag_in_common() -> None:
    (stamped,) = [region for region in bench(bench__fault_threads=5, bench__buffer="400KiB").regions if region.stamps]
    words = [stamp.base + stamp.stride * page for stamp in stamped.stamps for page in range(100)]
    assert sorted(word >> 32 for word in words) == list(range(1, 501))
    assert all(word % (1 << 32) == 0 for word in words), "nothing is written yet"


def test_without_faulting_threads_there_is_no_buffer() -> None:
    made = bench(bench__fault_threads=0)
    assert len(made.tasks) == 4 and not any(region.stamps for region in made.regions)
    assert all(region.gva < MEMORY_GVA for region in made.regions) and made.memory == (0, 0)


def test_without_working_threads_there_are_no_counters() -> None:
    made = bench(bench__work_threads=0)
    assert len(made.tasks) == 4
    assert [region.gva for region in made.regions] == [CODE_GVA, MEMORY_GVA]


def test_at_most_64_threads_fault() -> None:
    """Each has 64 bytes of its own in every page."""
    (stamped,) = [region for region in bench(bench__fault_threads=64).regions if region.stamps]
    assert stamped.stamps[-1].offset == PAGE_SIZE - 64
    with pytest.raises(ScenarioError, match=r"bench.fault_threads = 65: at most 64"):
        bench(bench__fault_threads=65)


def test_tags_must_fit_32_bits() -> None:
    sizes = {"vm__guest_memory": "512GiB", "bench__buffer": "272GiB"}
    bench(bench__fault_threads=60, **sizes)
    with pytest.raises(ScenarioError, match=r"process bench: 71303168 pages times 63 tasks that verify"):
        bench(bench__fault_threads=63, **sizes)


def test_tag_2_to_the_32_is_one_too_many() -> None:
    with pytest.raises(ScenarioError, match="less than 2\\*\\*32"):
        bench(bench__fault_threads=32, vm__guest_memory="1024GiB", bench__buffer="512GiB")


def test_seed_of_the_generator_is_never_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "stream_key", lambda seed, name: 0)
    assert told(bench(), 0, "fault_thread")["rng_seed"] == 1


# Process tables ------------------------------------------------------------------------------------------------------


def test_process_table_becomes_processes_tasks_and_their_fields() -> None:
    threads = [
        {"program": "work_thread", "count": 2, "nice": -5, "vcpus": [2, 0], "start_s": 0.5, "lifetime_s": 2},
        {"program": "sequential", "parameters": {"first": 3, "think": 7}},
        {"program": "work_thread"},
    ]
    made = plans(tables({"name": "web", "count": 2, "memory": "1MiB", "thread": threads}, {"access_threads": 1}))
    assert [one.name for one in made] == ["web/0", "web/1", "process"]
    web = made[0]
    assert [task.name for task in web.tasks] == ["work_thread/0", "work_thread/1", "sequential/0", "work_thread/2"]
    first = web.tasks[0]
    assert (first.nice, first.vcpus, first.start_ns, first.lifetime_ns) == (-5, (0, 2), 500_000_000, 2_000_000_000)
    assert (web.tasks[2].nice, web.tasks[2].vcpus, web.tasks[2].start_ns) == (0, (), 0)
    arguments = told(web, 2, "sequential")
    assert (arguments["first"], arguments["think"], arguments["pages"]) == (3, 7, 256)
    assert (web.memory, made[2].memory) == ((MEMORY_GVA, 256), (MEMORY_GVA, 4096))


def test_equal_processes_draw_different_numbers_and_have_different_digests() -> None:
    one, other = plans(tables({"name": "p", "count": 2, "thread": [{"program": "fault_thread"}]}))
    seeds = {told(each, 0, "fault_thread")["rng_seed"] for each in (one, other)}
    assert len(seeds) == 2
    assert one.digest != other.digest and len(one.digest) == 16
    assert [region.gva for region in one.regions] == [region.gva for region in other.regions]


@pytest.mark.parametrize(
    "changed",
    [{"nice": 1}, {"vcpus": (1,)}, {"start_ns": 5}, {"lifetime_ns": 5}, {"digest": "x"}, {"instance": 1}],
)
def test_digest_tells_any_difference(changed: dict[str, Any]) -> None:
    same = {"program": WORK, "label": "w", "instance": 0}
    assert planned(Wanted(**same)).digest == planned(Wanted(**same)).digest
    assert planned(Wanted(**same)).digest != planned(Wanted(**(same | changed))).digest


def test_lifetime_beyond_all_time_is_for_ever() -> None:
    assert planned(Wanted(WORK, "w", 0, lifetime_ns=1 << 63)).tasks[0].lifetime_ns == NEVER_NS


def test_access_thread_has_a_ring_of_its_own_and_memory_that_starts_untouched() -> None:
    access = BUILTINS["access_thread"]
    made = planned(Wanted(access, "access_thread", 0), Wanted(access, "access_thread", 1), populate=False)
    assert [task.ring for task in made.tasks] == [PAGE_GVA, PAGE_GVA + PAGE_SIZE]
    assert told(made, 1, "access_thread") == {"ring": PAGE_GVA + PAGE_SIZE, "multiplier": CHECK_MULTIPLIER}
    assert all(task.trace is None for task in made.tasks)
    memory = made.regions[-1]
    assert (memory.gva, memory.pages, memory.demand_zero, memory.stamps) == (MEMORY_GVA, 16, True, ())


def test_trace_is_an_access_thread_with_a_list_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.trace").write_text("@5 3 r\n+7 4 w\n")
    thread = {"trace": str(tmp_path / "t.trace")}
    (made,) = plans(tables({"memory": "64KiB", "thread": [thread]}))
    (task,) = made.tasks
    assert (task.name, task.program) == ("t.trace/0", "t.trace") and task.ring == PAGE_GVA
    assert isinstance(task.trace, TraceList) and len(task.trace) == 2
    with pytest.raises(ScenarioError, match=r"t\.trace, line 2: .*page 4 is outside the buffer"):
        plans(tables({"memory": "16KiB", "thread": [thread]}))


def test_pairs_share_a_page_and_two_semaphores_and_nothing_else() -> None:
    threads = [{"program": "producer", "count": 2}, {"program": "consumer", "count": 2}]
    (made,) = plans(tables({"thread": threads}))
    of = [told(made, task, program) for task, program in enumerate(["producer"] * 2 + ["consumer"] * 2)]
    shared = ("ring", "items", "room")
    pairs = [tuple(each[name] for name in shared) for each in of]
    assert pairs[:2] == pairs[2:] and not set(pairs[0]) & set(pairs[1])
    assert all(task.ring == 0 for task in made.tasks), "no access threads"


def test_equal_tables_are_there_once_and_read_only() -> None:
    zipfian = BUILTINS["zipfian"]
    made = planned(Wanted(zipfian, "z", 0), Wanted(zipfian, "z", 1), Wanted(zipfian, "z", 2, {"theta": 50}))
    read_only = [region for region in made.regions if not region.writable and not region.executable]
    assert [region.gva for region in read_only] == [TABLE_GVA, TABLE_GVA + planning.TABLE_STEP]
    assert [told(made, task, "zipfian")["table"] for task in range(3)] == [TABLE_GVA, TABLE_GVA, read_only[1].gva]


def test_symbols_cover_built_in_code_without_the_places_inside_functions() -> None:
    made = planned(Wanted(WORK, "work_thread", 0), Wanted(FAULT, "fault_thread", 0))
    process = Process(1, made, Memory(1, 1 << 16))
    for program, gva in ((WORK, CODE_GVA), (FAULT, CODE_GVA + CODE_STEP)):
        found = [process.symbol(gva + offset) for offset in range(len(program.code))]
        assert {symbol.program for symbol in found if symbol} == {program.name} and None not in found
    assert process.symbol(CODE_GVA + len(WORK.code)) is None and process.symbol(CODE_GVA - 1) is None


# ELF programs --------------------------------------------------------------------------------------------------------


def test_elf_tasks_share_their_segments_and_have_stacks_and_arguments_of_their_own() -> None:
    program = elf(data=b"\x90" * 32, pages=2, entry=0x40_0010)
    wanted = [Wanted(program, "hello", i, args=(-1, 7), vcpus=(1,)) for i in range(2)]
    made = planned(*wanted, pages=0)
    code, *stacks = made.regions
    assert (code.gva, code.pages, code.data, code.writable, code.executable) == (
        0x40_0000,
        2,
        b"\x90" * 32,
        False,
        True,
    )
    ends = [STACK_END_GVA, STACK_END_GVA - STACK_STEP]
    assert [(stack.gva + stack.pages * PAGE_SIZE, stack.pages) for stack in stacks] == [
        (e, STACK_PAGES) for e in ends
    ]
    assert all(stack.demand_zero and stack.writable and not stack.executable for stack in stacks)
    for number, task in enumerate(made.tasks):
        values = {name: register_file.get(task.registers, name) for name in ("rip", "rsp", "rdi", "rsi", "rdx")}
        assert values == {"rip": 0x40_0010, "rsp": ends[number] - 8, "rdi": number, "rsi": 2**64 - 1, "rdx": 7}
        assert (task.account, task.results) == (Account.OTHER, ())
    assert made.memory == (0, 0)


def test_symbols_of_elf_programs_end_where_they_say_or_at_the_next() -> None:
    process = Process(1, planned(Wanted(elf(), "hello", 0), pages=0), Memory(1, 1 << 16))
    names = [
        symbol.name if (symbol := process.symbol(0x40_0000 + offset)) else None for offset in (0, 15, 16, 23, 24)
    ]
    assert names == ["_start", "_start", "loop", "loop", None]


@pytest.mark.parametrize("vcpus", [[(), ()], [(0,), (1,)], [(0, 1), (0, 1)]])
def test_elf_tasks_of_one_address_space_must_share_one_vcpu(vcpus: list[tuple[int, ...]]) -> None:
    program = elf()
    with pytest.raises(
        ScenarioError, match=r"process made: 2 tasks run ELF programs in one address space, .*same one vC"
    ):
        planned(*(Wanted(program, "e", i, vcpus=each) for i, each in enumerate(vcpus)))
    planned(Wanted(program, "e", 0, vcpus=vcpus[0]))


@pytest.mark.parametrize("gva", [CODE_GVA, MEMORY_GVA + 15 * PAGE_SIZE, PAGE_GVA - PAGE_SIZE])
def test_elf_segment_where_something_else_is_is_refused(gva: int) -> None:
    program = elf(gva, pages=2)
    with pytest.raises(ScenarioError, match=r"process made: its ELF program has a segment at 0x[0-9a-f]+, .*-Ttext"):
        planned(Wanted(program, "e", 0), Wanted(FAULT, "f", 0), Wanted(WORK, "w", 0))


def test_elf_segments_that_touch_others_without_overlap_are_fine() -> None:
    planned(Wanted(elf(CODE_GVA - PAGE_SIZE), "e", 0), Wanted(FAULT, "f", 0))


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (
            {"thread": [{"program": "producer"}]},
            r"process process: 1 tasks run producer, 0 run consumer: as many of each",
        ),
        ({"thread": [{"program": "consumer", "count": 3}]}, r"0 tasks run producer, 3 run consumer"),
        (
            {"access_threads": 1, "thread": [{"program": "fault_thread"}]},
            r"access threads and traces, and programs that",
        ),
        (
            {"thread": [{"program": "nosuch"}]},
            r"process\.thread\.program = 'nosuch': allowed: consumer, fault_thread,",
        ),
        ({"thread": [{"program": "access_thread"}]}, r"program = 'access_thread': allowed: (?!.*access_thread)"),
        ({"thread": [{"program": "idle", "parameters": {"x": 1}}]}, r"idle: there is no parameter 'x'"),
        ({"thread": [{"program": "sequential", "count": 65}]}, r"65 tasks verify what they write: at most 64"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(process: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        plans(tables(process))


def test_traces_do_not_share_memory_with_stamps(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("1 1 r\n")
    threads = [{"trace": str(tmp_path / "t")}, {"program": "sequential"}]
    with pytest.raises(ScenarioError, match=r"one or the other.*use two processes"):
        plans(tables({"thread": threads}))


def test_guest_without_the_memory_for_its_processes_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"vm\.guest_memory = 67108864: process process: \d+ pages .* are left"):
        guest_core(
            tables({"memory": "80MiB", "thread": [{"program": "fault_thread"}]}, vm__guest_memory="64MiB"), Journal()
        )


# Processes and memory ------------------------------------------------------------------------------------------------


def test_process_that_does_not_fit_takes_no_frames() -> None:
    memory = Memory(2, 100)
    assert memory.free == 97
    made = planned(Wanted(FAULT, "f", 0), pages=200)
    with pytest.raises(OutOfMemory, match="process made: 201 pages of guest memory wanted, 97 are left"):
        Process(1, made, memory)
    assert memory.free == 97
    assert (memory.take(97), memory.free) == (3, 0)
    with pytest.raises(OutOfMemory, match="1 pages of guest memory wanted, 0 are left"):
        memory.take(1)


def test_map_gives_pages_with_a_hole_behind_and_counts_versions() -> None:
    process = Process(1, planned(Wanted(WORK, "w", 0)), Memory(1, 1000))
    before = process.version
    first, second = process.map(1, Memory(1, 1000)), process.map(PAGE_SIZE + 1, Memory(1, 1000))
    assert (first, second) == (MAP_GVA, MAP_GVA + 2 * PAGE_SIZE)
    assert process.version == before + 2
    assert process.extent_of(first + PAGE_SIZE) is None and process.extent_of(second + 2 * PAGE_SIZE - 1) is not None


def test_pieces_are_within_pages_and_must_be_mapped() -> None:
    process = Process(1, planned(Wanted(FAULT, "f", 0)), Memory(1, 1000))
    gfn = process.extent_of(MEMORY_GVA).gfn  # type: ignore[union-attr]
    assert process.pieces(MEMORY_GVA + 4000, 200, write=True) == [
        (gfn * PAGE_SIZE + 4000, 96),
        ((gfn + 1) * PAGE_SIZE, 104),
    ]
    assert process.pieces(MEMORY_GVA + 16 * PAGE_SIZE - 1, 2, write=False) is None
    assert process.pieces(CODE_GVA, 1, write=True) is None and process.pieces(CODE_GVA, 1, write=False) is not None
    assert process.pieces(0, 1, write=False) is None


def test_copies_are_the_data_a_page_at_a_time() -> None:
    process = Process(1, planned(Wanted(elf(data=b"\x90" * 5000, pages=2), "e", 0), pages=0), Memory(1, 1000))
    gpa = process.extents[0].gfn << PAGE_SHIFT
    assert process.copies() == [(gpa, b"\x90" * 4096), (gpa + 4096, b"\x90" * 904)]


def test_scenario_of_a_file_finds_programs_beside_it(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("1 1 r\n")
    (tmp_path / "s.toml").write_text('[[process]]\n[[process.thread]]\ntrace = "t"\n')
    (made,) = plans(load(tmp_path / "s.toml", {}))
    assert made.tasks[0].trace is not None
