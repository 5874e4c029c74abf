"""Daemons started by hand or in containers: their common options, and the order of their start and end.

A daemon heeds SIGTERM and Ctrl-C from its first lines to its last: before it knows its options, while it waits for its
peers, while it loads, while it runs. It then ends with status 143. When a peer goes away it ends with status 1 and says
who that was. Both ways its last words are the last line of its log, and report ``failed-<name>``.

The directories of a run outlive a daemon that is started by hand, and may hold what one that was killed has left. A
daemon locks its name there, so that two cannot be the same; files it makes for itself alone it removes before and after.

``apf bench`` does not come through here; it forks its daemons.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apf import listen, logs, process
from apf.listen import Listener, Security
from apf.process import EXIT_BAD_INPUT, EXIT_STOPPED, Failure, StopRequested
from apf.roles import Roles
from apf.rundir import AlreadyClaimed, RunDir
from apf.scenario import Scenario, ScenarioError, load

Own = Callable[[RunDir], Sequence[Path]]
"""The files a daemon makes for itself alone."""


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options every daemon takes."""
    options = argparse.ArgumentParser(prog=program, description=description)
    options.add_argument("--scenario", type=Path, metavar="FILE.toml", help="the scenario; all defaults without")
    options.add_argument(
        "--apf", default="pv2010", help="the mode of this run: off, halt, pv2010 or pv (default: pv2010)"
    )
    options.add_argument(
        "--memory", type=Path, required=True, metavar="DIR", help="directory on a tmpfs, shared by all of this host"
    )
    options.add_argument(
        "--files", type=Path, required=True, metavar="DIR", help="directory for sockets, swap, journals and reports"
    )
    options.add_argument("--journal", action="store_true", help="write the core's journal into --files")
    options.add_argument(
        "--metrics", default="127.0.0.1:0", metavar="HOST:PORT", help="where /metrics is served (default: any port)"
    )
    options.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    options.add_argument(
        "--log-format",
        default=logs.default_format(),
        choices=logs.FORMATS,
        help=f"lines for people, or JSON objects (default: ${logs.FORMAT_VARIABLE}, else text)",
    )
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


def vm_option(options: argparse.ArgumentParser) -> None:
    """The option of the daemons of one VM."""
    options.add_argument(
        "--vm", type=int, default=0, metavar="N", help="index of the VM on its host, from 0 (default: 0)"
    )


def vm_of(arguments: argparse.Namespace, scenario: Scenario) -> int:
    """The VM that was asked for. Raises Failure if the scenario's host has no place of that index."""
    vm: int = arguments.vm
    if not 0 <= vm < scenario.host.places:
        raise Failure(f"--vm = {vm}: the host has {scenario.host.places} places, so 0 to {scenario.host.places - 1}")
    return vm


def run(
    program: str,
    arguments: argparse.Namespace,
    target: Callable[[Scenario, RunDir], None],
    *,
    name: str,
    own: Own = lambda _: (),
) -> None:
    """Check the options, run ``target`` to its end, and exit with its status. ``name``: as in reports."""
    process.heed_signals(process.insist_on_stop)
    multiprocessing.current_process().name = name
    try:
        code = _run(program, arguments, target, name, own)
    except (StopRequested, KeyboardInterrupt):
        code = EXIT_STOPPED
    process.leave(code)


def _run(
    program: str, arguments: argparse.Namespace, target: Callable[[Scenario, RunDir], None], name: str, own: Own
) -> int:
    process.start_logging(arguments.log_level, arguments.log_format)
    log = logging.getLogger(program)
    directories = RunDir(arguments.memory, arguments.files)

    def say(why: str) -> None:
        """Last words: as JSON they are a line of the log, for people they are for the terminal."""
        for line in why.splitlines():
            if arguments.log_format == "json":
                log.error("%s", line)
            else:
                print(f"{program}: {line}", file=sys.stderr)

    try:
        scenario = load(arguments.scenario, {"apf": [arguments.apf]})
        for option in ("memory", "files"):
            directory: Path = getattr(arguments, option)
            if not directory.is_dir():
                raise ScenarioError(f"--{option} = {directory}: expected a directory that exists")
        directories.claim(name, [*own(directories), directories.report(f"failed-{name}")])
    except (ScenarioError, AlreadyClaimed) as error:
        say(str(error))
        return EXIT_BAD_INPUT
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_BAD_INPUT
    code = process.guarded(target, (scenario, directories), directories, name)
    for path in own(directories):
        path.unlink(missing_ok=True)
    report = directories.read_report(f"failed-{name}") if code else None
    if report is not None and code == process.EXIT_FAILED:
        say(report["why"])
    elif code == EXIT_STOPPED:
        log.info("ended by SIGTERM")
    return code
