"""What cannot be settled now is answered Retry at the next border; a hopeless group is an error."""

from __future__ import annotations

from collections.abc import Callable

from apf.messages import Failed, Mapped, PageError, Retry
from hostd.core.memcontrol import MAX_RECLAIM_RETRIES
from tests.unit.hostd.rig import WINDOW_NS, WRITE_NS, Rig

NewRig = Callable[..., Rig]


def test_without_a_free_frame_the_fault_is_retried_and_works_once_a_write_is_done(new_rig: NewRig) -> None:
    rig = new_rig(limit=4, reserve=1)
    rig.load(4)
    rig.mapped(10, 100)
    assert rig.core.free_frames == 0
    assert rig.fault(11, 200, vcpu=1) == Retry(WINDOW_NS)
    assert len(rig.effects) == 1
    rig.border(WINDOW_NS)
    assert rig.fault(11, WINDOW_NS, vcpu=1) == Retry(2 * WINDOW_NS)
    assert isinstance(rig.fault(11, WINDOW_NS + WRITE_NS, vcpu=1), Mapped)
    assert rig.core.counters["retry"] == 2


def test_a_group_that_never_gets_a_page_is_out_of_memory(new_rig: NewRig) -> None:
    rig = new_rig(limit=1)
    rig.core._mm.groups[0].limit = 0
    for border in range(MAX_RECLAIM_RETRIES):
        assert rig.fault(0, border * WINDOW_NS) == Retry((border + 1) * WINDOW_NS)
    reply = rig.fault(0, MAX_RECLAIM_RETRIES * WINDOW_NS)
    assert isinstance(reply, Failed) and reply.error is PageError.OUT_OF_MEMORY
    rig.core._mm.groups[0].limit = 1
