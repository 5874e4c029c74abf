"""Jobs of the load generator: what is asked for, checked field by field before anything is sent.

A job file is TOML: fields common to all jobs in ``[defaults]``, and a table for each job::

    seed = 7
    [defaults]
    process = "mem"
    duration_s = 10
    [job.readers]
    iodepth = 16
    [job.hot]
    pattern = "zipf"
    rate = 500
    write_percent = 20

A job is a *closed loop* with ``iodepth`` (so many accesses are in flight, the next is sent when one returns) or an
*open loop* with ``rate`` (accesses are sent at times drawn beforehand, whatever the guest does). All jobs of a file run
at the same time, each on a stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from apf import refusal
from apf.fields import Section, decimal, parse_size
from apf.messages import PAGE_SIZE
from deploy.clusters import BadInput

IN_FLIGHT_MAX = 1024
"""What the server takes of one stream (see load.proto)."""
BATCH_MAX = 64
ZIPF_PAGES_MAX = 1 << 24
"""The distribution function of that many pages takes 128 MiB."""
_CHUNK = 4096
_JOBS_MAX = 64

Loop = Literal["closed", "open"]
Pattern = Literal["random", "sequential", "zipf"]
Arrivals = Literal["poisson", "constant"]


class Job(Section):
    """One stream of accesses. Times are wall seconds, unless the name says otherwise."""

    name: str = "job"
    # The process: its number, or its name.
    process: Annotated[int, Field(ge=1, lt=1 << 32)] | Annotated[str, Field(min_length=1)]
    pattern: Pattern = "random"
    # Skew of the zipf pattern: page of rank k is taken with weight 1 / k^theta. 0.99 is what YCSB takes.
    theta: Annotated[float, Field(gt=0, le=5)] = 0.99
    # The range of pages; 0 pages: to the end of the process's memory.
    first_page: Annotated[int, Field(ge=0, lt=1 << 52)] = 0
    pages: Annotated[int, Field(ge=0, lt=1 << 52)] = 0
    write_percent: Annotated[int, Field(ge=0, le=100)] = 0
    # Bytes an access, in one or several pages.
    length: Annotated[int, BeforeValidator(parse_size), Field(ge=8, le=65536, multiple_of=8)] = 8
    # Closed loop: accesses in flight.
    iodepth: Annotated[int, Field(ge=1, le=IN_FLIGHT_MAX)] | None = None
    # Open loop: accesses a wall second, and when they come.
    rate: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    arrivals: Arrivals = "poisson"
    # Until whichever comes first.
    duration_s: Annotated[Decimal, BeforeValidator(decimal), Field(gt=0, le=1_000_000)] | None = None
    number: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    # Accesses a message. In an open loop so many arrive at the same time.
    batch: Annotated[int, Field(ge=1, le=BATCH_MAX)] = 1
    # After so long without an answer while some are awaited, the job gives up.
    timeout_s: Annotated[Decimal, BeforeValidator(decimal), Field(gt=0, le=100_000)] = Decimal(60)
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1

    @field_validator("process", mode="before")
    @classmethod
    def _number_or_name(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.iodepth is None) == (self.rate is None):
            given = f"iodepth = {self.iodepth}, rate = {self.rate}"
            raise ValueError(f"{given}: one of the two: iodepth for a closed loop, rate for an open one")
        if self.duration_s is None and self.number is None:
            raise ValueError("duration_s and number are both missing: at least one of them ends the job")
        if self.iodepth is not None and self.batch > self.iodepth:
            raise ValueError(f"batch = {self.batch}: at most iodepth, which is {self.iodepth}")
        for field, only_if, value in (
            ("theta", self.pattern == "zipf", "pattern = 'zipf'"),
            ("arrivals", self.rate is not None, "rate"),
        ):
            if field in self.model_fields_set and not only_if:
                raise ValueError(f"{field} = {getattr(self, field)!r}: only with {value}")
        return self

    @property
    def loop(self) -> Loop:
        """Whether answers or the clock set the pace."""
        return "open" if self.iodepth is None else "closed"

    @property
    def in_flight_max(self) -> int:
        """Accesses that may be in flight together."""
        return IN_FLIGHT_MAX if self.iodepth is None else self.iodepth

    @property
    def span(self) -> int:
        """Pages one access touches."""
        return -(-self.length // PAGE_SIZE)


def load_jobs(path: Path) -> tuple[Job, ...]:
    """The jobs of a file. Raises BadInput naming each field that is wrong."""
    data = refusal.read_toml(path, "job file", BadInput)
    seed, defaults, tables = data.pop("seed", 1), data.pop("defaults", {}), data.pop("job", {})
    if data:
        raise BadInput(f"{next(iter(data))}: no such field; allowed: seed, defaults, job")
    for field, value in (("defaults", defaults), ("job", tables)):
        if not isinstance(value, dict):
            raise BadInput(f"{field} = {value!r}: expected a table")
    if not isinstance(seed, int):
        raise BadInput(f"seed = {seed!r}: expected a whole number")
    if not 1 <= len(tables) <= _JOBS_MAX:
        raise BadInput(f"job: {len(tables)} jobs; 1 to {_JOBS_MAX}, each a table such as [job.readers]")
    jobs = []
    for index, (name, table) in enumerate(tables.items()):
        if not isinstance(table, dict):
            raise BadInput(f"job.{name} = {table!r}: expected a table")
        own_loop = {"iodepth", "rate", "arrivals"} if {"iodepth", "rate"} & table.keys() else set()
        common = {field: value for field, value in defaults.items() if field not in own_loop}
        jobs.append(make_job({"seed": seed + index, **common, **table, "name": name}, f"job.{name}."))
    return tuple(jobs)


def make_job(fields: Mapping[str, Any], where: str = "") -> Job:
    """A job from its fields, errors with ``where`` before the field's name. Raises BadInput."""
    try:
        return Job.model_validate(fields)
    except ValidationError as error:
        raise BadInput("\n".join(_explain(item, where) for item in error.errors())) from error


def _explain(item: Any, where: str) -> str:
    """One line about one thing pydantic refused: field, value, what is allowed."""
    field = str(item["loc"][0]) if item["loc"] else ""
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{where}{field}: no such field; allowed: {', '.join(Job.model_fields)}"
    if item["type"] == "missing":
        return f"{where}{field}: missing"
    if not field:
        return f"{where}{message}"
    return f"{where}{field} = {item['input']!r}: {message[:1].lower()}{message[1:]}"


def page_range(job: Job, pages: int) -> tuple[int, int]:
    """First page and number of pages an access of ``job`` may start at, of a process of ``pages``. Raises BadInput."""
    if not pages:
        raise BadInput(f"process = {job.process!r}: has no memory to access")
    last = pages if not job.pages else job.first_page + job.pages
    if last > pages:
        raise BadInput(f"pages = {job.pages}, first_page = {job.first_page}: the process has {pages} pages")
    count = last - job.first_page - job.span + 1
    if count < 1:
        raise BadInput(
            f"first_page = {job.first_page}, length = {job.length}: an access takes {job.span} pages, "
            f"and the range ends at {last}"
        )
    if job.pattern == "zipf" and count > ZIPF_PAGES_MAX:
        raise BadInput(f"pages = {count}: at most {ZIPF_PAGES_MAX} with pattern = 'zipf'")
    return job.first_page, count


def accesses(job: Job, pages: int) -> Iterator[tuple[int, bool]]:
    """(page, write) of one access after the other, without end, for a process of ``pages``; by the job's seed alone.

    Zipf's ranks are scattered over the pages, as hot pages of a program do not lie side by side.
    """
    first, count = page_range(job, pages)
    where, kind = (np.random.default_rng([job.seed, stream]) for stream in (0, 1))
    weights = order = None
    if job.pattern == "zipf":
        weights = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -job.theta)
        weights /= weights[-1]
        order = where.permutation(count)
    start = 0
    while True:
        if weights is not None and order is not None:
            chosen = order[np.searchsorted(weights, where.random(_CHUNK), side="right")]
        elif job.pattern == "random":
            chosen = where.integers(0, count, _CHUNK)
        else:
            chosen = np.arange(start, start + _CHUNK) * job.span % count
            start += _CHUNK
        writes = kind.integers(0, 100, _CHUNK) < job.write_percent
        yield from zip((chosen + first).tolist(), writes.tolist(), strict=True)


def arrivals(job: Job) -> Iterator[int]:
    """When the messages of an open loop are due, ns from its start, without end; by the job's seed alone."""
    assert job.rate is not None
    mean_ns = 1e9 * job.batch / job.rate
    if job.arrivals == "constant":
        index = 0
        while True:
            yield round(index * mean_ns)
            index += 1
    gaps, due_ns = np.random.default_rng([job.seed, 2]), 0.0
    while True:
        for gap in gaps.exponential(mean_ns, _CHUNK).tolist():
            due_ns += gap
            yield round(due_ns)
