"""A server whose polling thread answers: messages, refusals, limits, and every way a stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from apf.calls import CallCounter
from apf.guard import Servers, for_streams
from apf.listen import PLAIN, Listener, sockets
from apf.roles import HOSTD, Role
from apf.rundir import RunDir
from apf.streams import Peer, StreamMethod
from apf.wire import RUN_VCPU

pytestmark = pytest.mark.grpc

Code = grpc.StatusCode
FATAL = b"fatal"


class Echo:
    """Says what it hears. Notes how streams end."""

    def __init__(self) -> None:
        self.codes: list[grpc.StatusCode] = []
        self.errors: list[str] = []

    def opened(self, peer: Peer) -> _Echoing:
        return _Echoing(self, peer)

    def failed(self, error: Exception) -> None:
        self.errors.append(str(error))


class _Echoing:
    def __init__(self, echo: Echo, peer: Peer) -> None:
        self._echo = echo
        self._peer = peer

    def received(self, data: bytes | None) -> None:
        if data is None:
            self._peer.end(Code.OK)
        elif data == FATAL:
            self._peer.end(Code.INVALID_ARGUMENT, "fatal: x" + "y" * 10_000)
            self._peer.end(Code.OK)  # the first one stays
            raise ValueError("fatal")
        else:
            self._peer.answer(data + b"!")

    def ended(self, code: grpc.StatusCode) -> None:
        self._echo.codes.append(code)


Test = Callable[[Echo, grpc.aio.Channel, CallCounter, Servers], Awaitable[None]]


def serving(tmp_path: Path, test: Test, vcpus: int = 4) -> Echo:
    """Run ``test`` against a listener for vCPUs."""

    async def run() -> Echo:
        echo, calls = Echo(), CallCounter()
        method = StreamMethod(RUN_VCPU, echo.opened, echo.failed)
        listeners = sockets(RunDir(tmp_path, tmp_path), "d", [Role.VCPU])
        servers = Servers(listeners, PLAIN, lambda _: None, vcpus, calls, streams=method)
        (address,) = await servers.start()
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                await asyncio.wait_for(test(echo, channel, calls, servers), 30)
        finally:
            await servers.stop(0)
            await servers.stop(0)  # and once more does no harm
        return echo

    return asyncio.run(run())


def test_messages_and_the_end(tmp_path: Path) -> None:
    async def test(echo: Echo, channel: grpc.aio.Channel, calls: CallCounter, servers: Servers) -> None:
        streams = [channel.stream_stream(RUN_VCPU)() for _ in range(3)]
        for number in range(50):
            for stream in streams:
                await stream.write(b"%d" % number)
            for stream in streams:
                assert await stream.read() == b"%d!" % number
        for stream in streams:
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is Code.OK

    assert serving(tmp_path, test).codes == [Code.OK] * 3


def test_a_handler_that_ends_a_stream_and_fails(tmp_path: Path) -> None:
    async def test(echo: Echo, channel: grpc.aio.Channel, calls: CallCounter, servers: Servers) -> None:
        stream = channel.stream_stream(RUN_VCPU)()
        await stream.write(FATAL)
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await stream.read()
        assert (await stream.details()).startswith("fatal: x") and len(await stream.details()) == 1000
        other = channel.stream_stream(RUN_VCPU)()  # the server goes on
        await other.write(b"a")
        assert await other.read() == b"a!"

    echo = serving(tmp_path, test)
    assert echo.errors == ["fatal"] and echo.codes[0] is Code.INVALID_ARGUMENT


def test_other_methods_are_refused_and_counted(tmp_path: Path) -> None:
    async def test(echo: Echo, channel: grpc.aio.Channel, calls: CallCounter, servers: Servers) -> None:
        for method, code, text in (
            ("/apf.v1.HostService/LoadVm", Code.PERMISSION_DENIED, "as vcpu: allowed: guest"),
            ("/apf.v1.HostService/Other", Code.UNIMPLEMENTED, "not found"),
            ("/", Code.UNIMPLEMENTED, "not found"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(method)(b"x")
            assert refused.value.code() is code and text in (refused.value.details() or "")
        assert calls.calls["apf.v1.HostService/LoadVm", "PERMISSION_DENIED"] == 1
        assert calls.calls["unknown", "UNIMPLEMENTED"] == 2

    assert serving(tmp_path, test).codes == []


def test_calls_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apf.limits.SPARE_RPCS", 1)

    async def open_one(channel: Any) -> Any:
        stream = channel.stream_stream(RUN_VCPU)()
        await stream.write(b"a")
        return stream if await stream.read() is not grpc.aio.EOF else None

    async def test(echo: Echo, channel: grpc.aio.Channel, calls: CallCounter, servers: Servers) -> None:
        held = [await open_one(channel) for _ in range(2)]
        address = RunDir(tmp_path, tmp_path).address("vcpu", "d")
        # As many streams a connection, too: one more call needs a connection of its own.
        other = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        async with other:
            stream = other.stream_stream(RUN_VCPU)()
            assert await stream.code() is Code.RESOURCE_EXHAUSTED and "2 calls" in await stream.details()
            held[0].cancel()
            while echo.codes != [Code.CANCELLED]:
                await asyncio.sleep(0.01)
            assert await open_one(other) is not None

    serving(tmp_path, test, vcpus=1)


def test_stopping_ends_streams(tmp_path: Path) -> None:
    async def test(echo: Echo, channel: grpc.aio.Channel, calls: CallCounter, servers: Servers) -> None:
        stream = channel.stream_stream(RUN_VCPU)()
        await stream.write(b"a")
        await stream.read()
        stopping = asyncio.ensure_future(servers.stop(0.05))
        assert await stream.code() in {Code.UNAVAILABLE, Code.CANCELLED}
        await stopping

    assert serving(tmp_path, test).codes == [Code.CANCELLED]


def test_only_listeners_for_vcpus_alone(tmp_path: Path) -> None:
    own = sockets(RunDir(tmp_path, tmp_path), "d", HOSTD)
    assert for_streams(own)
    assert not for_streams([*own, Listener("127.0.0.1:0", HOSTD)])
    assert not for_streams([Listener("0.0.0.0:0", frozenset({Role.VCPU}), by_certificate=True)])
