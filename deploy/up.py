"""``apf up``, ``apf status`` and ``apf down``: a cluster in the background, from one command to the next.

What only a start needs (the twin's cores, numba) is imported there: status and down are asked often.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from apf import process, roles
from apf.listen import API_ON_SOCKETS, PLAIN, ListenError, Security, listener
from apf.process import Failure
from apf.scenario import Scenario, ScenarioError, load
from deploy import scraper
from deploy.clusters import ENDED, HERE, BadInput, Clusters, Record, check_name, started_ticks
from deploy.pidfd import end_process
from deploy.result import CAUSES
from deploy.scraper import Scraping

if TYPE_CHECKING:
    from deploy.supervisor import Order

DEFAULT_MODE = "pv2010"
_ANSWER_S = 30.0
_STATUS_S = 2.0
_ENDING_S = 5.0
_ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``apf up`` was asked for. ``start_s``: wall s the start may take; ``prometheus``: where one is to listen."""

    name: str
    api: str = _ANY_PORT
    mode: str | None = None
    pace: str | None = None
    settings: tuple[str, ...] = ()
    json_file: Path | None = None
    start_s: float = 120.0
    log_level: str = "WARNING"
    arrivals: Path | None = None
    prometheus: str | None = None
    log_format: str = "text"
    security: Security = PLAIN


def up_scenario(path: Path | None, options: UpOptions) -> Scenario:
    """The scenario of a cluster: one mode; until it is shut down, if nothing says how long. Raises ScenarioError."""
    overrides = parse_settings(options.settings)
    if options.pace is not None:
        overrides["pace"] = options.pace
    if options.mode is not None:
        overrides["apf"] = [options.mode]
    scenario = load(path, overrides)
    if "duration_s" not in scenario.model_fields_set:
        scenario = load(path, {**overrides, "duration_s": 0})
    if len(scenario.apf) == 1:
        return scenario
    if DEFAULT_MODE not in scenario.apf:
        raise ScenarioError(f"apf = {list(scenario.apf)}: a cluster runs in one mode; choose it with --apf")
    return scenario.for_mode(DEFAULT_MODE)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``("vm.vcpus=2", "swap.device=nvme")`` as overrides: values in TOML, or as they stand if they are not TOML."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or not field.strip():
            raise BadInput(f"--set = {setting!r}: expected FIELD=VALUE, as in --set vm.vcpus=2")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (tomllib.TOMLDecodeError, KeyError):
            value = text.strip()
        overrides[field.strip()] = value
    return overrides


def _order(scenario: Scenario, source: Path | None, options: UpOptions, clusters: Clusters) -> Order:
    from deploy.supervisor import Order

    name = check_name(options.name)
    tls = options.security.tls
    if options.api != API_ON_SOCKETS:
        try:
            listener("--api", options.api, roles.API, tls)
        except ListenError as error:
            raise BadInput(str(error)) from error
    elif tls is not None:
        raise BadInput(f"--tls-cert = {tls.cert}: certificates are for TCP, and --api = {API_ON_SOCKETS} has none")
    keep = options.json_file is not None
    record = Record(
        name=name,
        pid=os.getpid(),
        started_ticks=started_ticks(os.getpid()),
        since_s=time.time(),
        mode=scenario.apf[0],
        vms={str(vm): HERE for vm in range(scenario.host.vms)},
        places=scenario.host.places,
        scenario="the defaults" if source is None else str(source),
        fingerprint=scenario.fingerprint(),
        log=str(clusters.log(name)),
        result=str(options.json_file.absolute() if options.json_file else clusters.result(name)),
        keep_result=keep,
    )
    if options.json_file is not None and not options.json_file.absolute().parent.is_dir():
        raise BadInput(f"--json = {options.json_file}: no such directory: {options.json_file.absolute().parent}")
    if options.arrivals is not None and not options.arrivals.absolute().parent.is_dir():
        raise BadInput(f"--record = {options.arrivals}: no such directory: {options.arrivals.absolute().parent}")
    arrivals = None if options.arrivals is None else options.arrivals.absolute()
    scraping = None if options.prometheus is None else _scraping(options.prometheus, clusters)
    return Order(
        scenario,
        record,
        options.api,
        options.start_s,
        options.log_level,
        arrivals,
        scraping,
        options.log_format,
        options.security,
    )


def _scraping(listen: str, clusters: Clusters) -> Scraping:
    """What a Prometheus that listens on ``listen`` is to do. Raises BadInput."""
    _check_address("--prometheus-at", listen)
    binary = scraper.find_binary()
    if binary is None:
        raise BadInput(
            f"--prometheus: there is no '{scraper.BINARY}' on the PATH; install it (on Debian: apt-get install "
            f"prometheus), or let your own scrape {clusters.targets('*')}"
        )
    return Scraping(binary, clusters.targets("*"), listen, rules=scraper.rule_files())


def _check_address(option: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(f"{option} = {address!r}: expected HOST:PORT, port 0 to 65535, 0 for any that is free")


def up(scenario: Scenario, source: Path | None, options: UpOptions, clusters: Clusters) -> Record:
    """Start a cluster in the background; returns once it answers. Raises ScenarioError, BadInput or Failure."""
    from deploy import bench, supervisor

    order = _order(scenario, source, options, clusters)
    bench.prepare(scenario, endless=True)
    clusters.claim(order.record)
    record = supervisor.start(order, clusters)
    from deploy import client

    try:
        client.serving(record.address, _ANSWER_S)
    except BaseException:
        _end(clusters, record, 0.0)
        clusters.remove(record)
        raise
    return record


def up_in_foreground(
    scenario: Scenario, source: Path | None, options: UpOptions, clusters: Clusters, console: Console
) -> int:
    """Run a cluster in this process, for containers: to its end, Ctrl-C or SIGTERM. Returns the exit code."""
    from deploy import bench, supervisor

    order = _order(scenario, source, options, clusters)
    bench.prepare(scenario, endless=True)
    clusters.claim(order.record)
    process.start_logging(options.log_level, options.log_format)
    process.heed_signals()
    try:
        outcome = supervisor.supervise(order, clusters, lambda record: show_up(console, record))
    finally:
        found = clusters.find(options.name)
        if found is not None:
            clusters.remove(found)
    if outcome.document is not None:
        show_ended(console, outcome.document)
    if outcome.why:
        console.print(f"apf: {outcome.why}", markup=False, highlight=False)
    return outcome.code


def show_up(console: Console, record: Record) -> None:
    """Print where a cluster answers, and what to do next."""
    option = "" if record.name == "default" else f" --name {record.name}"
    lines = [
        f"cluster {record.name}: {record.mode}, {record.scenario}, fingerprint {record.fingerprint}, pid {record.pid}",
        f"  API      {record.api}  (gRPC: apf.v1.LoadService, health, reflection)",
        *(f"  socket   {address.removeprefix('unix:')}  ({role})" for role, address in record.sockets.items()),
        *(f"  metrics  http://{address}/metrics  ({name})" for name, address in record.metrics.items()),
        *([f"  prometheus  http://{record.prometheus}"] if record.prometheus else []),
        f"  log      {record.log}",
        "next:",
        f"  apf list{option}",
        f"  apf spawn{option} --process mem --memory 64MiB --access-threads 4",
        f"  apf load{option} --process mem --iodepth 16 --duration 10",
        f"  apf top{option}",
        *([f"  apf join{option}"] if len(record.vms) < record.places else []),
        f"  apf down{option}",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def status(clusters: Clusters, name: str | None) -> list[dict[str, Any]]:
    """What there is to say of one cluster, or of all: their files, whether they answer, and guest time in s."""
    from apf.v1 import load_pb2
    from deploy import client

    found = [clusters.find(each) for each in ([name] if name is not None else clusters.names())]
    told = []
    for record in found:
        if record is None:
            continue
        entry: dict[str, Any] = {**record.model_dump(), "answers": False, "guest_s": None}
        if record.status == "running":
            try:
                with client.load_service(record.address) as service:
                    now_ns = service.List(load_pb2.ListRequest(), timeout=_STATUS_S).now_ns
                entry |= {"answers": True, "guest_s": now_ns / 1e9}
            except Failure as failure:
                entry["why"] = str(failure)
        told.append(entry)
    if name is not None and not told:
        raise Failure(f"--name = {name}: no such cluster")
    return told


def show_status(console: Console, told: list[dict[str, Any]]) -> None:
    """Print a table of clusters."""
    table = Table("name", "status", "mode", "pid", "API", "up for", "guest time", "scenario")
    for entry in told:
        shown = entry["status"] if entry["answers"] or entry["status"] != "running" else "does not answer"
        guest = "-" if entry["guest_s"] is None else f"{entry['guest_s']:.3f} s"
        age = f"{time.time() - entry['since_s']:.0f} s"
        cells = (entry["name"], shown, entry["mode"], str(entry["pid"]), entry["api"] or "-", age, guest)
        table.add_row(*cells, entry["scenario"])
    console.print(table)
    for entry in told:
        for vm, state in entry["vms"].items():
            if state == ENDED:
                console.print(f"{entry['name']}: VM {vm} has ended", markup=False, highlight=False)
            elif state != HERE:
                console.print(f"{entry['name']}: VM {vm} was lost: {state}", markup=False, highlight=False)
        if entry["why"]:
            console.print(f"{entry['name']}: {entry['why']}", markup=False, highlight=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a cluster ended: its file at the end (None: it cleaned up itself), and its results, if it has any."""

    record: Record | None
    document: dict[str, Any] | None


def down(clusters: Clusters, name: str, deadline_s: float) -> Ended:
    """End a cluster in good order, by force after ``deadline_s``; its files are removed. Raises BadInput or Failure."""
    record = clusters.find(name)
    if record is None:
        names = clusters.names()
        raise BadInput(f"--name = {name}: no such cluster; there are {', '.join(names) if names else 'none'}")
    asked = record.status == "running" and _shut_down(record)
    # An API that is gone is that of a run that is about to end by itself; then its own words are better than ours.
    grace_s = deadline_s if asked else min(deadline_s, _ENDING_S) if record.status == "running" else 0.0
    after = _end(clusters, record, grace_s)
    document = None
    if after is not None:
        if after.status == "ended":
            document = json.loads(Path(after.result).read_text())
        clusters.remove(after)
    return Ended(after, document)


def _shut_down(record: Record) -> bool:
    """Ask all VMs for the end of the run; False if nobody heard it."""
    from apf.v1 import load_pb2
    from deploy import client

    heard = False
    for vm in [int(vm) for vm, state in record.vms.items() if state == HERE] or [0]:
        try:
            with client.load_service(record.address_of(vm)) as service:
                service.Shutdown(load_pb2.ShutdownRequest(), timeout=client.CALL_S)
                heard = True
        except (Failure, BadInput):
            continue  # that one has ended already, or its API is gone
    return heard


def _end(clusters: Clusters, record: Record, grace_s: float) -> Record | None:
    """Wait for the end of a cluster's supervisor, for ``grace_s``; then end it. Returns its file, None if it is gone."""
    if record.alive and not record.over:
        end_process(record.pid, grace_s, record.started_ticks)
    return clusters.find(record.name)


def show_ended(console: Console, document: dict[str, Any]) -> None:
    """Print the results of a run, from its JSON document."""
    (run,) = document["runs"]
    wall_s = run["run_seconds"] or run["wall_seconds"]
    causes = {cause: sum(vcpu[cause] for vcpu in run["vcpu_time"].values()) for cause in CAUSES}
    whole = sum(causes.values()) or 1.0
    faults = ", ".join(f"{count:,} {kind}" for kind, count in run["faults"].items())
    console.print(
        f"{run['apf']}: {run['virtual_seconds']:.6f} s of guest time in {wall_s:.1f} s, {run['windows']:,} windows, "
        f"faults {faults}, corrupt pages {run['corrupt_pages']}, digest {run['digest']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(*causes, title="vCPU time by cause, all vCPUs together", title_justify="left")
    table.add_row(*(f"{seconds:.3f} s {100 * seconds / whole:.2f} %" for seconds in causes.values()))
    console.print(table)
    for line in run["told"]:
        console.print(line, style="yellow", markup=False, highlight=False)
