"""T14: each get_user_pages variant gives another outcome for the same page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apf.messages import FaultKind, GupVariant, InProgress, Mapped
from hostd.core.events import ReadSlot
from hostd.core.page import PageState
from tests.unit.hostd.rig import COSTS, READ_NS, WINDOW_NS, Rig

NewRig = Callable[..., Rig]
GFN, NOW_NS = 0, 40 * WINDOW_NS
EPT_NS = COSTS.ept_violation_ns
RECLAIM_NS = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns)
FAST, NOIO, NOWAIT = GupVariant


def in_state(new_rig: NewRig, gup: GupVariant, state: PageState) -> Rig:
    """A rig in which page GFN is in ``state`` at NOW_NS."""
    rig = new_rig(gup=gup)
    if state is PageState.NONE:
        return rig
    rig.load(256)
    match state:
        case PageState.RESIDENT:
            rig.in_progress(GFN, 0, vcpu=1)
            rig.border(NOW_NS - 1)
        case PageState.WRITEBACK:
            rig = new_rig(gup=gup)
            rig.load(64)
            rig.mapped(100, NOW_NS - 50_000)
            rig.border(NOW_NS - 1)
        case PageState.READING:
            rig.mapped(GFN, NOW_NS - 60_000, vcpu=1)
        case PageState.CACHED:
            reply = rig.mapped(GFN, 0, vcpu=1)
            at_ns = reply.at_ns - COSTS.host_fault_ns
            rig.border(at_ns)
    return rig


def outcome(rig: Rig, at_ns: int) -> str:
    reply = rig.fault(GFN, at_ns, work=7)
    if isinstance(reply, Mapped):
        assert reply.kind is FaultKind.MINOR
        return "mapped"
    assert isinstance(reply, InProgress)
    return "worker reads" if rig.seen(ReadSlot) else "worker"


@pytest.mark.parametrize(
    ("state", "fast", "noio", "nowait"),
    [
        (PageState.RESIDENT, "mapped", "mapped", "mapped"),
        (PageState.NONE, "worker", "mapped", "mapped"),
        (PageState.WRITEBACK, "worker", "mapped", "mapped"),
        (PageState.CACHED, "worker", "mapped", "mapped"),
        (PageState.READING, "worker", "worker", "worker"),
        (PageState.SWAPPED, "worker reads", "worker reads", "worker reads"),
    ],
)
def test_outcomes(new_rig: NewRig, state: PageState, fast: str, noio: str, nowait: str) -> None:
    for gup, expected in ((FAST, fast), (NOIO, noio), (NOWAIT, nowait)):
        rig = in_state(new_rig, gup, state)
        at_ns = rig.core._now_ns if state is PageState.CACHED else NOW_NS
        rig.core._mm.run_until(at_ns)
        assert rig.state(GFN) is state, "the test does not test what it says"
        assert outcome(rig, at_ns) == expected, gup.name


def test_nowait_reads_at_once_on_the_vcpu_and_noio_leaves_it_to_the_worker(new_rig: NewRig) -> None:
    noio, nowait = new_rig(gup=NOIO), new_rig(gup=NOWAIT)
    noio.load(256)
    nowait.load(256)
    left, kept = noio.in_progress(GFN, 0), nowait.in_progress(GFN, 0)
    assert left.at_ns == EPT_NS
    assert kept.at_ns == EPT_NS + RECLAIM_NS + COSTS.swap_submit_ns
    assert kept.ready_at_ns == kept.at_ns + READ_NS + COSTS.host_fault_ns
    assert left.ready_at_ns == kept.ready_at_ns + COSTS.fault_in_worker_ns


def test_fast_lets_the_worker_do_a_zero_page_without_io(new_rig: NewRig) -> None:
    rig = new_rig(gup=FAST)
    reply = rig.in_progress(GFN, 0)
    assert reply.at_ns == EPT_NS
    service_ns = COSTS.fault_in_worker_ns + COSTS.zero_fill_ns + COSTS.host_fault_ns
    assert reply.ready_at_ns == EPT_NS + service_ns
    assert rig.core.counters["pswpin"] == 0
