"""Draws the tables of transitions into the headers of the packages that have them: ``poe diagrams``.

A header is the docstring of a package's ``__init__``. What stands between its two marks is generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apf.rules import Table
from guestsched.core import task
from hostd.core import page
from vcpud.core import apf_msr, async_pf, thread

BEGIN = "Transitions, drawn from the tables by ``poe diagrams``:\n"
_ROOT = Path(__file__).parents[1]
TABLES: dict[Path, tuple[Table[Any, Any], ...]] = {
    _ROOT / "vcpud/core/__init__.py": (async_pf.TABLE, apf_msr.SLOT, thread.TABLE),
    _ROOT / "guestsched/core/__init__.py": (task.TABLE,),
    _ROOT / "hostd/core/__init__.py": (page.TABLE,),
}
"""Package header -> the tables in it."""


def drawn(header: str, tables: tuple[Table[Any, Any], ...]) -> str:
    """``header`` with the diagrams of ``tables`` at its end."""
    before = header.partition(BEGIN)[0].rstrip().removesuffix('"""').rstrip()
    return "\n\n".join([before, BEGIN + "\n" + "\n\n".join(table.diagram() for table in tables)]) + '\n"""\n'


def main() -> None:
    """Write them."""
    for path, tables in TABLES.items():
        path.write_text(drawn(path.read_text(), tables))


if __name__ == "__main__":
    main()
