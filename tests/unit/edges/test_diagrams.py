"""The diagrams in the package headers are those of the tables."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import pytest

from apf.rules import Rule, Table
from deploy.diagrams import TABLES, drawn


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.parent.name)
def test_headers_are_fresh(path: Path) -> None:
    assert path.read_text() == drawn(path.read_text(), TABLES[path]), "run 'poe diagrams'"


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.parent.name)
def test_every_rule_is_drawn_with_its_source(path: Path) -> None:
    header = path.read_text()
    for table in TABLES[path]:
        for rule in table.rules:
            assert rule.source in header and ":" in rule.source, f"{table.name}: {rule}"


class Light(Enum):
    RED = "red"
    GREEN = "green"


def test_a_rule_may_be_there_once_only() -> None:
    rule = Rule(Light.RED, Light.GREEN, Light.GREEN, "a.c:f")
    table = Table("light", rule)
    assert table.after(Light.RED, Light.GREEN) is Light.GREEN and table.after(Light.GREEN, Light.RED) is None
    with pytest.raises(AssertionError, match="a rule twice"):
        Table("light", rule, rule)
