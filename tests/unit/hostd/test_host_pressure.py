"""PSI: the folded integrals against a naive integral over every nanosecond, and who waits, from faults of the core."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from apf.messages import GupVariant, Retry
from hostd.core import pressure
from hostd.core.pressure import Pressure
from tests.unit.hostd.rig import COSTS, READ_NS, Rig

NewRig = Callable[..., Rig]
RECLAIM_NS = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns)


class Naive:
    """Counts every nanosecond, as the definition reads."""

    def __init__(self, tasks: int, end_ns: int) -> None:
        self.waiting = [0] * end_ns
        self.useful = [tasks] * end_ns

    def waits(self, from_ns: int, until_ns: int) -> None:
        for at in range(from_ns, min(until_ns, len(self.waiting))):
            self.waiting[at] += 1
            self.useful[at] -= 1

    def comes_and_waits(self, spans: tuple[tuple[int, int], ...], from_ns: int, until_ns: int) -> None:
        for at in range(from_ns, min(until_ns, len(self.useful))):
            self.useful[at] += 1
        for start, end in spans:
            self.waits(start, end)

    def totals(self, now_ns: int) -> tuple[int, int]:
        some = sum(waiting > 0 for waiting in self.waiting[:now_ns])
        full = sum(w > 0 and u == 0 for w, u in zip(self.waiting[:now_ns], self.useful[:now_ns], strict=True))
        return some, full


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fold_at", [1, 7, 4096])
def test_against_a_naive_integral(seed: int, fold_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of a group that wait one at a time each, workers that come and go, looks and folds in between."""
    monkeypatch.setattr(pressure, "_FOLD_AT", fold_at)
    chance = random.Random(seed)
    tasks, end_ns = chance.randrange(5), 3000
    group, naive = Pressure(tasks), Naive(tasks, end_ns)
    free_at = [0] * tasks
    now_ns = 0
    while now_ns < end_ns - 300:
        now_ns += chance.randrange(40)
        task = chance.randrange(tasks + 1)
        if task == tasks:
            comes_ns = now_ns + chance.randrange(20)
            reclaimed_ns = comes_ns + chance.randrange(10)
            waits_ns = reclaimed_ns + chance.randrange(10)
            read_ns = waits_ns + chance.choice((0, chance.randrange(200)))
            spans = ((comes_ns, reclaimed_ns), (waits_ns, read_ns))
            leaves_ns = read_ns + chance.randrange(10)
            for one in (group, naive):
                one.comes_and_waits(spans, comes_ns, leaves_ns)
        elif free_at[task] <= now_ns:
            start_ns = now_ns + chance.randrange(20)
            free_at[task] = start_ns + chance.randrange(150)
            for one in (group, naive):
                one.waits(start_ns, free_at[task])
        if chance.random() < 0.3:
            group.fold(now_ns)
        if chance.random() < 0.1:
            totals = group.totals(now_ns)
            assert (totals.some_ns, totals.full_ns) == naive.totals(now_ns)
            assert group.totals(now_ns) == totals, "looking changes nothing"
    totals = group.totals(end_ns)
    assert (totals.some_ns, totals.full_ns, totals.at_ns) == (*naive.totals(end_ns), end_ns)


def test_totals_never_go_behind_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "_FOLD_AT", 1)
    group = Pressure(1)
    group.waits(10, 20)
    group.fold(15)
    assert [group.totals(at).some_ns for at in (12, 15, 17, 100)] == [5, 5, 7, 10]
    assert group.totals(100).full_ns == 10


def test_one_of_two_and_both() -> None:
    group = Pressure(2)
    group.waits(0, 100)
    group.waits(40, 70)
    assert (group.totals(1000).some_ns, group.totals(1000).full_ns) == (100, 30)


def test_a_worker_alone_is_full_but_while_it_works() -> None:
    root = Pressure()
    root.comes_and_waits(((12, 12), (20, 90)), 12, 95)
    assert (root.totals(200).some_ns, root.totals(200).full_ns) == (70, 70)
    root.comes_and_waits(((300, 310), (310, 400)), 300, 410)
    root.comes_and_waits(((390, 390), (395, 420)), 390, 430)
    # 390 to 395 and 400 to 410 one works while the other waits.
    assert (root.totals(500).some_ns, root.totals(500).full_ns) == (70 + 120, 70 + 120 - 15)


# Whose wait it is, by the core's own faults.


def some(rig: Rig, at_ns: int) -> dict[str, int]:
    mm = rig.core.watched()
    return {"0": mm.pressure[0].totals(at_ns).some_ns, "root": mm.root_pressure.totals(at_ns).some_ns}


def test_a_synchronous_fault_waits_in_the_vms_group(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.thrashes(0)
    reply = rig.mapped(0, 1_000)
    assert reply.stall_ns and some(rig, 10**9) == {"0": RECLAIM_NS + reply.stall_ns, "root": 0}


def test_a_page_that_was_not_of_the_working_set_is_waited_for_without_pressure(new_rig: NewRig) -> None:
    """mm/page_io.c:swap_read_folio, mm/filemap.c:folio_wait_bit_common: memstall under PG_workingset only."""
    rig = new_rig()
    rig.load(256)
    reply = rig.mapped(0, 1_000)
    assert reply.stall_ns and some(rig, 10**9) == {"0": RECLAIM_NS, "root": 0}


def test_full_is_when_both_vcpus_wait(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.thrashes(0, 1)
    first = rig.mapped(0, 1_000, vcpu=0)
    second = rig.mapped(1, 2_000, vcpu=1)
    group = rig.core.watched().pressure[0].totals(10**9)
    begins_ns = second.at_ns - second.stall_ns - COSTS.host_fault_ns
    read_ns = first.at_ns - COSTS.host_fault_ns
    assert group.full_ns == read_ns - begins_ns - COSTS.swap_submit_ns, "while it submits its read, the first works"
    assert rig.core.pressure()["0"].at_ns == 2_000, "as of the core's last step"


def test_an_asynchronous_fault_waits_in_the_root_group(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.thrashes(0)
    reply = rig.in_progress(0, 1_000)
    comes_ns = reply.at_ns + COSTS.fault_in_worker_ns
    reads_ns = comes_ns + RECLAIM_NS + COSTS.swap_submit_ns
    assert reply.ready_at_ns == reads_ns + READ_NS + COSTS.host_fault_ns
    assert some(rig, 10**9) == {"0": 0, "root": RECLAIM_NS + READ_NS}
    rig.mapped(200, reply.ready_at_ns + 1)
    assert some(rig, 10**9) == {"0": 0, "root": RECLAIM_NS + READ_NS}, "a resident page: nobody waits"


def test_nowait_leaves_the_reclaim_with_the_vcpu(new_rig: NewRig) -> None:
    rig = new_rig(gup=GupVariant.NOWAIT)
    rig.load(256)
    rig.thrashes(0)
    reply = rig.in_progress(0, 1_000)
    waits_ns = reply.ready_at_ns - COSTS.host_fault_ns - reply.at_ns - COSTS.fault_in_worker_ns
    assert some(rig, 10**9) == {"0": RECLAIM_NS, "root": waits_ns}


def test_a_retry_is_a_wait(new_rig: NewRig) -> None:
    rig = new_rig(limit=4, reserve=1)
    rig.load(256)
    replies = []
    for gfn in range(64):
        replies.append(rig.fault(gfn, 1_000))
        if isinstance(replies[-1], Retry):
            break
    retry = replies[-1]
    assert isinstance(retry, Retry)
    before = rig.core.watched().pressure[0].totals(1_000).some_ns
    assert before == 0 and rig.core.watched().pressure[0].totals(retry.at_ns).some_ns == retry.at_ns - 1_000
