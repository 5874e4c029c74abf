"""Commands that are clients of a running guest, or of its host."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from apf.process import Failure
from deploy.cli.options import Guest, Name, Tls
from deploy.cli.terminal import calling, console
from deploy.clusters import DEFAULT_NAME, BadInput, Clusters, Record

if TYPE_CHECKING:
    from deploy.client import Address


def spawn(
    *,
    guest: Guest,
    tls: Tls,
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
    with calling():
        from deploy import steer

        options = steer.SpawnOptions(
            process_name, program, elf, threads, access_threads, memory, nice, vcpus, tuple(parameter or ()), lifetime
        )
        steer.spawn(_where(guest, tls)[0], options, console())


def kill(
    *,
    process_id: Annotated[str, typer.Argument(metavar="PROCESS", help="Number or name of a process.")],
    task: Annotated[int, typer.Option(metavar="N", help="One task of it only; 0: all.")] = 0,
    guest: Guest,
    tls: Tls,
) -> None:
    """End a process of a running guest."""
    with calling():
        from deploy import steer

        steer.kill(_where(guest, tls)[0], process_id, task, console())


def inject(
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="As in a scenario's \\[\\[inject]]: lost_ready, dropped_ack, restore, ..."
        ),
    ],
    vcpu: Annotated[int, typer.Option(metavar="N", help="The vCPU.")],
    nth: Annotated[int, typer.Option(metavar="N", help="Which event of its kind from then on it happens to.")] = 1,
    count: Annotated[int, typer.Option(metavar="N", help="How many in a row.")] = 1,
    length: Annotated[
        str, typer.Option("--for", metavar="S", help="How long lapic_off and paging_off last, guest s.")
    ] = "0",
    guest: Guest,
    tls: Tls,
) -> None:
    """Spoil the APF protocol of a vCPU of a running guest."""
    with calling():
        from deploy import steer

        where = _where(guest, tls)[0]
        steer.inject(where, what, vcpu, nth, count, length, console())


def io_fault(
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="As in a scenario's \\[\\[swap.fault]]: read_error, write_error, torn_write, lost_write, slow, stop, "
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
    name: Name = DEFAULT_NAME,
    api: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of hostd, for operators.")] = None,
    tls: Tls,
) -> None:
    """Let the swap device of a running host fail.

    That is in force for I/Os submitted from then on. Those under way are done when it was promised, also if it stops.
    """
    with calling():
        from deploy import steer

        where = _host(name, api, tls)
        options = steer.IoFaultOptions(what, nth, count, vm, gfn, slot, io, factor, length, add)
        steer.io_fault(where, options, console())


def list_(
    *,
    guest: Guest,
    tls: Tls,
) -> None:
    """Show the processes and tasks of a running guest."""
    with calling():
        from deploy import steer

        steer.show_list(_where(guest, tls)[0], console())


def load(
    *,
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOBFILE]", help="Jobs, in TOML; or one job by options.")
    ] = None,
    guest: Guest,
    tls: Tls,
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
    with calling(), ExitStack() as stack:
        from deploy import jobs, load_report
        from deploy import load as generator

        if job_file is not None and fields:
            raise BadInput(f"{next(iter(fields))}: with a job file its jobs say everything")
        chosen = jobs.load_jobs(job_file) if job_file is not None else (jobs.make_job(fields),)
        address = _where(guest, tls)[0]
        try:
            output = stack.enter_context(json_file.open("w")) if json_file else None
        except OSError as error:
            raise BadInput(f"--json = {json_file}: {error.strerror}") from error
        with load_report.LoadProgress(Console(stderr=True)) as progress:
            runs = generator.run_jobs(address, chosen, progress)
        load_report.show(console(), runs)
        if output is not None:
            json.dump(load_report.document(address, runs), output, indent=2)
            output.write("\n")
        failed = [run.job.name for run in runs if run.failed]
        if failed:
            raise Failure(f"jobs that ended early: {', '.join(failed)}")


def top(
    *,
    guest: Guest,
    tls: Tls,
    interval: Annotated[
        int, typer.Option(metavar="MS", help="Wall time between two frames.", min=50, max=60_000)
    ] = 1000,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
) -> None:
    """Watch a running guest: vCPUs, tasks, faults, memory, latency. Ctrl-C ends it."""
    with calling():
        from deploy import top as viewer

        address, metrics = _where(guest, tls)
        try:
            viewer.top(guest.api or guest.name, address, metrics, interval_ms=interval, once=once, console=console())
        except KeyboardInterrupt:
            return


def memory(
    *,
    name: Name = DEFAULT_NAME,
    vm: Annotated[int, typer.Option(metavar="N", help="VM of the host, from 0.", min=0, max=(1 << 32) - 1)] = 0,
    api: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of hostd, for load or operators.")] = None,
    tls: Tls,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it there too.")] = None,
) -> None:
    """Show the memory of a VM on a running host, by the kernel's names: memory.stat, memory.events, vmstat, ..."""
    with calling():
        from deploy import memory as viewer

        viewer.show(_host(name, api, tls), vm, json_file, console())


def _host(name: str, api: str | None, tls: Tls) -> Address:
    """Address of hostd: the one given, or a cluster's for operators."""
    from deploy import client

    where = _at(api, tls)
    return client.Address(client.running(Clusters.of_user(), name).host_address, None) if where is None else where


def _where(guest: Guest, tls: Tls) -> tuple[str, dict[str, str]]:
    """Address of the API of a VM, and of each daemon's /metrics as far as they are known."""
    from deploy import client

    if guest.api is not None and guest.vm:
        raise BadInput(f"--vm = {guest.vm}: --api = {guest.api} is a VM's own already")
    where = _at(guest.api, tls)
    if where is not None:
        return where, {}
    record: Record = client.running(Clusters.of_user(), guest.name)
    return record.address_of(guest.vm), record.metrics


def _at(api: str | None, tls: Tls) -> Address | None:
    """The address that was given; None: none was, and a cluster's name says it."""
    from deploy import client

    security = tls.security().tls
    if api is not None:
        return client.Address(client.address(api), security)
    if security is not None:
        raise BadInput(
            f"--tls-cert = {tls.tls_cert}: certificates are for TCP; with --name a socket is used: give --api"
        )
    return None
