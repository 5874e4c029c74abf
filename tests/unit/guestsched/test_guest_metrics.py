"""What guestsched exports, from a kernel in a known state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from apf.clockpage import ClockPage
from apf.histogram import Histogram
from apf.messages import FaultKind, InterruptArrived, PageReadyArrived
from guestsched.metrics import GuestMetrics
from guestsched.shell import GuestShell
from tests.unit.guestsched.guest_fakes import Guest, guest, spec


class Exported:
    """The collector of ``made``, as VM 3, with a clock that is set by hand."""

    def __init__(self, made: Guest) -> None:
        self.now_ns = 0
        accesses: dict[FaultKind | None, int] = dict.fromkeys((None, *FaultKind), 0)
        self.shell = SimpleNamespace(core=made.core, accesses=accesses, access_latency=Histogram())
        clock = SimpleNamespace(now_ns=lambda: self.now_ns)
        self._collect = GuestMetrics(cast(GuestShell, self.shell), 3, cast(ClockPage, clock))

    def get(self, name: str, **labels: str) -> float:
        wanted: dict[str, Any] = {"vm": "3", **labels}
        (value,) = (
            s.value for family in self._collect() for s in family.samples if s.name == name and s.labels == wanted
        )
        return float(value)


def test_the_oldest_wait_is_that_of_who_waits_longest() -> None:
    made = guest(spec(1), spec(2), spec(3))
    made.boot()
    exported = Exported(made)
    exported.now_ns = 5_000
    assert exported.get("apf_oldest_wait_seconds") == 0
    made.not_present(0x1000, 10_000)
    made.not_present(0x2000, 30_000)
    exported.now_ns = 50_000
    assert exported.get("apf_oldest_wait_seconds") == 40e-6
    assert exported.get("apf_tasks", state="apf_wait") == 2 and exported.get("apf_tasks", state="running") == 1
    assert exported.get("apf_run_queue_length", vcpu="0") == 1
    made.trap(PageReadyArrived(0x1000), 60_000)
    exported.now_ns = 70_000
    assert exported.get("apf_oldest_wait_seconds") == 40e-6
    exported.now_ns = 20_000
    assert exported.get("apf_oldest_wait_seconds") == 0, "the clock page may be a little behind"


def test_counters_of_a_vcpu() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    exported = Exported(made)
    before = exported.get("apf_context_switches_total", vcpu="0")
    made.not_present(0x1000, 10_000)
    made.trap(InterruptArrived(), 20_000)
    assert exported.get("apf_context_switches_total", vcpu="0") == before + 1
    assert exported.get("apf_interrupts_total", vcpu="0") == 1


def test_accesses() -> None:
    exported = Exported(guest(spec(1)))
    exported.shell.accesses[None] += 5
    exported.shell.accesses[FaultKind.ASYNC] += 2
    exported.shell.access_latency.observe(1_500)
    assert (
        exported.get("apf_accesses_total", kind="hit") == 5 and exported.get("apf_accesses_total", kind="async") == 2
    )
    assert exported.get("apf_access_latency_seconds_count") == 1
    assert exported.get("apf_access_latency_seconds_bucket", le="2e-06") == 1
