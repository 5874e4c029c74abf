"""Where a fault's time goes in the twin: CPU time by part, of a run in which every vCPU does nothing but fault.

    python -m tests.bench.twin_budget [off|pv2010|pv] [seconds of guest time]

Each part is a few methods that are wrapped while this runs; a part's time is its own, without that of the parts it
calls. The wrappers are counted and their cost, measured on an empty method, is taken off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from apf.journal import Journal
from apf.scenario import load
from deploy.twin import Twin, run
from guestsched.core.core import GuestCore
from hostd.core.host import HostCore
from hostd.shell import HostShell
from hostd.swapfile import SwapFile
from tests.bench.processes import FAULTS_ONLY
from vcpud.core.vcpu import VcpuCore
from vcpud.cpu.engine import Engine
from vcpud.machine import Machine

_PARTS: dict[str, tuple[tuple[type, str], ...]] = {
    "twin's loop": ((Twin, "run_window"),),
    "vCPU's shell": ((Machine, "proceed"),),
    "vCPU's core": ((VcpuCore, "step"),),
    "engine: run": ((Engine, "run"),),
    "engine: windows, mappings": ((Engine, "open_window"), (Engine, "map_overlay")),
    "host's shell": ((HostShell, "take"), (HostShell, "border")),
    "host's core": ((HostCore, "step"),),
    "swap file": ((SwapFile, "read_to"), (SwapFile, "write_all")),
    "guest's core": ((GuestCore, "step"),),
    "journal": ((Journal, "flush"),),
}
_TRIES = 200_000


@dataclass(slots=True)
class _Spent:
    seconds: float = 0.0
    calls: int = 0
    inner_calls: int = 0


@dataclass(slots=True)
class _Clock:
    """Exclusive times: whoever is on top of the stack is charged."""

    parts: dict[str, _Spent] = field(default_factory=dict)
    stack: list[_Spent] = field(default_factory=list)
    since_s: float = 0.0

    def wrap(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        spent = self.parts.setdefault(part, _Spent())
        stack, now = self.stack, time.perf_counter

        def timed(*args: Any, **named: Any) -> Any:
            before_s = now()
            if stack:
                stack[-1].seconds += before_s - self.since_s
                stack[-1].inner_calls += 1
            stack.append(spent)
            spent.calls += 1
            self.since_s = now()
            try:
                return method(*args, **named)
            finally:
                after_s = now()
                spent.seconds += after_s - self.since_s
                stack.pop()
                self.since_s = now()

        return timed


@contextmanager
def _measured(clock: _Clock) -> Iterator[None]:
    with ExitStack() as patched:
        for part, methods in _PARTS.items():
            for owner, name in methods:
                patched.enter_context(mock.patch.object(owner, name, clock.wrap(part, getattr(owner, name))))
        yield


def _wrapper_s() -> tuple[float, float]:
    """What a wrapped call adds to its own part, and to that of its caller."""
    clock = _Clock()
    inner = clock.wrap("inner", lambda: None)

    def calls() -> None:
        for _ in range(_TRIES):
            inner()

    clock.wrap("outer", calls)()
    return clock.parts["inner"].seconds / _TRIES, clock.parts["outer"].seconds / _TRIES


def main(mode: str, seconds: str) -> None:
    """Run and print."""
    clock = _Clock()
    own_s, caller_s = _wrapper_s()
    with _measured(clock):
        result = run(load(None, {**FAULTS_ONLY, "apf": [mode], "duration_s": seconds}))
    faults = result.counter("faults_major") + result.counter("faults_async")
    total_us = 0.0
    for part, spent in clock.parts.items():
        us = (spent.seconds - spent.calls * own_s - spent.inner_calls * caller_s) / faults * 1e6
        total_us += us
        print(f"{part:28}{us:7.1f} us a fault{spent.calls / faults:8.2f} calls")
    print(f"{'together':28}{total_us:7.1f} us; {faults} faults, {result.windows / faults:.2f} windows a fault")


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["off", "0.5"][len(sys.argv) - 1 :]))
