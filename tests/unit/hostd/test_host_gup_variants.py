"""T14: each get_user_pages variant gives another outcome for the same page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from apf.messages import FaultKind, GupVariant, InProgress, Mapped
from hostd.core.device import DeviceProfile
from hostd.core.events import ReadSlot
from hostd.core.page import PageState
from tests.unit.hostd.rig import COSTS, PROFILE, READ_NS, WINDOW_NS, Rig

NewRig = Callable[..., Rig]
GFN, NOW_NS = 0, 40 * WINDOW_NS
EPT_NS = COSTS.ept_violation_ns
RECLAIM_NS = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns)
FAST, NOIO, NOWAIT = GupVariant
SYNCHRONOUS = replace(PROFILE, background=False)


def in_state(new_rig: NewRig, gup: GupVariant, state: PageState, profile: DeviceProfile = PROFILE) -> Rig:
    """A rig in which page GFN is in ``state`` at NOW_NS."""
    rig = new_rig(gup=gup, profile=profile)
    if state is PageState.NONE:
        return rig
    rig.load(256)
    match state:
        case PageState.RESIDENT:
            rig.fault(GFN, 0, vcpu=1, work=1)
            rig.border(NOW_NS - 1)
        case PageState.WRITEBACK:
            rig = new_rig(gup=gup, profile=profile)
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
        assert (reply.kind is FaultKind.MAJOR) == bool(rig.seen(ReadSlot))
        return "reads" if rig.seen(ReadSlot) else "mapped"
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


@pytest.mark.parametrize("gup", GupVariant)
@pytest.mark.parametrize("state", set(PageState) - {PageState.EVICTING})
def test_a_synchronous_device_makes_a_difference_to_what_has_to_be_read_only(
    new_rig: NewRig, state: PageState, gup: GupVariant
) -> None:
    """Not to FAST, which never comes to do_swap_page, and not to who finds the page locked (swap_read_folio)."""
    found = []
    for profile in (PROFILE, SYNCHRONOUS):
        rig = in_state(new_rig, gup, state, profile)
        at_ns = rig.core._now_ns if state is PageState.CACHED else NOW_NS
        rig.core._mm.run_until(at_ns)
        assert rig.state(GFN) is state, "the test does not test what it says"
        found.append(outcome(rig, at_ns))
    if state is PageState.SWAPPED and gup is not FAST:
        assert found == ["worker reads", "reads"]
    else:
        assert found[0] == found[1]


@pytest.mark.parametrize("gup", [NOIO, NOWAIT])
def test_who_reads_from_a_synchronous_device_is_at_it_until_the_read_is_done(
    new_rig: NewRig, gup: GupVariant
) -> None:
    rig = new_rig(gup=gup, profile=SYNCHRONOUS)
    rig.load(256)
    reply = rig.mapped(GFN, 0, work=7)
    assert (reply.kind, reply.stall_ns) == (FaultKind.MAJOR, READ_NS)
    assert reply.at_ns == EPT_NS + RECLAIM_NS + COSTS.swap_submit_ns + READ_NS + COSTS.host_fault_ns
    counters = rig.core.counters
    assert (counters["pgmajfault"], counters["pswpin"], counters["kvm_try_async_get_page"]) == (1, 1, 0)


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
