"""The ``apf`` command line."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from apf import process
from apf.process import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, Failure, StopRequested
from apf.scenario import Scenario, ScenarioError, load

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_EXIT_INTERRUPTED = 130
_PROFILE_HZ = 1000
"""perf's default frequency."""


@app.callback()
def _root() -> None:
    """Emulate KVM's asynchronous page fault: see what it buys, for this guest and this swap device."""


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        print(f"apf: {line}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def bench(
    apf: Annotated[str | None, typer.Option(help="Modes to run, with commas between (default: off,pv2010).")] = None,
    gup: Annotated[
        str | None, typer.Option(help="get_user_pages variant tried first: fast, noio (default) or nowait.")
    ] = None,
    duration: Annotated[str | None, typer.Option(metavar="S", help="Guest seconds a mode (default: 10).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn by chance (default: 1).")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Swap device: hdd-7200 (default) or nvme.")
    ] = None,
    vcpus: Annotated[int | None, typer.Option(help="vCPUs of the guest (default: 4).")] = None,
    fault_threads: Annotated[int | None, typer.Option(help="Threads that touch random pages (default: 4).")] = None,
    work_threads: Annotated[int | None, typer.Option(help="Threads that count (default: 4).")] = None,
    guest_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the guest (default: 2GiB).")
    ] = None,
    group_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Limit of its memory group (default: 512MiB).")
    ] = None,
    buffer: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What the faulting threads touch (default: 1GiB).")
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="NS", help="Window of virtual time; 0: by the device.")
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Everything the options set, and more; or a name, as published."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Sample where the guest is, and show it beside the published profiles.")
    ] = False,
    profile_hz: Annotated[
        int | None, typer.Option(metavar="HZ", help="Samples a guest second and vCPU (with --profile: 1000).")
    ] = None,
    folded: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the profile as folded stacks, for flame graphs.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="In this one process: no gRPC, the same digest.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all events there (see apf diff).")
    ] = None,
    log_level: Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Run the published benchmark without and with asynchronous page faults, and show what makes the difference."""
    overrides = {
        "apf": None if apf is None else [mode.strip() for mode in apf.split(",")],
        "gup": gup,
        "duration_s": duration,
        "seed": seed,
        "swap.device": device,
        "vm.vcpus": vcpus,
        "bench.fault_threads": fault_threads,
        "bench.work_threads": work_threads,
        "vm.guest_memory": guest_memory,
        "vm.group_memory": group_memory,
        "bench.buffer": buffer,
        "window_ns": window,
        "profile_hz": profile_hz if profile_hz is not None else (_PROFILE_HZ if profile or folded else None),
    }
    chosen = _load(scenario, overrides)
    if chosen.process:
        _fail(f"--scenario = {scenario}: it has processes of its own: apf run {scenario}", EXIT_BAD_INPUT)
    _run(chosen, twin, _Outputs(json_file, journal, folded), _level(log_level))


@app.command()
def run(
    scenario: Annotated[
        Path, typer.Argument(metavar="SCENARIO.toml", help="The guest's processes, and everything else of the run.")
    ],
    apf: Annotated[str | None, typer.Option(help="Modes to run, with commas between.")] = None,
    duration: Annotated[str | None, typer.Option(metavar="S", help="Guest seconds a mode.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn by chance.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Swap device.")] = None,
    policy: Annotated[str | None, typer.Option(help="Scheduler: cfs, eevdf, rr, or one that was installed.")] = None,
    profile_hz: Annotated[int | None, typer.Option(metavar="HZ", help="Samples a guest second and vCPU.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, as vm.vcpus=2 (repeatable).")
    ] = None,
    folded: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the profile as folded stacks, for flame graphs.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="In this one process: no gRPC, the same digest.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all events there (see apf diff).")
    ] = None,
    log_level: Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Run a guest with processes of your own, and report as the bench does."""
    overrides = {
        "apf": None if apf is None else [mode.strip() for mode in apf.split(",")],
        "duration_s": duration,
        "seed": seed,
        "swap.device": device,
        "sched.policy": policy,
        "profile_hz": profile_hz,
        **_settings(setting or ()),
    }
    _run(_load(scenario, overrides), twin, _Outputs(json_file, journal, folded), _level(log_level))


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(metavar="FILE", help="A log of arrivals, as apf up --record leaves it.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all events there (see apf diff).")
    ] = None,
) -> None:
    """Repeat, in the twin, a run that had load from outside; exits 1 if it does not come to the same."""
    from deploy import replay as replaying
    from deploy import report

    with ExitStack() as stack:
        try:
            outputs = [stack.enter_context(path.open("w")) if path else None for path in (json_file, journal)]
            result, recorded, repeated = replaying.run(log, journal=outputs[1])
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}", EXIT_BAD_INPUT)
        except ScenarioError as error:
            _fail(str(error), EXIT_BAD_INPUT)
        except Failure as failure:
            _fail(str(failure), EXIT_FAILED)
        except KeyboardInterrupt:
            _fail("interrupted", _EXIT_INTERRUPTED)
        report.show_run(_console(), [result])
        if outputs[0] is not None:
            json.dump(result.document(), outputs[0], indent=2)
            outputs[0].write("\n")
    if recorded is None:
        print("the recorded run was cut short; there is nothing to compare with")
    elif recorded != repeated:
        _fail(f"the guest's digest is {repeated}, but {recorded} was recorded", EXIT_FAILED)
    else:
        print(f"the guest's digest is the recorded one: {recorded}")


@dataclass(frozen=True, slots=True)
class _Outputs:
    json_file: Path | None
    journal: Path | None
    folded: Path | None


def _level(log_level: str) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    if log_level.upper() not in levels:
        _fail(f"--log-level = {log_level!r}: allowed: {', '.join(levels)}", EXIT_BAD_INPUT)
    return log_level.upper()


def _settings(given: Iterable[str]) -> dict[str, Any]:
    """FIELD=VALUE, where the value is TOML, or else text."""
    settings: dict[str, Any] = {}
    for item in given:
        field, equals, value = item.partition("=")
        if not equals or not field:
            _fail(f"--set = {item!r}: expected FIELD=VALUE, as in vm.vcpus=2", EXIT_BAD_INPUT)
        try:
            settings[field] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[field] = value
    return settings


def _load(scenario: Path | None, overrides: Mapping[str, Any]) -> Scenario:
    try:
        given = {name: value for name, value in overrides.items() if value is not None}
        return load(_scenario_file(scenario), given)
    except ScenarioError as error:
        _fail(str(error), EXIT_BAD_INPUT)


def _scenario_file(given: Path | None) -> Path | None:
    """The file meant by --scenario: a path, or the name of one of the scenarios that come with the emulator."""
    if given is None or given.exists() or given.suffix or len(given.parts) > 1:
        return given
    shipped = Path(str(files("deploy") / "scenarios"))
    names = sorted(path.stem for path in shipped.glob("*.toml"))
    if given.name not in names:
        raise ScenarioError(f"--scenario = {given}: no such file, and none of the scenarios {', '.join(names)}")
    return shipped / f"{given.name}.toml"


def _run(scenario: Scenario, twin: bool, files: _Outputs, log_level: str) -> None:
    from deploy import bench as benchmark
    from deploy import report
    from deploy.progress import BenchProgress

    with ExitStack() as stack:
        try:
            benchmark.prepare(scenario)
            paths = (files.json_file, files.journal, files.folded)
            outputs = [stack.enter_context(path.open("w")) if path else None for path in paths]
        except ScenarioError as error:
            _fail(str(error), EXIT_BAD_INPUT)
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}", EXIT_BAD_INPUT)
        process.start_logging(log_level)
        process.heed_signals()
        try:
            with BenchProgress(Console(stderr=True)) as progress:
                results = benchmark.run_modes(scenario, in_twin=twin, journal=outputs[1], progress=progress)
        except Failure as failure:
            _fail(str(failure), EXIT_FAILED)
        except KeyboardInterrupt:
            _fail("interrupted", _EXIT_INTERRUPTED)
        except StopRequested:
            _fail("ended by SIGTERM", EXIT_STOPPED)
        if scenario.process:
            report.show_run(_console(), results)
        else:
            report.show(_console(), scenario, results)
        if outputs[2] is not None:
            outputs[2].writelines(
                f"{result.mode};{line}\n" for result in results for line in result.folded.splitlines()
            )
        if outputs[0] is not None:
            document: dict[str, Any] = benchmark.document(scenario, results)
            json.dump(document, outputs[0], indent=2)
            outputs[0].write("\n")
    if any(result.corrupt_pages for result in results):
        _fail("guest memory was corrupted; see above", EXIT_FAILED)


def _console() -> Console:
    """Standard output; where it is no terminal, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


@app.command()
def walk(
    seed: Annotated[int, typer.Option(help="Of everything drawn by chance.")] = 1,
    processes: Annotated[bool, typer.Option("--processes", help="On real processes; without, in the twin.")] = False,
) -> None:
    """Tell the life of one page: first touch, swap-out, and its next access without and with APF."""
    from deploy.walk import command

    try:
        command(seed, processes)
    except ScenarioError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except Failure as failure:
        _fail(str(failure), EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", _EXIT_INTERRUPTED)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A journal that apf bench --journal wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Print the first event in which two journals differ; exits 0 if there is none, 1 if there is."""
    from deploy.journals import first_difference

    try:
        with a.open() as left, b.open() as right:
            found = first_difference(left, right)
    except (OSError, UnicodeDecodeError) as error:
        _fail(str(error), EXIT_BAD_INPUT)
    if found is None:
        print("the journals are the same")
        return
    print(f"first difference: event {found.number}")
    for line in found.before:
        print(f"  {line}")
    print(f"- {'(end)' if found.left is None else found.left}")
    print(f"+ {'(end)' if found.right is None else found.right}")
    raise typer.Exit(1)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
