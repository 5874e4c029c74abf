"""Faults of the APF protocol itself as they are asked for: a scenario's ``[[inject]]``, an operator's request.

What they do is decided in ``vcpud.core.injected``.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from apf.fields import Seconds, Section

InjectName = Literal[
    "lost_ready",
    "duplicate_ready",
    "dropped_ack",
    "alloc_failure",
    "token_left",
    "msr_lost",
    "restore",
    "restore_without_int",
    "restore_int_late",
    "lapic_off",
    "paging_off",
]
_OF_EVENTS = ("lost_ready", "duplicate_ready", "dropped_ack", "alloc_failure")
_WITH_LENGTH = ("lapic_off", "paging_off")


def check_inject(what: InjectName, nth: int, count: int, field: str, length: Decimal | int) -> None:
    """ValueError unless such a fault has an ``nth`` and a length (in ``field``) only where that means something."""
    if what not in _OF_EVENTS and (nth != 1 or count != 1):
        raise ValueError(f"nth = {nth}, count = {count}: {what} happens once; allowed: 1")
    if (what in _WITH_LENGTH) is not (length > 0):
        raise ValueError(f"{field} = {length}: {' and '.join(_WITH_LENGTH)} have a length, nothing else does")


class Inject(Section):
    """A fault of the protocol itself, on one vCPU: at a time, or in the nth event of its kind.

    lost_ready, duplicate_ready: that page ready. dropped_ack: that write of MSR_KVM_ASYNC_PF_ACK. alloc_failure: that
    work item. token_left: the token word is found set. msr_lost: the APF MSRs are found clear. restore: the vCPU is
    restored elsewhere, MSRs in the right order; _without_int: the vector is forgotten; _int_late: written after the
    vCPU has been entered. lapic_off: the local APIC is software-disabled for ``for_s``. paging_off: CR0.PG is clear for
    ``for_s``, as in an SMI.
    """

    what: InjectName
    vm: Annotated[int, Field(ge=0, le=15)] = 0
    vcpu: Annotated[int, Field(ge=0, le=63)] = 0
    # Seconds after its VM's start: at that time or, for those that happen to an event, in the first one after it.
    at_s: Seconds = Decimal(0)
    # Which of the events from ``at_s`` on, from 1, and how many in a row.
    nth: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    count: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    for_s: Seconds = Decimal(0)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        check_inject(self.what, self.nth, self.count, "for_s", self.for_s)
        return self

    @property
    def at_ns(self) -> int:
        """When, in guest ns."""
        return int(self.at_s * 1_000_000_000)

    @property
    def for_ns(self) -> int:
        """How long, in guest ns."""
        return int(self.for_s * 1_000_000_000)
