"""The API for load generators (``protos/apf/v1/load.proto``), on the event loop that serves the vCPUs too.

What changes the guest waits in an inbox until the opener grants the clock (``apf.clockpage``, Arrivals); then all of it
arrives together, at one time, and is written to the run's log of arrivals. What only looks is answered at once from the
kernel's tables. A caller's deadline and cancellation count until its arrival has been taken; an access that waits in the
guest is taken back by another arrival.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from apf import limits
from apf.calls import CallCounter
from apf.guard import Servers
from apf.listen import Listener, Security
from apf.messages import PAGE_SIZE, FaultKind
from apf.rundir import RunDir
from apf.scenario import Scenario, ScenarioError
from apf.serving import TurnServer
from apf.stats import FIELDS, VcpuStats
from apf.v1 import load_pb2, types_pb2
from apf.v1.load_pb2_grpc import LoadServiceServicer, add_LoadServiceServicer_to_server
from guestsched.arrival_log import ArrivalLog
from guestsched.call_log import CallLog
from guestsched.core.access import WORDS_MAX
from guestsched.core.arrivals import (
    AccessArrived,
    AccessCancelled,
    AccessDone,
    Answer,
    Arrival,
    InjectArrived,
    InjectTaken,
    KillArrived,
    KillTaken,
    ProcessEnded,
    Refusal,
    Refused,
    ReplayArrived,
    ReplayDone,
    ShutdownArrived,
    SpawnArrived,
    Spawned,
)
from guestsched.core.process import Process
from guestsched.core.task import AccessList, TaskState, TraceAccess
from guestsched.inject import InjectWish
from guestsched.plan import vm_seed
from guestsched.shell import GuestShell
from guestsched.spawn import SpawnWish

INBOX_MAX = 8192
"""Arrivals that wait for the clock; what comes then is refused."""
IN_FLIGHT_MAX = 1024
ITEMS_MAX = 64
REPLAY_MAX = 1_000_000
_LATENCIES = 4096
_WORD = 8
_U32_MAX = (1 << 32) - 1

Code = grpc.StatusCode
_CODES = {
    Refusal.NOT_FOUND: Code.NOT_FOUND,
    Refusal.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    Refusal.RESOURCE_EXHAUSTED: Code.RESOURCE_EXHAUSTED,
    Refusal.FAILED_PRECONDITION: Code.FAILED_PRECONDITION,
    Refusal.CANCELLED: Code.CANCELLED,
}
_MET = {
    None: load_pb2.AccessResponse.MET_HIT,
    FaultKind.MINOR: load_pb2.AccessResponse.MET_MINOR,
    FaultKind.MAJOR: load_pb2.AccessResponse.MET_MAJOR,
    FaultKind.ASYNC: load_pb2.AccessResponse.MET_ASYNC,
}
_PERCENTILES = {"p50": 5000, "p90": 9000, "p99": 9900, "p99.9": 9990, "p99.99": 9999}
_STREAM, _REPLAY = "apf.v1.LoadService/AccessStream", "apf.v1.LoadService/Replay"
_GONE = "the run is ending"
_KINDS = (types_pb2.ACCESS_READ, types_pb2.ACCESS_WRITE)


@dataclass(frozen=True, slots=True)
class _Error(Exception):
    code: grpc.StatusCode
    text: str


Settle = Callable[[Answer | _Error], None]
"""Takes the final answer to one arrival."""


@dataclass(slots=True)
class _Waiting:
    """An arrival on its way: into the guest (``taken`` False), or its answer back."""

    arrival: Arrival
    settle: Settle
    deadline_s: float | None = None
    taken: bool = False


class LoadApi(LoadServiceServicer):
    """The service, and the inbox between it and the guest."""

    def __init__(self, scenario: Scenario, run: RunDir, vm: int, turns: TurnServer, log: ArrivalLog) -> None:
        self._scenario = scenario
        self._run = run
        self._vm = vm
        self._turns = turns
        self.messages = turns.calls.messages
        self._log = log
        self._shell: GuestShell | None = None
        self._inbox: deque[_Waiting] = deque()
        self._asked = False
        self._tickets = 0
        self._pending: dict[int, _Waiting] = {}
        self._wishes: dict[int, SpawnWish] = {}
        self._ended: dict[int, list[asyncio.Future[None]]] = {}
        self._latencies: deque[int] = deque(maxlen=_LATENCIES)
        self._counts: Counter[str] = Counter()
        self._stats: VcpuStats | None = None
        self._closing = asyncio.Event()
        self._streams: set[_Stream] = set()
        self._trace_items = 0

    def serve(self, shell: GuestShell) -> None:
        """The guest is there."""
        self._shell = shell
        self._turns.take_arrivals(self._granted)

    @property
    def _guest(self) -> GuestShell:
        assert self._shell is not None
        return self._shell

    # Into the guest, and back ----------------------------------------------------------------------------------------

    def _submit(self, arrival: Arrival, settle: Settle, ticket: int, deadline_s: float | None = None) -> None:
        """Put an arrival into the inbox. Raises _Error if that is full or the run ends."""
        if self._closing.is_set():
            raise _Error(Code.UNAVAILABLE, _GONE)
        if len(self._inbox) >= INBOX_MAX:
            raise _Error(Code.RESOURCE_EXHAUSTED, f"{len(self._inbox)} arrivals wait already")
        waiting = _Waiting(arrival, settle, deadline_s)
        if ticket:
            self._pending[ticket] = waiting
        self._inbox.append(waiting)
        if not self._asked:
            self._asked = True
            self._turns.ask_for_clock()

    def _ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    def _granted(self, at_ns: int) -> None:
        """All vCPUs stand still at ``at_ns``: what is in the inbox arrives."""
        self._asked = False
        now_s = time.monotonic()
        arrivals = []
        while self._inbox:
            waiting = self._inbox.popleft()
            if waiting.deadline_s is not None and now_s >= waiting.deadline_s:
                self._settle(_ticket_of(waiting.arrival), _Error(Code.DEADLINE_EXCEEDED, "before it was taken"))
                continue
            waiting.taken = True
            arrivals.append(waiting.arrival)
        if arrivals:
            self._log.take(at_ns, arrivals, self._wishes)
            self._guest.arrive(tuple(arrivals), at_ns)

    def answered(self, answer: Answer) -> None:
        """The guest has answered an arrival."""
        if isinstance(answer, ProcessEnded):
            for future in self._ended.pop(answer.process, ()):
                if not future.done():
                    future.set_result(None)
            return
        if isinstance(answer, AccessDone):
            self._latencies.append(answer.done_ns - answer.arrived_ns)
            self._counts["accesses"] += 1
        self._settle(answer.ticket, answer)

    def _settle(self, ticket: int, answer: Answer | _Error) -> None:
        waiting = self._pending.pop(ticket, None)
        self._wishes.pop(ticket, None)
        if waiting is not None:
            waiting.settle(answer)

    def close(self) -> None:
        """The run is over: whoever waits is told."""
        self._closing.set()
        for ticket in list(self._pending):
            self._settle(ticket, _Error(Code.UNAVAILABLE, _GONE))
        for futures in self._ended.values():
            for future in futures:
                if not future.done():
                    future.set_exception(_Error(Code.UNAVAILABLE, _GONE))
        self._ended.clear()
        for stream in self._streams:
            stream.wake()

    @property
    def closing(self) -> bool:
        """Whether the run is over."""
        return self._closing.is_set()

    def _take_back(self, ticket: int, process: int) -> None:
        """The caller of an access has gone."""
        waiting = self._pending.pop(ticket, None)
        if waiting is None:
            return
        if not waiting.taken:
            self._inbox.remove(waiting)
        elif not self._closing.is_set() and len(self._inbox) < INBOX_MAX:
            self._submit(AccessCancelled(ticket, process), lambda _: None, 0)

    async def _ask(self, context: Any, ticket: int, arrival: Arrival, process: int = 0) -> Any:
        """Let one arrival take effect and wait for its answer; aborts the call if it is refused."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def settle(answer: Answer | _Error) -> None:
            if not future.done():
                if isinstance(answer, _Error):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

        remaining_s = context.time_remaining()
        try:
            self._submit(arrival, settle, ticket, None if remaining_s is None else time.monotonic() + remaining_s)
            answer = await future
        except _Error as error:
            await _abort(context, error)
        except asyncio.CancelledError:
            self._take_back(ticket, process)
            raise
        if isinstance(answer, Refused):
            await _abort(context, _Error(_CODES[answer.why], answer.text))
        return answer

    # What is asked for -----------------------------------------------------------------------------------------------

    def _process(self, number: int, name: str) -> Process:
        """The process meant. Raises _Error."""
        processes = self._guest.core.processes
        if number:
            if number in processes:
                return processes[number]
            raise _Error(Code.NOT_FOUND, f"process = {number}: there is none")
        if not name:
            raise _Error(Code.INVALID_ARGUMENT, "process = 0, process_name = '': name one of the two")
        for process in reversed(processes.values()):
            if process.name == name:
                return process
        raise _Error(Code.NOT_FOUND, f"process_name = {name!r}: there is none")

    def _access(self, ticket: int, request: load_pb2.AccessRequest) -> AccessArrived:
        """A checked access. Raises _Error."""
        process = self._process(request.process, request.process_name)
        gva, pages = process.plan.memory
        if request.kind not in _KINDS:
            raise _Error(Code.INVALID_ARGUMENT, f"kind = {request.kind}: allowed: ACCESS_READ, ACCESS_WRITE")
        length = request.length or _WORD
        if length % _WORD or length > WORDS_MAX * _WORD:
            raise _Error(Code.INVALID_ARGUMENT, f"length = {length}: a multiple of {_WORD} up to {WORDS_MAX * _WORD}")
        place = request.WhichOneof("place")
        if place == "page":
            field, value, offset = "page", request.page, request.page * PAGE_SIZE
        elif place == "address":
            field, value, offset = "address", request.address, request.address - gva
        else:
            raise _Error(Code.INVALID_ARGUMENT, "page, address: name one of the two")
        if offset < 0 or offset % _WORD or offset + length > pages * PAGE_SIZE:
            raise _Error(
                Code.INVALID_ARGUMENT,
                f"{field} = {value}: with {length} bytes it is not in the memory of process {process.asid}, "
                f"{pages} pages from {gva:#x}, 8-aligned",
            )
        return AccessArrived(ticket, process.asid, offset, length // _WORD, request.kind == types_pb2.ACCESS_WRITE)

    async def Access(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.AccessRequest, context: Any
    ) -> load_pb2.AccessResponse:
        ticket = self._ticket()
        try:
            access = self._access(ticket, request)
        except _Error as error:
            await _abort(context, error)
        return _access_response(await self._ask(context, ticket, access, access.process))

    async def AccessStream(  # noqa: N802, D102 - the generated base names and documents it
        self, request_iterator: AsyncIterator[load_pb2.AccessStreamRequest], context: Any
    ) -> None:
        stream = _Stream(self, context)
        self._streams.add(stream)
        try:
            await stream.run(request_iterator)
        finally:
            self._streams.discard(stream)

    async def Replay(  # noqa: N802, D102 - the generated base names and documents it
        self, request_iterator: AsyncIterator[load_pb2.ReplayRequest], context: Any
    ) -> load_pb2.ReplayResponse:
        items: list[TraceAccess] = []
        try:
            return await self._replay(request_iterator, items, context)
        finally:
            self._trace_items -= len(items)

    async def _replay(
        self, requests: AsyncIterator[load_pb2.ReplayRequest], items: list[TraceAccess], context: Any
    ) -> load_pb2.ReplayResponse:
        process: Process | None = None
        try:
            async for request in requests:
                self.messages[_REPLAY, "in"] += 1
                if len(request.items) > limits.REPLAY_ITEMS_MAX:
                    text = f"items: {len(request.items)}; at most {limits.REPLAY_ITEMS_MAX} a message"
                    raise _Error(Code.INVALID_ARGUMENT, text)
                if self._trace_items + len(request.items) > limits.TRACES_ITEMS_MAX:
                    text = (
                        f"{self._trace_items} accesses of traces are here already; at most {limits.TRACES_ITEMS_MAX}"
                    )
                    raise _Error(Code.RESOURCE_EXHAUSTED, text)
                if process is None:
                    process = self._process(request.process, request.process_name)
                if len(items) + len(request.items) > REPLAY_MAX:
                    raise _Error(Code.INVALID_ARGUMENT, f"items: more than {REPLAY_MAX}")
                pages = process.plan.memory[1]
                for item in request.items:
                    if item.page >= pages:
                        where = f"items[{len(items)}].page = {item.page}"
                        raise _Error(Code.INVALID_ARGUMENT, f"{where}: process {process.asid} has {pages} pages")
                    items.append(TraceAccess(item.page * PAGE_SIZE, 1, item.write, item.think))
                    self._trace_items += 1
            if process is None or not items:
                raise _Error(Code.INVALID_ARGUMENT, "items: at least one")
        except _Error as error:
            await _abort(context, error)
        ticket = self._ticket()
        done: ReplayDone = await self._ask(
            context, ticket, ReplayArrived(ticket, process.asid, AccessList(tuple(items)))
        )
        met = {"hit" if kind is None else kind.name.lower(): count for kind, count in done.met}
        return load_pb2.ReplayResponse(arrived_ns=done.arrived_ns, finished_ns=done.done_ns, met=met, task=done.task)

    async def Spawn(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.SpawnRequest, context: Any
    ) -> load_pb2.SpawnResponse:
        fields = {
            "name": request.name,
            "program": request.program,
            "elf": request.elf,
            "threads": request.threads,
            "access_threads": request.access_threads,
            "memory": request.memory,
            "nice": request.nice,
            "vcpus": tuple(request.vcpus),
            "parameters": dict(request.parameters),
            "lifetime_ns": request.lifetime_ns,
        }
        try:
            wish = SpawnWish.of(fields)
            seed = vm_seed(self._scenario.seed, self._vm)
            plan = await asyncio.to_thread(wish.plan, seed, self._scenario.vm.vcpus)
        except ScenarioError as error:
            await _abort(context, _Error(Code.INVALID_ARGUMENT, str(error)))
        ticket = self._ticket()
        self._wishes[ticket] = wish
        spawned: Spawned = await self._ask(context, ticket, SpawnArrived(ticket, plan))
        return load_pb2.SpawnResponse(process=spawned.process, tasks=spawned.tasks, started_ns=spawned.at_ns)

    async def Kill(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.KillRequest, context: Any
    ) -> load_pb2.KillResponse:
        try:
            process = self._process(request.process, request.process_name)
        except _Error as error:
            await _abort(context, error)
        ticket = self._ticket()
        taken: KillTaken = await self._ask(context, ticket, KillArrived(ticket, process.asid, request.task))
        return load_pb2.KillResponse(tasks=taken.tasks)

    async def Inject(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.InjectRequest, context: Any
    ) -> load_pb2.InjectResponse:
        fields = {
            "what": request.what,
            "nth": request.nth or 1,
            "count": request.count or 1,
            "for_ns": request.for_ns,
        }
        try:
            wish = InjectWish.of(fields)
        except ScenarioError as error:
            await _abort(context, _Error(Code.INVALID_ARGUMENT, str(error)))
        ticket = self._ticket()
        taken: InjectTaken = await self._ask(context, ticket, InjectArrived(ticket, request.vcpu, wish.fault()))
        return load_pb2.InjectResponse(at_ns=taken.at_ns)

    async def List(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.ListRequest, context: Any
    ) -> load_pb2.ListResponse:
        core = self._guest.core
        processes = [self._process_out(process) for process in core.processes.values()]
        # An idle guest takes no steps, and its time passes all the same.
        now_ns = max(core.now_ns, self._turns.now_ns)
        return load_pb2.ListResponse(processes=processes, now_ns=now_ns)

    def _process_out(self, process: Process) -> load_pb2.Process:
        tasks = self._guest.core.tasks
        gva, pages = process.plan.memory
        return load_pb2.Process(
            process=process.asid,
            name=process.name,
            address=gva,
            pages=pages,
            queued=len(process.accesses.waiting),
            tasks=[
                load_pb2.Task(
                    task=task.id,
                    name=task.spec.name,
                    program=task.spec.program,
                    state=task.state.name,
                    vcpu=task.cpu,
                    nice=task.spec.nice,
                    sum_exec_ns=task.entity.sum_exec_ns,
                    nvcsw=task.nvcsw,
                    nivcsw=task.nivcsw,
                    min_flt=task.min_flt,
                    maj_flt=task.maj_flt,
                    counted=task.value("count") or task.counted,
                    killed=task.killed,
                    status=task.status,
                )
                for task in (tasks[task_id] for task_id in process.tasks)
            ],
        )

    async def Wait(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.WaitRequest, context: Any
    ) -> load_pb2.WaitResponse:
        try:
            process = self._process(request.process, request.process_name)
            tasks = self._guest.core.tasks
            if any(tasks[task_id].state is not TaskState.DEAD for task_id in process.tasks):
                if self._closing.is_set():
                    raise _Error(Code.UNAVAILABLE, _GONE)
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                waiters = self._ended.setdefault(process.asid, [])
                waiters.append(future)
                try:
                    await future
                finally:
                    if future.cancelled():  # the caller has gone; nobody else forgets it
                        waiters.remove(future)
        except _Error as error:
            await _abort(context, error)
        return load_pb2.WaitResponse(process=self._process_out(process))

    async def WatchCounters(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.WatchCountersRequest, context: Any
    ) -> AsyncIterator[load_pb2.WatchCountersResponse]:
        interval_ms = request.interval_ms or 1000
        if not 50 <= interval_ms <= 60_000:
            await _abort(context, _Error(Code.INVALID_ARGUMENT, f"interval_ms = {interval_ms}: 50 to 60000, or 0"))
        sent = 0
        while not self._closing.is_set():
            yield self._counters()
            sent += 1
            if sent == request.count:
                return
            try:
                await asyncio.wait_for(self._closing.wait(), interval_ms / 1000)
            except TimeoutError:
                continue

    def _counters(self) -> load_pb2.WatchCountersResponse:
        shell, core = self._guest, self._guest.core
        counters = {**shell.counters(), **self._counts, **self._vcpu_counters()}
        counters["queued"] = sum(len(process.accesses.waiting) for process in core.processes.values())
        vcpus = []
        for vcpu in range(self._scenario.vm.vcpus):
            cpu = core.cpu(vcpu)
            running = 0 if cpu.rq.curr is None else cpu.rq.curr.id
            vcpus.append(
                load_pb2.Vcpu(
                    vcpu=vcpu,
                    task=running,
                    nr_running=cpu.rq.nr_running,
                    nr_switches=cpu.nr_switches,
                    idle_ns=cpu.rq.idle_ns,
                )
            )
        latencies = sorted(self._latencies)
        percentiles = {
            name: latencies[min(len(latencies) - 1, len(latencies) * share // 10_000)]
            for name, share in _PERCENTILES.items()
            if latencies
        }
        return load_pb2.WatchCountersResponse(
            now_ns=core.now_ns,
            counters=counters,
            vcpus=vcpus,
            tasks=Counter(task.state.name for task in core.tasks.values()),
            latency_ns=percentiles,
        )

    def _vcpu_counters(self) -> dict[str, int]:
        """What the vCPU workers count in shared memory."""
        if self._stats is None:
            path: Path = self._run.vcpu_stats(self._vm)
            if not path.exists():
                return {}
            self._stats = VcpuStats.attach(path, self._scenario.vm.vcpus)
        return {name: self._stats.total(name) for name in FIELDS}

    async def GetProfile(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.GetProfileRequest, context: Any
    ) -> load_pb2.GetProfileResponse:
        if not self._scenario.profile_hz:
            await _abort(context, _Error(Code.FAILED_PRECONDITION, "profile_hz = 0: this run takes no samples"))
        profile = self._guest.core.profile
        symbols = [
            load_pb2.GetProfileResponse.Symbol(
                name=row.symbol, kernel=row.kernel, program=row.program, samples=row.samples
            )
            for row in profile.rows()
        ]
        return load_pb2.GetProfileResponse(symbols=symbols, samples=profile.samples, folded=profile.folded())

    async def Shutdown(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.ShutdownRequest, context: Any
    ) -> load_pb2.ShutdownResponse:
        try:
            self._submit(ShutdownArrived(), lambda _: None, 0)
        except _Error as error:
            await _abort(context, error)
        return load_pb2.ShutdownResponse(now_ns=self._guest.core.now_ns)


class _Stream:
    """One AccessStream: reads on while not too many of its accesses are in flight, writes what has retired."""

    def __init__(self, api: LoadApi, context: Any) -> None:
        self._api = api
        self._context = context
        self._done: deque[load_pb2.AccessStreamResponse.Item] = deque()
        self._in_flight: dict[int, int] = {}
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._read_all = False
        self._messages = api.messages

    def wake(self) -> None:
        """Look whether the run is over."""
        self._news.set()

    async def run(self, requests: AsyncIterator[load_pb2.AccessStreamRequest]) -> None:
        """Until the caller has said all and heard all, or the run is over."""
        reading = asyncio.create_task(self._read(requests))
        try:
            while not (self._read_all and not self._in_flight and not self._done):
                if not self._done:
                    await self._news.wait()
                self._news.clear()
                if reading.done():
                    reading.result()
                while self._done:
                    items = [self._done.popleft() for _ in range(min(len(self._done), ITEMS_MAX))]
                    await self._context.write(load_pb2.AccessStreamResponse(items=items))
                    self._messages[_STREAM, "out"] += 1
                if self._api.closing and not self._in_flight:
                    raise _Error(Code.UNAVAILABLE, _GONE)
        except _Error as error:
            await _abort(self._context, error)
        finally:
            reading.cancel()
            for ticket, process in list(self._in_flight.items()):
                self._api._take_back(ticket, process)

    async def _read(self, requests: AsyncIterator[load_pb2.AccessStreamRequest]) -> None:
        try:
            async for request in requests:
                self._messages[_STREAM, "in"] += 1
                if len(request.items) > ITEMS_MAX:
                    raise _Error(Code.INVALID_ARGUMENT, f"items: {len(request.items)}; at most {ITEMS_MAX}")
                for item in request.items:
                    self._take(item)
                if len(self._in_flight) >= IN_FLIGHT_MAX:
                    self._room.clear()
                    await self._room.wait()
            self._read_all = True
        finally:
            self._news.set()

    def _take(self, item: load_pb2.AccessStreamRequest.Item) -> None:
        api, number = self._api, item.id
        ticket = api._ticket()
        try:
            access = api._access(ticket, item.access)
            api._submit(access, lambda answer: self._settled(ticket, number, answer), ticket)
        except _Error as error:
            self._tell(number, error)
        else:
            self._in_flight[ticket] = access.process

    def _settled(self, ticket: int, number: int, answer: Answer | _Error) -> None:
        self._in_flight.pop(ticket, None)
        if len(self._in_flight) < IN_FLIGHT_MAX:
            self._room.set()
        self._tell(number, answer)

    def _tell(self, number: int, answer: Answer | _Error) -> None:
        if isinstance(answer, AccessDone):
            result = load_pb2.AccessStreamResponse.Item(id=number, response=_access_response(answer))
        else:
            if isinstance(answer, Refused):
                answer = _Error(_CODES[answer.why], answer.text)
            assert isinstance(answer, _Error), answer
            code = answer.code.value[0]
            result = load_pb2.AccessStreamResponse.Item(id=number, code=code, message=answer.text)
        self._done.append(result)
        self._news.set()


def _access_response(done: AccessDone) -> load_pb2.AccessResponse:
    return load_pb2.AccessResponse(
        arrived_ns=done.arrived_ns,
        latency_ns=done.done_ns - done.arrived_ns,
        met=_MET[done.met],
        task=done.task,
    )


def _ticket_of(arrival: Arrival) -> int:
    return 0 if isinstance(arrival, ShutdownArrived) else arrival.ticket


async def _abort(context: Any, error: _Error) -> NoReturn:
    await context.abort(error.code, limits.details(error.text))
    raise AssertionError("abort raises")


class ApiServer:
    """The API's own gRPC servers, with health and reflection."""

    def __init__(
        self, api: LoadApi, listeners: Sequence[Listener], security: Security, calls: CallCounter, guest: str
    ) -> None:
        self._api = api
        self._health = health.aio.HealthServicer()
        self._names = (load_pb2.DESCRIPTOR.services_by_name["LoadService"].full_name, health.SERVICE_NAME)
        self._servers = Servers(listeners, security, self._add, 0, calls, (CallLog(guest),))

    def _add(self, server: grpc.aio.Server) -> None:
        add_LoadServiceServicer_to_server(self._api, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*self._names, reflection.SERVICE_NAME), server)

    async def start(self) -> tuple[str, ...]:
        """Listen; returns the addresses. Raises Failure."""
        addresses = await self._servers.start()
        for name in ("", self._names[0]):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return addresses

    async def stop(self, grace_s: float) -> None:
        """Tell whoever waits, and end."""
        await self._health.enter_graceful_shutdown()
        self._api.close()
        await self._servers.stop(grace_s)
