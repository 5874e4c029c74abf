"""Where daemons are started by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemons


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets' paths are short enough for sun_path; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="apf-test-") as directory:
        yield Path(directory)


@pytest.fixture
def daemons(short_path: Path) -> Iterator[Daemons]:
    made = Daemons(short_path)
    yield made
    for daemon in made.running.values():
        daemon.kill()
        daemon.wait()
