"""How the host handles guest memory: the rows T1 to T6, and what each fault costs."""

from __future__ import annotations

from collections.abc import Callable

from apf.hostmem import ept_entry
from apf.messages import FaultKind, Mapped
from hostd.core.events import ReadSlot, RewriteEpt, WriteSlots, ZeroFrame
from hostd.core.page import PageState
from tests.unit.hostd.rig import COSTS, READ_NS, WINDOW_NS, WRITE, Rig

NewRig = Callable[..., Rig]
EPT_NS = COSTS.ept_violation_ns


def test_t1_nothing_is_mapped_before_it_is_used(new_rig: NewRig) -> None:
    rig = new_rig()
    assert rig.core.resident_pages(0) == 0
    assert rig.core.border_due_ns() is None and not rig.core.border_work


def test_t2_first_access_allocates_an_empty_page_and_the_border_publishes_it(new_rig: NewRig) -> None:
    rig = new_rig()
    reply = rig.mapped(5, 1_000)
    cost_ns = EPT_NS + COSTS.host_fault_ns + COSTS.zero_fill_ns
    assert reply == Mapped(1_000 + cost_ns, 5, 0, True, FaultKind.MINOR, 0)
    assert rig.effects[0] == ZeroFrame(0)
    assert rig.core.border_due_ns() == reply.at_ns
    assert rig.border(WINDOW_NS) == [RewriteEpt(0, {5: ept_entry(0, True)})]
    assert rig.core.border_due_ns() is None


def test_t3_t4_each_fault_maps_one_page_until_all_in_use_are(new_rig: NewRig) -> None:
    rig = new_rig()
    pfns = [rig.mapped(gfn, gfn * 100).pfn for gfn in range(10)]
    assert sorted(pfns) == list(range(10))
    rig.border(WINDOW_NS)
    assert list(rig.entries()) == list(range(10)) and all(rig.entries().values())
    assert rig.core.counters["pf_taken"] == rig.core.counters["pf_fixed"] == 10


def test_t5_a_page_swapped_out_leaves_the_ept_at_the_border(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(64)
    rig.mapped(100, 1_000)
    assert rig.state(0) is PageState.EVICTING
    rig.border(WINDOW_NS)
    assert [type(effect) for effect in rig.effects] == [WriteSlots, RewriteEpt]
    assert rig.entries() == dict.fromkeys(range(32), 0)
    assert rig.written() == [(slot, slot) for slot in range(32)]
    assert rig.state(0) is PageState.WRITEBACK
    assert rig.border(3 * WINDOW_NS) == [RewriteEpt(0, {100: ept_entry(64, True)})]


def test_t6_the_next_access_reads_the_slot_and_the_vcpu_sleeps_until_it_is_done(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    reply = rig.mapped(0, 1_000)
    reclaim_ns = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns)
    submitted_ns = 1_000 + EPT_NS + reclaim_ns + COSTS.swap_submit_ns
    assert isinstance(rig.effects[0], ReadSlot) and rig.effects[0].slot == 0
    assert reply.stall_ns == READ_NS
    assert reply.at_ns == submitted_ns + READ_NS + COSTS.host_fault_ns
    assert reply.kind is FaultKind.MAJOR
    assert rig.core.counters["pgmajfault"] == rig.core.counters["pswpin"] == 1


def test_whoever_charges_at_the_limit_pays_for_reclaim(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(64)
    reply = rig.mapped(100, 0)
    reclaim_ns = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns)
    assert reply.at_ns == EPT_NS + reclaim_ns + COSTS.zero_fill_ns + COSTS.host_fault_ns
    assert rig.core.resident_pages(0) == 64 - 32 + 1


def test_a_read_fault_keeps_the_slot_and_a_write_fault_takes_it(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    read, written = rig.mapped(0, 0), rig.mapped(1, 1, WRITE)
    assert (read.writable, written.writable) == (False, True)
    rig.border(15 * WINDOW_NS)
    assert (rig.slot(0), rig.slot(1)) == (0, -1)
    assert rig.entries()[0] == ept_entry(read.pfn, False) and rig.entries()[1] == ept_entry(written.pfn, True)


def test_a_write_to_a_page_mapped_read_only_takes_its_slot(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.mapped(0, 0)
    rig.border(15 * WINDOW_NS)
    reply = rig.mapped(0, 15 * WINDOW_NS + 1, WRITE)
    assert reply.writable and reply.kind is FaultKind.MINOR
    assert reply.at_ns == 15 * WINDOW_NS + 1 + EPT_NS + COSTS.host_fault_ns
    assert rig.slot(0) == -1 and rig.core.counters["wp_fault"] == 1
    assert rig.border(16 * WINDOW_NS) == [RewriteEpt(0, {0: ept_entry(reply.pfn, True)})]


def test_pages_of_two_vms_never_share_a_frame_and_groups_do_not_reclaim_each_other(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    rig.load(64, vm=0)
    first = rig.mapped(200, 0, vm=1)
    assert first.pfn == 64
    assert rig.core.counters["allocstall"] == 0
    assert (rig.core.resident_pages(0), rig.core.resident_pages(1)) == (64, 1)
