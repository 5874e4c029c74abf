"""Limits of messages, calls and time, and messages that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from everything import Everything, serving, status

from apf import limits
from apf.listen import sockets
from apf.roles import Role
from apf.rundir import RunDir

pytestmark = pytest.mark.grpc

Code = grpc.StatusCode
KILL, LIST, REPLAY, WATCH = (f"/apf.v1.LoadService/{name}" for name in ("Kill", "List", "Replay", "WatchCounters"))
Test = Callable[[Everything, grpc.aio.Channel], Awaitable[None]]


def as_operator(tmp_path: Path, test: Test) -> None:
    async def run() -> None:
        async with (
            serving(sockets(RunDir(tmp_path, tmp_path), "d", [Role.OPERATOR])) as (everything, (address,)),
            grpc.aio.insecure_channel(address) as channel,
        ):
            await test(everything, channel)

    asyncio.run(run())


def test_a_message_that_is_none(tmp_path: Path) -> None:
    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        code, text = await status(channel, KILL, b"\xff\xff\xff")
        assert code is Code.INVALID_ARGUMENT and "3 bytes" in text and not everything.called
        call = channel.stream_unary(KILL)()
        await call.done_writing()
        assert await call.code() is Code.INVALID_ARGUMENT and "no request" in await call.details()

    as_operator(tmp_path, test)


def test_sizes(tmp_path: Path) -> None:
    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        for method in (KILL, REPLAY):
            size = limits.request_bytes_max(method)
            code, text = await status(channel, method, bytes(size + 1))
            assert code is Code.RESOURCE_EXHAUSTED and str(size) in text
        code, _ = await status(channel, KILL, bytes(limits.request_bytes_max("/apf.v1.LoadService/Spawn") + 1))
        assert code is Code.RESOURCE_EXHAUSTED
        code, _ = await status(channel, KILL, metadata=(("x", "y" * 2 * limits.METADATA_BYTES_MAX),))
        assert code is Code.RESOURCE_EXHAUSTED
        assert not everything.called

    as_operator(tmp_path, test)


async def held(
    everything: Everything, channel: grpc.aio.Channel, method: str, count: int
) -> list[asyncio.Future[tuple[Code, str]]]:
    """So many calls that are under way until ``everything.holds`` is set."""
    everything.holds.clear()
    calls = [asyncio.ensure_future(status(channel, method)) for _ in range(count)]
    while len(everything.called) < count:
        await asyncio.sleep(0.01)
    return calls


def test_calls_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALLS_MAX", {WATCH: 2})

    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        calls = await held(everything, channel, WATCH, 2)
        code, text = await status(channel, WATCH)
        assert code is Code.RESOURCE_EXHAUSTED and "2 calls" in text
        everything.holds.set()
        assert [code for code, _ in await asyncio.gather(*calls)] == [Code.OK, Code.OK]
        assert (await status(channel, WATCH))[0] is Code.OK  # and they are counted back

    as_operator(tmp_path, test)


def test_rpcs_of_a_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "API_RPCS_MAX", 3)

    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        calls = await held(everything, channel, LIST, 3)
        # Three streams a connection, too: the fourth call needs a connection of its own.
        other = grpc.aio.insecure_channel(channel_address(tmp_path), options=(("grpc.use_local_subchannel_pool", 1),))
        async with other:
            assert (await status(other, LIST))[0] is Code.RESOURCE_EXHAUSTED
        everything.holds.set()
        assert {code for code, _ in await asyncio.gather(*calls)} == {Code.OK}

    as_operator(tmp_path, test)


def channel_address(tmp_path: Path) -> str:
    return RunDir(tmp_path, tmp_path).address("operator", "d")


def test_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apf.guard.first_message.__defaults__", (0.2,))

    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        call: Any = channel.stream_unary(KILL)()
        assert await call.code() is Code.DEADLINE_EXCEEDED and "no first message within 0.2 s" in await call.details()
        assert not everything.called

    as_operator(tmp_path, test)


def test_unary_calls_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_S", {LIST: 0.2})

    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        everything.holds.clear()
        code, text = await status(channel, LIST)
        assert code is Code.DEADLINE_EXCEEDED and "no answer within 0.2 s" in text

    as_operator(tmp_path, test)


def test_details_are_short() -> None:
    assert limits.details("x" * 10) == "x" * 10
    assert len(limits.details("x" * 10**6)) == limits.DETAILS_CHARS_MAX


def test_a_method_that_nobody_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(everything: Everything, channel: grpc.aio.Channel) -> None:
        everything.error = NotImplementedError("Method not implemented!")
        code, text = await status(channel, LIST)
        assert code is Code.UNIMPLEMENTED and "not offered" in text

    as_operator(tmp_path, test)
    assert "Traceback" not in caplog.text
