"""Every slot has checksums: what was not written as it should have been is found when it is read."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostd.checksums import BOTH, FIRST, HALF, Checksums
from hostd.swapfile import SwapFile

SLOTS = 16
PAGE = 4096
SECOND = 0b10


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[SwapFile]:
    made = SwapFile(tmp_path / "swap", SLOTS)
    yield made
    made.close()


def page(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, PAGE, np.uint8)


def read(swap: SwapFile, slot: int) -> tuple[np.ndarray, str]:
    frame = np.empty(PAGE, np.uint8)
    wrong = swap.read(slot, frame)
    return frame, wrong


def test_what_was_written_is_read_and_right(swap: SwapFile) -> None:
    for slot in (0, SLOTS - 1):
        swap.write(slot, page(1))
        swap.write(slot, page(2))
        frame, wrong = read(swap, slot)
        assert not wrong and (frame == page(2)).all()


def test_a_run_is_right_page_by_page_and_together(swap: SwapFile) -> None:
    pages = np.stack([page(seed) for seed in range(5)])
    swap.write_run(3, pages)
    assert [read(swap, slot)[1] for slot in range(3, 8)] == [""] * 5
    found, wrong = swap.read_many(np.array([7, 3, 4]))
    assert (found == pages[[4, 0, 1]]).all() and not wrong.any()


def test_many_pages_are_written_each_to_its_slot_and_their_checksums_with_them(tmp_path: Path) -> None:
    """Runs of consecutive slots are one system call: more than one takes, one alone, backwards, and apart."""
    swap = SwapFile(tmp_path / "many", 256)
    slots = [*range(10, 140), 200, 201, 199, 150, 3, 255, 0]
    pages = np.stack([page(slot) for slot in slots])
    for _ in range(2):
        swap.write_all([number for nth, slot in enumerate(slots) for number in (slot, nth)], pages.ctypes.data)
    for nth, slot in enumerate(slots):
        frame, wrong = read(swap, slot)
        assert not wrong and (frame == pages[nth]).all()
    assert read(swap, 141)[1], "nobody has written that"
    swap.close()


def test_a_write_that_fails_names_its_slot(tmp_path: Path) -> None:
    swap = SwapFile(tmp_path / "swap", SLOTS)
    pages = np.stack([page(seed) for seed in range(3)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 * PAGE + 100, limit[1]))
        with pytest.raises(OSError, match="slots from 5: not written whole, and 4096 bytes when tried again"):
            swap.write_all([2, 0, 5, 1, 6, 2], pages.ctypes.data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not read(swap, 2)[1], "what went before it is there"
    assert read(swap, 5)[1] and read(swap, 6)[1], "and nothing says that the others are"
    swap.close()


def test_a_torn_write_leaves_the_second_half_and_is_found_even_if_the_bytes_are_the_same(swap: SwapFile) -> None:
    swap.write(2, page(1))
    swap.tear(2, page(2))
    frame, wrong = read(swap, 2)
    assert (frame[:HALF] == page(2)[:HALF]).all() and (frame[HALF:] == page(1)[HALF:]).all()
    assert wrong == "bytes 2048 to 4095 are not those of write 2 of this slot, its last"
    swap.write(2, page(3))
    swap.tear(2, page(3))
    assert read(swap, 2)[1].startswith("bytes 2048 to 4095 ")


def test_a_lost_write_leaves_all_and_is_found_even_if_the_bytes_are_the_same(swap: SwapFile) -> None:
    swap.write(2, page(1))
    swap.lose(2, page(1))
    frame, wrong = read(swap, 2)
    assert (frame == page(1)).all() and wrong == "none of its bytes are those of write 2 of this slot, its last"
    swap.write(2, page(1))
    assert read(swap, 2)[1] == ""


def test_a_slot_that_was_never_written_is_wrong(swap: SwapFile) -> None:
    swap.lose(5, np.zeros(PAGE, np.uint8))
    frame, wrong = read(swap, 5)
    assert not frame.any() and wrong


@given(st.integers(0, PAGE - 1), st.integers(0, 7), st.integers(0, 2**32))
def test_any_flipped_bit_is_found_in_its_half(byte: int, bit: int, seed: int) -> None:
    checksums, written = Checksums(2), page(seed)
    checksums.written(1, written)
    read_back = written.copy()
    read_back[byte] ^= 1 << bit
    assert checksums.wrong(1, read_back) == (FIRST if byte < HALF else SECOND)
    assert checksums.wrong(1, written) == 0


@given(st.integers(0, 510), st.integers(1, 511), st.integers(0, 2**32))
def test_words_that_change_places_are_found(at: int, other: int, seed: int) -> None:
    checksums, written = Checksums(1), page(seed)
    checksums.written(0, written)
    words = written.copy().view(np.uint64)
    words[[at, other]] = words[[other, at]]
    assert bool(checksums.wrong(0, words.view(np.uint8))) is (at != other)


def test_what_was_written_to_another_slot_is_wrong() -> None:
    checksums = Checksums(2)
    checksums.written(0, page(1))
    checksums.written(1, page(1))
    checksums.sums[1] = checksums.sums[0]  # a misdirected write
    assert checksums.wrong(0, page(1)) == 0 and checksums.wrong(1, page(1)) == BOTH


def test_bytes_changed_behind_the_back_are_found_by_many_reads_too(swap: SwapFile, tmp_path: Path) -> None:
    swap.write_run(0, np.stack([page(seed) for seed in range(4)]))
    with (tmp_path / "swap").open("r+b") as file:
        file.seek(2 * PAGE + 3000)
        file.write(bytes([page(2)[3000] ^ 1]))
    _, wrong = swap.read_many(np.array([0, 1, 2, 3]))
    assert wrong.tolist() == [False, False, True, False]
