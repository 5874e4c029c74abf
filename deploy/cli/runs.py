"""Commands that run guests here, in processes of their own or in the twin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from apf import process
from apf.process import Failure
from apf.scenario import Scenario, load
from deploy.cli.options import Folded, Json, Kept, Log, Seed, Twin, scenario_file
from deploy.cli.terminal import console, named_files, say, told
from deploy.clusters import BadInput

if TYPE_CHECKING:
    from deploy.keeping import Keeper

_PROFILE_HZ = 1000
"""perf's default frequency."""


@dataclass(frozen=True, slots=True)
class _Outputs:
    json_file: Path | None
    folded: Path | None
    keeper: Keeper


def bench(
    *,
    apf: Annotated[
        str | None,
        typer.Option(help="Modes to run, with commas between: off, halt, pv2010, pv (default: off,pv2010)."),
    ] = None,
    gup: Annotated[
        str | None, typer.Option(help="get_user_pages variant tried first: fast, noio (default) or nowait.")
    ] = None,
    duration: Annotated[str | None, typer.Option(metavar="S", help="Guest seconds a mode (default: 10).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn by chance (default: 1).")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.toml", help="Swap device (default: hdd-7200; see apf device).")
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
    folded: Folded = None,
    twin: Twin = False,
    json_file: Json = None,
    kept: Kept,
    log: Log,
) -> None:
    """Run the published benchmark without and with asynchronous page faults, and show what makes the difference."""
    overrides = {
        "apf": _modes(apf),
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
    with told():
        chosen = _load(scenario, overrides)
        if chosen.process:
            raise BadInput(f"--scenario = {scenario}: it has processes of its own: apf run {scenario}")
        outputs = _Outputs(json_file, folded, kept.keeper())
        _run(chosen, twin, outputs, log.level(), log.form())


def run(
    *,
    scenario: Annotated[
        Path, typer.Argument(metavar="SCENARIO.toml", help="The guest's processes, and everything else of the run.")
    ],
    apf: Annotated[str | None, typer.Option(help="Modes to run, with commas between.")] = None,
    duration: Annotated[str | None, typer.Option(metavar="S", help="Guest seconds a mode.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn by chance.")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME|FILE.toml", help="Swap device.")] = None,
    policy: Annotated[str | None, typer.Option(help="Scheduler: cfs, eevdf, rr, or one that was installed.")] = None,
    profile_hz: Annotated[int | None, typer.Option(metavar="HZ", help="Samples a guest second and vCPU.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, as vm.vcpus=2 (repeatable).")
    ] = None,
    folded: Folded = None,
    twin: Twin = False,
    json_file: Json = None,
    kept: Kept,
    log: Log,
) -> None:
    """Run a guest with processes of your own, and report as the bench does."""
    from deploy.up import parse_settings

    with told():
        overrides = {
            "apf": _modes(apf),
            "duration_s": duration,
            "seed": seed,
            "swap.device": device,
            "sched.policy": policy,
            "profile_hz": profile_hz,
            **parse_settings(setting or ()),
        }
        outputs = _Outputs(json_file, folded, kept.keeper())
        _run(_load(scenario, overrides), twin, outputs, log.level(), log.form())


def replay(
    *,
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Logs of arrivals, as apf up --record leaves them; or a recording, a directory."
        ),
    ],
    json_file: Json = None,
    kept: Kept,
) -> None:
    """Repeat, in the twin, a run that had load from outside, or a recording's; exits 1 if it comes to something else."""
    from deploy import replay as replaying
    from deploy import report

    with told(), ExitStack() as stack:
        with named_files():
            keeper = stack.enter_context(kept.keeper())
            output = stack.enter_context(json_file.open("w")) if json_file else None
            if len(logs) == 1 and logs[0].is_dir():
                _replay_recording(logs[0], output)
                return
            result, digests = replaying.run(logs, keep=keeper.keep)
        report.show_run(console(), [result])
        if output is not None:
            json.dump(result.document(), output, indent=2)
            output.write("\n")
        say(keeper.finish())
        for log, (recorded, repeated) in zip(logs, digests, strict=True):
            if recorded is None:
                print(f"{log}: the recorded run was cut short; there is nothing to compare with")
            elif recorded != repeated:
                raise Failure(f"{log}: the guest's digest is {repeated}, but {recorded} was recorded")
            else:
                print(f"{log}: the guest's digest is the recorded one: {recorded}")


def _replay_recording(directory: Path, output: IO[str] | None) -> None:
    """Repeat the runs of a recording; raises what ``replay.run_recorded`` does."""
    from deploy import replay as replaying
    from deploy import report

    runs = replaying.run_recorded(directory)
    for result, recorded in runs:
        report.show_run(console(), [result])
        if result.digest != recorded:
            raise Failure(f"{directory}: {result.mode}: digest {result.digest}, but {recorded} was recorded")
        print(f"{directory}: {result.mode}: the digest is the recorded one: {recorded}")
    if output is not None:
        json.dump([result.document() for result, _recorded in runs], output, indent=2)
        output.write("\n")


def _modes(given: str | None) -> list[str] | None:
    return None if given is None else [mode.strip() for mode in given.split(",")]


def _load(scenario: Path | None, overrides: Mapping[str, Any]) -> Scenario:
    given = {name: value for name, value in overrides.items() if value is not None}
    return load(scenario_file(scenario), given)


def _run(scenario: Scenario, twin: bool, files: _Outputs, log_level: str, log_format: str) -> None:
    """Run every mode of ``scenario`` and report; raises what ``terminal.told`` tells."""
    from deploy import bench as benchmark
    from deploy import report
    from deploy.progress import BenchProgress

    with ExitStack() as stack:
        with named_files():
            benchmark.prepare(scenario)
            paths = (files.json_file, files.folded)
            outputs = [stack.enter_context(path.open("w")) if path else None for path in paths]
            kept = stack.enter_context(files.keeper)
        process.start_logging(log_level, log_format)
        process.heed_signals()
        with BenchProgress(Console(stderr=True)) as progress:
            results = benchmark.run_modes(scenario, in_twin=twin, keep=kept.keep, progress=progress)
        if scenario.process:
            report.show_run(console(), results)
        else:
            report.show(console(), scenario, results)
        if outputs[1] is not None:
            outputs[1].writelines(
                f"{result.mode};{line}\n" for result in results for line in result.folded.splitlines()
            )
        if outputs[0] is not None:
            document: dict[str, Any] = benchmark.document(scenario, results)
            json.dump(document, outputs[0], indent=2)
            outputs[0].write("\n")
        say(kept.finish())
    if any(result.corrupt_pages for result in results):
        raise Failure("guest memory was corrupted; see above")
    for result in results:
        for vm, why in result.failed.items():
            raise Failure(f"{result.mode}: VM {vm} has ended early: {why}")


def policies(
    programs: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Built-in programs (default: zipfian,shifting,sequential)."),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(metavar="A,B", help="Reclaim policies (default: kernel,clock,lru,fifo).")
    ] = None,
    duration: Annotated[str, typer.Option(metavar="S", help="Guest seconds a run.")] = "1",
    seed: Seed = 1,
    device: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Swap device.")] = "nvme",
    group_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Limit of the memory group of a program of 16 MiB.")
    ] = "8MiB",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it there; also .svg and .pdf.")] = None,
    json_file: Json = None,
) -> None:
    """Compare reclaim policies: the pages each brings in, against Belady's optimum for the same uses."""
    with told(), named_files():
        from deploy import policies as comparison

        if plot is not None and plot.suffix not in {".png", ".svg", ".pdf"}:
            raise BadInput(f"--plot = {plot}: a file .png, .svg or .pdf")
        output = console()
        with output.status("") as status:
            found = comparison.compare(
                comparison.names(programs, comparison.PROGRAMS, "--programs"),
                comparison.names(policies, comparison.POLICIES, "--policies"),
                seed,
                duration,
                device,
                group_memory,
                lambda program, policy: status.update(f"{program}, {policy}"),
            )
        output.print(comparison.table(found))
        if plot is not None:
            comparison.plot(found, plot)
            output.print(f"drawn: {plot}", highlight=False)
        if json_file is not None:
            json_file.write_text(json.dumps([one.document() for one in found], indent=2) + "\n")


def include() -> None:
    """Print the directory of apf_guest.h, for gcc -I."""
    print(files("guestsched") / "programs")
