"""Journals and their digests; draws that depend on nothing but seed, stream and index."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf import chance
from apf.chance import Stream, mix64, quantiles, stream_key
from apf.journal import Journal, run_digest

lines = st.tuples(st.integers(0, 1 << 62), st.sampled_from(["fault", "tick"]), st.integers(0, 9))


def digest(records: list[tuple[int, str, int]]) -> str:
    journal = Journal()
    for record in records:
        journal.record((*record,))
    return journal.digest()


@given(one=st.lists(lines, max_size=8), other=st.lists(lines, max_size=8))
def test_digests_are_equal_exactly_if_records_are(
    one: list[tuple[int, str, int]], other: list[tuple[int, str, int]]
) -> None:
    assert (digest(one) == digest(other)) is (one == other)


def test_a_digest_does_not_depend_on_when_it_was_flushed() -> None:
    one, other, sink = Journal(), Journal(), io.StringIO()
    third = Journal(sink)
    for number in range(10_000):
        for journal in (one, other, third):
            journal.record((number, "fault", number * 7, "x"))
        if number % 97 == 0:
            other.digest()
    assert one.digest() == other.digest() == third.digest()
    assert sink.getvalue().splitlines()[42] == "42 fault 294 x"
    assert one.records == len(sink.getvalue().splitlines()) == 10_000


def test_run_digest() -> None:
    parts = {"host": "aa", "guest-0": "bb", "vcpu-0-0": "cc"}
    assert run_digest(parts) == run_digest(list(reversed(parts.items())))
    assert run_digest(parts) != run_digest({**parts, "host": "ab"})
    assert run_digest(parts) != run_digest({"host": "bb", "guest-0": "aa", "vcpu-0-0": "cc"})


def test_splitmix64_as_published() -> None:
    """First outputs of SplitMix64 with seed 1234567, a published test vector."""
    state, found = 1234567, []
    for _ in range(3):
        state += 0x9E3779B97F4A7C15
        found.append(mix64(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seed=st.integers(0, 1 << 62), index=st.integers(0, 1 << 40))
def test_draws_in_blocks_are_the_mixed_counter(seed: int, index: int) -> None:
    stream = Stream(seed, "x")
    stream.index = index
    key = stream_key(seed, "x")
    assert [stream.next_u64() for _ in range(3)] == [
        mix64(key + (number + 1) * 0x9E3779B97F4A7C15) for number in range(index, index + 3)
    ]


def test_a_draw_is_a_function_of_its_index() -> None:
    one, other = Stream(7, "device.read"), Stream(7, "device.read")
    first = [one.next_u64() for _ in range(100)]
    other.index = 60
    assert other.next_u64() == first[60]
    assert len(set(first)) == 100
    assert stream_key(7, "device.read") != stream_key(7, "device.write") != stream_key(8, "device.write")


def test_an_integer_of_numpy_is_an_integer_and_a_fraction_is_none() -> None:
    assert digest([(1, "x", np.int64(7))]) == digest([(1, "x", 7)])
    with pytest.raises(TypeError):
        digest([(1, "x", np.float32(7))])


words = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)


@given(records=st.lists(st.lists(st.integers(-(1 << 62), (1 << 64) - 1) | words, min_size=1, max_size=6), min_size=1))
def test_a_line_is_its_fields_whatever_words_they_are(records: list[list[int | str]]) -> None:
    """Also those with commas, quotation marks and brackets, which JSON would write otherwise."""
    sink = io.StringIO()
    journal = Journal(sink)
    for record in records:
        journal.record((*record,))
    journal.flush()
    assert sink.getvalue() == "".join(" ".join(map(str, record)) + "\n" for record in records)


@given(seed=st.integers(0, 1 << 62), bound=st.integers(1, 1 << 62))
def test_below(seed: int, bound: int) -> None:
    assert 0 <= Stream(seed, "x").below(bound) < bound


@given(seed=st.integers(0, 1 << 62), table=st.lists(st.integers(0, 1 << 46), min_size=2, max_size=50).map(sorted))
def test_quantiles_are_those_of_the_stream_in_exact_arithmetic(seed: int, table: list[int]) -> None:
    words, draw = Stream(seed, "x"), quantiles(seed, "x", table)
    for _ in range(600):  # into the third block
        position = words.next_u64() * (len(table) - 1)
        index, fraction = position >> 64, (position & (1 << 64) - 1) >> 32
        value = draw()
        assert value == table[index] + ((table[index + 1] - table[index]) * fraction >> 32)
        assert isinstance(value, int) and table[0] <= value <= table[-1]


@pytest.mark.parametrize("table", [(3, 2), (-1, 2), (0, 1 << 47)])
def test_quantiles_of_a_table_that_is_none(table: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        quantiles(1, "x", table)


@pytest.mark.parametrize(("word", "value"), [(0, 0), (1 << 63, 500), ((1 << 64) - 1, 999)])
def test_quantiles_are_linear(word: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "_mix_block", lambda key, block: np.full(4, word, np.uint64))
    assert quantiles(1, "x", (0, 500, 1000))() == value
