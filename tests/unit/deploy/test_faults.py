"""Faults put together from journals, event by event."""

from __future__ import annotations

import pytest

from deploy.faults import faults
from deploy.journals import Core, Event, Record


def test_ready_may_be_journaled_before_completed() -> None:
    """E58: what belongs together has the same token, in whatever order it comes."""
    vcpu, host, guest = Core("vcpu"), Core("host"), Core("guest")
    told = [
        (guest, 0, "task_new", 1, "t/0", 1, 0),
        (vcpu, 100, "exit", "EPT_VIOLATION", 64),
        (vcpu, 100, "page_fault", 5, "WRITE", "NOWAIT", 4096, 1, 77),
        (host, 100, "fault", 0, 0, 5, "WRITE/NOWAIT", "async", 200, 4096, 900),
        (vcpu, 300, "async_pf_not_present", 4096, 5),
        (guest, 300, "not_present", 0, 4096),
        (guest, 300, "leave", 1, "NOT_PRESENT"),
        (guest, 300, "dispatch", 0, 0, 310, 1000, -1),
        (host, 905, "prefault", 0, 0, 5, 4096, "minor", 950, 7, 1, 0),
        (vcpu, 960, "async_pf_ready", 4096, 5),
        (host, 900, "completed", 0, 5),
        (guest, 960, "page_ready", 0, 4096),
        (guest, 960, "wake", 1, 0),
        (guest, 960, "dispatch", 0, 1, 970, 1000, -1),
    ]
    (fault,) = faults(Event(core, Record(time_ns, kind, tuple(rest))) for core, time_ns, kind, *rest in told)
    assert (fault.token, fault.completed_ns, fault.delivered_ns, fault.back_ns) == (4096, 900, 960, 970)
    assert fault.latency_ns == 860 == sum(fault.stages().values())


@pytest.mark.parametrize("name", ["host-0", "vcpu-0", "vcpu-0-x", "guest", "what"])
def test_a_name_that_no_core_has(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: no core of this name"):
        Core.of(name)
