"""Fixtures of the host core's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.hostd.rig import Rig


@pytest.fixture
def new_rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs; each one's core is checked at the end."""
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.core.check()
