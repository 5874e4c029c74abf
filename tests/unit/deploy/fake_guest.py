"""A guest's API as tests want it: in the event loop of a test, or as a process of its own.

``python fake_guest.py`` prints its address, answers every access as soon as it comes, and ends by Shutdown or SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import LoadServiceServicer, add_LoadServiceServicer_to_server

PAGES = 1024
NS_PER_ACCESS = 1000
SERVICE = load_pb2.DESCRIPTOR.services_by_name["LoadService"].full_name

Item = Any
Answer = Callable[["FakeGuest", Item], Any]


def performed(guest: FakeGuest, item: Item, latency_ns: int = 500) -> Any:
    """The answer to an access that hit."""
    guest.now_ns += NS_PER_ACCESS
    met = load_pb2.AccessResponse.Met.MET_HIT
    response = load_pb2.AccessResponse(arrived_ns=guest.now_ns, latency_ns=latency_ns, met=met, task=3)
    return load_pb2.AccessStreamResponse.Item(id=item.id, response=response)


class FakeGuest(LoadServiceServicer):
    """Process 1 has no memory, process 2 is ``mem``. Accesses are answered by ``answer`` once ``hold`` are in flight.

    ``expected``: after so many accesses have come, all are answered. ``seen`` keeps every access that came.
    """

    def __init__(self, answer: Answer = performed, hold: int = 1, expected: int = 1 << 60) -> None:
        self.answer = answer
        self.hold = hold
        self.expected = expected
        self.now_ns = 1_000_000
        self.seen: list[Any] = []
        self.in_flight_peak = 0
        self.message_sizes: list[int] = []
        self.spawned: list[Any] = []
        self.killed: list[Any] = []
        self.injected: list[Any] = []
        self.over = asyncio.Event()

    async def AccessStream(self, requests: AsyncIterator[Any], context: Any) -> None:
        waiting: list[Any] = []
        while (request := await context.read()) is not grpc.aio.EOF:
            self.message_sizes.append(len(request.items))
            waiting += request.items
            self.seen += [item.access for item in request.items]
            self.in_flight_peak = max(self.in_flight_peak, len(waiting))
            answers = []
            while waiting and (len(waiting) >= self.hold or len(self.seen) >= self.expected):
                answer = self.answer(self, waiting.pop(0))
                if answer is not None:
                    answers.append(answer)
            if answers:
                await context.write(load_pb2.AccessStreamResponse(items=answers))

    async def Access(self, request: Any, context: Any) -> Any:
        answer = performed(self, load_pb2.AccessStreamRequest.Item(id=1, access=request))
        self.seen.append(request)
        return answer.response

    async def List(self, request: Any, context: Any) -> Any:
        self.now_ns += 1_000_000
        task = load_pb2.Task(
            task=1, name="init", program="count", state="RUNNING", sum_exec_ns=self.now_ns, min_flt=3
        )
        other = load_pb2.Task(task=2, name="gone", program="touch", state="DEAD", killed="SIGSEGV at 0x1000")
        access = load_pb2.Task(task=3, name="mem/0", program="access", state="APF_WAIT", vcpu=1, maj_flt=7)
        processes = [
            load_pb2.Process(process=1, name="init", tasks=[task, other]),
            load_pb2.Process(process=2, name="mem", address=0x10000000, pages=PAGES, tasks=[access], queued=4),
        ]
        return load_pb2.ListResponse(processes=processes, now_ns=self.now_ns)

    async def Spawn(self, request: Any, context: Any) -> Any:
        if request.program == "nosuch":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "program = 'nosuch': allowed: count, touch")
        if request.memory > 1 << 40:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the guest has 10 pages left")
        self.spawned.append(request)
        return load_pb2.SpawnResponse(process=3, tasks=[4, 5, 6, 9], started_ns=self.now_ns)

    async def Kill(self, request: Any, context: Any) -> Any:
        if request.process_name not in {"", "mem"}:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"process_name = {request.process_name!r}: no such process"
            )
        self.killed.append(request)
        return load_pb2.KillResponse(tasks=[3])

    async def Inject(self, request: Any, context: Any) -> Any:
        self.injected.append(request)
        return load_pb2.InjectResponse(at_ns=1_500)

    async def WatchCounters(self, request: Any, context: Any) -> None:
        sent = 0
        while not request.count or sent < request.count:
            self.now_ns += 500_000_000
            vcpus = [
                load_pb2.Vcpu(vcpu=0, task=1, nr_running=2, nr_switches=10 * sent, idle_ns=0),
                load_pb2.Vcpu(vcpu=1, task=0, nr_switches=5, idle_ns=self.now_ns),
            ]
            latency = {"p50": 1500, "p90": 2_500_000, "p99": 9_000_000, "p99.9": 10_000_000, "p99.99": 10_000_000}
            snapshot = load_pb2.WatchCountersResponse(
                now_ns=self.now_ns,
                counters={"nr_switches": 10 * sent},
                vcpus=vcpus,
                tasks={"RUNNING": 1, "APF_WAIT": 1, "DEAD": 1},
                latency_ns=latency,
            )
            await context.write(snapshot)
            sent += 1
            await asyncio.sleep((request.interval_ms or 1000) / 1000)

    async def Shutdown(self, request: Any, context: Any) -> Any:
        self.over.set()
        return load_pb2.ShutdownResponse(now_ns=self.now_ns)


@asynccontextmanager
async def serving(guest: FakeGuest, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The guest with health and reflection on a port of the loopback; yields the address."""
    server = grpc.aio.server()
    add_LoadServiceServicer_to_server(guest, server)
    health = HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def serve_until_over(
    tell: Callable[[str], None], address: str = "127.0.0.1:0", make: type[FakeGuest] = FakeGuest
) -> None:
    """Serve a fake guest until Shutdown or SIGTERM; ``tell`` gets the address."""
    guest = make()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, guest.over.set)
    async with serving(guest, address) as bound:
        tell(bound)
        await guest.over.wait()


if __name__ == "__main__":
    asyncio.run(serve_until_over(lambda address: print(address, flush=True)))
