"""Makes the profile of a swap device from what fio measured, in its JSON output (``--output-format=json`` or ``json+``).

Source: fio's HOWTO, "Interpreting the output" and the option ``output-format``; the fields are those of fio 3.
``clat_ns`` is the completion latency of an I/O in ns, from its submission to its completion. ``clat_ns.percentile``
has its percentiles; ``clat_ns.bins``, with json+ only, how many I/Os there were around each latency, so bins are taken
where they are there.

**Quantiles.** Those of all reads, and of all writes, of all jobs, at i/256; a job counts by its I/Os. Between two
percentiles, and from them to ``min`` and ``max``, straight lines; a bin is all at its latency, which is within 1 %.
The last quantile is not the largest latency but what leaves the mean of the last 1/256 as it was measured: a draw
there is uniform (``apf.chance.Stream.quantile``), and the largest of a million would make it much too slow.

**Servers.** By Little's law, I/Os in flight = I/Os a second x mean latency, rounded: reads and writes of a reporting
group of jobs together, and the group with the most of them (``stonewall`` starts a new one, after the others' end).
That many servers with these latencies serve what fio saw served. It is never more than fio's iodepth x numjobs, so
measure at the depth at which the device is busy and its latency has hardly begun to grow; or say ``servers``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apf import refusal
from apf.messages import PAGE_SIZE
from apf.swapdevice import Profile
from deploy.clusters import BadInput

POINTS = 256
_FINE = 1 << 14
_BLOCK_SIZES = ("4k", "4K", "4KiB", "4kb", "4096", "4096B")
_Floats = NDArray[np.float64]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Latency(_Model):
    least: Annotated[float, Field(alias="min", ge=0)] = 0
    most: Annotated[float, Field(alias="max", ge=0)] = 0
    mean: Annotated[float, Field(ge=0)] = 0
    count: Annotated[int, Field(alias="N", ge=0)] = 0
    percentile: dict[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0)]] = {}
    bins: dict[Annotated[float, Field(ge=0)], Annotated[int, Field(ge=0)]] = {}


class _Direction(_Model):
    iops: Annotated[float, Field(ge=0)] = 0
    clat_ns: _Latency


class _Job(_Model):
    jobname: str = ""
    groupid: int = 0
    error: int = 0
    options: Annotated[dict[str, Any], Field(alias="job options")] = {}
    read: _Direction
    write: _Direction


class _Output(_Model):
    version: Annotated[str, Field(alias="fio version", pattern=r"^[ -~]*$", max_length=100)]
    options: Annotated[dict[str, Any], Field(alias="global options")] = {}
    jobs: Annotated[tuple[_Job, ...], Field(min_length=1)]


def fit(file: Path, servers: int | None = None) -> str:
    """The profile, as a TOML file's text, of the device that fio's output in ``file`` is about. OSError, BadInput."""
    output = _read(file)
    for number, job in enumerate(output.jobs):
        if job.error:
            raise BadInput(f"{file}: jobs.{number}.error = {job.error}: 0, a job that came to its end")
        for option in ("bs", "blocksize"):
            size = job.options.get(option, output.options.get(option, "4k"))
            if size not in _BLOCK_SIZES:
                raise BadInput(f"{file}: jobs.{number}: {option} = {size!r}: 4k, a page of {PAGE_SIZE} bytes")
    tables = {name: _quantiles(file, output, name) for name in ("read", "write")}
    in_flight = _in_flight(output.jobs)
    reads, writes = (sum(getattr(job, name).clat_ns.count for job in output.jobs) for name in ("read", "write"))
    try:
        profile = Profile(
            source=f"{output.version}: {reads} reads, {writes} writes, {in_flight:.2f} in flight",
            servers=max(1, round(in_flight)) if servers is None else servers,
            read_ns=tables["read"],
            write_ns=tables["write"],
        )
    except ValidationError as error:
        raise BadInput("\n".join(f"{file}: {line}" for line in refusal.lines(error, Profile))) from error
    how = "I/Os in flight by Little's law, rounded" if servers is None else "as asked for"
    return profile.text(f"Made by apf device fit from fio's completion latencies. servers: {how}.")


def _read(file: Path) -> _Output:
    text = file.read_text(encoding="utf-8", errors="replace")
    # fio's notes about its options come on standard output too, before the document.
    start = 0 if text.startswith("{") else text.find("\n{") + 1
    try:
        return _Output.model_validate(json.loads(text[start:]))
    except json.JSONDecodeError as error:
        raise BadInput(f"{file}: not JSON, as fio writes with --output-format=json: {error}") from error
    except ValidationError as error:
        raise BadInput("\n".join(f"{file}: {line}" for line in refusal.lines(error, _Output))) from error


def _quantiles(file: Path, output: _Output, name: str) -> tuple[int, ...]:
    """Quantiles at i/POINTS of the completion latency of all reads or writes, in ns."""
    values, weights = [], []
    for number, job in enumerate(output.jobs):
        latency: _Latency = getattr(job, name).clat_ns
        if not latency.count:
            continue
        if not latency.percentile and not sum(latency.bins.values()):
            raise BadInput(
                f"{file}: jobs.{number}.{name}.clat_ns: neither percentile nor bins; fio writes percentiles with "
                f"--clat_percentiles=1, its default"
            )
        around, shares = _spread(latency)
        values.append(np.clip(around, latency.least, latency.most))
        weights.append(shares * latency.count)
    if not values:
        raise BadInput(
            f"{file}: jobs.*.{name}.clat_ns.N = 0: at least one job with a {name}, as rw=rand{name} or randrw"
        )
    return _table(np.concatenate(values), np.concatenate(weights))


def _spread(latency: _Latency) -> tuple[_Floats, _Floats]:
    """The latencies of one job: values, and which share each has."""
    if sum(latency.bins.values()):
        counts = np.array(list(latency.bins.values()), dtype=float)
        return np.array(list(latency.bins)), counts / counts.sum()
    ranked = sorted(latency.percentile.items())
    ranks = [0.0, *(rank / 100 for rank, _ in ranked), 1.0]
    around = np.maximum.accumulate([latency.least, *(value for _, value in ranked), latency.most])
    return np.interp((np.arange(_FINE) + 0.5) / _FINE, ranks, around), np.full(_FINE, 1 / _FINE)


def _table(values: _Floats, weights: _Floats) -> tuple[int, ...]:
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    below = np.cumsum(weights) / weights.sum()
    found = np.searchsorted(below, np.arange(POINTS) / POINTS, side="right").clip(max=len(values) - 1)
    table = [max(1, round(value)) for value in values[found].tolist()]
    tail = np.minimum(weights / weights.sum(), (below - (POINTS - 1) / POINTS).clip(min=0))
    mean = float(np.average(values, weights=tail))
    return (*table, max(table[-1], round(2 * mean - table[-1])))


def _in_flight(jobs: Sequence[_Job]) -> float:
    """I/Os that fio's busiest group had in flight in the mean."""
    groups: dict[int, float] = defaultdict(float)
    for job in jobs:
        groups[job.groupid] += sum(each.iops * each.clat_ns.mean for each in (job.read, job.write)) / 1e9
    return max(groups.values())
