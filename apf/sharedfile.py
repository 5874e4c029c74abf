"""Files that processes share as memory: one makes it, the others map it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def create(path: Path, size: int) -> mmap.mmap:
    """Make the file at ``path``, which must not exist, of ``size`` bytes that are all zero, and map it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size)
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)


def attach(path: Path, size: int | None = None) -> mmap.mmap:
    """Map the file that another process made; ValueError if it has another size than ``size`` bytes (None: any)."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        found = os.fstat(fd).st_size
        if size is not None and found != size:
            raise ValueError(f"{path}: {found} bytes, but this scenario's has {size}")
        return mmap.mmap(fd, found)
    finally:
        os.close(fd)
