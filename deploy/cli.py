"""The ``apf`` command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from apf import listen, logs, process
from apf.listen import Security
from apf.process import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, Failure, StopRequested
from apf.scenario import Scenario, ScenarioError, load, parse_size
from deploy.clusters import DEFAULT_NAME, BadInput, Clusters, Record

if TYPE_CHECKING:
    from deploy.keeping import Keeper

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_EXIT_INTERRUPTED = 130
_PROFILE_HZ = 1000
"""perf's default frequency."""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_LogFormat = Annotated[
    str | None,
    typer.Option(
        metavar="text|json", help=f"Log lines for people, or JSON (default: ${logs.FORMAT_VARIABLE}, else text)."
    ),
]


_Journal = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all events there (see apf diff).")]
_Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Perfetto trace there (ui.perfetto.dev).")]
_TraceLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Of the trace: what comes later is counted only (default: 512MiB).")
]
_Record = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep the journals in a new directory (see apf explain).")
]


@app.callback()
def _root() -> None:
    """Emulate KVM's asynchronous page fault: see what it buys, for this guest and this swap device."""


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        print(f"apf: {line}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def bench(
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
    folded: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the profile as folded stacks, for flame graphs.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="In this one process: no gRPC, the same digest.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
    journal: _Journal = None,
    trace: _Trace = None,
    trace_limit: _TraceLimit = None,
    record: _Record = None,
    log_level: Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
    log_format: _LogFormat = None,
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
    keeper = _keeper(journal, trace, trace_limit, record)
    _run(chosen, twin, _Outputs(json_file, folded, keeper), _level(log_level), _format(log_format))


@app.command()
def run(
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
    folded: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the profile as folded stacks, for flame graphs.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="In this one process: no gRPC, the same digest.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
    journal: _Journal = None,
    trace: _Trace = None,
    trace_limit: _TraceLimit = None,
    record: _Record = None,
    log_level: Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
    log_format: _LogFormat = None,
) -> None:
    """Run a guest with processes of your own, and report as the bench does."""
    from deploy.up import parse_settings

    try:
        settings = parse_settings(setting or ())
    except BadInput as error:
        _fail(str(error), EXIT_BAD_INPUT)
    overrides = {
        "apf": None if apf is None else [mode.strip() for mode in apf.split(",")],
        "duration_s": duration,
        "seed": seed,
        "swap.device": device,
        "sched.policy": policy,
        "profile_hz": profile_hz,
        **settings,
    }
    keeper = _keeper(journal, trace, trace_limit, record)
    chosen = _load(scenario, overrides)
    _run(chosen, twin, _Outputs(json_file, folded, keeper), _level(log_level), _format(log_format))


@app.command()
def replay(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Logs of arrivals, as apf up --record leaves them; or a recording, a directory."
        ),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
    journal: _Journal = None,
    trace: _Trace = None,
    trace_limit: _TraceLimit = None,
    record: _Record = None,
) -> None:
    """Repeat, in the twin, a run that had load from outside, or a recording's; exits 1 if it comes to something else."""
    from deploy import replay as replaying
    from deploy import report

    with ExitStack() as stack:
        try:
            keeper = stack.enter_context(_keeper(journal, trace, trace_limit, record))
            output = stack.enter_context(json_file.open("w")) if json_file else None
            if len(logs) == 1 and logs[0].is_dir():
                _replay_recording(logs[0], output)
                return
            result, digests = replaying.run(logs, keep=keeper.keep)
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}", EXIT_BAD_INPUT)
        except ScenarioError as error:
            _fail(str(error), EXIT_BAD_INPUT)
        except Failure as failure:
            _fail(str(failure), EXIT_FAILED)
        except KeyboardInterrupt:
            _fail("interrupted", _EXIT_INTERRUPTED)
        report.show_run(_console(), [result])
        if output is not None:
            json.dump(result.document(), output, indent=2)
            output.write("\n")
        _say(keeper.finish())
    for log, (recorded, repeated) in zip(logs, digests, strict=True):
        if recorded is None:
            print(f"{log}: the recorded run was cut short; there is nothing to compare with")
        elif recorded != repeated:
            _fail(f"{log}: the guest's digest is {repeated}, but {recorded} was recorded", EXIT_FAILED)
        else:
            print(f"{log}: the guest's digest is the recorded one: {recorded}")


def _replay_recording(directory: Path, output: IO[str] | None) -> None:
    """Repeat the runs of a recording; raises what ``replay.run_recorded`` does."""
    from deploy import replay as replaying
    from deploy import report

    runs = replaying.run_recorded(directory)
    for result, recorded in runs:
        report.show_run(_console(), [result])
        if result.digest != recorded:
            _fail(f"{directory}: {result.mode}: digest {result.digest}, but {recorded} was recorded", EXIT_FAILED)
        print(f"{directory}: {result.mode}: the digest is the recorded one: {recorded}")
    if output is not None:
        json.dump([result.document() for result, _recorded in runs], output, indent=2)
        output.write("\n")


@dataclass(frozen=True, slots=True)
class _Outputs:
    json_file: Path | None
    folded: Path | None
    keeper: Keeper


def _keeper(journal: Path | None, trace: Path | None, trace_limit: str | None, record: Path | None) -> Keeper:
    from deploy.keeping import Keeper

    return Keeper(journal, trace, record, _trace_limit(trace_limit))


def _trace_limit(given: str | None) -> int:
    from deploy.keeping import TRACE_LIMIT_BYTES

    try:
        limit = TRACE_LIMIT_BYTES if given is None else parse_size(given)
    except ValueError as error:
        _fail(f"--trace-limit = {given!r}: {error}", EXIT_BAD_INPUT)
    if not isinstance(limit, int) or limit <= 0:
        _fail(f"--trace-limit = {given!r}: greater than 0", EXIT_BAD_INPUT)
    return limit


def _level(log_level: str) -> str:
    if log_level.upper() not in _LEVELS:
        _fail(f"--log-level = {log_level!r}: allowed: {', '.join(_LEVELS)}", EXIT_BAD_INPUT)
    return log_level.upper()


def _format(given: str | None) -> str:
    if given is None:
        return logs.default_format()
    if given not in logs.FORMATS:
        _fail(f"--log-format = {given!r}: allowed: {', '.join(logs.FORMATS)}", EXIT_BAD_INPUT)
    return given


def _load(scenario: Path | None, overrides: Mapping[str, Any]) -> Scenario:
    try:
        given = {name: value for name, value in overrides.items() if value is not None}
        return load(_scenario_file(scenario), given)
    except ScenarioError as error:
        _fail(str(error), EXIT_BAD_INPUT)


def _scenario_file(given: Path | None, option: str = "--scenario") -> Path | None:
    """The file meant by ``option``: a path, or the name of one of the scenarios that come with the emulator."""
    if given is None or given.exists() or given.suffix or len(given.parts) > 1:
        return given
    shipped = Path(str(files("deploy") / "scenarios"))
    names = sorted(path.stem for path in shipped.glob("*.toml"))
    if given.name not in names:
        raise ScenarioError(f"{option} = {given}: no such file, and none of the scenarios {', '.join(names)}")
    return shipped / f"{given.name}.toml"


def _run(scenario: Scenario, twin: bool, files: _Outputs, log_level: str, log_format: str) -> None:
    from deploy import bench as benchmark
    from deploy import report
    from deploy.progress import BenchProgress

    with ExitStack() as stack:
        try:
            benchmark.prepare(scenario)
            paths = (files.json_file, files.folded)
            outputs = [stack.enter_context(path.open("w")) if path else None for path in paths]
            keeper = stack.enter_context(files.keeper)
        except ScenarioError as error:
            _fail(str(error), EXIT_BAD_INPUT)
        except OSError as error:
            _fail(f"{error.filename}: {error.strerror}", EXIT_BAD_INPUT)
        process.start_logging(log_level, log_format)
        process.heed_signals()
        try:
            with BenchProgress(Console(stderr=True)) as progress:
                results = benchmark.run_modes(scenario, in_twin=twin, keep=keeper.keep, progress=progress)
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
        if outputs[1] is not None:
            outputs[1].writelines(
                f"{result.mode};{line}\n" for result in results for line in result.folded.splitlines()
            )
        if outputs[0] is not None:
            document: dict[str, Any] = benchmark.document(scenario, results)
            json.dump(document, outputs[0], indent=2)
            outputs[0].write("\n")
        _say(keeper.finish())
    if any(result.corrupt_pages for result in results):
        _fail("guest memory was corrupted; see above", EXIT_FAILED)
    for result in results:
        for vm, why in result.failed.items():
            _fail(f"{result.mode}: VM {vm} has ended early: {why}", EXIT_FAILED)


def _say(lines: list[str]) -> None:
    """Beside the results, which go to standard output."""
    for line in lines:
        print(f"apf: {line}", file=sys.stderr)


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


_Recording = Annotated[Path, typer.Argument(metavar="RECORDING", help="A directory that --record made.")]


@app.command()
def explain(
    recorded: _Recording,
    apf: Annotated[str | None, typer.Option(help="Mode of the run, if the recording has several.")] = None,
    token: Annotated[str | None, typer.Option(metavar="N", help="The fault with this token, as 0x1001.")] = None,
    gfn: Annotated[str | None, typer.Option(metavar="N", help="Faults on this guest frame.")] = None,
    vm: Annotated[int | None, typer.Option(metavar="N", help="Faults of this VM.")] = None,
    nth: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of these, the Nth; without, the first.")
    ] = None,
    longest: Annotated[bool, typer.Option("--longest", help="Of these, the one that took longest.")] = False,
    stuck: Annotated[bool, typer.Option("--stuck", help="Tasks that wait for a page ready at the end; why.")] = False,
) -> None:
    """Tell one fault of a recorded run step by step; without a choice, how long its faults and their stages took."""
    from deploy import explain as explaining
    from deploy import recording

    chosen = [
        name for name, given in (("--nth", nth is not None), ("--longest", longest), ("--stuck", stuck)) if given
    ]
    if len(chosen) > 1:
        _fail(f"{' and '.join(chosen)}: one of them", EXIT_BAD_INPUT)
    try:
        run = explaining.choose_run(recording.read(recorded), apf)
        console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
        if stuck:
            summary = explaining.summarize(run)
            explaining.show_waiting(console, run, summary.waiting, summary.looping)
        elif token is None and gfn is None and vm is None and not chosen:
            explaining.show_summary(console, run, explaining.summarize(run))
        else:
            choice = explaining.Choice(_number("--token", token), _number("--gfn", gfn), vm, nth or 1, longest)
            explaining.show_fault(console, explaining.explain(run, choice))
    except ScenarioError as error:
        _fail(str(error), EXIT_BAD_INPUT)


def _number(option: str, given: str | None) -> int | None:
    try:
        return None if given is None else int(given, 0)
    except ValueError:
        _fail(f"{option} = {given!r}: a number, as 4097 or 0x1001", EXIT_BAD_INPUT)


@app.command("trace")
def trace_command(
    recorded: _Recording,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the trace goes.")],
    trace_limit: _TraceLimit = None,
) -> None:
    """Make a Perfetto trace (ui.perfetto.dev) of a recording, as --trace does while it runs."""
    from deploy import recording, trace
    from deploy.keeping import trace_told
    from deploy.tracefile import TraceFile

    limit = _trace_limit(trace_limit)
    try:
        runs = recording.read(recorded)
        with file.open("wb") as out:
            written = TraceFile(out, limit)
            for number, run in enumerate(runs):
                trace.write(written, f"apf = {run.mode}", number, run.journals, run.scenario.swap.name)
            _say([trace_told(file, written)])
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}", EXIT_BAD_INPUT)
    except ScenarioError as error:
        _fail(str(error), EXIT_BAD_INPUT)


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


@app.command()
def include() -> None:
    """Print the directory of apf_guest.h, for gcc -I."""
    print(files("guestsched") / "programs")


@app.command()
def certs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is not there.")],
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name or address of the servers; repeatable (default: the loopback's)."),
    ] = None,
    days: Annotated[int, typer.Option(metavar="N", help="How long they are good.", min=1, max=3650)] = 30,
    keep: Annotated[bool, typer.Option("--keep", help="If all are there already, leave them as they are.")] = False,
) -> None:
    """Make an authority and one certificate for each role, to try certificates with."""
    with _told():
        from deploy import certs as maker

        paths = maker.make(directory, host or maker.HOSTS, days, keep=keep)
        for path in paths:
            print(path)


_Name = Annotated[str, typer.Option(metavar="NAME", help="Of the cluster.")]
_Vm = Annotated[int, typer.Option(metavar="N", help="VM of the cluster, from 0.", min=0)]
_Api = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="API of a guest, HOST:PORT or unix:PATH, instead of a cluster's name."),
]
_TlsCert = Annotated[
    Path | None, typer.Option(metavar="FILE.pem", help="Certificate to show on TCP (see apf certs).")
]
_TlsKey = Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Its private key.")]
_TlsCa = Annotated[Path | None, typer.Option(metavar="FILE.pem", help="Authority of the other side's certificate.")]


@contextmanager
def _told() -> Iterator[None]:
    """Tell what went wrong on standard error, and exit with the code for it. For commands that are clients as well."""
    process.settle_grpc()
    try:
        yield
    except (BadInput, ScenarioError) as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except Failure as failure:
        _fail(str(failure), EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", _EXIT_INTERRUPTED)
    except StopRequested:
        _fail("ended by SIGTERM", EXIT_STOPPED)


def _where(
    name: str, vm: int, api: str | None, tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None
) -> tuple[str, dict[str, str]]:
    """Address of the API of a VM, and of each daemon's /metrics as far as they are known."""
    from deploy import client

    security = _security(tls_cert, tls_key, tls_ca)
    if api is not None:
        if vm:
            raise BadInput(f"--vm = {vm}: --api = {api} is a VM's own already")
        return client.Address(client.address(api), security.tls), {}
    if security.tls is not None:
        raise BadInput(f"--tls-cert = {tls_cert}: certificates are for TCP; with --name a socket is used: give --api")
    record: Record = client.running(Clusters.of_user(), name)
    return record.address_of(vm), record.metrics


def _security(
    tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None, groups: Sequence[str] = ()
) -> Security:
    try:
        return listen.security(tls_cert, tls_key, tls_ca, groups)
    except listen.ListenError as error:
        raise BadInput(str(error)) from error


@app.command()
def up(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="[SCENARIO]", help="A scenario's TOML file, or a name, as published.")
    ] = None,
    name: _Name = DEFAULT_NAME,
    api: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the API listens beside its sockets: port 0: any that is free; unix: at its sockets only.",
        ),
    ] = "127.0.0.1:0",
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
    socket_group: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=GROUP", help="Let a Unix group use a role's socket: load, operator; repeatable."),
    ] = None,
    apf: Annotated[
        str | None, typer.Option(metavar="MODE", help="Mode (default: the scenario's if it has one, else pv2010).")
    ] = None,
    pace: Annotated[
        str | None,
        typer.Option(metavar="X", help="Guest s a wall s at the most; 0: as fast as possible (default: 0)."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the scenario; repeatable.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results there at the end.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all that arrives from outside there, for apf replay."),
    ] = None,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="With the machine's Prometheus, which scrapes all your clusters.")
    ] = False,
    prometheus_at: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where that listens; port 0: any that is free.")
    ] = "127.0.0.1:0",
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay; for containers.")] = False,
    timeout: Annotated[float, typer.Option(metavar="S", help="How long the start may take.", min=0.1)] = 120.0,
    log_level: Annotated[str, typer.Option(help="Of the processes: DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
    log_format: _LogFormat = None,
) -> None:
    """Start a cluster in the background, until it is shut down or the scenario's duration_s has passed."""
    from deploy import up as clusters

    with _told():
        if log_level.upper() not in _LEVELS:
            raise BadInput(f"--log-level = {log_level!r}: allowed: {', '.join(_LEVELS)}")
        options = clusters.UpOptions(
            name,
            api,
            apf,
            pace,
            tuple(setting or ()),
            json_file,
            timeout,
            log_level.upper(),
            record,
            prometheus_at if prometheus else None,
            _format(log_format),
            _security(tls_cert, tls_key, tls_ca, socket_group or ()),
        )
        path = _scenario_file(scenario, "SCENARIO")
        chosen = clusters.up_scenario(path, options)
        if foreground:
            code = clusters.up_in_foreground(chosen, path, options, Clusters.of_user(), _console())
            raise typer.Exit(code)
        clusters.show_up(_console(), clusters.up(chosen, path, options, Clusters.of_user()))


@app.command()
def status(
    name: Annotated[str | None, typer.Option(metavar="NAME", help="One cluster only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show which clusters there are and whether they answer; exits 1 if one does not."""
    from deploy import up as clusters

    with _told():
        told = clusters.status(Clusters.of_user(), name)
        if as_json:
            print(json.dumps(told, indent=2))
        elif told:
            clusters.show_status(_console(), told)
        else:
            print("no clusters; start one with 'apf up'")
        if any(entry["status"] == "running" and not entry["answers"] for entry in told):
            raise typer.Exit(EXIT_FAILED)


@app.command()
def down(
    name: _Name = DEFAULT_NAME,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="How long the run may take to end; then it is ended by force.", min=0.0)
    ] = 60.0,
) -> None:
    """End a cluster, and show what its run came to."""
    from deploy import up as clusters

    with _told():
        ended = clusters.down(Clusters.of_user(), name, timeout)
        if ended.document is not None:
            clusters.show_ended(_console(), ended.document)
            if ended.record is not None and ended.record.keep_result:
                print(f"results: {ended.record.result}")
        elif ended.record is None:
            print(f"cluster {name} has ended, and left no results")
        else:
            raise Failure(f"the run of cluster {name} failed: {ended.record.why}")


@app.command()
def join(
    name: _Name = DEFAULT_NAME,
    timeout: Annotated[float, typer.Option(metavar="S", help="How long it may take.", min=0.0)] = 60.0,
) -> None:
    """Let one more VM join a running cluster, at a free place of its host (host.max_vms)."""
    from deploy import vms

    with _told():
        joined = vms.join(Clusters.of_user(), name, timeout)
        print(f"VM {joined['vm']} has joined cluster {name}")
        for role, address in sorted(joined["sockets"].items()):
            print(f"  socket   {address.removeprefix('unix:')}  ({role})")


@app.command()
def spawn(
    name: _Name = DEFAULT_NAME,
    vm: _Vm = 0,
    api: _Api = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
    process_name: Annotated[str, typer.Option("--process", metavar="NAME", help="Of the process.")] = "",
    program: Annotated[str, typer.Option(metavar="NAME", help="Built-in program its tasks run.")] = "",
    elf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Static ELF64 program its tasks run instead.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Tasks running it (default: 1 with a program, else 0).")
    ] = None,
    access_threads: Annotated[int, typer.Option(metavar="N", help="Tasks that perform accesses for apf load.")] = 0,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="For built-in programs and accesses.")] = "0",
    nice: Annotated[int, typer.Option(metavar="N", help="Nice value of its tasks, -20 to 19.")] = 0,
    vcpus: Annotated[str, typer.Option(metavar="I,J,...", help="vCPUs its tasks may run on (default: all).")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Of the built-in program; repeatable.")
    ] = None,
    lifetime: Annotated[
        str, typer.Option(metavar="S", help="Its tasks are killed after so many guest s; 0: not.")
    ] = "0",
) -> None:
    """Make a process in a running guest, and print its number and its tasks'."""
    with _told():
        from deploy import steer

        options = steer.SpawnOptions(
            process_name, program, elf, threads, access_threads, memory, nice, vcpus, tuple(parameter or ()), lifetime
        )
        steer.spawn(_where(name, vm, api, tls_cert, tls_key, tls_ca)[0], options, _console())


@app.command()
def kill(
    process_id: Annotated[str, typer.Argument(metavar="PROCESS", help="Number or name of a process.")],
    task: Annotated[int, typer.Option(metavar="N", help="One task of it only; 0: all.")] = 0,
    name: _Name = DEFAULT_NAME,
    vm: _Vm = 0,
    api: _Api = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
) -> None:
    """End a process of a running guest."""
    with _told():
        from deploy import steer

        steer.kill(_where(name, vm, api, tls_cert, tls_key, tls_ca)[0], process_id, task, _console())


@app.command()
def inject(
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", help="As in a scenario's [[inject]]: lost_ready, dropped_ack, restore, ..."),
    ],
    vcpu: Annotated[int, typer.Option(metavar="N", help="The vCPU.")],
    nth: Annotated[int, typer.Option(metavar="N", help="Which event of its kind from then on it happens to.")] = 1,
    count: Annotated[int, typer.Option(metavar="N", help="How many in a row.")] = 1,
    length: Annotated[
        str, typer.Option("--for", metavar="S", help="How long lapic_off and paging_off last, guest s.")
    ] = "0",
    name: _Name = DEFAULT_NAME,
    vm: _Vm = 0,
    api: _Api = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
) -> None:
    """Spoil the APF protocol of a vCPU of a running guest."""
    with _told():
        from deploy import steer

        where = _where(name, vm, api, tls_cert, tls_key, tls_ca)[0]
        steer.inject(where, what, vcpu, nth, count, length, _console())


@app.command("io-fault")
def io_fault(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="As in a scenario's [[swap.fault]]: read_error, write_error, torn_write, lost_write, slow, stop, "
            "swap_full.",
        ),
    ],
    nth: Annotated[
        int | None, typer.Option(metavar="N", help="Of the first four: which I/O from then on it happens to.")
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="To how many in a row; 0: to all.")] = None,
    vm: Annotated[int | None, typer.Option(metavar="N", help="Only to I/Os of this VM.")] = None,
    gfn: Annotated[str | None, typer.Option(metavar="N", help="Only to those of this guest page.")] = None,
    slot: Annotated[int | None, typer.Option(metavar="N", help="Only to those on this swap slot.")] = None,
    io: Annotated[str | None, typer.Option(metavar="IO", help="What is slow: any, read or write.")] = None,
    factor: Annotated[int | None, typer.Option(metavar="N", help="slow: so many times as long.")] = None,
    add: Annotated[str, typer.Option(metavar="S", help="slow: so much longer, guest s.")] = "0",
    length: Annotated[
        str,
        typer.Option("--for", metavar="S", help="How long slow, stop and swap_full last, guest s; 0: to the end."),
    ] = "0",
    name: _Name = DEFAULT_NAME,
    api: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of hostd, for operators.")] = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
) -> None:
    """Let the swap device of a running host fail."""
    with _told():
        from deploy import client, steer

        security = _security(tls_cert, tls_key, tls_ca)
        if api is not None:
            where = client.Address(client.address(api), security.tls)
        elif security.tls is not None:
            raise BadInput(
                f"--tls-cert = {tls_cert}: certificates are for TCP; with --name a socket is used: give --api"
            )
        else:
            where = client.Address(client.running(Clusters.of_user(), name).host_address, None)
        options = steer.IoFaultOptions(what, nth, count, vm, gfn, slot, io, factor, length, add)
        steer.io_fault(where, options, _console())


@app.command("list")
def list_(
    name: _Name = DEFAULT_NAME,
    vm: _Vm = 0,
    api: _Api = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
) -> None:
    """Show the processes and tasks of a running guest."""
    with _told():
        from deploy import steer

        steer.show_list(_where(name, vm, api, tls_cert, tls_key, tls_ca)[0], _console())


@app.command("load")
def load_(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOBFILE]", help="Jobs, in TOML; or one job by options.")
    ] = None,
    name: _Name = DEFAULT_NAME,
    vm: _Vm = 0,
    api: _Api = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
    process_id: Annotated[
        str | None, typer.Option("--process", metavar="P", help="Number or name of the process.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="random (default), sequential or zipf.")] = None,
    theta: Annotated[str | None, typer.Option(help="Skew of zipf (default: 0.99).")] = None,
    first_page: Annotated[
        str | None, typer.Option(metavar="N", help="Start of the range of pages (default: 0).")
    ] = None,
    pages: Annotated[str | None, typer.Option(metavar="N", help="Pages (default: all from the first).")] = None,
    write_percent: Annotated[
        str | None, typer.Option(metavar="N", help="Stores among the accesses (default: 0).")
    ] = None,
    length: Annotated[str | None, typer.Option(metavar="SIZE", help="Of an access (default: 8).")] = None,
    iodepth: Annotated[str | None, typer.Option(metavar="N", help="Closed loop: accesses in flight.")] = None,
    rate: Annotated[str | None, typer.Option(metavar="N", help="Open loop: accesses a wall second.")] = None,
    arrivals: Annotated[str | None, typer.Option(help="Open loop: poisson (default) or constant.")] = None,
    duration: Annotated[str | None, typer.Option(metavar="S", help="Wall seconds.")] = None,
    number: Annotated[str | None, typer.Option(metavar="N", help="Accesses.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="N", help="Accesses a message (default: 1).")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="S", help="Give up after so long without an answer.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Of everything drawn by chance (default: 1).")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures and histograms there.")
    ] = None,
) -> None:
    """Perform memory accesses in a running guest and time them, in a closed or an open loop."""
    given = {
        "process": process_id,
        "pattern": pattern,
        "theta": theta,
        "first_page": first_page,
        "pages": pages,
        "write_percent": write_percent,
        "length": length,
        "iodepth": iodepth,
        "rate": rate,
        "arrivals": arrivals,
        "duration_s": duration,
        "number": number,
        "batch": batch,
        "timeout_s": timeout,
        "seed": seed,
    }
    fields = {field: value for field, value in given.items() if value is not None}
    with _told(), ExitStack() as stack:
        from deploy import jobs, load_report
        from deploy import load as generator

        if job_file is not None and fields:
            raise BadInput(f"{next(iter(fields))}: with a job file its jobs say everything")
        chosen = jobs.load_jobs(job_file) if job_file is not None else (jobs.make_job(fields),)
        address = _where(name, vm, api, tls_cert, tls_key, tls_ca)[0]
        try:
            output = stack.enter_context(json_file.open("w")) if json_file else None
        except OSError as error:
            raise BadInput(f"--json = {json_file}: {error.strerror}") from error
        with load_report.LoadProgress(Console(stderr=True)) as progress:
            runs = generator.run_jobs(address, chosen, progress)
        load_report.show(_console(), runs)
        if output is not None:
            json.dump(load_report.document(address, runs), output, indent=2)
            output.write("\n")
        failed = [run.job.name for run in runs if run.failed]
        if failed:
            raise Failure(f"jobs that ended early: {', '.join(failed)}")


@app.command()
def top(
    name: _Name = DEFAULT_NAME,
    vm: _Vm = 0,
    api: _Api = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_ca: _TlsCa = None,
    interval: Annotated[
        int, typer.Option(metavar="MS", help="Wall time between two frames.", min=50, max=60_000)
    ] = 1000,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
) -> None:
    """Watch a running guest: vCPUs, tasks, faults, memory, latency. Ctrl-C ends it."""
    with _told():
        from deploy import top as viewer

        address, metrics = _where(name, vm, api, tls_cert, tls_key, tls_ca)
        try:
            viewer.top(api or name, address, metrics, interval_ms=interval, once=once, console=_console())
        except KeyboardInterrupt:
            return


@app.command("policies")
def policies_command(
    programs: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Built-in programs (default: zipfian,shifting,sequential)."),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(metavar="A,B", help="Reclaim policies (default: kernel,clock,lru,fifo).")
    ] = None,
    duration: Annotated[str, typer.Option(metavar="S", help="Guest seconds a run.")] = "1",
    seed: Annotated[int, typer.Option(help="Of everything drawn by chance.")] = 1,
    device: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Swap device.")] = "nvme",
    group_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Limit of the memory group of a program of 16 MiB.")
    ] = "8MiB",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it there; also .svg and .pdf.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.")] = None,
) -> None:
    """Compare reclaim policies: the pages each brings in, against Belady's optimum for the same uses."""
    with _told(), _named_files():
        from deploy import policies as comparison

        if plot is not None and plot.suffix not in {".png", ".svg", ".pdf"}:
            raise BadInput(f"--plot = {plot}: a file .png, .svg or .pdf")
        console = _console()
        with console.status("") as status:
            found = comparison.compare(
                comparison.names(programs, comparison.PROGRAMS, "--programs"),
                comparison.names(policies, comparison.POLICIES, "--policies"),
                seed,
                duration,
                device,
                group_memory,
                lambda program, policy: status.update(f"{program}, {policy}"),
            )
        console.print(comparison.table(found))
        if plot is not None:
            comparison.plot(found, plot)
            console.print(f"drawn: {plot}", highlight=False)
        if json_file is not None:
            json_file.write_text(json.dumps([one.document() for one in found], indent=2) + "\n")


_device = typer.Typer(no_args_is_help=True, help="Swap devices: what there is, and your own from fio's measurements.")
app.add_typer(_device, name="device")


@_device.command("list")
def device_list(
    file: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE.toml]...", help="Profiles of your own to check and show too."),
    ] = None,
) -> None:
    """Show the profiles that swap.device may name."""
    with _told(), _named_files():
        from deploy import devices

        _console().print(devices.table(file or ()))


@_device.command("fit")
def device_fit(
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
    with _told(), _named_files():
        from deploy import fio

        text = fio.fit(file, servers)
        if output is None:
            print(text, end="")
        else:
            output.write_text(text)


@contextmanager
def _named_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from error


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
