"""What vcpud exports (see ``apf.metrics``): the supervisor reads what its workers count in shared memory.

It neither imports gRPC nor asks a worker, so it answers also while workers are stopped, and after one has died.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from apf.messages import ApfMode
from apf.metrics import add_histogram, seconds
from apf.stats import FAULT_KINDS, FIELDS, STAGES, STATES, VcpuStats

_REASONS = ("disabled", "limit", "ineligible", "alloc", "kernel")
# Family, help, and its fields by the value of its third label; without a third label "" is the key.
_COUNTERS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("apf_faults", "Faults that hostd has settled.", "kind", {kind: f"faults_{kind}" for kind in FAULT_KINDS}),
    ("apf_events", "APF events delivered.", "kind", {"not_present": "not_present", "ready": "ready"}),
    (
        *("apf_sync_fallbacks", "Faults that were not allowed to be asynchronous.", "reason"),
        {reason: f"sync_{reason}" for reason in _REASONS},
    ),
    ("apf_repeated_faults", "Faults on a page that this vCPU waits for already.", "", {"": "repeated"}),
    ("apf_halts", "Faults for which the vCPU halted in KVM.", "", {"": "halts"}),
    ("apf_guest_instructions", "Guest instructions retired.", "", {"": "retired"}),
    ("apf_work_counted", "Guest instructions retired in counting tasks.", "", {"": "work"}),
    ("apf_vcpu_exits", "Exits from guest mode.", "", {"": "exits"}),
    ("apf_vcpu_messages", "Messages exchanged with hostd and guestsched.", "", {"": "messages"}),
)


class VcpuMetrics:
    """Collects for the vCPUs of one VM, which runs APF in ``mode``."""

    def __init__(self, stats: VcpuStats, vm: int, mode: ApfMode) -> None:
        self._stats = stats
        self._vm = str(vm)
        self._mode = mode.name.lower()

    def __call__(self) -> Iterator[Metric]:
        """All families."""
        rows = [dict(zip(FIELDS, row, strict=False)) for row in self._stats.rows.tolist()]
        mode = GaugeMetricFamily("apf_mode_info", "Asynchronous page fault protocol.", labels=["vm", "mode"])
        mode.add_metric([self._vm, self._mode], 1)
        yield mode
        for name, text, label, fields in _COUNTERS:
            family = CounterMetricFamily(name, text, labels=["vm", "vcpu", *([label] if label else [])])
            for vcpu, row in enumerate(rows):
                for value, field in fields.items():
                    family.add_metric([self._vm, str(vcpu), *([value] if label else [])], row[field])
            yield family
        spent = CounterMetricFamily("apf_vcpu_seconds", "Where vCPU time went.", labels=["vm", "vcpu", "state"])
        in_flight = GaugeMetricFamily("apf_in_flight", "Asynchronous faults under way.", labels=["vm", "vcpu"])
        for vcpu, row in enumerate(rows):
            for state in STATES:
                spent.add_metric([self._vm, str(vcpu), state], seconds(row[f"{state}_ns"]))
            in_flight.add_metric([self._vm, str(vcpu)], row["in_flight"])
        yield from (spent, in_flight)
        yield self._histogram("apf_fault_latency_seconds", "From violation to going on.", "kind", FAULT_KINDS)
        yield self._histogram("apf_fault_stage_seconds", "What the faults' time went to.", "stage", STAGES)

    def _histogram(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["vm", label])
        for value in values:
            add_histogram(family, [self._vm, value], self._stats.summed(f"{name.split('_')[2]}_{value}"))
        return family
