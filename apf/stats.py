"""Counters a VM's vCPU workers keep in shared memory: plain stores, read by whoever shows or exports them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

FIELDS = (
    "retired",  # instructions
    "counting_ns",  # guest ns in counting tasks
    "faults_minor",
    "faults_major",
    "faults_async",
    "not_present",
    "ready",
    "messages",  # requests sent to both servers
)
_LINE = 8
assert len(FIELDS) <= _LINE


class VcpuStats:
    """A row of int64 a vCPU, a cache line each, columns as in ``FIELDS``."""

    def __init__(self, mapping: mmap.mmap, vcpus: int) -> None:
        self.rows: npt.NDArray[np.int64] = np.frombuffer(mapping, np.int64)[: vcpus * _LINE].reshape(vcpus, _LINE)

    @classmethod
    def create(cls, path: Path, vcpus: int) -> VcpuStats:
        """Make the file at ``path``, all zero."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, vcpus * _LINE * 8)
            return cls(mmap.mmap(fd, vcpus * _LINE * 8), vcpus)
        finally:
            os.close(fd)

    @classmethod
    def attach(cls, path: Path, vcpus: int) -> VcpuStats:
        """Map the file another process made."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(mmap.mmap(fd, vcpus * _LINE * 8), vcpus)
        finally:
            os.close(fd)

    def total(self, field: str) -> int:
        """Sum over the vCPUs."""
        return int(self.rows[:, FIELDS.index(field)].sum())
