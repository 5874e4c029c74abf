"""What holds for all tests.

Hypothesis judges results, not how long they took on a busy machine.

Many tests fork the daemons of a run, and a process that has used gRPC must not fork one that will: gRPC aborts there
now and then. So whoever uses gRPC in the test process says so (``@pytest.mark.grpc``) and comes last, behind all that
fork (``--no-loadscope-reorder`` keeps that order on several workers); and whoever does not say so cannot. A worker takes
whole files: all tests of a file do, or none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.commands import Commands

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

_STARTS = ("insecure_channel", "secure_channel", "server")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    using: dict[bool, set[Path]] = {True: set(), False: set()}
    for item in items:
        using[item.get_closest_marker("grpc") is not None].add(item.path)
    mixed = ", ".join(path.name for path in sorted(using[True] & using[False]))
    assert not mixed, f"{mixed}: all tests of a file use gRPC in the test process, or none"
    items.sort(key=lambda item: item.path in using[True])


def _refused(here: int, name: str, start: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*args: Any, **options: Any) -> Any:
        assert os.getpid() != here, f"grpc.{name} in the test process: mark the test 'grpc'"
        return start(*args, **options)  # a daemon that was forked

    return refuse


@pytest.fixture(autouse=True)
def no_grpc_before_a_fork(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("grpc") is None:
        for module in filter(None, map(sys.modules.get, ("grpc", "grpc.aio"))):  # who imports them later is a daemon
            for name in _STARTS:
                monkeypatch.setattr(module, name, _refused(os.getpid(), name, getattr(module, name)))


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """The command line, again and again."""
    made = Commands()
    yield made
    made.close()
