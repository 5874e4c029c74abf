"""VMs that leave a host that runs, and those that take their places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf.core import CoreError
from apf.messages import FaultKind, Segment
from hostd.core.events import ClearVm, ReadSlot, SegmentsLoaded, VmLeft
from hostd.core.page import PageState
from tests.unit.hostd.rig import READ, READ_NS, WINDOW_NS, WRITE, Rig

NewRig = Callable[..., Rig]


def leave(rig: Rig, at_ns: int, vm: int = 0) -> None:
    """At a border, behind its work."""
    rig.border(at_ns)
    assert rig.core.step(VmLeft(vm), at_ns) == [ClearVm(vm)]
    rig.core.check()


def in_use(rig: Rig, vm: int = 0) -> int:
    """Pages of a VM that are anywhere."""
    first = rig.core._mm.pages.first_key[vm]
    return 256 - rig.core._mm.pages.state[first : first + 256].count(0)


def test_what_is_in_nobodys_hands_is_free_at_once(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    rig.load(200, vm=0)
    rig.load(100, vm=1)
    free = rig.core.free_frames
    leave(rig, WINDOW_NS)
    assert in_use(rig, 0) == 0 and in_use(rig, 1) == 100
    assert rig.core.free_frames == free + 64 and rig.core.swap_pages == 36
    assert rig.core.resident_pages(0) == 0 and rig.core.resident_pages(1) == 64
    assert rig.core.gone_ns(0) == WINDOW_NS, "its place is free"


def test_e54_e55_what_a_worker_or_an_io_has_goes_when_it_lets_go(new_rig: NewRig) -> None:
    """The worker finds no mm, and completes its item all the same."""
    rig = new_rig()
    rig.load(200)
    read = rig.in_progress(0, 100)
    sleeper = rig.mapped(1, 200, vcpu=1)
    assert read.ready_at_ns < sleeper.at_ns
    completed = rig.core.counters["kvm_async_pf_completed"]
    leave(rig, WINDOW_NS)
    assert {gfn for gfn in range(256) if rig.state(gfn) is PageState.READING} == {0, 1}
    gone_ns = rig.core.gone_ns(0)
    assert gone_ns > 2 * READ_NS
    with pytest.raises(CoreError, match="pages already"):
        rig.core.step(SegmentsLoaded(0, (Segment(0, 10),)), WINDOW_NS + 1)
    rig.border(gone_ns // WINDOW_NS * WINDOW_NS + WINDOW_NS)
    assert in_use(rig) == 0 and rig.core.swap_pages == 0 and rig.core.free_frames == 128
    assert rig.core.counters["kvm_async_pf_completed"] == completed + 1
    rig.core.check()


def test_the_next_vm_finds_its_place_as_new(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(200)
    rig.mapped(0, 100, WRITE)
    leave(rig, 10 * WINDOW_NS)
    at_ns = (rig.core.gone_ns(0) // WINDOW_NS + 1) * WINDOW_NS
    rig.border(at_ns)
    rig.core.step(SegmentsLoaded(0, (Segment(0, 200),)), at_ns)
    rig.core.check()
    assert rig.state(0) is PageState.SWAPPED and rig.state(199) is PageState.RESIDENT
    assert rig.core.resident_pages(0) == 64 and rig.core.swap_pages == 136
    assert rig.mapped(0, at_ns + 10).stall_ns > 0


def test_slots_that_stood_for_zeros_hold_what_the_next_vm_is_loaded_with(new_rig: NewRig) -> None:
    """swap_free takes a slot's bit out of the zeromap (mm/swapfile.c:swap_range_free, swap_zeromap_folio_clear)."""
    rig = new_rig(swap_slots=140)
    rig.load(64)
    rig.core._mm.vmscan.reclaim(0, 32, 0)
    rig.border(WINDOW_NS, zero=rig.core.writes_ahead())
    swap, slots = rig.core._mm.swap, range(140)
    of_zeros = [slot for slot in slots if swap.is_zero(slot)]
    assert len(of_zeros) == 32
    leave(rig, 10 * WINDOW_NS)
    at_ns = (rig.core.gone_ns(0) // WINDOW_NS + 1) * WINDOW_NS
    rig.border(at_ns)
    rig.core.step(SegmentsLoaded(0, (Segment(0, 200),)), at_ns)
    again = [gfn for gfn in range(200) if rig.slot(gfn) in of_zeros]
    assert len(again) > 20, "the test does not test what it says"
    for gfn in again:
        reply = rig.mapped(gfn, at_ns + 1000 * WINDOW_NS * (1 + gfn))
        assert rig.seen(ReadSlot) and reply.kind is FaultKind.MAJOR


def test_who_is_not_there_cannot_leave(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(10)
    with pytest.raises(CoreError, match="no such VM"):
        rig.core.step(VmLeft(1), WINDOW_NS)
    leave(rig, WINDOW_NS)
    with pytest.raises(CoreError, match="no such VM"):
        rig.core.step(VmLeft(0), WINDOW_NS)


@given(st.data())
def test_nothing_is_lost_whenever_it_leaves(data: st.DataObject) -> None:
    """Faults of two VMs; one leaves somewhere among them; in the end it has nothing, and frames and slots add up."""
    rig = Rig(vms=2, limit=16, reserve=16)
    rig.load(60, vm=0)
    rig.load(60, vm=1)
    now_ns, gone = 0, False
    for work in range(1, 1 + data.draw(st.integers(1, 25))):
        now_ns += data.draw(st.integers(1, 2 * READ_NS))
        vm = data.draw(st.sampled_from([1] if gone else [0, 1]))
        access = data.draw(st.sampled_from(["read", "write"]))
        wants = data.draw(st.booleans())
        rig.fault(
            data.draw(st.integers(0, 79)),
            now_ns,
            WRITE if access == "write" else READ,
            vm=vm,
            work=work if wants else 0,
        )
        if data.draw(st.booleans()):
            now_ns = (now_ns // WINDOW_NS + 1) * WINDOW_NS
            rig.border(now_ns)
            if not gone and data.draw(st.integers(0, 4)) == 0:
                rig.core.step(VmLeft(0), now_ns)
                gone = True
            rig.core.check()
    if not gone:
        now_ns = (now_ns // WINDOW_NS + 1) * WINDOW_NS
        rig.border(now_ns)
        rig.core.step(VmLeft(0), now_ns)
    rig.border(max(rig.core.gone_ns(0), now_ns) // WINDOW_NS * WINDOW_NS + WINDOW_NS)
    rig.core.check()
    assert in_use(rig, 0) == 0 and rig.core.resident_pages(0) == 0
