"""Tasks that still wait for a page ready when a run is over, and why it did not come: from what the journals show.

A page ready takes this way: the fault-in worker is done; the vCPU sees it, if somebody has it look; the ready slot is
free (``pv``: the token word is 0); the page is mapped; the token is written and the interrupt raised (before 5.8: the
#PF is injected); the guest takes it. The reason is the first of these that did not happen, with what the journals tell
about it. It is ``lost`` if a longer run would not help; otherwise the run has only ended before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from apf.messages import PageError
from apf.scenario import Scenario
from deploy.fault import Fault
from deploy.faults import LEFT, RESTORES, WAKE_ALL, Faults, Slot

_FIRST_VECTOR = 16
"""Vectors below are exceptions, which no local APIC delivers as interrupts."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A task in kvm_async_pf_task_wait at the end. ``lost``: its page ready would not come however long the run."""

    fault: Fault
    name: str
    since_ns: int
    waited_ns: int
    lost: bool
    why: str


@dataclass(frozen=True, slots=True)
class Looping:
    """A task that is told to wait for a page, woken, and faults again, because the page cannot be had (E39)."""

    vm: int
    gfn: int
    task: int
    name: str
    since_ns: int
    faults: int
    error: PageError


LOOPING_MIN = 3
"""So many faults in vain are a loop."""


def looping(found: Faults) -> list[Looping]:
    """All of them, after the last event; those that go round most often first."""
    names = found.names
    loops = [
        Looping(
            vm, gfn, task, names.get((vm, task), f"task {task}"), vain.since_ns, vain.faults, PageError[vain.error]
        )
        for (vm, gfn, task), vain in found.vain.items()
        if vain.faults >= LOOPING_MIN
    ]
    return sorted(loops, key=lambda one: (-one.faults, one.since_ns, one.task))


def waiting(found: Faults, scenario: Scenario) -> list[Waiting]:
    """All of them, after the last event, in the order of their faults."""
    still = list(found.open())
    left = []
    for fault in still:
        if fault.slept_ns is None or fault.woken_ns is not None:
            continue
        name = found.names.get((fault.vm, fault.task), f"task {fault.task}")
        slot = found.slot(fault.vm, fault.vcpu)
        lost, why = _Reason(fault, slot, still, scenario.apf[0] == "pv", found.end_ns).why()
        left.append(Waiting(fault, name, fault.slept_ns, found.end_ns - fault.slept_ns, lost, why))
    return left


class _Reason:
    """Why one task waits. ``still``: all faults that have not ended; ``slotted``: the protocol has a ready slot."""

    def __init__(self, fault: Fault, slot: Slot, still: Iterable[Fault], slotted: bool, end_ns: int) -> None:
        self._fault = fault
        self._slot = slot
        self._mine = [one for one in still if (one.vm, one.vcpu) == (fault.vm, fault.vcpu)]
        self._slotted = slotted
        self._over = f"the run ended at {end_ns:,} ns"

    def why(self) -> tuple[bool, str]:
        """Whether it is lost, and the reason."""
        fault = self._fault
        if fault.lost:
            return True, f"KVM sent it at {fault.sent_ns:,} ns, and it was lost on the way (injected lost_ready)"
        if fault.dropped_ns is not None:
            return self._dropped(fault.dropped_ns)
        if fault.sent_ns is not None:
            return self._sent(fault.sent_ns)
        assert fault.ready_ns is not None
        if fault.completed_ns is None:
            return False, f"{self._over}, and the fault-in worker is done at {fault.ready_ns:,} ns"
        if fault.exited_ns is not None:
            return False, f"{self._over}, while the vCPU was to map the page (since {fault.exited_ns:,} ns)"
        return self._done(fault.completed_ns)

    def _restored(self, since_ns: int) -> tuple[int, str] | None:
        """The first time from ``since_ns`` on that KVM has forgotten the vCPU, and how."""
        return next(((at, what) for at, what in self._slot.injected if at >= since_ns and what in RESTORES), None)

    def _msrs_lost(self, since_ns: int) -> int | None:
        """When that was, from ``since_ns`` on."""
        return next((at for at, what in self._slot.injected if at >= since_ns and what == "msr_lost"), None)

    def _dropped(self, dropped_ns: int) -> tuple[bool, str]:
        """Only a wake-all can help: the one that follows when the guest, or a VMM for it, writes EN again."""
        restored = self._restored(dropped_ns)
        text = f"KVM dropped its work item at {dropped_ns:,} ns"
        if restored is not None:
            text += f" (injected {restored[1]})"
        if restored is None or restored[1] == "msr_lost":
            return True, f"{text}, and EN was not written again: nothing wakes all"
        blocked = self._blocked()
        if blocked is not None:
            return True, f"{text}, and the ready that wakes all does not come either: {blocked}"
        return False, f"{text}; {self._over} before the ready that wakes all had come"

    def _sent(self, sent_ns: int) -> tuple[bool, str]:
        overwritten_ns = self._fault.overwritten_ns
        if overwritten_ns is not None:
            text = f"KVM sent it at {sent_ns:,} ns, and at {overwritten_ns:,} ns, before the guest had read it,"
            return True, f"{text} a snapshot's token took its place (injected token_left)"
        lost_ns = self._msrs_lost(sent_ns)
        if lost_ns is not None:
            text = f"KVM sent it at {sent_ns:,} ns, and forgot at {lost_ns:,} ns where the token word is"
            return True, f"{text} (injected msr_lost)"
        undelivered = self._undelivered()
        if undelivered is not None:
            return True, f"KVM sent it at {sent_ns:,} ns, but {undelivered}"
        return False, f"KVM sent it at {sent_ns:,} ns; {self._over} before the guest took it"

    def _done(self, completed_ns: int) -> tuple[bool, str]:
        text = f"the worker was done at {completed_ns:,} ns"
        blocked = self._blocked()
        if blocked is not None:
            return True, f"{text}, but {blocked}"
        off = self._lapic_off()
        if off is not None:
            return False, f"{text}, but the local APIC is disabled since {off:,} ns; {self._over}"
        dropped_ns = self._slot.unacknowledged_ns
        if self._slotted and dropped_ns is not None:
            text += f", but the ACK at {dropped_ns:,} ns was dropped (injected), so that nothing kicks the vCPU"
            return False, f"{text}; {self._over} before another exit had the vCPU look"
        return False, f"{text}; {self._over} before the vCPU had seen it"

    def _undelivered(self) -> str | None:
        """Why an interrupt for page ready that was raised does not come."""
        raised = self._slot.raised
        if self._slotted and raised < _FIRST_VECTOR:
            what = next((f" (injected {what})" for _, what in reversed(self._slot.injected) if what in RESTORES), "")
            return f"MSR_KVM_ASYNC_PF_INT held vector {raised} then, which is no interrupt's{what}"
        return None

    def _blocked(self) -> str | None:
        """Why no further ready can leave this vCPU's KVM, if that is for good."""
        slot = self._slot
        if not self._slotted:
            return None
        if slot.token == LEFT:
            return f"the token word is set since {slot.since_ns:,} ns, by a snapshot (injected token_left)"
        if slot.token:
            return self._slot_taken(slot)
        dropped_ns = slot.unacknowledged_ns
        if dropped_ns is not None and any(one.sent_ns is None and _done_by(one, dropped_ns) for one in self._mine):
            return f"the ACK that was to have KVM look at its done list was dropped at {dropped_ns:,} ns (injected)"
        return None

    def _slot_taken(self, slot: Slot) -> str | None:
        """Whether the token in the slot stays there: nobody will take it."""
        name = "~0" if slot.token == WAKE_ALL else f"{slot.token:#x}"
        text = f"the token word holds {name} since {slot.since_ns:,} ns"
        if any(one.token == slot.token and one.lost for one in self._mine):
            return f"{text}, whose ready was lost (injected lost_ready)"
        undelivered = self._undelivered()
        return None if undelivered is None else f"{text}, and {undelivered}"

    def _lapic_off(self) -> int | None:
        """Since when the local APIC is disabled; None: it is not."""
        last = next(((at, what) for at, what in reversed(self._slot.injected) if what.startswith("lapic")), None)
        return last[0] if last is not None and last[1] == "lapic_off" else None


def _done_by(fault: Fault, time_ns: int) -> bool:
    return fault.completed_ns is not None and fault.completed_ns <= time_ns
