"""``apf walk``: the story is whole, in order, told by all processes, and refuses what cannot be told."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from apf.scenario import Scenario, ScenarioError, load
from deploy import walk
from deploy.steps import Step, render
from deploy.telling import HEADLINES
from deploy.walk import small

ROWS = {f"T{number}" for number in range(1, 15)}
FUNCTIONS = {
    *("kvm_mmu_page_fault", "gfn_to_pfn", "get_user_pages_fast", "get_user_pages_noio", "do_anonymous_page"),
    *("do_swap_page", "shrink_folio_list", "add_to_swap", "try_to_unmap", "async_pf_execute"),
    *("kvm_arch_async_page_not_present", "kvm_async_pf_task_wait", "kvm_check_async_pf_completion"),
    *("kvm_async_pf_task_wake",),
}


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    return walk.walk(small(1))


def test_every_row_is_told_with_its_functions(steps: list[Step]) -> None:
    assert {row for step in steps for row in step.rows} == ROWS
    assert {name for step in steps for name in step.functions} >= FUNCTIONS


def test_each_mode_is_told_from_first_touch_to_the_access_after_the_swap_in(steps: list[Step]) -> None:
    for mode in ("off", "pv2010"):
        own = [step for step in steps if step.mode == mode]
        assert [step.time_ns for step in own] == sorted(step.time_ns for step in own)
        assert list(dict.fromkeys(step.stage for step in own))[:2] == ["First touch", "Swap-out"]
        processes = {step.process.rstrip("0123456789") for step in own}
        assert processes == {"hostd", "guestsched", "vcpud worker "}
    pages = {page for step in steps for page in re.findall(r"gfn 0x[0-9a-f]+", step.text)}
    assert len(pages) == 1, "it is one page in both modes"


def test_a_sleeps_and_b_runs_only_with_apf(steps: list[Step]) -> None:
    told = {mode: " ".join(step.text for step in steps if step.mode == mode) for mode in ("off", "pv2010")}
    assert "vCPU thread sleeps" in told["off"] and "stood still" in told["off"] and "A sleeps" not in told["off"]
    assert "A sleeps" in told["pv2010"] and "B runs" in told["pv2010"] and "stood still" not in told["pv2010"]


@pytest.mark.parametrize("gup", ["noio", "nowait"])
@pytest.mark.parametrize("seed", [2, 3, 2**62])
def test_other_seeds_have_such_a_page_too(seed: int, gup: str) -> None:
    scenario = small(seed).model_copy(update={"gup": gup})
    steps = walk.walk(scenario)
    assert {row for step in steps for row in step.rows} == ROWS
    assert any(f"get_user_pages_{gup}" in step.functions for step in steps)


def test_printed_for_a_terminal_of_any_width(steps: list[Step]) -> None:
    for width in (60, 200):
        out = io.StringIO()
        render(steps, Console(file=out, width=width), HEADLINES)
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert sum("apf = " in line for line in lines) == 2
        flat = " ".join(out.getvalue().split())
        assert all(f"{step.time_ns:,} ns {step.process}" in flat for step in steps)
        assert all(step.text in flat for step in steps)


def test_command_prints_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    walk.command(seed=1, processes=False)
    assert "kvm_async_pf_task_wait" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bench.populate": True}, r"bench\.populate = true"),
        ({"bench.work_threads": 0}, r"bench\.work_threads = 0: at least 1"),
        ({"vm.group_memory": "16MiB"}, r"bench\.buffer = 8388608: more than vm\.group_memory"),
        ({"gup": "fast"}, "gup = fast"),
        ({"swap.device": "zram"}, r"swap\.device = 'zram': there the vCPU reads the page itself"),
        ({"duration_s": "0.001"}, "a longer duration_s"),
    ],
)
def test_what_cannot_be_told_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        walk.walk(changed(overrides))


def changed(overrides: dict[str, Any]) -> Scenario:
    data: dict[str, Any] = {}
    for section, values in small(1).model_dump().items():
        if isinstance(values, dict):
            data |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            data[section] = values
    return load(None, data | overrides)


def test_the_protocol_since_5_8_is_told_in_its_own_words() -> None:
    steps = walk.walk(small(1).model_copy(update={"apf": ("pv",)}))
    names = {name for step in steps for name in step.functions}
    assert {"__kvm_handle_async_pf", "sysvec_kvm_asyncpf_interrupt"} <= names and "do_async_page_fault" not in names
    told = " ".join(step.text for step in steps)
    assert "1 in the flags word" in told and "in the token word" in told and "reason word" not in told


def test_a_guest_that_is_told_nothing_has_no_story() -> None:
    with pytest.raises(ScenarioError, match="told nothing in halt"):
        walk.walk(small(1).model_copy(update={"apf": ("off", "halt")}))
