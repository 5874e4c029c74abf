"""Fixtures of the tests of guest programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.guestsched_programs.rig import Process


@pytest.fixture
def new_process() -> Iterator[type[Process]]:
    made: list[Process] = []

    def new(*arguments: object, **parameters: object) -> Process:
        made.append(Process(*arguments, **parameters))  # type: ignore[arg-type]
        return made[-1]

    yield new  # type: ignore[misc]
    for process in made:
        process.engine.close()


@pytest.fixture
def faulting(new_process) -> Process:
    return new_process("fault_thread")
