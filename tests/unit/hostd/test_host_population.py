"""Bulk loading of a VM before window 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apf.core import CoreError
from apf.messages import Segment
from hostd.core.events import FillPages, SegmentsLoaded
from hostd.core.page import PageState
from tests.unit.hostd.rig import Rig

NewRig = Callable[..., Rig]


def test_first_pages_are_swapped_out_in_order_and_the_rest_fills_the_group(new_rig: NewRig) -> None:
    rig = new_rig()
    code, data = Segment(4, 10, b"code"), Segment(100, 90)
    first, second = rig.core.step(SegmentsLoaded(0, (code, data)), 0)
    assert isinstance(first, FillPages) and isinstance(second, FillPages)
    assert (first.vm, first.segment) == (0, code)
    assert first.swapped.tolist() == first.slots.tolist() == list(range(10))
    assert first.resident.tolist() == first.pfns.tolist() == []
    assert second.swapped.tolist() == list(range(26)) and second.slots.tolist() == list(range(10, 36))
    assert second.resident.tolist() == list(range(26, 90)) and second.pfns.tolist() == list(range(64))
    assert rig.core.resident_pages(0) == 64 and rig.core.swap_pages == 36
    assert rig.state(125) is PageState.SWAPPED and rig.state(126) is PageState.RESIDENT


def test_a_vm_that_fits_is_wholly_resident(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(10)
    assert rig.core.resident_pages(0) == 10 and rig.core.swap_pages == 0


def test_loaded_vms_have_slots_and_frames_of_their_own(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    rig.load(100, vm=0)
    rig.load(100, vm=1)
    (effect,) = rig.effects
    assert isinstance(effect, FillPages)
    assert effect.slots[0] == 36 and effect.pfns[0] == 64


@pytest.mark.parametrize(
    ("vm", "segments", "message"),
    [
        (1, (Segment(0, 1),), "no such VM"),
        (0, (Segment(250, 7),), "ends beyond the guest's 256 pages"),
        (0, (Segment(0, 5), Segment(4, 2)), "overlaps"),
        (0, (Segment(0, 0),), "empty"),
        (0, (Segment(0, 1, bytes(4097)),), "4097 bytes for 1 pages"),
    ],
)
def test_what_does_not_fit_is_refused(new_rig: NewRig, vm: int, segments: tuple[Segment, ...], message: str) -> None:
    with pytest.raises(CoreError, match=message):
        new_rig().core.step(SegmentsLoaded(vm, segments), 0)


def test_a_vm_is_loaded_once(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(1)
    with pytest.raises(CoreError, match="has pages already"):
        rig.load(1)
