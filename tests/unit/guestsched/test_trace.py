"""The trace parser: what it reads, and what it says about what it cannot read."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf.messages import NEVER_NS
from apf.scenario import ScenarioError
from guestsched import trace
from guestsched.trace import ABSOLUTE, WRITE, read_trace

TEXT = b"""# a comment

@0 0 r
45 0x1F w   # half a line
+7\t99 r\r
   # indented
@10 5 w
@10 6 r"""


@pytest.mark.parametrize("packed", [False, True])
def test_times_pages_and_kinds(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "trace"
    stored = gzip.compress(TEXT) if packed else TEXT
    path.write_bytes(stored)
    read = read_trace(path, 100)
    assert len(read) == 5
    assert read.times.tolist() == [0, 45, 7, 10, 10]
    assert read.pages.tolist() == [0, 31, 99, 5, 6]
    assert read.kinds.tolist() == [ABSOLUTE, WRITE, 0, ABSOLUTE | WRITE, ABSOLUTE]
    assert read.sha256 == hashlib.sha256(stored).hexdigest()
    assert read.times.itemsize + read.pages.itemsize + read.kinds.itemsize == 13


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1 2", "not an access"),
        ("1 2 x", "not an access"),
        ("1 2 rw", "not an access"),
        ("1 2 R", "not an access"),
        ("-1 2 r", "not an access"),
        ("1 -2 r", "not an access"),
        ("1.5 2 r", "not an access"),
        ("@ 2 r", "not an access"),
        ("1 0x 2 r", "not an access"),
        ("1 0b1 r", "not an access"),
        ("1 1_0 r", "not an access"),
        ("1 2 r 3", "not an access"),
        ("\u0661 2 r", "not an access"),
        ("1 " + "9" * 20 + " r", "not an access"),
        ("1 100 r", "page 100 is outside the buffer; allowed: 0 to 99"),
        ("1 0x64 r", "page 100 is outside the buffer"),
        (f"{NEVER_NS} 1 r", "is too large"),
        ("@4 1 r", "time goes back from 5 to 4; allowed: @5 or later"),
        ("1 2 r #" + "x" * 1000, "too long"),
    ],
)
def test_a_bad_line_is_named_with_what_is_allowed(tmp_path: Path, line: str, what: str) -> None:
    path = tmp_path / "trace"
    path.write_text(f"# one\n@5 1 r\n{line}\n1 2 r\n")
    with pytest.raises(ScenarioError) as refusal:
        read_trace(path, 100)
    shown = repr(line.encode().decode("ascii", "backslashreplace")[:20])[:-1]
    assert str(refusal.value).startswith(f"{path}, line 3: {shown}")
    assert "; allowed: " in str(refusal.value) and what in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with pytest.raises(ScenarioError, match="trace: cannot be read: No such file"):
        read_trace(path, 1)
    with pytest.raises(ScenarioError, match="cannot be read: Is a directory"):
        read_trace(tmp_path, 1)
    for text in (b"", b"# nothing\n\n", b"\n"):
        path.write_bytes(text)
        with pytest.raises(ScenarioError, match="without an access"):
            read_trace(path, 1)
    packed = gzip.compress(TEXT)
    for damaged in (packed[:-3], packed[:25], packed[:-8] + b"12345678", packed[:12] + b"\xff\xff" + packed[14:]):
        path.write_bytes(damaged)
        with pytest.raises(ScenarioError, match="trace: a damaged gzip file"):
            read_trace(path, 100)
    path.write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(ScenarioError, match=r"line 1: .*it is too long"):
        read_trace(path, 100)


def test_the_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "ACCESSES_MAX", 3)
    path = tmp_path / "trace"
    path.write_text("1 0 r\n" * 3)
    assert len(read_trace(path, 1)) == 3
    path.write_text("1 0 r\n" * 4)
    with pytest.raises(ScenarioError, match="line 4: '1 0 r': there are too many accesses; allowed: 3"):
        read_trace(path, 1)


ACCESSES = st.lists(
    st.tuples(st.integers(0, NEVER_NS - 1), st.booleans(), st.integers(0, 999), st.booleans(), st.booleans()),
    min_size=1,
)


@given(ACCESSES)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, accesses: list[tuple]) -> None:
    latest, lines, expected = 0, [], []
    for value, absolute, page, write, hexadecimal in accesses:
        time = max(value, latest) if absolute else value
        latest = time if absolute else latest
        shown = f"{page:#x}" if hexadecimal else str(page)
        lines.append(f"{'@' if absolute else '+'}{time} {shown} {'w' if write else 'r'}\n")
        expected.append((time, page, WRITE * write | ABSOLUTE * absolute))
    path = tmp_path_factory.mktemp("traces") / "trace"
    path.write_text("".join(lines))
    read = read_trace(path, 1000)
    assert list(zip(read.times.tolist(), read.pages.tolist(), read.kinds.tolist(), strict=True)) == expected
