"""Commands about clusters in the background: start, end, one more VM; certificates for their listeners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from apf.process import EXIT_FAILED, Failure
from deploy.cli.options import Log, Name, Tls, scenario_file
from deploy.cli.terminal import calling, console, told
from deploy.clusters import DEFAULT_NAME, Clusters


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
    with told():
        from deploy import certs as maker

        paths = maker.make(directory, host or maker.HOSTS, days, keep=keep)
        for path in paths:
            print(path)


def up(
    *,
    scenario: Annotated[
        Path | None, typer.Argument(metavar="[SCENARIO]", help="A scenario's TOML file, or a name, as published.")
    ] = None,
    name: Name = DEFAULT_NAME,
    api: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the API listens beside its sockets: port 0: any that is free; unix: at its sockets only.",
        ),
    ] = "127.0.0.1:0",
    tls: Tls,
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
    log: Log,
) -> None:
    """Start a cluster in the background, until it is shut down or the scenario's duration_s has passed."""
    from deploy import up as clusters

    with calling():
        options = clusters.UpOptions(
            name,
            api,
            apf,
            pace,
            tuple(setting or ()),
            json_file,
            timeout,
            log.level(),
            record,
            prometheus_at if prometheus else None,
            log.form(),
            tls.security(socket_group or ()),
        )
        path = scenario_file(scenario, "SCENARIO")
        chosen = clusters.up_scenario(path, options)
        if foreground:
            code = clusters.up_in_foreground(chosen, path, options, Clusters.of_user(), console())
            raise typer.Exit(code)
        clusters.show_up(console(), clusters.up(chosen, path, options, Clusters.of_user()))


def status(
    name: Annotated[str | None, typer.Option(metavar="NAME", help="One cluster only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show which clusters there are and whether they answer; exits 1 if one does not."""
    from deploy import up as clusters

    with calling():
        told = clusters.status(Clusters.of_user(), name)
        if as_json:
            print(json.dumps(told, indent=2))
        elif told:
            clusters.show_status(console(), told)
        else:
            print("no clusters; start one with 'apf up'")
        if any(entry["status"] == "running" and not entry["answers"] for entry in told):
            raise typer.Exit(EXIT_FAILED)


def down(
    name: Name = DEFAULT_NAME,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="How long the run may take to end; then it is ended by force.", min=0.0)
    ] = 60.0,
) -> None:
    """End a cluster, and show what its run came to."""
    from deploy import up as clusters

    with calling():
        ended = clusters.down(Clusters.of_user(), name, timeout)
        if ended.document is not None:
            clusters.show_ended(console(), ended.document)
            if ended.record is not None and ended.record.keep_result:
                print(f"results: {ended.record.result}")
        elif ended.record is None:
            print(f"cluster {name} has ended, and left no results")
        else:
            raise Failure(f"the run of cluster {name} failed: {ended.record.why}")


def join(
    name: Name = DEFAULT_NAME,
    timeout: Annotated[float, typer.Option(metavar="S", help="How long it may take.", min=0.0)] = 60.0,
) -> None:
    """Let one more VM join a running cluster, at a free place of its host (host.max_vms)."""
    from deploy import vms

    with calling():
        joined = vms.join(Clusters.of_user(), name, timeout)
        print(f"VM {joined['vm']} has joined cluster {name}")
        for role, address in sorted(joined["sockets"].items()):
            print(f"  socket   {address.removeprefix('unix:')}  ({role})")
