"""The profile's timer of one vCPU: a cpu-clock at a fixed rate, as perf's cpu-clock event (kernel/events/core.c).

Theory. A sample is due every period of the vCPU's clock, from a phase drawn for each vCPU. It is an interrupt like any
other: while the vCPU runs a task it comes on time and says where; while the guest kernel runs with interrupts off it
comes when they are on again, and says on which path; while the vCPU sleeps in the host nothing comes, and what was due
meanwhile comes as one sample when it goes on (perf_swevent_hrtimer: hrtimer_forward_now, one sample).

Departure: an idle vCPU is not woken to find that it idles; its samples are counted when the idling ends.
"""

from __future__ import annotations

from collections import Counter

from apf.messages import NEVER_NS, KernelPath, Sample


class Sampler:
    """Counts samples until they are drained; the first is due at ``first_ns``. ``period_ns`` 0: never due."""

    def __init__(self, period_ns: int, first_ns: int) -> None:
        self._period_ns = period_ns
        self.next_ns = first_ns if period_ns else NEVER_NS
        self._counts: Counter[tuple[int, int, KernelPath]] = Counter()

    def _forward(self, now_ns: int) -> int:
        """Let the timer expire again after ``now_ns``; returns how often it was due."""
        missed = (now_ns - self.next_ns) // self._period_ns + 1
        self.next_ns += missed * self._period_ns
        return missed

    def in_task(self, now_ns: int, task: int, rip: int) -> None:
        """The sample that is due finds ``task`` at ``rip``."""
        self._forward(now_ns)
        self._counts[task, rip, KernelPath.USER] += 1

    def in_kernel(self, now_ns: int, path: KernelPath) -> None:
        """The sample that is due finds the guest kernel on ``path``."""
        self._forward(now_ns)
        self._counts[0, 0, path] += 1

    def idled(self, until_ns: int) -> None:
        """The vCPU has idled until ``until_ns``."""
        if self.next_ns <= until_ns:
            self._counts[0, 0, KernelPath.IDLE] += self._forward(until_ns)

    def drain(self) -> tuple[Sample, ...]:
        """What was counted since the last call, in order of place."""
        if not self._counts:
            return ()
        drained = tuple(Sample(*place, count) for place, count in sorted(self._counts.items()))
        self._counts.clear()
        return drained
