"""The API for load generators (``protos/apf/v1/load.proto``), on the event loop that serves the vCPUs too.

What changes the guest goes through the inbox (``inbox``). What only looks is answered at once from the kernel's tables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from apf import limits
from apf.messages import PAGE_SIZE
from apf.rundir import RunDir
from apf.scenario import Scenario, ScenarioError
from apf.serving import TurnServer
from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import LoadServiceServicer
from guestsched.accesses import AccessStream, access_of, access_response, process_of
from guestsched.arrival_log import ArrivalLog
from guestsched.core.arrivals import (
    AccessDone,
    Answer,
    InjectArrived,
    InjectTaken,
    KillArrived,
    KillTaken,
    ReplayArrived,
    ReplayDone,
    ShutdownArrived,
    SpawnArrived,
    Spawned,
)
from guestsched.core.core import GuestCore
from guestsched.core.process import Process
from guestsched.core.task import AccessList, TaskState, TraceAccess
from guestsched.inbox import CallError, Code, Inbox, abort
from guestsched.inject import InjectWish
from guestsched.plan import vm_seed
from guestsched.shell import GuestShell
from guestsched.showing import Counters, process_out
from guestsched.spawn import SpawnWish

REPLAY_MAX = 1_000_000
_REPLAY = "apf.v1.LoadService/Replay"


class LoadApi(LoadServiceServicer):
    """The service."""

    def __init__(self, scenario: Scenario, run: RunDir, vm: int, turns: TurnServer, log: ArrivalLog) -> None:
        self._scenario = scenario
        self._vm = vm
        self._turns = turns
        self._messages = turns.calls.messages
        self._inbox = Inbox(turns, log)
        self._counters = Counters(scenario, run, vm)
        self._streams: set[AccessStream] = set()
        self._trace_items = 0

    def serve(self, shell: GuestShell) -> None:
        """The guest is there."""
        self._inbox.serve(shell)

    @property
    def _core(self) -> GuestCore:
        return self._inbox.guest.core

    def answered(self, answer: Answer) -> None:
        """The guest has answered an arrival."""
        if isinstance(answer, AccessDone):
            self._counters.access_done(answer)
        self._inbox.answered(answer)

    def close(self) -> None:
        """The run is over: whoever waits is told."""
        self._inbox.close()
        for stream in self._streams:
            stream.wake()

    # Calls that change the guest -------------------------------------------------------------------------------------

    async def Access(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.AccessRequest, context: Any
    ) -> load_pb2.AccessResponse:
        ticket = self._inbox.ticket()
        try:
            access = access_of(self._core, ticket, request)
        except CallError as error:
            await abort(context, error)
        return access_response(await self._inbox.ask(context, ticket, access, access.process))

    async def AccessStream(  # noqa: N802, D102 - the generated base names and documents it
        self, request_iterator: AsyncIterator[load_pb2.AccessStreamRequest], context: Any
    ) -> None:
        stream = AccessStream(self._inbox, context, self._messages)
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
                self._messages[_REPLAY, "in"] += 1
                if len(request.items) > limits.REPLAY_ITEMS_MAX:
                    text = f"items: {len(request.items)}; at most {limits.REPLAY_ITEMS_MAX} a message"
                    raise CallError(Code.INVALID_ARGUMENT, text)
                if self._trace_items + len(request.items) > limits.TRACES_ITEMS_MAX:
                    text = (
                        f"{self._trace_items} accesses of traces are here already; at most {limits.TRACES_ITEMS_MAX}"
                    )
                    raise CallError(Code.RESOURCE_EXHAUSTED, text)
                if process is None:
                    process = process_of(self._core, request.process, request.process_name)
                if len(items) + len(request.items) > REPLAY_MAX:
                    raise CallError(Code.INVALID_ARGUMENT, f"items: more than {REPLAY_MAX}")
                pages = process.plan.memory[1]
                for item in request.items:
                    if item.page >= pages:
                        where = f"items[{len(items)}].page = {item.page}"
                        raise CallError(Code.INVALID_ARGUMENT, f"{where}: process {process.asid} has {pages} pages")
                    items.append(TraceAccess(item.page * PAGE_SIZE, 1, item.write, item.think))
                    self._trace_items += 1
            if process is None or not items:
                raise CallError(Code.INVALID_ARGUMENT, "items: at least one")
        except CallError as error:
            await abort(context, error)
        ticket = self._inbox.ticket()
        done: ReplayDone = await self._inbox.ask(
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
            await abort(context, CallError(Code.INVALID_ARGUMENT, str(error)))
        ticket = self._inbox.ticket()
        self._inbox.wishes[ticket] = wish
        spawned: Spawned = await self._inbox.ask(context, ticket, SpawnArrived(ticket, plan))
        return load_pb2.SpawnResponse(process=spawned.process, tasks=spawned.tasks, started_ns=spawned.at_ns)

    async def Kill(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.KillRequest, context: Any
    ) -> load_pb2.KillResponse:
        try:
            process = process_of(self._core, request.process, request.process_name)
        except CallError as error:
            await abort(context, error)
        ticket = self._inbox.ticket()
        taken: KillTaken = await self._inbox.ask(context, ticket, KillArrived(ticket, process.asid, request.task))
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
            await abort(context, CallError(Code.INVALID_ARGUMENT, str(error)))
        ticket = self._inbox.ticket()
        taken: InjectTaken = await self._inbox.ask(context, ticket, InjectArrived(ticket, request.vcpu, wish.fault()))
        return load_pb2.InjectResponse(at_ns=taken.at_ns)

    async def Shutdown(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.ShutdownRequest, context: Any
    ) -> load_pb2.ShutdownResponse:
        try:
            self._inbox.submit(ShutdownArrived(), lambda _: None, 0)
        except CallError as error:
            await abort(context, error)
        return load_pb2.ShutdownResponse(now_ns=self._core.now_ns)

    # Calls that look -------------------------------------------------------------------------------------------------

    async def List(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.ListRequest, context: Any
    ) -> load_pb2.ListResponse:
        core = self._core
        processes = [process_out(self._core, process) for process in core.processes.values()]
        # An idle guest takes no steps, and its time passes all the same.
        now_ns = max(core.now_ns, self._turns.now_ns)
        return load_pb2.ListResponse(processes=processes, now_ns=now_ns)

    async def Wait(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.WaitRequest, context: Any
    ) -> load_pb2.WaitResponse:
        try:
            process = process_of(self._core, request.process, request.process_name)
            tasks = self._core.tasks
            if any(tasks[task_id].state is not TaskState.DEAD for task_id in process.tasks):
                await self._inbox.end_of(process.asid)
        except CallError as error:
            await abort(context, error)
        return load_pb2.WaitResponse(process=process_out(self._core, process))

    async def WatchCounters(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.WatchCountersRequest, context: Any
    ) -> AsyncIterator[load_pb2.WatchCountersResponse]:
        interval_ms = request.interval_ms or 1000
        if not 50 <= interval_ms <= 60_000:
            await abort(context, CallError(Code.INVALID_ARGUMENT, f"interval_ms = {interval_ms}: 50 to 60000, or 0"))
        sent = 0
        while not self._inbox.closing:
            yield self._counters.response(self._inbox.guest)
            sent += 1
            if sent == request.count:
                return
            await self._inbox.closed(interval_ms / 1000)

    async def GetProfile(  # noqa: N802, D102 - the generated base names and documents it
        self, request: load_pb2.GetProfileRequest, context: Any
    ) -> load_pb2.GetProfileResponse:
        if not self._scenario.profile_hz:
            await abort(context, CallError(Code.FAILED_PRECONDITION, "profile_hz = 0: this run takes no samples"))
        profile = self._core.profile
        symbols = [
            load_pb2.GetProfileResponse.Symbol(
                name=row.symbol, kernel=row.kernel, program=row.program, samples=row.samples
            )
            for row in profile.rows()
        ]
        return load_pb2.GetProfileResponse(symbols=symbols, samples=profile.samples, folded=profile.folded())
