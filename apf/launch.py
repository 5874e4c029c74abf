"""Daemons started by hand or in containers: their common options, and the order of their start and end.

``apf bench`` does not come through here; it forks its daemons.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from apf import listen, process
from apf.listen import Listener, Security
from apf.process import EXIT_BAD_INPUT
from apf.roles import Roles
from apf.rundir import RunDir
from apf.scenario import Scenario, ScenarioError, load


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options every daemon takes."""
    options = argparse.ArgumentParser(prog=program, description=description)
    options.add_argument("--scenario", type=Path, metavar="FILE.toml", help="the scenario; all defaults without")
    options.add_argument("--apf", default="pv2010", help="the mode of this run: off or pv2010 (default: pv2010)")
    options.add_argument(
        "--memory", type=Path, required=True, metavar="DIR", help="directory on a tmpfs, shared by all of this host"
    )
    options.add_argument(
        "--files", type=Path, required=True, metavar="DIR", help="directory for sockets, swap, journals and reports"
    )
    options.add_argument("--journal", action="store_true", help="write the core's journal into --files")
    options.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return options


def add_listen(options: argparse.ArgumentParser) -> None:
    """The options of a daemon that serves."""
    options.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="[ROLE=]ADDRESS",
        help="gRPC address: unix:PATH, or HOST:PORT of the loopback or with certificates; for peers of this role only "
        "(repeatable; default: a Unix socket for each role, FILES/ROLE/DAEMON.sock)",
    )
    listen.add_options(options, serves=True)


def security(options: argparse.ArgumentParser, arguments: argparse.Namespace) -> Security:
    """What the daemon shows and whom it lets in; exits with 2 if the options are no good."""
    try:
        groups = getattr(arguments, "socket_group", ())
        return listen.security(arguments.tls_cert, arguments.tls_key, arguments.tls_ca, groups)
    except listen.ListenError as error:
        options.error(str(error))


def listeners(
    options: argparse.ArgumentParser, arguments: argparse.Namespace, roles: Roles
) -> tuple[Security, tuple[Listener, ...]]:
    """Where a daemon with peers of ``roles`` is to listen; exits with 2 if the options are no good."""
    chosen = security(options, arguments)
    try:
        found = tuple(listen.listener("--listen", text, roles, chosen.tls) for text in arguments.listen)
    except listen.ListenError as error:
        options.error(str(error))
    return chosen, found


def run(name: str, arguments: argparse.Namespace, target: Callable[[Scenario, RunDir], None]) -> None:
    """Check the options, run ``target`` to its end, and exit with its status."""
    try:
        scenario = load(arguments.scenario, {"apf": [arguments.apf]})
        for option in ("memory", "files"):
            directory: Path = getattr(arguments, option)
            if not directory.is_dir():
                raise ScenarioError(f"--{option} = {directory}: expected a directory that exists")
    except ScenarioError as error:
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    process.start_logging(arguments.log_level)
    directories = RunDir(arguments.memory, arguments.files)
    process.heed_signals()
    code = process.guarded(target, (scenario, directories), directories, name)
    report = directories.read_report(f"failed-{name}") if code == process.EXIT_FAILED else None
    if report is not None:
        print(f"{name}: {report['why']}", file=sys.stderr)
    process.leave(code)
