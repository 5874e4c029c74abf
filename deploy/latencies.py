"""A distribution of times in bounded memory: an HDR histogram of three significant digits, 1 ns to 11 guest days.

A percentile is at most 0.1 % above the value it stands for, and never above the largest one.
"""

from __future__ import annotations

from typing import Any

from hdrh.histogram import HdrHistogram

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
HIGHEST_NS = 10**15
_DIGITS = 3


class Latencies:
    """Times in ns. What is above ``HIGHEST_NS`` is counted as that; ``max_ns`` and ``mean_ns`` are exact."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_NS, _DIGITS)
        self.count = 0
        self.max_ns = 0
        self._sum_ns = 0

    def record(self, value_ns: int) -> None:
        """Count one time of 0 ns or more."""
        assert value_ns >= 0, value_ns
        self._histogram.record_value(min(value_ns, HIGHEST_NS))
        self.count += 1
        self._sum_ns += value_ns
        self.max_ns = max(self.max_ns, value_ns)

    @property
    def mean_ns(self) -> float:
        """Mean, 0 if nothing was counted."""
        return self._sum_ns / self.count if self.count else 0.0

    def percentiles(self) -> dict[str, int]:
        """Times in ns by name (``p50`` to ``p99.99``); empty if nothing was counted."""
        if not self.count:
            return {}
        found = self._histogram.get_percentile_to_value_dict(PERCENTILES)
        return {f"p{percentile:g}": min(int(found[percentile]), self.max_ns) for percentile in PERCENTILES}

    def document(self) -> dict[str, Any]:
        """For the JSON. ``histogram`` lists [highest value of a bucket in ns, count], buckets that are not empty."""
        buckets = []
        for step in self._histogram.get_recorded_iterator() if self.count else ():
            highest = self._histogram.get_highest_equivalent_value(step.value_iterated_to)
            buckets.append([int(highest), int(step.count_at_value_iterated_to)])
        return {
            "count": self.count,
            "mean_ns": round(self.mean_ns, 1),
            "max_ns": self.max_ns,
            "percentiles_ns": self.percentiles(),
            "histogram": buckets,
        }
