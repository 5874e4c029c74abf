"""/metrics of a daemon, on an ephemeral port of the loopback: a collector reads counters when it is scraped.

Nothing of prometheus-client is on a hot path: workers count in shared memory, daemons in plain integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from apf.rundir import RunDir
from apf.stats import FIELDS, VcpuStats

Collect = Callable[[], Iterable[Metric]]


class _Collector(Collector):
    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def serve(collect: Collect, run: RunDir, name: str) -> int:
    """Serve what ``collect`` yields; returns the port, which is also left as report ``metrics-<name>``."""
    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
    port = int(server.server_port)
    run.write_report(f"metrics-{name}", {"port": port})
    return port


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
