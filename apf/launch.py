"""Daemons started by hand or in containers: their common options, and the order of their start and end.

``apf bench`` does not come through here; it forks its daemons.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from apf import process
from apf.process import EXIT_BAD_INPUT, Failure
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
    options.add_argument(
        "--metrics", default="127.0.0.1:0", metavar="HOST:PORT", help="where /metrics is served (default: any port)"
    )
    options.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    return options


def vm_option(options: argparse.ArgumentParser) -> None:
    """The option of the daemons of one VM."""
    options.add_argument(
        "--vm", type=int, default=0, metavar="N", help="index of the VM on its host, from 0 (default: 0)"
    )


def vm_of(arguments: argparse.Namespace, scenario: Scenario) -> int:
    """The VM that was asked for. Raises Failure if the scenario's host has none of that index."""
    vm: int = arguments.vm
    if not 0 <= vm < scenario.host.vms:
        raise Failure(f"--vm = {vm}: host.vms is {scenario.host.vms}, so 0 to {scenario.host.vms - 1}")
    return vm


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
