"""The table of edge cases in tests/README.md and the tests agree."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
ROWS = dict(re.findall(r"^\| (E\d\d) \| .* \| (.*) \|$", (TESTS / "README.md").read_text(), re.MULTILINE))


def entries_tested() -> set[str]:
    """Entries that the name of a test has."""
    names = set()
    for path in TESTS.rglob("test_*.py"):
        names |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    return {found.upper() for name in names for found in re.findall(r"_(e\d\d)(?=_)", name)}


def test_every_entry_has_a_row() -> None:
    assert sorted(ROWS) == [f"E{number:02}" for number in range(1, 61)]


def test_rows_that_name_tests_have_some_and_no_others_do() -> None:
    named = {entry for entry, text in ROWS.items() if re.search(r"\btest\b", text)}
    assert entries_tested() == named


def test_every_other_row_says_why() -> None:
    for entry, text in ROWS.items():
        assert re.match(r"test|memory|not there: .{20,}", text), f"{entry}: {text}"
