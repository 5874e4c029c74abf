"""The load generator: performs the accesses of jobs on a running guest, over AccessStream, and times them.

Each job has one stream with a task that writes and a task that reads. ``in_flight`` maps the number of an access to
when it was due and when it was sent; it is the one thing both tasks change, and bounds what a job keeps.

Three times are taken of an access. *Guest latency* is what the guest says, in guest time. *Wall latency* runs from the
moment it was sent. In an open loop there is a third: an access that is due while the generator or the guest is behind
is sent late, and a generator that counts from the sending leaves out just what a user would have waited (coordinated
omission). So latency is counted from the time it was *due* as well, and how late it was sent is told.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import grpc

from apf.process import Failure
from apf.v1 import load_pb2
from apf.v1.load_pb2_grpc import LoadServiceStub
from apf.v1.types_pb2 import Access
from deploy import client
from deploy.clusters import BadInput
from deploy.jobs import Job, accesses, arrivals, page_range
from deploy.latencies import Latencies
from deploy.steer import process_of

_WATCH_S = 0.2
_CLOSE_S = 5.0
_SHOW_S = 0.5
_NS = 1_000_000_000
_FOREVER_S = 1e7
_UNSENT_MAX = 1 << 53

_LOAD, _STORE = Access.ACCESS_READ, Access.ACCESS_WRITE
_Met = load_pb2.AccessResponse.Met

Show = Callable[[Sequence["JobRun"]], None]


class JobRun:
    """One job while it runs, and what it came to. Made and used in one event loop."""

    def __init__(self, job: Job, service: Any, process: int, pages: int) -> None:
        self.job = job
        page_range(job, pages)
        self._service = service
        self._process = process
        self._places = accesses(job, pages)
        self._in_flight: dict[int, tuple[int, int]] = {}  # number -> (due, sent), wall ns
        self._moved = asyncio.Event()  # an answer came, or the job is to end
        self._stopping = self._complete = False
        self._began_ns = self._last_ns = time.monotonic_ns()
        self._last_answer_ns = self._began_ns
        self.sent = 0
        self.performed = 0
        self.in_flight_peak = 0
        self.unsent = 0
        """Accesses of an open loop that were due before its end, and had not been sent by then."""
        self.met: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.first_error = ""
        self.guest, self.wall, self.wall_due, self.late = Latencies(), Latencies(), Latencies(), Latencies()
        self._arrived_ns: int | None = None
        self._finished_ns = 0
        self.failed = ""
        """Why the job ended before its time; empty if it did not."""

    # What it came to. ------------------------------------------------------------------------------------------------

    @property
    def wall_s(self) -> float:
        """From the start to the last answer."""
        return (self._last_answer_ns - self._began_ns) / _NS

    @property
    def guest_s(self) -> float:
        """From the first arrival in the guest to the last instruction of an access, guest s."""
        return 0.0 if self._arrived_ns is None else (self._finished_ns - self._arrived_ns) / _NS

    @property
    def per_wall_s(self) -> float:
        """Accesses performed a wall second."""
        return self.performed / self.wall_s if self.wall_s else 0.0

    @property
    def per_guest_s(self) -> float:
        """Accesses performed a guest second."""
        return self.performed / self.guest_s if self.guest_s else 0.0

    @property
    def unanswered(self) -> int:
        """Accesses that were sent and never answered."""
        return len(self._in_flight)

    def document(self) -> dict[str, Any]:
        """For the JSON."""
        document: dict[str, Any] = {
            "job": self.job.model_dump(mode="json"),
            "wall_s": round(self.wall_s, 6),
            "guest_s": round(self.guest_s, 9),
            "sent": self.sent,
            "performed": self.performed,
            "refused": dict(self.errors),
            "first_error": self.first_error,
            "unanswered": self.unanswered,
            "in_flight_peak": self.in_flight_peak,
            "per_wall_s": round(self.per_wall_s, 3),
            "per_guest_s": round(self.per_guest_s, 3),
            "met": dict(self.met),
            "guest_latency": self.guest.document(),
            "wall_latency": self.wall.document(),
            "failed": self.failed,
        }
        if self.job.loop == "open":
            document |= {"unsent": self.unsent, "late": self.late.document()}
            document["wall_latency_from_due"] = self.wall_due.document()
        return document

    # The run. --------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Send nothing more; what is in flight is still awaited."""
        self._stopping = True
        self._moved.set()

    async def run(self) -> None:
        """Perform the job. What ends it early is told in ``failed``."""
        loop = asyncio.get_running_loop()
        call = self._service.AccessStream()
        self._began_ns = self._last_answer_ns = time.monotonic_ns()
        limit_s = float("inf") if self.job.duration_s is None else float(self.job.duration_s)
        ending = loop.call_later(min(limit_s, _FOREVER_S), self.stop)
        reading = loop.create_task(self._read(call))
        writing, watching = loop.create_task(self._write(call)), loop.create_task(self._watch())
        tasks = (reading, writing, watching)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and not watching.done():
                await asyncio.wait({reading}, timeout=_CLOSE_S)  # the rest of the stream, or why it broke
        finally:
            ending.cancel()
            call.cancel()
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self._judge(outcomes)

    def _judge(self, outcomes: Sequence[BaseException | None]) -> None:
        """Say in ``failed`` why the job is not complete, if it is not."""
        for outcome in outcomes:
            if isinstance(outcome, grpc.RpcError):
                self.failed = self.failed or f"{outcome.code().name}: {outcome.details()}"
            elif isinstance(outcome, Failure):
                self.failed = self.failed or str(outcome)
            elif isinstance(outcome, Exception) and not isinstance(outcome, asyncio.InvalidStateError):
                raise outcome  # InvalidStateError: a write to a stream that has broken; the reader knows why
        if not self._complete:
            self.failed = self.failed or "the server ended the stream"

    async def _write(self, call: Any) -> None:
        """Send what the job asks for, then wait for the answers."""
        if self.job.loop == "closed":
            await self._write_closed(call)
        else:
            await self._write_open(call)
        while self._in_flight:
            await self._movement()
        self._complete = True  # from here on the server may end the stream
        await call.done_writing()

    async def _write_closed(self, call: Any) -> None:
        while not self._stopping and (size := self._next_size()):
            if self.job.in_flight_max - len(self._in_flight) < size:
                await self._movement()
                continue
            now_ns = time.monotonic_ns()
            await self._send(call, size, now_ns, now_ns)

    async def _write_open(self, call: Any) -> None:
        job = self.job
        end_ns = None if job.duration_s is None else int(job.duration_s * _NS)
        times = arrivals(job)
        for due_ns in times:
            if not (size := self._next_size()) or (end_ns is not None and due_ns >= end_ns):
                return
            due_ns += self._began_ns  # noqa: PLW2901 - from the job's time to the clock's, once and for all below
            while (wait_ns := due_ns - time.monotonic_ns()) > 0 and not self._stopping:
                await self._movement(wait_ns / _NS)
            while job.in_flight_max - len(self._in_flight) < size and not self._stopping:
                await self._movement()
            if self._stopping:
                self._count_unsent(due_ns - self._began_ns, times)
                return
            await self._send(call, size, due_ns, max(due_ns, time.monotonic_ns()))

    def _count_unsent(self, due_ns: int, times: Iterator[int]) -> None:
        """Count the arrivals, from the one due at ``due_ns``, that have come by now."""
        until_ns = time.monotonic_ns() - self._began_ns
        if self.job.duration_s is not None:
            until_ns = min(until_ns, int(self.job.duration_s * _NS))
        left = _UNSENT_MAX if self.job.number is None else self.job.number - self.sent
        while due_ns < until_ns and self.unsent < left:
            self.unsent = min(self.unsent + self.job.batch, left)
            due_ns = next(times)

    def _next_size(self) -> int:
        """Accesses of the next message; 0 if the job's number has been sent."""
        left = self.job.batch if self.job.number is None else self.job.number - self.sent
        return min(self.job.batch, left)

    async def _send(self, call: Any, size: int, due_ns: int, now_ns: int) -> None:
        items = []
        for page, write in islice(self._places, size):
            self.sent += 1
            self._in_flight[self.sent] = (due_ns, now_ns)
            access = load_pb2.AccessRequest(
                process=self._process, page=page, kind=_STORE if write else _LOAD, length=self.job.length
            )
            items.append(load_pb2.AccessStreamRequest.Item(id=self.sent, access=access))
        self.in_flight_peak = max(self.in_flight_peak, len(self._in_flight))
        await call.write(load_pb2.AccessStreamRequest(items=items))

    async def _movement(self, at_most_s: float | None = None) -> None:
        """Wait until an answer comes or the job is to end (see ``_watch`` for the deadline), or so long."""
        self._moved.clear()
        if at_most_s is None:
            await self._moved.wait()
            return
        timer = asyncio.get_running_loop().call_later(at_most_s, self._moved.set)
        await self._moved.wait()
        timer.cancel()

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            now_ns = time.monotonic_ns()
            for item in response.items:
                self._take(item, now_ns)
            self._last_answer_ns = now_ns
            self._moved.set()

    def _take(self, item: Any, now_ns: int) -> None:
        times = self._in_flight.pop(item.id, None)
        if times is None:
            raise Failure(f"an answer to access {item.id}, which was not asked for or answered before")
        if item.code:
            self.errors[_code_name(item.code)] += 1
            self.first_error = self.first_error or item.message
            return
        due_ns, sent_ns = times
        answer = item.response
        self.performed += 1
        self.met[_met_name(answer.met)] += 1
        self.guest.record(answer.latency_ns)
        self.wall.record(now_ns - sent_ns)
        if self.job.loop == "open":
            self.wall_due.record(now_ns - due_ns)
            self.late.record(sent_ns - due_ns)
        arrived_ns = answer.arrived_ns
        self._arrived_ns = arrived_ns if self._arrived_ns is None else min(self._arrived_ns, arrived_ns)
        self._finished_ns = max(self._finished_ns, arrived_ns + answer.latency_ns)

    async def _watch(self) -> None:
        """Raise Failure when answers are awaited and none has come for ``timeout_s``."""
        timeout_ns = int(self.job.timeout_s * _NS)
        while True:
            await asyncio.sleep(min(_WATCH_S, timeout_ns / _NS))
            waiting_since_ns = max(
                self._last_answer_ns, min((sent for _, sent in self._in_flight.values()), default=0)
            )
            if self._in_flight and time.monotonic_ns() - waiting_since_ns > timeout_ns:
                waiting = len(self._in_flight)
                raise Failure(f"no answer for timeout_s = {self.job.timeout_s}; {waiting} accesses are waiting")


def _code_name(code: int) -> str:
    for known in grpc.StatusCode:
        if known.value[0] == code:
            return str(known.name)
    return f"code {code}"


def _met_name(met: int) -> str:
    """``hit``, ``minor``, ``major`` or ``async``; ``met 9`` if the server is newer than this."""
    return str(_Met.Name(met)).removeprefix("MET_").lower() if met in _Met.values() else f"met {met}"


def run_jobs(address: str, jobs: Sequence[Job], show: Show | None = None) -> list[JobRun]:
    """Perform all jobs together on the guest at ``HOST:PORT``; ``show`` is called now and then. From the main thread.

    Ctrl-C ends them early, with what they have; a second one at once. Raises BadInput or Failure if they cannot start.
    """
    return asyncio.run(_run_jobs(address, jobs, show))


async def _run_jobs(address: str, jobs: Sequence[Job], show: Show | None) -> list[JobRun]:
    loop = asyncio.get_running_loop()
    runs: list[JobRun] = []

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        for run in runs:
            run.stop()

    async with client.aio_channel(address) as channel:
        service = LoadServiceStub(channel)
        try:
            listed = await service.List(load_pb2.ListRequest(), timeout=client.CALL_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise client.refused(error, address) from error
        runs += [JobRun(job, service, *find_process(job, listed)) for job in jobs]
        loop.add_signal_handler(signal.SIGINT, interrupted)
        showing = loop.create_task(_keep_showing(runs, show)) if show is not None else None
        try:
            await asyncio.gather(*(run.run() for run in runs))
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            if showing is not None:
                showing.cancel()
    return runs


async def _keep_showing(runs: Sequence[JobRun], show: Show) -> None:
    while True:
        await asyncio.sleep(_SHOW_S)
        show(runs)


def find_process(job: Job, listed: Any) -> tuple[int, int]:
    """Number and pages of the process that ``job`` means. Raises BadInput."""
    number, name = process_of(str(job.process))
    found = [each for each in listed.processes if (each.process == number if number else each.name == name)]
    if not found:
        there = ", ".join(f"{each.process} ({each.name})" for each in listed.processes) or "none"
        raise BadInput(f"process = {job.process!r}: no such process in the guest; there are {there}")
    if len(found) > 1:
        numbers = ", ".join(str(each.process) for each in found)
        raise BadInput(f"process = {job.process!r}: several have this name; say which by its number: {numbers}")
    return int(found[0].process), int(found[0].pages)
