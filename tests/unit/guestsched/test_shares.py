"""Who gets the CPU in the long run: the fair shares behind the published ratio, over a vCPU made of nothing but time.

The vCPU here executes no code: a stalling task runs ``TOUCH_NS``, then touches an absent page; a counting task only
runs. Without APF the vCPU then stands still for the stall, and the guest sees nothing but time passing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pytest
from guest_fakes import Guest, guest, spec

from apf.messages import NEVER_NS, Dispatch, NotPresentArrived, PageReadyArrived, TickArrived

MS = 1_000_000
TICK_NS = 4 * MS
TICK_COST_NS = 1_000
TOUCH_NS = 10_000
APF_COST_NS = 2 * (1_000 + 1_500)


class TimeOnlyCpu:
    """One vCPU: ``stalling`` and ``counting`` are the nice values of its tasks; the stalling ones come first."""

    def __init__(self, stalling: Sequence[int], counting: Sequence[int], stall_ns: int, apf: bool, cpus: int) -> None:
        tasks = [spec(number, nice=nice) for number, nice in enumerate((*stalling, *counting), start=1)]
        self.guest: Guest = guest(*tasks, apf=["pv2010" if apf else "off"], vm__vcpus=cpus)
        self.apf, self.stall_ns, self.stalling = apf, stall_ns, len(stalling)
        self.ran_ns = [0] * (len(tasks) + 1)
        self.told: Dispatch = self.guest.boot()
        self.now_ns, self.next_tick_ns, self.tokens = self.told.at_ns, TICK_NS, 0
        self.ready: list[tuple[int, int]] = []
        self.charge_stalls = True

    def run(self, end_ns: int) -> list[int]:
        """ns each task executed until ``end_ns`` (index: task id), stalls not counted."""
        while self.now_ns < end_ns:
            task = self.told.task
            left_ns = TOUCH_NS - self.ran_ns[task] % TOUCH_NS if 0 < task <= self.stalling else NEVER_NS
            ready_ns = self.ready[0][0] if self.ready else NEVER_NS
            event_ns = min(self.now_ns + left_ns, self.next_tick_ns, ready_ns)
            executed_ns = max(0, event_ns - self.now_ns)
            self.ran_ns[task] += executed_ns
            self.now_ns += executed_ns
            if ready_ns <= self.now_ns:
                self.trap(PageReadyArrived(heapq.heappop(self.ready)[1]))
            elif self.next_tick_ns <= self.now_ns:
                self.tick()
            else:
                self.fault()
        return self.ran_ns

    def trap(self, trap: TickArrived | NotPresentArrived | PageReadyArrived) -> None:
        self.told = self.guest.trap(trap, self.now_ns) if self.charge_stalls else self.unchecked(trap)
        self.now_ns = self.told.at_ns

    def unchecked(self, trap: TickArrived | NotPresentArrived | PageReadyArrived) -> Dispatch:
        """As ``Guest.trap``; the time that was not charged would fail its check."""
        check, self.guest.core.check = self.guest.core.check, lambda: None
        try:
            return self.guest.trap(trap, self.now_ns)
        finally:
            self.guest.core.check = check

    def tick(self) -> None:
        """However late it comes, it is one tick."""
        self.next_tick_ns = (self.now_ns // TICK_NS + 1) * TICK_NS
        if self.now_ns >= self.told.run_until_ns:
            self.trap(TickArrived())
        else:
            self.now_ns += TICK_COST_NS

    def fault(self) -> None:
        if self.apf:
            self.tokens += 1
            heapq.heappush(self.ready, (self.now_ns + self.stall_ns, self.tokens << 12))
            self.trap(NotPresentArrived(self.tokens << 12))
            return
        self.now_ns += self.stall_ns
        if not self.charge_stalls:
            self.steal()

    def steal(self) -> None:
        """What the kernel would do if the stall were steal: leave it out of the task's time."""
        self.guest.core.cpu(0).rq.clock_ns += self.stall_ns
        self.told = self.told.__class__(
            at_ns=self.told.at_ns,
            task=self.told.task,
            asid=1,
            account=self.told.account,
            registers=None,
            run_until_ns=self.guest.core.cpu(0).rq.run_until_ns(),
        )
        self.guest.core.cpu(0).run_until_ns = self.told.run_until_ns


def counting_share(
    stalling: Sequence[int],
    counting: Sequence[int],
    stall_ns: int = 8 * MS,
    apf: bool = False,
    cpus: int = 1,
    charge_stalls: bool = True,
    end_ns: int = 20_000 * MS,
) -> float:
    """The part of the vCPU's time in which the counting tasks counted."""
    cpu = TimeOnlyCpu(stalling, counting, stall_ns, apf, cpus)
    cpu.charge_stalls = charge_stalls
    return sum(cpu.run(end_ns)[len(stalling) + 1 :]) / cpu.now_ns


@pytest.mark.parametrize(("stalling", "counting"), [(1, 1), (1, 3), (3, 1), (2, 2), (4, 1), (2, 5)])
def test_without_apf_counting_tasks_get_their_fair_share(stalling: int, counting: int) -> None:
    """M/(N+M), for the stall is charged to the task that faulted (E50)."""
    share = counting_share([0] * stalling, [0] * counting)
    assert share == pytest.approx(counting / (stalling + counting), rel=0.03)


@pytest.mark.parametrize("stall_ns", [100_000, MS, 8 * MS, 30 * MS])
@pytest.mark.parametrize("cpus", [1, 4])
def test_share_does_not_depend_on_how_long_a_stall_is(stall_ns: int, cpus: int) -> None:
    assert counting_share([0], [0], stall_ns=stall_ns, cpus=cpus, end_ns=10_000 * MS) == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("stall_ns", [MS, 8 * MS])
def test_were_stalls_not_charged_the_share_would_be_another(stall_ns: int) -> None:
    """The ratio comes from charging, not from a constant: as steal, stalls would be paid by everybody."""
    share = counting_share([0], [0], stall_ns=stall_ns, charge_stalls=False)
    assert share < 0.25


@pytest.mark.parametrize(("stalling", "counting"), [(0, 5), (5, 0), (0, -5), (-3, 3)])
def test_without_apf_shares_go_by_weight(stalling: int, counting: int) -> None:
    weights = {-5: 3121, -3: 1991, 0: 1024, 3: 526, 5: 335}
    expected = weights[counting] / (weights[stalling] + weights[counting])
    share = counting_share([stalling], [counting], stall_ns=2 * MS, end_ns=60_000 * MS)
    assert share == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("stalling", "counting"), [(1, 1), (1, 3), (3, 1), (4, 1)])
def test_with_apf_counting_tasks_get_nearly_all(stalling: int, counting: int) -> None:
    """1 - N * (c + o) / (S + c + o): c of CPU and o of protocol for every fault, S of I/O."""
    busy_ns = TOUCH_NS + APF_COST_NS
    share = counting_share([0] * stalling, [0] * counting, apf=True)
    assert share == pytest.approx(1 - stalling * busy_ns / (8 * MS + busy_ns), abs=0.005)
    assert share > 0.98


def test_apf_doubles_the_counters_of_the_published_benchmark() -> None:
    """T17: one faulting and one working thread a vCPU, 4 vCPUs: 1.995 times as much."""
    with_apf, without = (counting_share([0], [0], apf=apf, cpus=4) for apf in (True, False))
    assert with_apf / without == pytest.approx(1.995, rel=0.03)
