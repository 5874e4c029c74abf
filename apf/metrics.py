"""/metrics of a daemon, on any port of the loopback unless told otherwise: a collector reads counters when scraped.

Nothing of prometheus-client is on a hot path: workers count in shared memory, daemons in plain integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from apf.process import Failure
from apf.rundir import RunDir
from apf.stats import FIELDS, VcpuStats

ANYWHERE = "127.0.0.1:0"

Collect = Callable[[], Iterable[Metric]]


class _Collector(Collector):
    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def serve(collect: Collect, run: RunDir, name: str, address: str = ANYWHERE) -> int:
    """Serve what ``collect`` yields at ``HOST:PORT``; returns the port, which is also left as report ``metrics-<name>``.

    Raises Failure.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise Failure(f"--metrics = {address!r}: expected HOST:PORT, port 0 to 65535, 0 for any that is free")
    try:
        server, _ = start_http_server(int(port), addr=host, registry=registry)
    except OSError as error:
        raise Failure(f"cannot serve metrics at {address}: {error.strerror}") from error
    bound = int(server.server_port)
    run.write_report(f"metrics-{name}", {"port": bound})
    return bound


def vcpu_metrics(stats: VcpuStats, vm: int) -> Collect:
    """Counters of a VM's vCPUs from their shared rows."""

    def collect() -> Iterator[Metric]:
        families = {
            "retired": CounterMetricFamily(
                "apf_guest_instructions", "Guest instructions retired.", labels=["vm", "vcpu"]
            ),
            "messages": CounterMetricFamily(
                "apf_vcpu_requests", "Requests sent to hostd and guestsched.", labels=["vm", "vcpu"]
            ),
        }
        faults = CounterMetricFamily("apf_faults", "Page faults by kind.", labels=["vm", "vcpu", "kind"])
        events = CounterMetricFamily("apf_events", "APF events delivered.", labels=["vm", "vcpu", "kind"])
        counting = CounterMetricFamily(
            "apf_counting_seconds", "Guest time spent in counting tasks.", labels=["vm", "vcpu"]
        )
        for vcpu, row in enumerate(stats.rows.tolist()):
            values = dict(zip(FIELDS, row, strict=False))
            labels = [str(vm), str(vcpu)]
            for field, family in families.items():
                family.add_metric(labels, values[field])
            counting.add_metric(labels, values["counting_ns"] / 1e9)
            for kind in ("minor", "major", "async"):
                faults.add_metric([*labels, kind], values[f"faults_{kind}"])
            for kind in ("not_present", "ready"):
                events.add_metric([*labels, kind], values[kind])
        yield from (*families.values(), faults, events, counting)

    return collect


def counter_metrics(
    prefix: str, help_text: str, counters: Callable[[], dict[str, int]], gauges: Callable[[], dict[str, float]]
) -> Collect:
    """Plain named counters as one family with a ``name`` label, and gauges of their own."""

    def collect() -> Iterator[Metric]:
        family = CounterMetricFamily(prefix, help_text, labels=["name"])
        for name, count in counters().items():
            family.add_metric([name], count)
        yield family
        for name, value in gauges().items():
            yield GaugeMetricFamily(name, name.replace("_", " "), value=value)

    return collect
