"""What tests do with /metrics: fetch it, look samples up by labels, add them up."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from deploy.local import LocalCluster


@dataclass(frozen=True)
class Scrape:
    """One answer of one daemon."""

    families: tuple[Metric, ...]

    def of(self, name: str, **labels: object) -> dict[tuple[tuple[str, str], ...], float]:
        """Samples of this name that have these labels, by all their labels."""
        wanted = {label: str(value) for label, value in labels.items()}
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and wanted.items() <= sample.labels.items()
        }

    def sum(self, name: str, **labels: object) -> float:
        """Those added up; there must be one at least."""
        found = self.of(name, **labels)
        assert found, f"no sample {name} {labels}"
        return sum(found.values())

    @property
    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """All samples by name and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }


def parse(text: str) -> Scrape:
    return Scrape(tuple(text_string_to_metric_families(text)))


def scrape(cluster: LocalCluster, name: str) -> Scrape:
    """/metrics of a daemon, by the name of its report."""
    report = cluster.run.read_report(f"metrics-{name}")
    assert report is not None
    with urllib.request.urlopen(f"http://{report['address']}/metrics", timeout=30) as answer:
        return parse(answer.read().decode())


def check_histograms(families: Iterable[Metric]) -> None:
    """Buckets are cumulative, and the last one is the count."""
    for family in families:
        if family.type != "histogram":
            continue
        rows: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
        for sample in family.samples:
            labels = tuple(sorted(item for item in sample.labels.items() if item[0] != "le"))
            rows.setdefault(labels, {})[sample.labels.get("le", sample.name.removeprefix(family.name))] = sample.value
        for row in rows.values():
            buckets = sorted((float(key), value) for key, value in row.items() if not key.startswith("_"))
            counts = [value for _, value in buckets]
            assert counts == sorted(counts) and counts[-1] == row["_count"], (family.name, row)
            assert len(buckets) == 20 and buckets[0][0] == 1e-6 and buckets[-2][0] == 1.0
