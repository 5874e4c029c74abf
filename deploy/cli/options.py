"""Options that several commands have, each in one place, and what their values come to.

Those that name what is to be called: a cluster of this user by ``Name`` and ``Vm``, or by ``Api`` with its certificates.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apf import listen, logs
from apf.fields import parse_size
from apf.listen import Security
from apf.scenario import ScenarioError
from deploy.clusters import BadInput

if TYPE_CHECKING:
    from deploy.keeping import Keeper

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

Journal = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all events there (see apf diff).")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Perfetto trace there (ui.perfetto.dev).")]
TraceLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Of the trace: what comes later is counted only (default: 512MiB).")
]
Record = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep the journals in a new directory (see apf explain).")
]
Folded = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the profile as folded stacks, for flame graphs.")
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")]
Twin = Annotated[bool, typer.Option("--twin", help="In this one process: no gRPC, the same digest.")]
Seed = Annotated[int, typer.Option(help="Of everything drawn by chance.")]

LogLevel = Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")]
LogFormat = Annotated[
    str | None,
    typer.Option(
        metavar="text|json", help=f"Log lines for people, or JSON (default: ${logs.FORMAT_VARIABLE}, else text)."
    ),
]

Name = Annotated[str, typer.Option(metavar="NAME", help="Of the cluster.")]
Vm = Annotated[int, typer.Option(metavar="N", help="VM of the cluster, from 0.", min=0)]
Api = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="API of a guest, HOST:PORT or unix:PATH, instead of a cluster's name."),
]
TlsCert = Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Certificate to show on TCP (see apf certs).")]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Its private key.")]
TlsCa = Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Authority of the other side's certificate.")]


def keeper(journal: Path | None, trace: Path | None, trace_limit: str | None, record: Path | None) -> Keeper:
    """What keeps of the runs what ``Journal``, ``Trace``, ``TraceLimit`` and ``Record`` ask for."""
    from deploy.keeping import Keeper

    return Keeper(journal, trace, record, trace_limit_bytes(trace_limit))


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


def level(given: str) -> str:
    """``LogLevel`` as the processes take it; BadInput."""
    if given.upper() not in _LEVELS:
        raise BadInput(f"--log-level = {given!r}: allowed: {', '.join(_LEVELS)}")
    return given.upper()


def form(given: str | None) -> str:
    """``LogFormat`` as the processes take it; BadInput."""
    if given is None:
        return logs.default_format()
    if given not in logs.FORMATS:
        raise BadInput(f"--log-format = {given!r}: allowed: {', '.join(logs.FORMATS)}")
    return given


def scenario_file(given: Path | None, option: str = "--scenario") -> Path | None:
    """The file meant by ``option``: a path, or the name of one of the scenarios that come with the emulator."""
    if given is None or given.exists() or given.suffix or len(given.parts) > 1:
        return given
    shipped = Path(str(files("deploy") / "scenarios"))
    names = sorted(path.stem for path in shipped.glob("*.toml"))
    if given.name not in names:
        raise ScenarioError(f"{option} = {given}: no such file, and none of the scenarios {', '.join(names)}")
    return shipped / f"{given.name}.toml"


def security(
    tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None, groups: Sequence[str] = ()
) -> Security:
    """``TlsCert``, ``TlsKey`` and ``TlsCa`` together, and the groups that may use sockets; BadInput."""
    try:
        return listen.security(tls_cert, tls_key, tls_ca, groups)
    except listen.ListenError as error:
        raise BadInput(str(error)) from error
