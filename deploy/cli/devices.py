"""``apf device``: the swap devices there are, and one more from fio's measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.terminal import console, named_files, told


def list_(
    file: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE.toml]...", help="Profiles of your own to check and show too."),
    ] = None,
) -> None:
    """Show the profiles that swap.device may name."""
    with told(), named_files():
        from deploy import devices

        console().print(devices.table(file or ()))


def fit(
    file: Annotated[Path, typer.Argument(metavar="FIO.json", help="What fio wrote with --output-format=json[+].")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.toml", help="Where it goes (default: here).")
    ] = None,
    servers: Annotated[
        int | None,
        typer.Option(metavar="N", help="I/Os at a time (default: as many as fio had in flight).", min=1, max=4096),
    ] = None,
) -> None:
    """Make a swap device's profile from fio's measurement of a real one, of 4 KiB reads and writes."""
    with told(), named_files():
        from deploy import fio

        text = fio.fit(file, servers)
        if output is None:
            print(text, end="")
        else:
            output.write_text(text)
