"""Where a vCPU's time went. Every nanosecond from the start to the end of the run is in exactly one cause."""

from __future__ import annotations

from apf.core import Kind
from apf.messages import Account


class Cause(Kind):
    """Cause of vCPU time, in the words of the bench's table."""

    COUNTING = "counting"  # a counting task ran
    FAULTING = "faulting"  # a faulting task ran, or its fault was handled without sleeping
    OTHER = "other"  # any other task ran
    STALL = "stall"  # the vCPU slept in the host: synchronous I/O, a retry, an APF halt
    IDLE = "idle"  # the guest had nothing to run
    APF = "apf"  # the APF protocol: injections, handlers, the exit for page ready, prefault, its context switches
    KERNEL = "kernel"  # ticks and the context switches they cause, system calls


CAUSE_OF_ACCOUNT = {
    Account.IDLE: Cause.IDLE,
    Account.COUNTING: Cause.COUNTING,
    Account.FAULTING: Cause.FAULTING,
    Account.OTHER: Cause.OTHER,
}


class TimeAccount:
    """Guest ns by cause, from ``start_ns`` up to ``end_ns``. Whose time it is counts in ``spent_ns`` as it goes on."""

    def __init__(self, end_ns: int, start_ns: int = 0) -> None:
        self.end_ns = end_ns
        """May move, if the run is ended early, and then again if it goes on for a little."""
        self._start_ns = start_ns
        self._beyond_ns = 0
        self.spent_ns: dict[Cause, int] = dict.fromkeys(Cause, 0)

    def within(self, spent_ns: int, until_ns: int) -> int:
        """How much of the ``spent_ns`` up to ``until_ns``, and of what was cut off before, lies before the end."""
        spent_ns += self._beyond_ns
        self._beyond_ns = min(spent_ns, max(0, until_ns - self.end_ns))
        return spent_ns - self._beyond_ns

    def check(self, now_ns: int) -> None:
        """Nothing is counted twice or lost."""
        assert sum(self.spent_ns.values()) + self._beyond_ns == now_ns - self._start_ns
