"""Options that come together: a dataclass as a command's parameter is its fields on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from deploy.cli.groups import ungrouped


@dataclass(frozen=True, slots=True)
class Where:
    place: Annotated[str, typer.Option(metavar="PLACE", help="Where.")] = "here"
    number: Annotated[int | None, typer.Option("--no", min=1)] = None


@dataclass(frozen=True, slots=True)
class How:
    fast: Annotated[bool, typer.Option("--fast")] = False


called: list[tuple[object, ...]] = []


def go(
    *,
    first: Annotated[int, typer.Option()] = 0,
    where: Where,
    who: Annotated[str, typer.Argument(metavar="WHO")],
    how: How,
    last: str = "z",
) -> None:
    """Go there."""
    called.append((first, where, who, how, last))


def run(*arguments: str) -> tuple[int, str]:
    called.clear()
    app = typer.Typer(add_completion=False)
    app.command()(ungrouped(go))
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("ann", (0, Where(), "ann", How(), "z")),
        ("--no 3 ann --first 2", (2, Where("here", 3), "ann", How(), "z")),
        ("--place there ann --fast --last y", (0, Where("there"), "ann", How(True), "y")),
    ],
)
def test_a_command_gets_its_groups_filled(arguments: str, expected: tuple[object, ...]) -> None:
    code, output = run(*arguments.split())
    assert (code, called) == (0, [expected]), output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [("ann --no 0", "greater than or equal to 1"), ("ann --where x", "No such option"), ("", "WHO")],
)
def test_options_of_a_group_are_checked_as_any(arguments: str, why: str) -> None:
    code, output = run(*arguments.split())
    assert code == 2 and why in output and not called


def test_the_help_shows_the_fields_where_their_group_stands() -> None:
    code, output = run("--help")
    assert code == 0 and "Go there." in output
    assert re.findall(r"--(\w+)", output) == ["first", "place", "no", "fast", "last", "help"]


def test_a_command_without_groups_stays_what_it_is() -> None:
    def plain(a: int = 0) -> None:
        """Nothing."""

    assert ungrouped(plain) is plain
