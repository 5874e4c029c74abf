"""The built-in programs: their committed bytes, what all of them keep to, and how they count, think and sleep."""

from __future__ import annotations

import pytest

from apf import registers
from apf.messages import PAGE_SIZE
from apf.scenario import ScenarioError
from guestsched.programs import BUILTINS
from guestsched.programs.assemble import OUTPUT, built
from tests.unit.guestsched_programs.rig import DATA_GFN, MEMORY
from vcpud.cpu.engine import ExitCause


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


def test_idle_sleeps_and_sleeps(new_process) -> None:
    process = new_process("idle")
    for _ in range(3):
        assert process.engine.run(100, 0).cause is ExitCause.SYSCALL
        saved = process.engine.save_registers()
        assert (registers.get(saved, "rax"), registers.get(saved, "rdi")) == (35, 3_600_000_000_000)
        process.answer(0)
