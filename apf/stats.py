"""What a VM's vCPU workers count, in shared memory: plain int64 stores, read by whoever shows or exports them.

Each vCPU has a row of its own and is the only one to write it. Rows outlive their writers, so the counts of a worker
that died stay in. Counters (``FIELDS``) are copied there by the worker now and then, at the latest before it goes to
sleep for a peer, and never go back; histograms (``HISTOGRAMS``) are counted in place.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apf import histogram, sharedfile
from apf.histogram import Histogram

STATES = ("counting", "faulting", "other", "stall", "idle", "apf", "kernel")
"""Where vCPU time can have gone (``vcpud.core.account.Cause``); guest ns in fields ``counting_ns`` and so on."""
FAULT_KINDS = ("minor", "major", "async")
STAGES = ("retry", "host", "wait", "inject", "exit", "prefault", "ready")
"""Stages of a fault (``vcpud.core.observed``)."""

FIELDS = (
    "retired",  # instructions
    "counting_ns",
    "faults_minor",
    "faults_major",
    "faults_async",
    "not_present",
    "ready",
    "messages",  # requests sent to both servers
    "repeated",  # faults on a page this vCPU waits for already
    "sync_disabled",  # user faults of a guest that has not enabled APF
    "sync_limit",  # user faults beyond the limit of work items
    "sync_ineligible",  # user faults where a vCPU may not be interrupted
    "sync_alloc",  # user faults without memory for a work item
    "sync_kernel",  # synchronous faults at CPL 0
    "in_flight",  # work items now: the only field that can go back
    "work",  # instructions retired in counting tasks
    "exits",
    "halts",  # faults for which the vCPU halted in KVM
    *(f"{state}_ns" for state in STATES if state != "counting"),
)
HISTOGRAMS = (*(f"latency_{kind}" for kind in FAULT_KINDS), *(f"stage_{stage}" for stage in STAGES))

_LINE = 8
_HISTOGRAMS_AT = -(-len(FIELDS) // _LINE) * _LINE
ROW = -(-(_HISTOGRAMS_AT + len(HISTOGRAMS) * histogram.CELLS) // _LINE) * _LINE
"""Cells of a row: whole cache lines."""
_PLACES = {name: _HISTOGRAMS_AT + place * histogram.CELLS for place, name in enumerate(HISTOGRAMS)}


class VcpuStats:
    """A row of int64 a vCPU: columns as in ``FIELDS``, then the cells of the histograms."""

    def __init__(self, mapping: mmap.mmap, vcpus: int) -> None:
        self.rows: npt.NDArray[np.int64] = np.frombuffer(mapping, np.int64)[: vcpus * ROW].reshape(vcpus, ROW)
        self._cells = memoryview(mapping).cast("q")

    @classmethod
    def create(cls, path: Path, vcpus: int) -> VcpuStats:
        """Make the file at ``path``, all zero."""
        return cls(sharedfile.create(path, vcpus * ROW * 8), vcpus)

    @classmethod
    def attach(cls, path: Path, vcpus: int) -> VcpuStats:
        """Map the file another process made."""
        return cls(sharedfile.attach(path, vcpus * ROW * 8), vcpus)

    def total(self, field: str) -> int:
        """Sum over the vCPUs."""
        return int(self.rows[:, FIELDS.index(field)].sum())

    def fields(self, vcpu: int) -> memoryview:
        """The cells of a vCPU's fields, to be written."""
        return self._cells[vcpu * ROW : vcpu * ROW + len(FIELDS)]

    def histograms(self, vcpu: int) -> dict[str, Histogram]:
        """A vCPU's histograms by name, counted in place."""
        row = vcpu * ROW
        return {name: Histogram(self._cells[row + at : row + at + histogram.CELLS]) for name, at in _PLACES.items()}

    def summed(self, name: str) -> Histogram:
        """What all vCPUs have counted in histogram ``name``."""
        at = _PLACES[name]
        return histogram.added(self.rows[:, at : at + histogram.CELLS].tolist())
