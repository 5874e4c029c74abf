"""Pressure averages over 10, 60 and 300 seconds, in the kernel's integers (kernel/sched/psi.c:update_averages).

Every psi_period the share of the period in which somebody waited, in whole per cents, is mixed into three exponential
averages by include/linux/sched/loadavg.h:calc_load, in units of 1 / 2048 per cent. The period is PSI_FREQ = 2 * HZ + 1
jiffies, so that it does not beat with the load average's. Between two updates a reader sees the last one's.

Departures: the kernel updates when its work gets to run, a little late, and lets a group without any activity rest; here
updates are at the multiples of the period in virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass

HZ = 250
PSI_PERIOD_NS = (2 * HZ + 1) * (1_000_000_000 // HZ)
SECONDS = (10, 60, 300)
_EXP = (1677, 1981, 2034)
"""EXP_10s, EXP_60s, EXP_300s."""
_FSHIFT = 11
_FIXED_1 = 1 << _FSHIFT

Loads = tuple[int, int, int]


def calc_load(load: int, exp: int, active: int) -> int:
    """One step of an exponential average; rounds up while it grows, so that it gets there."""
    new = load * exp + active * (_FIXED_1 - exp)
    if active >= load:
        new += _FIXED_1 - 1
    return new // _FIXED_1


def text(load: int) -> str:
    """An average as /proc/pressure prints it (LOAD_INT, LOAD_FRAC)."""
    return f"{load >> _FSHIFT}.{(load & _FIXED_1 - 1) * 100 >> _FSHIFT:02}"


@dataclass(frozen=True, slots=True)
class Averages:
    """Of some and of full, as of the last update; ``some_ns`` and ``full_ns`` are the totals then."""

    some: Loads = (0, 0, 0)
    full: Loads = (0, 0, 0)
    some_ns: int = 0
    full_ns: int = 0
    next_ns: int = PSI_PERIOD_NS
    """When they are updated next."""

    def updated(self, some_ns: int, full_ns: int) -> Averages:
        """At ``next_ns``, when the totals are these."""
        some, full = _mixed(self.some, some_ns - self.some_ns), _mixed(self.full, full_ns - self.full_ns)
        return Averages(some, full, some_ns, full_ns, self.next_ns + PSI_PERIOD_NS)


def _mixed(loads: Loads, waited_ns: int) -> Loads:
    active = waited_ns * 100 // PSI_PERIOD_NS * _FIXED_1
    ten, sixty, three_hundred = (calc_load(load, exp, active) for load, exp in zip(loads, _EXP, strict=True))
    return ten, sixty, three_hundred
