"""A vCPU's stream in the thread that polls: its attachment, its contract, its turns, and every way it ends.

The clock page, the turns and the messages are hostd's own; the peer is what ``apf.streams`` would make of a call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from apf import limits, wire
from apf.clockcells import Server
from apf.clockpage import ClockPage
from apf.guard import parser
from apf.messages import NEVER_NS
from apf.process import Failure, PeerLost
from apf.serving import TurnServer
from apf.v1 import host_pb2, types_pb2
from apf.vcpu_stream import VcpuStream

Code = grpc.StatusCode
Request, Response = host_pb2.RunVcpuRequest, host_pb2.RunVcpuResponse
PATIENCE_S = 30
ANSWER_NS = 100
"""Guest ns that a request takes."""
GUEST_PAGES = 64


def attach(seq: int = 0, vm: int = 0, vcpu: int = 0, digest: str = "d") -> bytes:
    who = types_pb2.Attach(vm=vm, vcpu=vcpu, scenario_digest=digest)
    return bytes(Request(seq=seq, attach=who).SerializeToString())


def fault(seq: int, time_ns: int, gfn: int = 1, access: int = 1) -> bytes:
    raised = host_pb2.FaultRaised(gfn=gfn, access=access, mode=1)  # type: ignore[arg-type]  # a peer may send any
    return bytes(Request(seq=seq, time_ns=time_ns, fault=raised).SerializeToString())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Vcpu:
    """A stream and its other side: what is said to it, and what it has said."""

    def __init__(self, host: Host) -> None:
        self._polling = host.polling
        self.answers: list[Response] = []
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.ends = 0
        self.hears = True  # of its status, at once
        self.stream = VcpuStream(
            host.turns,
            self,  # type: ignore[arg-type]  # as much of a Peer as is used
            host.parse,
            host.attached,
            host.take,
        )

    # What the stream calls.

    def answer(self, data: bytes) -> None:
        assert self.status is None, "a stream that is over sends nothing"
        self.answers.append(Response.FromString(data))

    def end(self, code: grpc.StatusCode, text: str = "") -> None:
        if self.status is None:
            self.status = (code, text)
            if self.hears:
                self._polling.submit(self._ended)

    def _ended(self) -> None:
        self.stream.ended(Code.CANCELLED if self.status is None else self.status[0])
        self.ends += 1

    # What the peer does.

    async def say(self, data: bytes | None) -> None:
        """A message; None: it says no more."""
        await asyncio.get_running_loop().run_in_executor(self._polling, self.stream.received, data)

    async def ask(self, data: bytes) -> Response:
        """Say that and wait for the answer."""
        seen = len(self.answers)
        await self.say(data)
        await until(lambda: len(self.answers) > seen)
        return self.answers[seen]

    async def hang_up(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._polling, self._ended)

    async def over(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the status that ends the stream."""
        await until(lambda: self.ends > 0)
        assert self.status is not None
        return self.status


class Host:
    """A server of two VMs of one vCPU each, participants 0 and 1; both stand at 0."""

    def __init__(self, clock: ClockPage, polling: ThreadPoolExecutor) -> None:
        self.clock = clock
        self.polling = polling
        self.turns = TurnServer(Server.HOSTD, "d", PATIENCE_S, "/s/RunVcpu")
        self.turns.open(clock, {(0, 0): 0, (1, 0): 1}, on_loop=False)
        self.parse = parser(wire.RUN_VCPU, Request.FromString)
        self.taken: list[tuple[int, int, int]] = []  # (vm, vcpu, time)
        self.bug: Exception | None = None
        self.present = asyncio.Event()  # the VMs
        self.present.set()

    async def attached(self, vm: int, vcpu: int, seq: int) -> Response:
        await self.present.wait()
        if self.bug is not None:
            raise self.bug
        return Response(seq=seq, attached=types_pb2.Attached(start_ns=0))

    def take(self, vm: int, vcpu: int, message: Request) -> tuple[int, Response]:
        wire.host_request_in(message, GUEST_PAGES)
        if self.bug is not None:
            raise self.bug
        self.taken.append((vm, vcpu, message.time_ns))
        at_ns = message.time_ns + ANSWER_NS
        return at_ns, Response(seq=message.seq, at_ns=at_ns, retry=host_pb2.Retry())

    async def open(self) -> Vcpu:
        """A new stream."""
        return await asyncio.get_running_loop().run_in_executor(self.polling, Vcpu, self)

    async def vcpu(self, vm: int = 0) -> Vcpu:
        """A stream that is attached."""
        made = await self.open()
        assert (await made.ask(attach(vm=vm))).HasField("attached")
        return made

    def streams(self, code: grpc.StatusCode) -> int:
        """How many have ended with it."""
        return self.turns.calls.calls["/s/RunVcpu", code.name]

    async def failed(self, match: str, kind: type[Failure] = Failure) -> None:
        """Wait for the run to fail, with that reason."""
        await until(lambda: self.turns.is_over)
        assert self.clock.aborted
        with pytest.raises(kind, match=match):
            self.turns.raise_failure()

    async def goes_on(self, vm: int = 1) -> None:
        """The run is as it was: a vCPU attaches, and is answered once nobody can be earlier."""
        self.turns.raise_failure()
        assert not self.clock.aborted and not self.turns.is_over
        other = await self.vcpu(vm)
        self.clock.publish(1 - vm, NEVER_NS)
        assert (await other.ask(fault(1, 0))).at_ns == ANSWER_NS


def served(tmp_path: Path, test: Callable[[Host], Awaitable[None]]) -> None:
    @asynccontextmanager
    async def host() -> AsyncIterator[Host]:
        with ThreadPoolExecutor(1, "streams") as polling:
            made = Host(ClockPage.create(tmp_path / "clock", 2), polling)
            try:
                yield made
            finally:
                made.turns.finish()

    async def run() -> None:
        async with asyncio.timeout(2 * PATIENCE_S), host() as made:
            await test(made)

    asyncio.run(run())


# Attachment ----------------------------------------------------------------------------------------------------------


def test_attaches_and_is_answered_in_order(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        assert not host.turns.all_attached.is_set()
        host.clock.publish(1, NEVER_NS)
        assert [(await vcpu.ask(fault(seq, 1000 * seq))).at_ns for seq in (1, 2, 3)] == [1100, 2100, 3100]
        assert [answer.seq for answer in vcpu.answers] == [0, 1, 2, 3]
        assert host.taken == [(0, 0, 1000), (0, 0, 2000), (0, 0, 3000)]
        await host.vcpu(vm=1)
        assert host.turns.all_attached.is_set()

    served(tmp_path, test)


def test_the_answer_settles_the_slot(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        await vcpu.ask(fault(1, 0))
        assert host.clock.slot_ns(0) == ANSWER_NS

    served(tmp_path, test)


@pytest.mark.parametrize(
    ("first", "code", "why"),
    [
        (fault(0, 0), Code.INVALID_ARGUMENT, "first message on a stream is attach"),
        (attach(seq=1), Code.INVALID_ARGUMENT, "seq = 1: the first message"),
        (attach(digest="e"), Code.FAILED_PRECONDITION, "attach.scenario_digest = 'e': this run has 'd'"),
        (attach(vcpu=1), Code.INVALID_ARGUMENT, "no vCPU 1 of VM 0"),
        (b"\xff" * 20, Code.INVALID_ARGUMENT, "20 bytes that are no message"),
        (bytes(4097), Code.RESOURCE_EXHAUSTED, "allowed: 4096"),
    ],
    ids=["request", "seq", "digest", "vcpu", "garbage", "huge"],
)
def test_who_is_not_attached_can_only_be_refused(
    tmp_path: Path, first: bytes, code: grpc.StatusCode, why: str
) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.open()
        await vcpu.say(first)
        status, text = await vcpu.over()
        assert status is code and why in text
        await until(lambda: host.streams(code) == 1)
        assert not vcpu.answers
        await host.goes_on()

    served(tmp_path, test)


def test_a_second_stream_of_a_vcpu_is_refused(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        second = await host.open()
        await second.say(attach())
        assert await second.over() == (Code.ALREADY_EXISTS, "attach: vCPU 0 of VM 0 is attached already")
        await until(lambda: host.streams(Code.ALREADY_EXISTS) == 1)
        assert (await vcpu.ask(fault(1, 0))).at_ns == ANSWER_NS  # the first goes on
        await host.goes_on()

    served(tmp_path, test)


def test_no_first_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(host: Host) -> None:
        monkeypatch.setattr(limits, "FIRST_MESSAGE_S", 0.01)
        silent = await host.open()
        silent.hears = False
        await until(lambda: silent.status is not None)
        await silent.say(attach())  # was on its way
        await silent.hang_up()
        assert await silent.over() == (Code.DEADLINE_EXCEEDED, "no first message within 0.01 s")
        await until(lambda: host.streams(Code.DEADLINE_EXCEEDED) == 1)
        monkeypatch.undo()
        await host.goes_on(vm=0)  # nobody is attached as that vCPU

    served(tmp_path, test)


def test_the_first_message_ends_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(host: Host) -> None:
        host.present.clear()
        monkeypatch.setattr(limits, "FIRST_MESSAGE_S", 0)
        vcpu = Vcpu(host)  # on the loop, which sees both at once
        vcpu.stream.received(attach())
        await until(lambda: host.turns.is_attached(0))
        late = await host.open()  # this one's deadline is behind that one's
        assert (await late.over())[0] is Code.DEADLINE_EXCEEDED
        assert vcpu.status is None
        host.present.set()
        await until(lambda: len(vcpu.answers) == 1)

    served(tmp_path, test)


def test_the_end_ends_the_first_messages_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(host: Host) -> None:
        monkeypatch.setattr(limits, "FIRST_MESSAGE_S", 0)
        gone = Vcpu(host)  # on the loop, which sees both at once
        gone.stream.ended(Code.CANCELLED)
        late = await host.open()
        assert (await late.over())[0] is Code.DEADLINE_EXCEEDED
        assert gone.status is None

    served(tmp_path, test)


def test_leaves_before_its_first_message(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.open()
        await vcpu.say(None)
        assert await vcpu.over() == (Code.OK, "")
        gone = await host.open()
        await gone.hang_up()
        await until(lambda: host.streams(Code.OK) == host.streams(Code.CANCELLED) == 1)
        await host.goes_on()

    served(tmp_path, test)


def test_hangs_up_while_its_vm_is_awaited(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        host.present.clear()
        vcpu = await host.open()
        await vcpu.say(attach())
        await until(lambda: host.turns.is_attached(0))
        await vcpu.hang_up()
        await host.failed("lost vCPU 0 of VM 0", PeerLost)
        host.present.set()
        await host.vcpu(1)  # who waited longer would have been told before
        assert not host.turns.is_attached(0) and not vcpu.answers

    served(tmp_path, test)


def test_an_error_while_it_attaches(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        host.bug = ValueError("a bug")
        vcpu = await host.open()
        await vcpu.say(attach())
        assert (await vcpu.over())[0] is Code.UNKNOWN
        await host.failed("ValueError: a bug")

    served(tmp_path, test)


# The contract --------------------------------------------------------------------------------------------------------

LAST_NS = 1000 + ANSWER_NS
"""When the vCPU goes on that breaks it."""


@pytest.mark.parametrize(
    ("data", "code", "why"),
    [
        (fault(1, LAST_NS), Code.INVALID_ARGUMENT, f"seq = 1, time_ns = {LAST_NS}: expected 2 and {LAST_NS} to"),
        (fault(3, LAST_NS), Code.INVALID_ARGUMENT, f"seq = 3, time_ns = {LAST_NS}: expected 2 and"),
        (fault(2, LAST_NS - 1), Code.INVALID_ARGUMENT, f"seq = 2, time_ns = {LAST_NS - 1}: expected 2 and"),
        (
            fault(2, NEVER_NS),
            Code.INVALID_ARGUMENT,
            f"time_ns = {NEVER_NS}: expected 2 and {LAST_NS} to {NEVER_NS - 1}",
        ),
        (fault(2, 2**64 - 1), Code.INVALID_ARGUMENT, f"time_ns = {2**64 - 1}: expected"),
        (fault(2, LAST_NS, gfn=GUEST_PAGES), Code.INVALID_ARGUMENT, f"gfn = {GUEST_PAGES}"),
        (fault(2, LAST_NS, access=99), Code.INVALID_ARGUMENT, "fault.access = 99"),
        (attach(seq=2), Code.INVALID_ARGUMENT, f"seq = 2, time_ns = 0: expected 2 and {LAST_NS}"),
        (b"\xff" * 20, Code.INVALID_ARGUMENT, "20 bytes that are no message"),
        (bytes(4097), Code.RESOURCE_EXHAUSTED, "a message of 4097 bytes; allowed: 4096"),
    ],
    ids=["again", "skipped", "back", "never", "far", "gfn", "enum", "attach", "garbage", "huge"],
)
def test_a_breach_is_answered_and_fails_the_run(tmp_path: Path, data: bytes, code: grpc.StatusCode, why: str) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        host.clock.publish(1, NEVER_NS)
        await vcpu.ask(fault(1, 1000))
        await vcpu.say(data)
        status, text = await vcpu.over()
        assert status is code and why in text
        await host.failed(f"^vCPU 0 of VM 0: .*{why}")
        assert host.taken == [(0, 0, 1000)] and len(vcpu.answers) == 2
        assert host.streams(code) == 1

    served(tmp_path, test)


def test_attach_is_no_request(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        await vcpu.say(attach(seq=1))
        status, text = await vcpu.over()
        assert status is Code.INVALID_ARGUMENT and "request = attach" in text
        await host.failed("^vCPU 0 of VM 0: .*request = attach")

    served(tmp_path, test)


def test_the_run_fails_after_the_peer_was_told(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        ended: list[bool] = []
        host.turns.survive(lambda vm, failure: bool(ended.append(vcpu.status is not None)), lambda vm: None)
        await vcpu.say(fault(7, 0))
        await host.failed("seq = 7")
        assert ended[0]

    served(tmp_path, test)


def test_an_error_of_the_server(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        host.bug = ValueError("a bug")
        with pytest.raises(ValueError, match="a bug"):  # the thread that polls logs it
            await vcpu.say(fault(1, 0))
        assert await vcpu.over() == (Code.UNKNOWN, "an error of this server")
        await host.failed("ValueError: a bug")

    served(tmp_path, test)


def test_an_error_of_the_server_once_it_is_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[threading.ExceptHookArgs] = []

    async def test(host: Host) -> None:
        monkeypatch.setattr(threading, "excepthook", raised.append)
        vcpu = await host.vcpu()
        await vcpu.say(fault(1, 500))
        host.bug = ValueError("a bug")
        host.clock.publish(1, 1000)
        assert (await vcpu.over())[0] is Code.UNKNOWN
        await host.failed("ValueError: a bug")
        await until(lambda: len(raised) == 1)

    served(tmp_path, test)


# Turns ---------------------------------------------------------------------------------------------------------------


def test_waits_for_its_turn(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        first, second = await host.vcpu(0), await host.vcpu(1)
        await second.say(fault(1, 700))
        await first.say(fault(1, 900))
        assert not host.taken
        host.clock.publish(0, 900)  # lets the second one's pass; then it stands at 800
        await until(lambda: len(second.answers) == 2)
        assert host.taken == [(1, 0, 700)] and len(first.answers) == 1
        host.clock.publish(1, 950)  # on its way to its next request, as a vCPU does
        assert (await second.ask(fault(2, 950))).at_ns == 1050
        assert host.taken == [(1, 0, 700), (0, 0, 900), (1, 0, 950)]

    served(tmp_path, test)


def test_a_peer_that_hangs_up_while_it_waits(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        await vcpu.say(fault(1, 500))
        await vcpu.hang_up()
        await host.failed("lost vCPU 0 of VM 0: its stream ended before its run", PeerLost)
        host.turns.forget_waiting()
        assert not host.taken and len(vcpu.answers) == 1 and host.streams(Code.CANCELLED) == 1

    served(tmp_path, test)


def test_the_request_of_a_lost_vm_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    lost: list[tuple[int, str]] = []

    async def test(host: Host) -> None:
        def survives(vm: int, failure: Failure) -> bool:
            lost.append((vm, str(failure)))
            return True

        def detached(vm: int) -> None:
            host.clock.evict(range(vm, vm + 1), Server.GUESTSCHED)
            host.turns.forget_waiting()

        host.turns.survive(survives, detached)
        vcpu, other = await host.vcpu(0), await host.vcpu(1)
        host.clock.publish(0, 500)
        await vcpu.say(fault(1, 500))
        await other.say(fault(1, 700))
        await vcpu.hang_up()
        await until(lambda: len(other.answers) == 2)
        assert host.taken == [(1, 0, 700)] and len(vcpu.answers) == 1
        assert lost == [(0, "lost vCPU 0 of VM 0: its stream ended before its run")]
        host.turns.raise_failure()
        assert (await other.ask(fault(2, 800))).at_ns == 900

    served(tmp_path, test)


# The end -------------------------------------------------------------------------------------------------------------


def test_an_end_before_the_runs(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        await vcpu.say(None)
        assert await vcpu.over() == (Code.OK, "")
        await host.failed("lost vCPU 0 of VM 0: its stream ended before its run", PeerLost)

    served(tmp_path, test)


def test_an_end_after_its_own(tmp_path: Path) -> None:
    left: list[int] = []

    async def test(host: Host) -> None:
        host.turns.survive(lambda vm, failure: False, left.append)
        vcpu, other = await host.vcpu(0), await host.vcpu(1)
        host.clock.publish(0, NEVER_NS)
        await vcpu.say(None)
        assert await vcpu.over() == (Code.OK, "")
        await until(lambda: left == [0])
        host.turns.raise_failure()
        assert (await other.ask(fault(1, 5))).at_ns == 105
        host.clock.publish(1, NEVER_NS)
        await other.say(None)
        await host.turns.wait_left()
        await until(lambda: left == [0, 1])
        host.turns.raise_failure()
        assert host.streams(Code.OK) == 2

    served(tmp_path, test)


def test_an_end_after_the_runs(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vcpu = await host.vcpu()
        host.turns.finish()
        await vcpu.say(None)
        await host.turns.wait_left()
        assert vcpu.status == (Code.OK, "")
        host.turns.raise_failure()  # there is none
        assert not host.clock.aborted

    served(tmp_path, test)


def test_an_end_when_the_loop_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: list[Vcpu] = []

    async def test(host: Host) -> None:
        made.append(await host.vcpu())

    served(tmp_path, test)
    with caplog.at_level(logging.DEBUG):
        made[0].stream.ended(Code.CANCELLED)  # the process ends: there is nobody to tell
    assert made[0].stream.dropped and not caplog.records
