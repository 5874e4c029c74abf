"""The memory block of ``apf top``, from what hostd exports at two moments."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console

from apf.clockpage import ClockPage
from apf.messages import GupVariant
from deploy import top, top_memory
from hostd.metrics import HostMetrics
from tests.unit.hostd.rig import READ_NS, WINDOW_NS, Rig


class Exported:
    """A host core whose metrics are served."""

    def __init__(self) -> None:
        self.rig = Rig(high=60, gup=GupVariant.NOIO)
        clock = SimpleNamespace(now_ns=lambda: self.rig.core.now_ns, windows=1)
        self._metrics = HostMetrics(self.rig.core, cast(ClockPage, clock))

    def collect(self) -> Any:
        yield from self._metrics()


def shown(before: dict[str, float], after: dict[str, float]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(top_memory.table(before, after))
    return console.export_text()


def test_a_row_of_sizes_rates_and_pressure() -> None:
    exported = Exported()
    registry = CollectorRegistry()
    registry.register(cast(Any, exported))
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        address = {"hostd": f"127.0.0.1:{server.server_port}"}
        exported.rig.load(256)
        before, silent = top.scrape(address)
        assert not silent and top_memory.vms(before) == ["0"]
        exported.rig.thrashes(0)
        reply = exported.rig.mapped(0, 1_000)
        exported.rig.border(reply.at_ns // WINDOW_NS * WINDOW_NS + WINDOW_NS)
        after, _ = top.scrape(address)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    guest_s = exported.rig.core.now_ns / 1e9
    told = shown(before, after)
    assert "0.2 MiB" in told, "60 and 64 pages"
    assert f"{32 / guest_s:,.0f} / 0" in told, "scanned, none stolen yet"
    assert f"{1 / guest_s:,.0f}" in told, "a refault"
    some_s = exported.rig.core.pressure()["0"].some_ns / 1e9
    assert some_s > READ_NS / 1e9 and f"{100 * some_s / guest_s:.1f} % / 0.0 %" in told
    assert "0 / 1 / 0" in told, "the limit was reached once"
    assert "root" in told


def test_a_clock_that_stands_still_has_no_rates() -> None:
    sums = {"apf_memory_bytes[0].current": 4096.0, "apf_memory_bytes[0].high": float("inf")}
    told = shown(sums, sums)
    assert "max" in told and "- / -" in told
