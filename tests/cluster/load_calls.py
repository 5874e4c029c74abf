"""Clients of the API for load generators, each a process of its own, for who forks a cluster must not import gRPC.

``python load_calls.py NAME ADDRESS [ARGUMENT ...]`` runs one of the coroutines below against a running guest, and prints
what it saw as JSON. Each asks for the end of the run.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from apf.v1 import load_pb2 as load
from apf.v1 import types_pb2 as types
from apf.v1.load_pb2_grpc import LoadServiceStub

READ, WRITE = types.ACCESS_READ, types.ACCESS_WRITE
Said = dict[str, Any]
SERVICE = load.DESCRIPTOR.services_by_name["LoadService"].full_name
WAIT_S = 60.0
IN_FLIGHT = 1024
"""Of one stream, at most (load.proto)."""


def access(page: int, kind: int = WRITE, process: str = "kv", words: int = 1) -> load.AccessRequest:
    return load.AccessRequest(process_name=process, page=page, kind=kind, length=8 * words)


def seen(response: load.AccessResponse) -> Said:
    """An AccessResponse as JSON."""
    met = load.AccessResponse.Met.Name(response.met).removeprefix("MET_").lower()
    return {"met": met, "arrived_ns": response.arrived_ns, "latency_ns": response.latency_ns, "task": response.task}


async def error_of(call: Awaitable[Any]) -> list[str]:
    """Status and text of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return [error.code().name, error.details() or ""]
    return ["OK", str(answer)]


async def replay(stub: LoadServiceStub, items: Iterable[load.ReplayRequest.Item], process: str = "kv") -> Said:
    async def requests() -> AsyncIterator[load.ReplayRequest]:
        chosen = list(items)
        yield load.ReplayRequest(process_name=process, items=chosen[:100])
        for start in range(100, len(chosen), 500):
            yield load.ReplayRequest(items=chosen[start : start + 500])

    done = await stub.Replay(requests(), timeout=WAIT_S)
    return {
        "arrived_ns": done.arrived_ns,
        "finished_ns": done.finished_ns,
        "met": dict(done.met),
        "task": done.task,
    }


async def stream(stub: LoadServiceStub, accesses: list[load.AccessRequest], batch: int) -> dict[int, Any]:
    """All of them through one stream, ``batch`` a message; results by number."""

    async def requests() -> AsyncIterator[load.AccessStreamRequest]:
        for start in range(0, len(accesses), batch):
            items = [
                load.AccessStreamRequest.Item(id=start + place, access=each)
                for place, each in enumerate(accesses[start : start + batch])
            ]
            yield load.AccessStreamRequest(items=items)

    results: dict[int, Any] = {}
    async for message in stub.AccessStream(requests(), timeout=WAIT_S):
        for item in message.items:
            assert item.id not in results, f"{item.id} was answered twice"
            results[item.id] = [item.code, item.message] if item.code else seen(item.response)
    return results


# Clients


async def pages(stub: LoadServiceStub, channel: grpc.aio.Channel) -> Said:
    """One page's life: first touch, again, swapped out and back, again; and what others ask for meanwhile."""
    said: Said = {"first": seen(await stub.Access(access(0))), "again": seen(await stub.Access(access(0, READ)))}
    # More pages than there is memory, so that page 0 leaves.
    thoughts = [load.ReplayRequest.Item(page=1 + n, write=True, think=n % 50) for n in range(1400)]
    said["replay"] = await replay(stub, thoughts)
    said["back"] = seen(await stub.Access(access(0, READ)))
    said["and again"] = seen(await stub.Access(access(0, READ)))
    said["wide"] = seen(await stub.Access(access(1, READ, words=3 * 512)))
    mixed = [access(n * 37 % 1500, WRITE if n % 3 else READ) for n in range(240)]
    mixed[100] = access(10**6)
    said["stream"] = await stream(stub, mixed, 24)
    said["errors"] = await refused(stub)
    said.update(await processes(stub))
    said["looks"] = await looks(stub, channel)
    waiting = asyncio.ensure_future(error_of(stub.Wait(load.WaitRequest(process_name="quiet"))))
    await asyncio.sleep(0.1)
    said["shutdown_ns"] = (await stub.Shutdown(load.ShutdownRequest())).now_ns
    said["waiter"] = await waiting
    return said


REQUESTS = {
    "Access": load.AccessRequest,
    "Spawn": load.SpawnRequest,
    "Kill": load.KillRequest,
    "Inject": load.InjectRequest,
    "Wait": load.WaitRequest,
}
INVALID, NOT_FOUND, EXHAUSTED = "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"
WRONG: list[tuple[str, Said, str, str]] = [
    # method, request, status, how its text begins
    ("Access", {"page": 1, "kind": READ}, INVALID, "process = 0, process_name = ''"),
    ("Access", {"process": 99, "page": 1, "kind": READ}, NOT_FOUND, "process = 99"),
    ("Access", {"process_name": "nobody", "page": 1, "kind": READ}, NOT_FOUND, "process_name = 'nobody'"),
    ("Access", {"process": 1, "page": 1}, INVALID, "kind = 0"),
    ("Access", {"process": 1, "page": 1, "kind": types.ACCESS_EXEC}, INVALID, "kind = 3"),
    ("Access", {"process": 1, "kind": READ}, INVALID, "page, address"),
    ("Access", {"process": 1, "page": 1536, "kind": READ}, INVALID, "page = 1536"),
    ("Access", {"process": 1, "page": 1535, "kind": READ, "length": 4104}, INVALID, "page = 1535: with 4104 bytes"),
    ("Access", {"process": 1, "page": 1, "kind": READ, "length": 12}, INVALID, "length = 12"),
    ("Access", {"process": 1, "page": 1, "kind": READ, "length": 65544}, INVALID, "length = 65544"),
    ("Access", {"process": 1, "address": 12, "kind": READ}, INVALID, "address = 12"),
    ("Access", {"process_name": "quiet", "page": 0, "kind": READ}, INVALID, "page = 0"),
    ("Spawn", {}, INVALID, "program = '', elf = b'', access_threads = 0"),
    ("Spawn", {"program": "nonsense"}, INVALID, "program = 'nonsense'"),
    ("Spawn", {"program": "access_thread"}, INVALID, "program = 'access_thread'"),
    ("Spawn", {"program": "sequential"}, INVALID, "memory = 0"),
    ("Spawn", {"program": "sequential", "memory": 5000}, INVALID, "memory = 5000"),
    ("Spawn", {"program": "idle", "parameters": {"hue": 1}}, INVALID, "idle: there is no parameter 'hue'"),
    ("Spawn", {"program": "strided", "memory": 4096, "parameters": {"stride": 0}}, INVALID, "strided: stride = 0"),
    ("Spawn", {"program": "work_thread", "nice": 20}, INVALID, "nice = 20"),
    ("Spawn", {"program": "work_thread", "vcpus": [7]}, INVALID, "vcpus = [7]"),
    ("Spawn", {"program": "work_thread", "threads": 257}, INVALID, "threads = 257"),
    ("Spawn", {"program": "producer"}, INVALID, "process producer: 1 tasks run producer, 0 run consumer"),
    ("Spawn", {"elf": b"no program"}, INVALID, "elf: "),
    ("Spawn", {"name": "white space", "program": "idle"}, INVALID, "name = 'white space'"),
    ("Spawn", {"access_threads": 1, "memory": 1 << 32}, EXHAUSTED, "process load: 1048578 pages of guest memory"),
    ("Kill", {"process": 99}, NOT_FOUND, "process = 99"),
    ("Kill", {"process": 1, "task": 99}, NOT_FOUND, "task 99 of process 1"),
    ("Inject", {"what": "lost"}, INVALID, "what = 'lost': input should be 'lost_ready', "),
    ("Inject", {"what": "lost_ready", "vcpu": 2}, INVALID, "vcpu = 2: this VM has 0 to 1"),
    ("Inject", {"what": "lost_ready", "count": 1 << 40}, INVALID, "count = 1099511627776"),
    ("Inject", {"what": "lost_ready", "for_ns": 5}, INVALID, "for_ns = 5"),
    ("Inject", {"what": "lapic_off"}, INVALID, "for_ns = 0: lapic_off and paging_off have a length"),
    ("Inject", {"what": "restore", "nth": 2}, INVALID, "nth = 2, count = 1: restore happens once; allowed: 1"),
    ("Wait", {"process_name": "nobody"}, NOT_FOUND, "process_name = 'nobody'"),
]


async def refused(stub: LoadServiceStub) -> list[list[str]]:
    """What must not be granted: (what, status, text), each of what came and of what should."""
    told = []
    for method, fields, status, text in WRONG:
        came = await error_of(getattr(stub, method)(REQUESTS[method](**fields), timeout=WAIT_S))
        told.append([f"{method} {fields}", *came, status, text])
    empty = load.ReplayRequest(process=1)
    far = load.ReplayRequest(process=1, items=[load.ReplayRequest.Item(page=1), load.ReplayRequest.Item(page=1536)])
    for request, text in ((empty, "items: at least one"), (far, "items[1].page = 1536")):
        came = await error_of(stub.Replay(iter([request]), timeout=WAIT_S))
        told.append([f"Replay {request}", *came, INVALID, text])
    often = stub.WatchCounters(load.WatchCountersRequest(interval_ms=10), timeout=WAIT_S)
    told.append(["WatchCounters", *await error_of(anext(aiter(often))), INVALID, "interval_ms = 10"])
    return told


async def processes(stub: LoadServiceStub) -> Said:
    """Processes that come and go."""
    said: Said = {}

    async def ended(process: int) -> list[Any]:
        answer = await stub.Wait(load.WaitRequest(process=process), timeout=WAIT_S)
        return [[task.state, task.killed, task.sum_exec_ns, task.counted] for task in answer.process.tasks]

    scan = load.SpawnRequest(program="sequential", memory=1 << 20, threads=2, lifetime_ns=1_000_000, nice=3)
    spawned = await stub.Spawn(scan)
    said["spawned"] = {"process": spawned.process, "tasks": list(spawned.tasks), "at_ns": spawned.started_ns}
    said["its end"] = await ended(spawned.process)

    counting = await stub.Spawn(load.SpawnRequest(name="count", program="work_thread", threads=2, vcpus=[1]))
    # Not the first task: while that one loads the process, its death is the end of all.
    one = await stub.Kill(load.KillRequest(process=counting.process, task=counting.tasks[1]))
    rest = await stub.Kill(load.KillRequest(process_name="count"))
    said["killed"] = [list(one.tasks), list(rest.tasks)]
    said["counting"] = list(counting.tasks)
    said["their end"] = await ended(counting.process)
    said["killed again"] = list((await stub.Kill(load.KillRequest(process=counting.process))).tasks)

    other = await stub.Spawn(load.SpawnRequest(name="other", access_threads=2, memory=1 << 16))
    said["other"] = seen(await stub.Access(access(3, process="other")))
    await stub.Kill(load.KillRequest(process=other.process))
    await ended(other.process)
    said["other is gone"] = await error_of(stub.Access(access(3, process="other")))
    return said


async def looks(stub: LoadServiceStub, channel: grpc.aio.Channel) -> Said:
    """What only looks."""
    check = health_pb2_grpc.HealthStub(channel).Check
    names = {}
    for name in ("", SERVICE):
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S)
        names[name] = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
    services: list[str] = []
    async for answer in info(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=WAIT_S):
        services += [each.name for each in answer.list_services_response.service]
    listed = await stub.List(load.ListRequest(), timeout=WAIT_S)
    watching = stub.WatchCounters(load.WatchCountersRequest(interval_ms=50, count=2), timeout=WAIT_S)
    watched = [{"counters": dict(now.counters), "latency_ns": dict(now.latency_ns)} async for now in watching]
    profile = await stub.GetProfile(load.GetProfileRequest(), timeout=WAIT_S)
    return {
        "health": names,
        "services": services,
        "processes": {process.name: [task.name for task in process.tasks] for process in listed.processes},
        "watched": watched,
        "samples": profile.samples,
        "folded": profile.folded,
    }


class Flood:
    """Streams of wide accesses, as many in flight as they may have, that nobody can perform in time."""

    def __init__(self, stub: LoadServiceStub, streams: int) -> None:
        self.codes: Counter[str] = Counter()
        self.texts: set[str] = set()
        self.ended: list[str] = []
        self.enough = asyncio.Event()
        self._calls = [stub.AccessStream() for _ in range(streams)]
        self._tasks = [asyncio.create_task(self._one(call)) for call in self._calls]

    async def _one(self, call: Any) -> None:
        wide = access(0, words=8 * 512)
        try:
            for start in range(0, IN_FLIGHT, 64):
                items = [load.AccessStreamRequest.Item(id=start + n, access=wide) for n in range(64)]
                for n, item in enumerate(items):
                    item.access.page = (start + n) * 8 % 1400
                await call.write(load.AccessStreamRequest(items=items))
            async for message in call:
                for item in message.items:
                    self.codes[str(item.code)] += 1
                    self.texts.add(item.message)
                if grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] in (item.code for item in message.items):
                    self.enough.set()
        except grpc.aio.AioRpcError as error:
            self.ended.append(error.code().name)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
        else:
            self.ended.append("OK")

    def cancel(self) -> None:
        """Lose interest in everything."""
        for call in self._calls:
            call.cancel()

    async def end(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self._tasks), WAIT_S)


async def overload(stub: LoadServiceStub, channel: grpc.aio.Channel) -> Said:
    """More than fits into the queue; accesses that nobody waits for any more; a run that ends under their feet."""
    said: Said = {}
    flood = Flood(stub, 6)
    await asyncio.wait_for(flood.enough.wait(), WAIT_S)
    said["late"] = [EXHAUSTED]
    while said["late"][0] == EXHAUSTED:
        said["late"] = await error_of(stub.Access(access(1500), timeout=0.3))
    given_up = stub.Access(access(1501))
    while (await asyncio.wait([asyncio.ensure_future(error_of(given_up))], timeout=0.2))[0]:
        given_up = stub.Access(access(1501))
    given_up.cancel()
    flood.cancel()
    await flood.end()
    said["flood"] = {"codes": flood.codes, "texts": sorted(flood.texts), "ended": flood.ended}
    said["never begun"] = [seen(await stub.Access(access(page), timeout=WAIT_S)) for page in (1500, 1501)]

    flood = Flood(stub, 1)
    while (await stub.List(load.ListRequest())).processes[0].queued < 500:
        await asyncio.sleep(0.01)
    waiting = [asyncio.ensure_future(error_of(stub.Access(access(1502)))) for _ in range(5)]
    await asyncio.sleep(0.1)
    await stub.Shutdown(load.ShutdownRequest())
    said["waiters"] = [await each for each in waiting]
    await flood.end()
    said["last"] = {"codes": flood.codes, "ended": flood.ended}
    return said


async def steady(stub: LoadServiceStub, channel: grpc.aio.Channel) -> Said:
    """Two hundred accesses, eight at a time, beside streams that are given up in between."""
    room = asyncio.Semaphore(8)

    async def one(number: int) -> str:
        async with room:
            return str(seen(await stub.Access(access(number * 613 % 1500), timeout=WAIT_S))["met"])

    async def given_up(number: int) -> None:
        call = stub.AccessStream()
        items = [load.AccessStreamRequest.Item(id=n, access=access(n * 11 + number)) for n in range(40)]
        await call.write(load.AccessStreamRequest(items=items))
        await asyncio.sleep(0.02)
        call.cancel()

    met, _ = await asyncio.gather(
        asyncio.gather(*(one(number) for number in range(200))),
        asyncio.gather(*(given_up(number) for number in range(4))),
    )
    await stub.Shutdown(load.ShutdownRequest())
    return {"met": Counter(met)}


async def spoiled(stub: LoadServiceStub, channel: grpc.aio.Channel) -> Said:
    """Pages that were swapped out: an ACK is dropped, the vCPU restored; at last a ready is lost, for good."""
    await replay(stub, [load.ReplayRequest.Item(page=n, write=True) for n in range(1500)])
    said: Said = {"injected": []}

    async def inject(what: str, **more: int) -> None:
        answer = await stub.Inject(load.InjectRequest(what=what, **more), timeout=WAIT_S)
        said["injected"].append([what, answer.at_ns])

    async def back(*pages: int) -> list[Any]:
        """Access these at once; if one was done with nobody told (as after a dropped ACK), a restore wakes all."""
        pending = {asyncio.ensure_future(stub.Access(access(page, READ), timeout=WAIT_S)): page for page in pages}
        while (await asyncio.wait(pending, timeout=0.2))[1]:
            await inject("restore")
        return [seen(each.result())["met"] for each in pending]

    await inject("dropped_ack")
    said["dropped"] = await back(100, 200, 300)
    await inject("restore")
    await inject("lapic_off", for_ns=1_000_000)
    said["masked"] = await back(400)
    await inject("lost_ready")
    lost = asyncio.ensure_future(error_of(stub.Access(access(0, READ), timeout=WAIT_S)))
    scan = load.SpawnRequest(program="work_thread", lifetime_ns=50_000_000)  # as long as no read takes
    await stub.Wait(load.WaitRequest(process=(await stub.Spawn(scan)).process), timeout=WAIT_S)
    listed = await stub.List(load.ListRequest(), timeout=WAIT_S)
    said["states"] = [task.state for task in listed.processes[0].tasks]
    await stub.Shutdown(load.ShutdownRequest())
    said["lost"] = await lost
    return said


async def elf(stub: LoadServiceStub, channel: grpc.aio.Channel, path: str, vcpu: str) -> Said:
    """A program of the caller's own, twice in one process, to its end."""
    program = Path(path).read_bytes()
    spawned = await stub.Spawn(load.SpawnRequest(elf=program, threads=2, vcpus=[int(vcpu)]), timeout=WAIT_S)
    ended = await stub.Wait(load.WaitRequest(process=spawned.process), timeout=WAIT_S)
    await stub.Shutdown(load.ShutdownRequest())
    return {"tasks": [[task.state, task.status, task.counted] for task in ended.process.tasks]}


Client = Callable[..., Awaitable[Said]]
CLIENTS: dict[str, Client] = {client.__name__: client for client in (pages, overload, steady, spoiled, elf)}


async def main(name: str, address: str, *arguments: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        print(json.dumps(await CLIENTS[name](LoadServiceStub(channel), channel, *arguments)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
