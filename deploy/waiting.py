"""Tasks that still wait for a page ready when a run is over, and why it did not come: from what the journals show."""

from __future__ import annotations

from dataclasses import dataclass

from apf.scenario import Scenario
from deploy.faults import Fault, Faults


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task in kvm_async_pf_task_wait at the end. ``lost``: its page ready would not come however long the run."""

    fault: Fault
    name: str
    since_ns: int
    waited_ns: int
    lost: bool
    why: str


def waiting(found: Faults, scenario: Scenario) -> list[Waiting]:
    """All of them, after the last event, in the order of their faults."""
    left = []
    for fault in found.open():
        if fault.slept_ns is None or fault.woken_ns is not None:
            continue
        name = found.names.get((fault.vm, fault.task), f"task {fault.task}")
        lost, why = _why(fault, found.end_ns)
        left.append(Waiting(fault, name, fault.slept_ns, found.end_ns - fault.slept_ns, lost, why))
    return left


def _why(fault: Fault, end_ns: int) -> tuple[bool, str]:
    assert fault.ready_ns is not None
    over = f"the run ended at {end_ns:,} ns"
    if fault.delivered_ns is not None:
        return True, f"ready was sent at {fault.delivered_ns:,} ns, and the guest never heard of it: a lost ready"
    if fault.completed_ns is None:
        return False, f"{over}, and the fault-in worker is done at {fault.ready_ns:,} ns"
    if fault.exited_ns is None:
        return False, f"{over}; the worker was done at {fault.completed_ns:,} ns, but the vCPU had not seen it"
    return False, f"{over}, while the vCPU was to map the page (since {fault.exited_ns:,} ns)"
