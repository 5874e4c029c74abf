"""AccessStream of a guest, against the same stream of a server that answers at once: what the guest costs.

The client is the load generator both times, with the same job, in a process of its own; the bare server is grpcio and
nothing else (asyncio, as the guest's). All pages are resident, so no access waits for a device.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

from apf import process
from apf.process import Failure
from apf.rundir import RunDir
from apf.scenario import load
from deploy.local import LocalCluster
from tests.bench.figure import Figure

_fork = multiprocessing.get_context("fork")
_DEADLINE_S = 120.0
_SECONDS = 5
_PAGES = 1024
_ACCESS_THREADS = 4
_CASES = ((1024, 1), (1024, 64), (1, 1))
"""Accesses in flight, and in a message."""
_GUEST: dict[str, Any] = {
    "apf": ["pv2010"],
    "duration_s": 0,
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "32MiB",
    "swap.device": "nvme",
    "host.reserve_frames": 256,
    "process": [{"name": "mem", "memory": _PAGES * 4096, "access_threads": _ACCESS_THREADS}],
}


def access_stream() -> list[Figure]:
    """Accesses a second of one stream: as many in flight as it takes, one or more a message; and one by one."""
    figures = []
    for iodepth, batch in _CASES:
        name = f"AccessStream, {iodepth} in flight, {batch} a message"
        bare = _of_bare_server(iodepth, batch)
        ours = _of_guest(iodepth, batch)
        bare = statistics.mean((bare, _of_bare_server(iodepth, batch)))
        figures.append(Figure(name, f"{ours:,.0f}/s", ours / bare, f"bare stream, {bare:,.0f}/s"))
    return figures


def _of_guest(iodepth: int, batch: int) -> float:
    with LocalCluster(load(None, _GUEST), api="127.0.0.1:0") as cluster:
        return _rate(_address(cluster), iodepth, batch, cluster.run)


def _address(cluster: LocalCluster) -> str:
    from multiprocessing import connection

    for _ in range(int(_DEADLINE_S / 0.1)):
        report = cluster.run.read_report("api-guest-0")
        if report is not None:
            return str(report["address"])
        if connection.wait([child.sentinel for child in cluster.processes], 0.1):
            cluster.wait()
    raise TimeoutError("the guest does not answer")


def _of_bare_server(iodepth: int, batch: int) -> float:
    run = RunDir.make()
    ours, theirs = _fork.Pipe()
    server = process.spawn("bare-access", _serve, theirs, run=run, report="bare-access")
    try:
        return _rate(_receive(ours), iodepth, batch, run)
    finally:
        process.stop([server], 5)
        run.remove()


def _receive(connection: Connection) -> Any:
    if not connection.poll(_DEADLINE_S):
        raise TimeoutError("a process of the benchmark does not answer")
    return connection.recv()


def _rate(address: str, iodepth: int, batch: int, run: RunDir) -> float:
    """Accesses a wall second, measured by a process of its own."""
    ours, theirs = _fork.Pipe()
    client = process.spawn(
        "access-client", _perform, address, iodepth, batch, theirs, run=run, report="access-client"
    )
    try:
        told = _receive(ours)
    finally:
        process.stop([client], 5)
    if isinstance(told, str):
        raise Failure(told)
    return float(told)


def _perform(address: str, iodepth: int, batch: int, connection: Connection) -> None:
    from deploy.jobs import make_job
    from deploy.load import run_jobs

    job = make_job({"process": "mem", "iodepth": iodepth, "batch": batch, "duration_s": _SECONDS})
    (run,) = run_jobs(address, [job])
    connection.send(run.failed or run.per_wall_s)


def _serve(connection: Connection) -> None:
    asyncio.run(_serve_aio(connection))


async def _serve_aio(connection: Connection) -> None:
    import grpc

    from apf.v1 import load_pb2
    from apf.v1.load_pb2_grpc import LoadServiceServicer, add_LoadServiceServicer_to_server

    class Bare(LoadServiceServicer):
        async def List(self, request: Any, context: Any) -> Any:
            return load_pb2.ListResponse(processes=[load_pb2.Process(process=1, name="mem", pages=_PAGES)])

        async def AccessStream(self, requests: AsyncIterator[Any], context: Any) -> None:
            met = load_pb2.AccessResponse.Met.MET_HIT
            while (request := await context.read()) is not grpc.aio.EOF:
                answers = [
                    load_pb2.AccessStreamResponse.Item(
                        id=item.id, response=load_pb2.AccessResponse(arrived_ns=1, latency_ns=1, met=met, task=1)
                    )
                    for item in request.items
                ]
                await context.write(load_pb2.AccessStreamResponse(items=answers))

    server = grpc.aio.server()
    add_LoadServiceServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()
