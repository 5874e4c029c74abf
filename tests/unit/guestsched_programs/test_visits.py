"""Which pages the programs that use memory visit, in which order, and how."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from guestsched.programs import coprime_scatter
from guestsched.programs.zipf import PARTS, zipf_table
from tests.unit.guestsched_programs.rig import DATA_GFN, FREE, SEED, Process, reference_pages, xorshift
from vcpud.cpu.engine import ExitCause


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
