"""Where /metrics is served, what it says of the build, and how gRPC calls are counted."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from apf import metrics
from apf.calls import CallCounter
from apf.histogram import BOUNDS_NS, Histogram
from apf.process import Failure
from apf.rundir import RunDir

pytestmark = pytest.mark.grpc

NAME = "test.v1.Echo"


@pytest.fixture
def run() -> Iterator[RunDir]:
    made = RunDir.make()
    yield made
    made.remove()


def samples(collected: Any) -> dict[tuple[str, ...], float]:
    """Value by name and label values, as scraped."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in collected
        for sample in family.samples
    }


def test_serve_leaves_its_address(run: RunDir) -> None:
    def collect() -> list[Metric]:
        return [GaugeMetricFamily("apf_test", "A test.", value=3)]

    port = metrics.serve(run, "one", "hostd", collect)
    assert run.read_report("metrics-one") == {"port": port, "address": f"127.0.0.1:{port}"}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = {
            sample.name: sample
            for family in text_string_to_metric_families(answer.read().decode())
            for sample in family.samples
        }
    assert found["apf_test"].value == 3
    assert set(found["apf_build_info"].labels) == {"version", "python", "daemon"}
    with pytest.raises(Failure, match=f"cannot serve /metrics at 127.0.0.1:{port}"):
        metrics.serve(run, "two", "hostd", collect, listen=f"127.0.0.1:{port}")


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "nowhere.invalid:0"])
def test_an_address_that_is_none(listen: str, run: RunDir) -> None:
    with pytest.raises(Failure, match="cannot serve /metrics"):
        metrics.serve(run, "one", "hostd", listen=listen)


def test_a_wished_port(run: RunDir) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert metrics.serve(run, "one", "hostd", listen=f"127.0.0.1:{port}") == port


def test_a_histogram_is_cumulative_and_in_seconds() -> None:
    histogram = Histogram()
    for value in (500, 1_500, 1_500, 3 * 10**9):
        histogram.observe(value)
    family = HistogramMetricFamily("apf_t_seconds", "T.", labels=["vm"])
    metrics.add_histogram(family, ["0"], histogram)
    found = samples([family])
    assert found["apf_t_seconds_bucket", "1e-06", "0"] == 1
    assert found["apf_t_seconds_bucket", "2e-06", "0"] == found["apf_t_seconds_bucket", "1.0", "0"] == 3
    assert found["apf_t_seconds_bucket", "+Inf", "0"] == found["apf_t_seconds_count", "0"] == 4
    assert found["apf_t_seconds_sum", "0"] == pytest.approx(3.0000035)
    assert len(found) == len(BOUNDS_NS) + 3


# gRPC ----------------------------------------------------------------------------------------------------------------


class Echo:
    """One method of each kind, and ways to end badly."""

    async def unary(self, request: bytes, context: Any) -> bytes:
        if request == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no")
        if request == b"raise":
            raise ValueError("an error of ours")
        if request == b"sleep":
            await asyncio.sleep(60)
        return request

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request
        if request == b"abort":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async def chat(self, requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)


def handlers(echo: Echo) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        NAME,
        {
            "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
            "Watch": grpc.unary_stream_rpc_method_handler(echo.watch),
            "Chat": grpc.stream_stream_rpc_method_handler(echo.chat),
        },
    )


async def calls(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        unary = channel.unary_unary(f"/{NAME}/Unary")
        await unary(b"x")
        await unary(b"y")
        for request, timeout_s in ((b"abort", None), (b"raise", None), (b"sleep", 0.05)):
            with pytest.raises(grpc.aio.AioRpcError):
                await unary(request, timeout=timeout_s)
        sleeping = unary(b"sleep")
        await asyncio.sleep(0.05)
        sleeping.cancel()
        for request in (b"fine", b"abort"):
            watch = channel.unary_stream(f"/{NAME}/Watch")(request)
            for _ in range(3):
                assert await watch.read() == request
            expected = grpc.StatusCode.UNAVAILABLE if request == b"abort" else grpc.StatusCode.OK
            assert await watch.code() is expected
        chat = channel.stream_stream(f"/{NAME}/Chat")()
        for _ in range(5):
            await chat.write(b"hello")
            await chat.read()
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/made.Up/Name")(b"")


async def serve_and_call(counter: CallCounter, directory: Path) -> None:
    server = grpc.aio.server(interceptors=(counter,))
    server.add_generic_rpc_handlers((handlers(Echo()),))
    address = f"unix:{directory / 'sock'}"
    server.add_insecure_port(address)
    await server.start()
    await calls(address)
    for _ in range(200):
        if sum(counter.calls.values()) == 10:
            break
        await asyncio.sleep(0.01)
    await server.stop(0)


@pytest.mark.filterwarnings("ignore")
def test_calls_by_method_and_status(tmp_path: Path) -> None:
    counter = CallCounter({f"{NAME}/Chat": lambda: (5, 5)})
    asyncio.run(serve_and_call(counter, tmp_path))
    assert counter.calls == {
        (f"{NAME}/Unary", "OK"): 2,
        (f"{NAME}/Unary", "NOT_FOUND"): 1,
        (f"{NAME}/Unary", "UNKNOWN"): 1,
        (f"{NAME}/Unary", "DEADLINE_EXCEEDED"): 1,
        (f"{NAME}/Unary", "CANCELLED"): 1,
        (f"{NAME}/Watch", "OK"): 1,
        (f"{NAME}/Watch", "UNAVAILABLE"): 1,
        (f"{NAME}/Chat", "OK"): 1,
        ("unknown", "UNIMPLEMENTED"): 1,
    }
    found = samples(counter())
    messages = {key[2:] + key[1:2]: value for key, value in found.items() if key[0] == "apf_grpc_messages_total"}
    assert messages == {
        (f"{NAME}/Unary", "in"): 6,
        (f"{NAME}/Unary", "out"): 2,
        (f"{NAME}/Watch", "in"): 2,
        (f"{NAME}/Watch", "out"): 6,
        (f"{NAME}/Chat", "in"): 5,
        (f"{NAME}/Chat", "out"): 5,
    }
