"""Faults of the protocol that are injected into one vCPU: which event, or which moment, they hit.

The scenario says them, or the operator while the vCPU runs (``Dispatch.injections``). An event's fault hits the ``nth``
event of its kind from ``at_ns`` on, and the ``count - 1`` after it. What KVM and the guest make of it is theirs: this
only says when.
"""

from __future__ import annotations

from dataclasses import dataclass

from apf.core import Kind
from apf.messages import NEVER_NS


class Injected(Kind):
    """What is injected; the scenario's words."""

    LOST_READY = "lost_ready"
    DUPLICATE_READY = "duplicate_ready"
    DROPPED_ACK = "dropped_ack"
    ALLOC_FAILURE = "alloc_failure"
    TOKEN_LEFT = "token_left"
    MSR_LOST = "msr_lost"
    RESTORE = "restore"
    RESTORE_WITHOUT_INT = "restore_without_int"
    RESTORE_INT_LATE = "restore_int_late"
    LAPIC_OFF = "lapic_off"
    LAPIC_ON = "lapic_on"
    PAGING_OFF = "paging_off"
    PAGING_ON = "paging_on"
    INT_WRITTEN = "int_written"  # what follows RESTORE_INT_LATE


_END = {Injected.LAPIC_OFF: Injected.LAPIC_ON, Injected.PAGING_OFF: Injected.PAGING_ON}
OF_EVENTS = (Injected.LOST_READY, Injected.DUPLICATE_READY, Injected.DROPPED_ACK, Injected.ALLOC_FAILURE)


@dataclass(frozen=True, slots=True)
class Injection:
    """One line of the scenario, or one request of the operator."""

    what: Injected
    at_ns: int
    nth: int = 1
    count: int = 1
    for_ns: int = 0


@dataclass(slots=True)
class _Counted:
    injection: Injection
    seen: int = 0


class Injections:
    """All that is to be injected into one vCPU."""

    def __init__(self, injections: tuple[Injection, ...]) -> None:
        self._timed: list[tuple[int, Injected]] = []
        self._counted: list[_Counted] = []
        self.next_ns = NEVER_NS
        """When the next one that is bound to a moment is due."""
        self.add(injections)

    def add(self, injections: tuple[Injection, ...]) -> None:
        """These are to be injected too."""
        self._timed += [(one.at_ns, one.what) for one in injections if one.what not in OF_EVENTS]
        self._timed += [(one.at_ns + one.for_ns, _END[one.what]) for one in injections if one.what in _END]
        self._timed.sort(key=lambda pair: pair[0])
        self._counted += [_Counted(one) for one in injections if one.what in OF_EVENTS]
        self._settle()

    def _settle(self) -> None:
        self.next_ns = self._timed[0][0] if self._timed else NEVER_NS

    def due(self, now_ns: int) -> Injected | None:
        """Take one that is due."""
        if self.next_ns > now_ns:
            return None
        _, what = self._timed.pop(0)
        self._settle()
        return what

    def follow(self, at_ns: int, what: Injected) -> None:
        """Something that was injected has a second part."""
        self._timed.insert(0, (at_ns, what))
        self._settle()

    def hits(self, what: Injected, now_ns: int) -> bool:
        """An event of this kind happens; whether it is hit."""
        hit = False
        for one in self._counted:
            if one.injection.what is what and now_ns >= one.injection.at_ns:
                one.seen += 1
                hit |= one.injection.nth <= one.seen < one.injection.nth + one.injection.count
        return hit
