"""Options that several commands have, each in one place, and what their values come to.

Those that come together are groups (``groups``): classes whose fields are the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apf import listen, logs
from apf.fields import parse_size
from apf.listen import Security
from apf.scenario import ScenarioError
from deploy.clusters import DEFAULT_NAME, BadInput

if TYPE_CHECKING:
    from deploy.keeping import Keeper

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

TraceLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Of the trace: what comes later is counted only (default: 512MiB).")
]
Folded = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the profile as folded stacks, for flame graphs.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")]
Twin = Annotated[bool, typer.Option("--twin", help="In this one process: no gRPC, the same digest.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn by chance.")]
Name = Annotated[str, typer.Option(metavar="NAME", help="Of the cluster.")]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of runs."""

    journal: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all events there (see apf diff).")] = (
        None
    )
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Perfetto trace there (ui.perfetto.dev).")
    ] = None
    trace_limit: TraceLimit = None
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the journals in a new directory (see apf explain).")
    ] = None

    def keeper(self) -> Keeper:
        """What keeps it; BadInput."""
        from deploy.keeping import Keeper

        return Keeper(self.journal, self.trace, self.record, trace_limit_bytes(self.trace_limit))


@dataclass(frozen=True, slots=True)
class Log:
    """What the processes log, and how."""

    log_level: Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")] = "WARNING"
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="text|json", help=f"Log lines for people, or JSON (default: ${logs.FORMAT_VARIABLE}, else text)."
        ),
    ] = None

    def level(self) -> str:
        """As the processes take it; BadInput."""
        given = self.log_level
        if given.upper() not in _LEVELS:
            raise BadInput(f"--log-level = {given!r}: allowed: {', '.join(_LEVELS)}")
        return given.upper()

    def form(self) -> str:
        """As the processes take it; BadInput."""
        given = self.log_format
        if given is None:
            return logs.default_format()
        if given not in logs.FORMATS:
            raise BadInput(f"--log-format = {given!r}: allowed: {', '.join(logs.FORMATS)}")
        return given


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest that is called: a VM of a cluster of this user, or the one whose API is at an address."""

    name: Name = DEFAULT_NAME
    vm: Annotated[int, typer.Option(metavar="N", help="VM of the cluster, from 0.", min=0)] = 0
    api: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="API of a guest, HOST:PORT or unix:PATH, instead of a cluster's name."),
    ] = None


@dataclass(frozen=True, slots=True)
class Tls:
    """The certificates of whoever calls, or listens."""

    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="Certificate to show on TCP (see apf certs).")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Its private key.")] = None
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="Authority of the other side's certificate.")
    ] = None

    def security(self, groups: Sequence[str] = ()) -> Security:
        """The certificates, and the groups that may use sockets; BadInput."""
        try:
            return listen.security(self.tls_cert, self.tls_key, self.tls_ca, groups)
        except listen.ListenError as error:
            raise BadInput(str(error)) from error


def trace_limit_bytes(given: str | None) -> int:
    """Bytes that ``TraceLimit`` allows; BadInput."""
    from deploy.keeping import TRACE_LIMIT_BYTES

    try:
        limit = TRACE_LIMIT_BYTES if given is None else parse_size(given)
    except ValueError as error:
        raise BadInput(f"--trace-limit = {given!r}: {error}") from error
    if not isinstance(limit, int) or limit <= 0:
        raise BadInput(f"--trace-limit = {given!r}: greater than 0")
    return limit


def scenario_file(given: Path | None, option: str = "--scenario") -> Path | None:
    """The file meant by ``option``: a path, or the name of one of the scenarios that come with the emulator."""
    if given is None or given.exists() or given.suffix or len(given.parts) > 1:
        return given
    shipped = Path(str(files("deploy") / "scenarios"))
    names = sorted(path.stem for path in shipped.glob("*.toml"))
    if given.name not in names:
        raise ScenarioError(f"{option} = {given}: no such file, and none of the scenarios {', '.join(names)}")
    return shipped / f"{given.name}.toml"
