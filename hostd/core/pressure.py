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

Departures. The kernel integrates on each CPU and averages by the CPUs' non-idle time; here a group has one integral,
which is what its documentation defines. hostd is not told when a vCPU halts because its guest idles: it counts as
useful then, so a VM's ``full`` is the time in which all its vCPUs wait at once, a lower bound where vCPUs idle.
Averages over 10, 60 and 300 seconds are left to whoever reads the totals.

How. All intervals are known when a request is answered, and begin no earlier than the request. They are kept as they
come, which is all that a fault pays for, and are folded into the totals a few thousand at a time, in order of time. What
begins after the time of folding waits for the next. ``totals`` may be called by another thread at any moment: it folds a
copy and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_FOLD_AT = 4096
"""So many new changes are folded together."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Virtual ns up to ``at_ns``."""

    some_ns: int
    full_ns: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class _Folded:
    """The integrals up to ``at_ns``, how many tasks wait and work then, and what was not yet folded.

    A change is (time, change of the number of waiting tasks, change of the number of useful ones).
    """

    some_ns: int = 0
    full_ns: int = 0
    at_ns: int = 0
    waiting: int = 0
    useful: int = 0
    changes: list[tuple[int, int, int]] = field(default_factory=list)

    def until(self, now_ns: int) -> _Folded:
        """Folded up to ``now_ns``; the rest stays, in a list of its own."""
        some_ns, full_ns, at_ns, waiting, useful = self.some_ns, self.full_ns, self.at_ns, self.waiting, self.useful
        changes = sorted(self.changes)
        done = 0
        for time_ns, waits, works in changes:
            if time_ns > now_ns:
                break
            if waiting:
                some_ns += time_ns - at_ns
                if not useful:
                    full_ns += time_ns - at_ns
            at_ns = time_ns
            waiting += waits
            useful += works
            done += 1
        if waiting:
            some_ns += now_ns - at_ns
            if not useful:
                full_ns += now_ns - at_ns
        return _Folded(some_ns, full_ns, now_ns, waiting, useful, changes[done:])


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
        copy = _Folded(folded.some_ns, folded.full_ns, folded.at_ns, folded.waiting, folded.useful, folded.changes[:])
        done = copy.until(max(now_ns, folded.at_ns))
        return Totals(done.some_ns, done.full_ns, done.at_ns)
