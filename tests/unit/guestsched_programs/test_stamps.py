"""What the programs that use memory write into its pages, and that they find what was not there when they wrote it."""

from __future__ import annotations

import numpy as np
import pytest

from apf.messages import CHECK_MULTIPLIER
from tests.unit.guestsched_programs.rig import (
    BASE,
    CHECK,
    CODE,
    COUNT,
    FREE,
    MASK,
    MEMORY,
    OFFSET,
    PAGES,
    STRIDE,
    Process,
    reference_pages,
)


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
