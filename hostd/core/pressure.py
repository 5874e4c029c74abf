"""Pressure stall information (PSI) for memory: for how long a group's tasks had to wait for memory.

Follows kernel/sched/psi.c. A task is in *memstall* while it reclaims directly (mm/memcontrol.c:try_charge_memcg), while
it waits for the read of a page that had been evicted (mm/filemap.c:folio_wait_bit_common under PG_workingset), and
while it waits because nothing could be reclaimed. Of a group, at virtual time t,

    some(t)  at least one task is in memstall
    full(t)  some(t), and no task of the group does anything useful: none of those that are not idle runs

and the totals are the integrals of the two over virtual time, exact to the nanosecond.

Who waits. The tasks of a VM's group are its vCPU threads. A synchronous fault's wait, a prefault's, a retry's, and the
direct reclaim that a vCPU pays for belong to that vCPU. What the fault-in worker waits for belongs to the worker: a
kworker of the root cgroup. So asynchronous faults take their waits out of the VM's pressure, though not out of the
host's: that is how it is in the kernel too. Group ``root`` has the workers' tasks only, not, as /proc/pressure has,
those of all groups: a worker is idle without work, in memstall while it reclaims and reads, and useful in the rest of
the time from its waking up to get_user_pages being over.

Departures. There is memory pressure only, no io.pressure. The kernel integrates on each CPU and averages by the CPUs'
non-idle time; here a group has one integral, which is what its documentation defines. hostd is not told when a vCPU
halts because its guest idles: it counts as useful then, so a VM's ``full`` is the time in which all its vCPUs wait at
once, a lower bound where vCPUs idle.

How. All intervals are known when a request is answered, and begin no earlier than the request. They are kept as they
come, which is all that a fault pays for, and are folded into the totals a few thousand at a time, in order of time. What
begins after the time of folding waits for the next. ``totals`` may be called by another thread at any moment: it folds a
copy and changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from operator import itemgetter

from hostd.core.averages import PSI_PERIOD_NS, Averages

_FOLD_AT = 1024
"""So many new changes are folded together."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Virtual ns up to ``at_ns``, and the averages of the last update before."""

    some_ns: int
    full_ns: int
    at_ns: int
    averages: Averages = field(default_factory=Averages)


@dataclass(frozen=True, slots=True)
class _Folded:
    """The integrals and averages up to ``at_ns``, how many tasks wait and work then, and what was not yet folded.

    A change is (time, change of the number of waiting tasks, change of the number of useful ones).
    """

    some_ns: int = 0
    full_ns: int = 0
    at_ns: int = 0
    waiting: int = 0
    useful: int = 0
    changes: list[tuple[int, int, int]] = field(default_factory=list)
    averages: Averages = field(default_factory=Averages)

    def until(self, now_ns: int) -> _Folded:
        """Folded up to ``now_ns``; the rest stays, in a list of its own."""
        some_ns, full_ns, at_ns, waiting, useful = self.some_ns, self.full_ns, self.at_ns, self.waiting, self.useful
        averages, next_ns = self.averages, self.averages.next_ns
        changes = sorted(self.changes)
        done = bisect_right(changes, now_ns, key=itemgetter(0))
        for time_ns, waits, works in (*changes[:done], (now_ns, 0, 0)):
            if time_ns >= next_ns:
                averages = _updated(averages, some_ns, full_ns, at_ns, time_ns, bool(waiting), not useful)
                next_ns = averages.next_ns
            if waiting:
                some_ns += time_ns - at_ns
                if not useful:
                    full_ns += time_ns - at_ns
            at_ns = time_ns
            waiting += waits
            useful += works
        return _Folded(some_ns, full_ns, now_ns, waiting, useful, changes[done:], averages)


def _updated(
    averages: Averages, some_ns: int, full_ns: int, at_ns: int, until_ns: int, waiting: bool, useless: bool
) -> Averages:
    """All updates up to ``until_ns``, given the totals at ``at_ns``, since when nothing has changed."""
    while averages.next_ns <= until_ns:
        span_ns = averages.next_ns - at_ns
        before = averages
        averages = averages.updated(some_ns + span_ns * waiting, full_ns + span_ns * (waiting and useless))
        if averages.some == before.some and averages.full == before.full and span_ns >= PSI_PERIOD_NS:
            # No update changes them any more: those that are left are taken as one.
            left_ns = (until_ns - averages.next_ns) // PSI_PERIOD_NS * PSI_PERIOD_NS
            if left_ns > 0:
                averages = replace(
                    averages,
                    some_ns=averages.some_ns + left_ns * waiting,
                    full_ns=averages.full_ns + left_ns * (waiting and useless),
                    next_ns=averages.next_ns + left_ns,
                )
    return averages


class Pressure:
    """Memory pressure of one group, of which ``tasks`` are always there and useful unless they wait."""

    __slots__ = ("_changes", "_fold_at", "_folded")

    def __init__(self, tasks: int = 0) -> None:
        self._folded = _Folded(useful=tasks)
        self._changes = self._folded.changes
        self._fold_at = _FOLD_AT

    def waits(self, from_ns: int, until_ns: int) -> None:
        """One of the group's tasks is in memstall from ``from_ns`` to ``until_ns``."""
        if until_ns > from_ns:
            self._changes += ((from_ns, 1, -1), (until_ns, -1, 1))

    def comes_and_waits(self, spans: tuple[tuple[int, int], ...], from_ns: int, until_ns: int) -> None:
        """A task that was idle is there from ``from_ns`` to ``until_ns``, and in memstall in ``spans`` of that."""
        self._changes += ((from_ns, 0, 1), (until_ns, 0, -1))
        for start_ns, end_ns in spans:
            self.waits(start_ns, end_ns)

    def fold(self, now_ns: int) -> None:
        """Fold if that is worth while, at a time before which nothing can begin any more. Call it now and then."""
        if len(self._changes) >= self._fold_at:
            self._folded = self._folded.until(now_ns)
            self._changes = self._folded.changes
            self._fold_at = len(self._changes) + _FOLD_AT

    def totals(self, now_ns: int) -> Totals:
        """The totals up to ``now_ns``, or to where they were folded if that is later."""
        folded = self._folded
        done = replace(folded, changes=folded.changes[:]).until(max(now_ns, folded.at_ns))
        return Totals(done.some_ns, done.full_ns, done.at_ns, done.averages)
