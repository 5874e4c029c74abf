"""I/O failures of the swap device as they are asked for: a scenario's ``[[swap.fault]]``, an operator's request.

What they do is decided in ``hostd.core.io_faults``. Those that happen to an I/O are counted in the order in which the
I/Os are submitted, from ``at_s`` (an operator's: from the border at which they take effect) on:

    read_error   the read fails (blk_status_t BLK_STS_IOERR)
    write_error  the write fails, and the device says so
    torn_write   half of the page is written, and the device says that all was
    lost_write   nothing is written, and the device says that all was

Those that last a while:

    slow         I/Os take ``factor`` times as long, and ``add_s`` longer
    stop         the device does nothing; what it was doing goes on where it stopped
    swap_full    no swap slot can be had

What an operator asks for is in force for I/Os that are submitted from then on. Those before have been promised for a
time (a vCPU or a task may be on its way to it), and a promise is never revised: they are done at that time, also if
the device stops. A scenario's own failures are known beforehand, and a stop of one also holds up what is under way
when it begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from apf import refusal
from apf.fields import Seconds, Section

IoFaultName = Literal["read_error", "write_error", "torn_write", "lost_write", "slow", "stop", "swap_full"]
IoName = Literal["any", "read", "write"]
OF_IOS = ("read_error", "write_error", "torn_write", "lost_write")
WITH_LENGTH = ("slow", "stop", "swap_full")
ANY = -1
_NS_PER_S = 1_000_000_000
_LONGEST_S = 100_000


_Number = Annotated[int, Field(ge=ANY, le=1 << 40)]


class _IoFault(Section):
    what: IoFaultName
    # Of the I/Os it is about, which is the first it happens to, from 1, and to how many in a row (0: all from then on).
    nth: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    count: Annotated[int, Field(ge=0, le=1 << 32)] = 1
    # Only I/Os of this VM, of this page of its memory, on this slot; -1: any.
    vm: Annotated[int, Field(ge=ANY, le=15)] = ANY
    gfn: _Number = ANY
    slot: _Number = ANY
    # slow: which I/Os.
    io: IoName = "any"
    factor: Annotated[int, Field(ge=1, le=100_000)] = 1

    def _check(self, length: tuple[str, Decimal | int], addition: tuple[str, Decimal | int]) -> None:
        """ValueError unless the fields go together; ``length`` and ``addition`` with the names of their fields."""
        named, for_what = self.model_dump(), self.what
        if for_what in WITH_LENGTH:
            for field, neutral in (("nth", 1), ("count", 1), ("vm", ANY), ("gfn", ANY), ("slot", ANY)):
                if named[field] != neutral:
                    raise ValueError(
                        f"{field} = {named[field]}: {for_what} is of the whole device for a time; allowed: {neutral}"
                    )
        elif length[1]:
            raise ValueError(f"{length[0]} = {length[1]}: {', '.join(WITH_LENGTH)} have a length, nothing else does")
        if for_what == "slow":
            if self.factor == 1 and not addition[1]:
                raise ValueError(f"factor = 1, {addition[0]} = 0: slow needs a factor above 1, or an addition")
        elif self.factor != 1 or addition[1] or self.io != "any":
            raise ValueError(
                f"factor = {self.factor}, {addition[0]} = {addition[1]}, io = {self.io!r}: for slow only; allowed: 1, 0 "
                f"and 'any'"
            )


class IoFault(_IoFault):
    """One in a scenario; times in guest seconds, ``at_s`` from the start of the run."""

    at_s: Seconds = Decimal(0)
    # How long; 0: to the end of the run.
    for_s: Seconds = Decimal(0)
    # slow: so much longer.
    add_s: Seconds = Decimal(0)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self._check(("for_s", self.for_s), ("add_s", self.add_s))
        return self

    @property
    def at_ns(self) -> int:
        """When, in guest ns."""
        return int(self.at_s * _NS_PER_S)

    @property
    def for_ns(self) -> int:
        """How long, in guest ns; 0: to the end."""
        return int(self.for_s * _NS_PER_S)

    @property
    def add_ns(self) -> int:
        """``add_s`` in guest ns."""
        return int(self.add_s * _NS_PER_S)


class IoFaultWish(_IoFault):
    """One that an operator asks for while the host runs; fields as in InjectIoFaultRequest."""

    for_ns: Annotated[int, Field(ge=0, le=_LONGEST_S * _NS_PER_S)] = 0
    add_ns: Annotated[int, Field(ge=0, le=_LONGEST_S * _NS_PER_S)] = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self._check(("for_ns", self.for_ns), ("add_ns", self.add_ns))
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> IoFaultWish:
        """Checked. Raises ValueError that names field, value and what is allowed."""
        return refusal.checked(cls, fields, ValueError)


def endless_stop(what: str, length: Decimal | int, duration: Decimal | int) -> bool:
    """Whether nothing would ever end such a failure: a vCPU that sleeps for I/O hears of no shutdown."""
    return what == "stop" and not length and not duration
