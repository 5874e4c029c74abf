"""The benchmark's image: layout, stamps, initial registers, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from guest_fakes import scenario

from apf import registers as register_file
from apf.chance import stream_key
from apf.messages import CHECK_MULTIPLIER, PAGE_SHIFT, PAGE_SIZE, Account, Extent, Segment, Stamp
from apf.scenario import GUEST_KERNEL_BYTES, ScenarioError
from guestsched.core import image
from guestsched.core.image import BUFFER_GVA, CODE_GVA, CODE_GVA_STEP, COUNTER_GVA, Image
from guestsched.core.program import LoadedProgram


@dataclass(frozen=True)
class Toy:
    name: str
    code: bytes
    symbols: dict[str, int] = field(default_factory=dict)


FAULT = LoadedProgram(
    Toy("fault_thread", b"\xf4" * 5000),
    arguments={
        "buffer": "rdi",
        "pages": "rsi",
        "rng_seed": "rdx",
        "stamp_base": "r8",
        "stamp_stride": "r9",
        "multiplier": "r12",
    },
    results={"accesses": "rax"},
    entry=16,
)
WORK = LoadedProgram(Toy("work_thread", b"\x90\xf4"), arguments={"counter": "rdi"}, results={"count": "rbx"})


def build(**overrides: object) -> Image:
    return image.build(scenario(**overrides), FAULT, WORK)


def frames(made: Image) -> list[int]:
    return [gfn for segment in made.segments for gfn in range(segment.gfn, segment.gfn + segment.pages)]


def test_layout_of_the_published_benchmark() -> None:
    """T15, T16: 4 vCPUs, 4 faulting and 4 working threads, a buffer of 1 GiB."""
    made = build(vm__vcpus=4)
    buffer_gfn, pages = GUEST_KERNEL_BYTES >> PAGE_SHIFT, (1 << 30) // PAGE_SIZE
    assert made.segments == (
        Segment(buffer_gfn, pages, stamps=tuple(Stamp(64 * i, i + 1 << 32, 4 << 32) for i in range(4))),
        Segment(1, 4),
        Segment(5, 2, b"\xf4" * 5000),
        Segment(7, 1, b"\x90\xf4"),
        Segment(8, 4, demand_zero=True),
    )
    (space,) = made.spaces
    assert space.asid == 1
    assert space.extents == (
        Extent(CODE_GVA, 5, 2, writable=False, executable=True),
        Extent(CODE_GVA + CODE_GVA_STEP, 7, 1, writable=False, executable=True),
        Extent(COUNTER_GVA, 8, 4, writable=True, executable=False),
        Extent(BUFFER_GVA, buffer_gfn, pages, writable=True, executable=False),
    )


def test_threads_start_on_their_vcpus_with_equal_weight() -> None:
    made = build(vm__vcpus=2, bench__fault_threads=3, bench__work_threads=2)
    assert [(task.name, task.vcpu, task.account) for task in made.tasks] == [
        ("fault_thread/0", 0, Account.FAULTING),
        ("fault_thread/1", 1, Account.FAULTING),
        ("fault_thread/2", 0, Account.FAULTING),
        ("work_thread/0", 0, Account.COUNTING),
        ("work_thread/1", 1, Account.COUNTING),
    ]
    assert {(task.nice, task.asid) for task in made.tasks} == {(0, 1)}


def test_faulting_thread_is_told_its_part_of_the_buffer() -> None:
    made = build(seed=7, bench__buffer="64MiB")
    task = made.tasks[2]
    told = {name: register_file.get(task.registers, register) for name, register in FAULT.arguments.items()}
    assert told == {
        "buffer": BUFFER_GVA + 128,
        "pages": 16384,
        "rng_seed": stream_key(7, "guest.fault_thread.2"),
        "stamp_base": 3 << 32,
        "stamp_stride": 4 << 32,
        "multiplier": CHECK_MULTIPLIER,
    }
    assert register_file.get(task.registers, "rip") == CODE_GVA + 16
    assert task.results == (("accesses", "rax"),)


def test_working_threads_count_in_pages_of_their_own() -> None:
    tasks = build().tasks[4:]
    assert [register_file.get(task.registers, "rdi") for task in tasks] == [
        COUNTER_GVA + i * PAGE_SIZE for i in range(4)
    ]
    assert {register_file.get(task.registers, "rip") for task in tasks} == {CODE_GVA + CODE_GVA_STEP}


@pytest.mark.parametrize("overrides", [{}, {"vm__vcpus": 64, "bench__work_threads": 256, "bench__fault_threads": 63}])
def test_no_frame_twice_none_at_0_and_the_kernels_stay_below_the_buffer(overrides: dict[str, object]) -> None:
    made = build(**overrides)
    used = frames(made)
    assert len(used) == len(set(used)) and min(used) == 1
    assert all(gfn < GUEST_KERNEL_BYTES >> PAGE_SHIFT for gfn in frames(made)[made.segments[0].pages :])
    mapped = [gfn for extent in made.spaces[0].extents for gfn in range(extent.gfn, extent.gfn + extent.pages)]
    assert sorted(mapped) == sorted(used)[-len(mapped) :], "everything is mapped but the kernel's own pages"


def test_extents_ascend_and_no_page_is_writable_and_executable() -> None:
    extents = build().spaces[0].extents
    for low, high in pairwise(extents):
        assert low.gva + low.pages * PAGE_SIZE <= high.gva
    assert all(extent.writable != extent.executable for extent in extents)


@pytest.mark.parametrize("vcpu", [0, 63])
def test_reason_words_are_aligned_and_in_the_per_cpu_pages(vcpu: int) -> None:
    gpa = image.reason_gpa(vcpu)
    assert gpa % 64 == 0
    per_cpu = build(vm__vcpus=64).segments[1]  # behind the buffer's
    assert gpa >> PAGE_SHIFT in range(per_cpu.gfn, per_cpu.gfn + per_cpu.pages) and per_cpu.pages == 64


def test_no_two_stamps_have_a_tag_in_common() -> None:
    chosen = scenario(bench__fault_threads=5, bench__buffer="400KiB")
    words = [stamp.base + stamp.stride * page for stamp in image.stamps(chosen) for page in range(100)]
    assert sorted(word >> 32 for word in words) == list(range(1, 501))
    assert all(word % (1 << 32) == 0 for word in words), "nothing is written yet"


def test_without_faulting_threads_there_is_no_buffer() -> None:
    made = build(bench__fault_threads=0)
    assert len(made.tasks) == 4 and not any(segment.stamps for segment in made.segments)
    assert all(extent.gva < BUFFER_GVA for extent in made.spaces[0].extents)


def test_without_working_threads_there_are_no_counters() -> None:
    made = build(bench__work_threads=0)
    assert len(made.tasks) == 4
    assert [extent.gva for extent in made.spaces[0].extents] == [CODE_GVA, BUFFER_GVA]


def test_at_most_63_threads_fault() -> None:
    build(bench__fault_threads=63)
    with pytest.raises(ScenarioError, match=r"bench\.fault_threads = 64: at most 63"):
        build(bench__fault_threads=64)


def test_tags_must_fit_32_bits() -> None:
    sizes = {"vm__guest_memory": "512GiB", "bench__buffer": "272GiB"}
    build(bench__fault_threads=60, **sizes)
    with pytest.raises(ScenarioError, match=r"bench\.buffer = .* pages times 63 \(bench\.fault_threads\)"):
        build(bench__fault_threads=63, **sizes)


def test_tag_2_to_the_32_is_one_too_many() -> None:
    with pytest.raises(ScenarioError, match="less than 2\\*\\*32"):
        build(bench__fault_threads=32, vm__guest_memory="1024GiB", bench__buffer="512GiB")


def test_program_that_wants_an_argument_nobody_has_is_refused() -> None:
    wants = LoadedProgram(WORK.program, arguments={"count_to": "rdi"})
    with pytest.raises(AssertionError, match=r"work_thread wants \['count_to'\]"):
        image.build(scenario(), FAULT, wants)


def test_seed_of_the_generator_is_never_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "stream_key", lambda seed, name: 0)
    assert register_file.get(build().tasks[0].registers, "rdx") == 1
