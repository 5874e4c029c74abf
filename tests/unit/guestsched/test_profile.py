"""Samples are booked on the symbol of the program that ran, or on the guest kernel's function that let them in."""

from __future__ import annotations

import pytest
from guest_fakes import CODE, CODE_GVA, MS, Guest, guest, guest_of, plan, spec

from apf.core import CoreError
from apf.messages import InterruptArrived, KernelPath, NotPresentArrived, PageReadyArrived, Sample
from guestsched.core.process import Symbol
from guestsched.core.profile import SYMBOL_OF_PATH, Profile, Row

SYMBOLS = (
    Symbol(CODE_GVA + 8, CODE_GVA + 12, "second", "toy"),
    Symbol(CODE_GVA, CODE_GVA + 8, "first", "toy"),
    Symbol(CODE_GVA + 16, CODE_GVA + 32, "other", "lib"),
)


def sampled(made: Guest, *samples: Sample, now_ns: int = MS) -> list[Row]:
    """The profile's rows after a trap that told of these samples."""
    made.trap(PageReadyArrived(now_ns), now_ns, samples=samples)
    return made.core.profile.rows()


def profiled() -> Guest:
    made = guest_of(plan(spec(1), spec(2), symbols=SYMBOLS, regions=(CODE,)), plan(spec(3), name="bare"))
    made.boot()
    return made


def at(offset: int, count: int = 1, task: int = 1) -> Sample:
    return Sample(task, CODE_GVA + offset, KernelPath.USER, count)


def test_samples_of_a_task_are_its_programs_by_symbol() -> None:
    rows = sampled(profiled(), at(0, 2), at(7), at(8, 4), at(31, task=2))
    assert rows == [Row("second", "toy", 4), Row("first", "toy", 3), Row("other", "lib", 1)]
    assert not any(row.kernel for row in rows)


@pytest.mark.parametrize("offset", [-1, 12, 15, 32, 1 << 40])
def test_place_of_no_symbol_is_unknown_in_that_tasks_program(offset: int) -> None:
    assert sampled(profiled(), at(offset)) == [Row("[unknown]", "toy", 1)]


def test_process_without_symbols_is_unknown_to_itself_only() -> None:
    assert sampled(profiled(), at(0, task=3), at(0)) == [Row("[unknown]", "toy", 1), Row("first", "toy", 1)]


@pytest.mark.parametrize("path", [path for path in KernelPath if path is not KernelPath.USER])
def test_every_path_of_the_kernel_has_its_function(path: KernelPath) -> None:
    (row,) = sampled(profiled(), Sample(0, 0, path, 3))
    assert row == Row(SYMBOL_OF_PATH[path], "", 3) and row.kernel


def test_paths_of_one_function_are_one_row_but_apart_in_the_folded_form() -> None:
    made = profiled()
    rows = sampled(
        made, Sample(0, 0, KernelPath.SCHEDULE, 1), Sample(0, 0, KernelPath.NOT_PRESENT, 2), at(0, 5)
    )  # fmt: skip
    assert rows == [Row("first", "toy", 5), Row("_raw_spin_unlock_irq", "", 3)]
    assert made.core.profile.samples == 8
    assert made.core.profile.folded().splitlines() == [
        "toy;first 5",
        "[kernel];schedule;_raw_spin_unlock_irq 1",
        "[kernel];not_present;_raw_spin_unlock_irq 2",
    ]


def test_samples_add_up_over_traps_and_vcpus() -> None:
    made = guest(spec(1), spec(2, vcpu=1), vm__vcpus=2).boot_all()
    for time, vcpu, task in ((1, 0, 1), (1, 1, 2), (2, 1, 2)):
        made.trap(InterruptArrived(), time * MS, vcpu, samples=(at(0, task=task),))
    assert made.core.profile.rows() == [Row("[unknown]", "toy", 3)]


def test_sample_is_the_task_that_ran_then_even_if_another_traps() -> None:
    made = profiled()
    made.trap(NotPresentArrived(0x1000), MS, samples=(at(0, task=2),))
    assert made.core.profile.rows() == [Row("first", "toy", 1)]


def test_sample_of_a_task_there_is_none_of_is_refused() -> None:
    made = profiled()
    with pytest.raises(CoreError, match="a sample of task 9: there is none"):
        sampled(made, at(0, task=9))


def test_profile_is_in_the_journal_at_the_end() -> None:
    made = profiled()
    sampled(made, at(0, 5), Sample(0, 0, KernelPath.TICK, 2))
    made.stop(2 * MS)
    made.core.finish(2 * MS)
    assert made.records("profile") == [("toy", "first", "5"), ("[kernel]", "do_softirq", "2")]


def test_rows_of_equal_count_are_by_name() -> None:
    profile = Profile()
    for symbol, program in (("b", "x"), ("a", "y"), ("a", "x")):
        profile.add(Sample(1, 0, KernelPath.USER, 1), symbol, program)
    assert [(row.symbol, row.program) for row in profile.rows()] == [("a", "x"), ("a", "y"), ("b", "x")]
    assert Profile().folded() == ""
