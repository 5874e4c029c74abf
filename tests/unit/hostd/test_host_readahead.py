"""Readahead into the swap cache: what is read with the page that faults, who pays, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from apf.messages import FaultKind, GupVariant, InProgress, Mapped
from hostd.core.events import ReadSlot, ZeroFrame
from hostd.core.page import READAHEAD, PageState
from hostd.core.readahead import KernelReadahead, StrideReadahead
from tests.unit.hostd.rig import COSTS, PROFILE, READ_NS, WINDOW_NS, WRITE, Rig

NewRig = Callable[..., Rig]
EPT_NS = COSTS.ept_violation_ns
DISK = replace(PROFILE, rotation_ns=1000, transfer_ns=100, skip_slots_max=8)


def kernel(new_rig: NewRig, **options: object) -> Rig:
    """A rig with the kernel's readahead, of whose pages 0 to 191 are in the slots of the same numbers."""
    options.setdefault("limit", 64)
    rig = new_rig(readahead=KernelReadahead, **options)
    rig.load(rig.core.config.vms[0].guest_pages)
    return rig


def slots_read(rig: Rig) -> list[int]:
    return [effect.slot for effect in rig.seen(ReadSlot) if isinstance(effect, ReadSlot)]


def settled(rig: Rig, at_ns: int) -> int:
    """Let everything under way end; returns when."""
    late_ns = (at_ns // WINDOW_NS + 1000) * WINDOW_NS
    rig.border(late_ns)
    return late_ns


def test_the_first_window_is_read_in_order_with_the_page_in_its_place(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    reply = rig.mapped(20, 0)
    assert slots_read(rig) == list(range(17, 25))
    assert [rig.state(gfn) for gfn in range(16, 26)] == [
        PageState.SWAPPED,
        *[PageState.READING] * 8,
        PageState.SWAPPED,
    ]
    assert reply.kind is FaultKind.MAJOR
    counters = rig.core.counters
    assert (counters["pgmajfault"], counters["pswpin"], counters["swap_ra"]) == (1, 8, 7)
    ahead = [gfn for gfn in range(256) if rig.core._mm.pages.flags[gfn] & READAHEAD]
    assert ahead == [17, 18, 19, 21, 22, 23, 24]


def test_who_faults_pays_for_all_of_it_before_anything_is_read(new_rig: NewRig) -> None:
    """Reclaim of one cluster, eight submissions, and then all eight arrive at the device together: four queue ahead."""
    rig = kernel(new_rig)
    reply = rig.mapped(20, 0)
    reclaim_ns = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns)
    submitted_ns = EPT_NS + reclaim_ns + 8 * COSTS.swap_submit_ns
    assert reply.at_ns == submitted_ns + 4 * READ_NS + COSTS.host_fault_ns
    assert reply.stall_ns == 4 * READ_NS


@pytest.mark.parametrize("gup", GupVariant)
def test_the_vcpu_pays_under_nowait_and_the_worker_otherwise(new_rig: NewRig, gup: GupVariant) -> None:
    rig = kernel(new_rig, gup=gup)
    reply = rig.in_progress(20, 0)
    assert len(slots_read(rig)) == 8
    paid_ns = 32 * (COSTS.reclaim_scan_ns + COSTS.reclaim_unmap_ns) + 8 * COSTS.swap_submit_ns
    by_vcpu_ns = paid_ns if gup is GupVariant.NOWAIT else 0
    by_worker_ns = COSTS.fault_in_worker_ns + paid_ns if gup is not GupVariant.NOWAIT else 0
    assert reply.at_ns == EPT_NS + by_vcpu_ns
    assert reply.ready_at_ns == reply.at_ns + by_worker_ns + 4 * READ_NS + COSTS.host_fault_ns


def test_a_page_read_ahead_is_a_minor_fault_and_counts_as_a_hit_once(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    late_ns = settled(rig, rig.mapped(20, 0).at_ns)
    assert rig.state(21) is PageState.CACHED
    reply = rig.mapped(21, late_ns + 1, work=5)
    assert reply.kind is FaultKind.MINOR and reply.stall_ns == 0 and not rig.seen(ReadSlot)
    rig.mapped(21, late_ns + 2, vcpu=1)
    counters = rig.core.counters
    assert (counters["swap_ra_hit"], counters["swap_cache_hit"], counters["pgmajfault"]) == (1, 1, 1)


def test_hits_make_the_next_window_larger_and_none_make_it_smaller(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    at_ns = settled(rig, rig.mapped(20, 0).at_ns)
    reply = rig.mapped(100, at_ns + 1)
    assert len(slots_read(rig)) == 4, "no hits: half of the last window"
    at_ns = settled(rig, reply.at_ns)
    for gfn in (100, 101):
        at_ns = settled(rig, rig.mapped(gfn, at_ns + 1).at_ns)
    rig.mapped(150, at_ns + 1)
    assert len(slots_read(rig)) == 4, "one hit: at least four"


@pytest.mark.parametrize("gup", GupVariant)
def test_e10_a_neighbour_under_readahead_is_an_apf_without_a_read_of_its_own(
    new_rig: NewRig, gup: GupVariant
) -> None:
    """E10: NEEDS_IO because the page is locked; neither pswpin nor pgmajfault counts it (mm/memory.c:do_swap_page)."""
    rig = kernel(new_rig, gup=gup)
    first = rig.in_progress(20, 0, vcpu=0, work=1)
    before = rig.core.counters
    second = rig.in_progress(24, first.at_ns + 1, vcpu=1, work=2)
    after = rig.core.counters
    assert not rig.seen(ReadSlot)
    assert [after[name] - before[name] for name in ("pswpin", "pgmajfault", "swap_ra_hit")] == [0, 0, 1]
    assert after["kvm_try_async_get_page"] == 2
    assert second.ready_at_ns == first.ready_at_ns + 4 * READ_NS
    rig.border(second.ready_at_ns // WINDOW_NS * WINDOW_NS + WINDOW_NS)
    mapped = rig.prefault(24, second.ready_at_ns + WINDOW_NS, vcpu=1, work=2)
    assert isinstance(mapped, Mapped) and mapped.kind is FaultKind.MINOR


def test_e10_a_synchronous_fault_on_a_neighbour_waits_for_the_readahead(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    first = rig.mapped(20, 0, vcpu=0)
    second = rig.mapped(21, first.at_ns - 10_000, vcpu=1)
    assert not rig.seen(ReadSlot) and second.kind is FaultKind.MAJOR
    assert second.at_ns == first.at_ns + READ_NS
    assert rig.core.counters["pgmajfault"] == 1


@pytest.mark.parametrize("gup", GupVariant)
def test_e09_two_vcpus_that_read_ahead_of_each_other_read_each_page_once(new_rig: NewRig, gup: GupVariant) -> None:
    rig = kernel(new_rig, gup=gup)
    rig.in_progress(20, 0, vcpu=0, work=1)
    rig.in_progress(27, 10, vcpu=1, work=2)
    assert slots_read(rig) == [26, 27, 28, 29]
    assert rig.core.counters["pgmajfault"] == 2


def test_what_nobody_uses_is_dropped_without_io_and_is_no_hit_when_it_comes_back(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    late_ns = settled(rig, rig.mapped(20, 0).at_ns)
    mm = rig.core._mm
    mm.vmscan.reclaim(0, 64, late_ns)
    rig.border(late_ns + WINDOW_NS)
    assert rig.state(21) is PageState.SWAPPED
    assert 21 not in dict(rig.written())
    rig.core.check()
    rig.mapped(21, late_ns + WINDOW_NS + 1)
    assert 21 in slots_read(rig) and rig.core.counters["swap_ra_hit"] == 0


def test_windows_of_a_disk_are_blocks_of_slots_and_may_hold_other_vms_pages(new_rig: NewRig) -> None:
    rig = new_rig(limit=20, guest_pages=32, vms=2, readahead=KernelReadahead, profile=DISK)
    rig.load(32)  # slots 0 to 11
    rig.load(32, vm=1)  # slots 12 to 23
    first = rig.mapped(10, 0)
    assert slots_read(rig) == list(range(8, 16))
    assert rig.core.resident_pages(1) <= 20
    counters = rig.core._mm.groups
    assert [group.stat["swap_ra"] for group in counters] == [3, 4]
    assert [group.stat["pswpin"] for group in counters] == [4, 4]
    assert first.stall_ns < 2 * READ_NS + 10 * DISK.rotation_ns, "what follows on the track is cheap"
    other = rig.mapped(1, settled(rig, first.at_ns) + 1, vm=1)
    assert other.kind is FaultKind.MINOR and rig.core.counters["swap_ra_hit"] == 1


def test_only_pages_in_swap_are_read(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    at_ns = settled(rig, rig.mapped(20, 0, WRITE).at_ns)
    rig.core._mm.readahead = KernelReadahead(rig.core._mm.readahead.settings)
    rig.mapped(25, at_ns + 1)
    assert slots_read(rig) == [25, 26, 27, 28, 29], "22 to 24 are in the swap cache"


def test_where_the_group_has_no_room_readahead_ends_and_the_page_itself_is_read(new_rig: NewRig) -> None:
    """The window needs eight, the group has three; the page that faults has its charge first."""
    rig = kernel(new_rig, limit=3, guest_pages=64)
    reply = rig.mapped(20, 0)
    assert reply.kind is FaultKind.MAJOR
    assert slots_read(rig) == [17, 18, 20]
    rig.core.check()


def test_a_group_full_of_pages_under_readahead_waits_for_them_and_is_not_out_of_memory(new_rig: NewRig) -> None:
    slow = replace(PROFILE, read_ns=(10_000_000, 10_000_000))
    rig = new_rig(limit=4, guest_pages=64, readahead=KernelReadahead, profile=slow)
    rig.load(64)
    at_ns = rig.in_progress(20, 0).at_ns
    for _ in range(100):
        reply = rig.fault(50, at_ns, vcpu=1, work=2)
        if isinstance(reply, InProgress):
            break
        at_ns = reply.at_ns
        rig.border(at_ns // WINDOW_NS * WINDOW_NS)
    assert rig.core._mm.groups[0].events["oom"] == 0


def test_a_page_of_zeros_in_the_window_is_made_without_io(new_rig: NewRig) -> None:
    rig = kernel(new_rig)
    rig.core._mm.swap.set_zero(21, True)
    rig.mapped(20, 0)
    assert slots_read(rig) == [17, 18, 19, 20, 22, 23, 24]
    assert len(rig.seen(ZeroFrame)) == 1 and rig.state(21) is PageState.CACHED
    assert rig.core.counters["swpin_zero"] == 1
    rig.core.check()


def test_a_synchronous_device_reads_nothing_ahead(new_rig: NewRig) -> None:
    rig = kernel(new_rig, gup=GupVariant.NOWAIT, profile=replace(PROFILE, background=False))
    rig.mapped(20, 0, work=1)
    assert slots_read(rig) == [20]


def test_strides_are_read_ahead(new_rig: NewRig) -> None:
    rig = new_rig(readahead=StrideReadahead, page_cluster=2)
    rig.load(256)
    at_ns = 0
    for gfn in (10, 17):
        at_ns = settled(rig, rig.mapped(gfn, at_ns + 1).at_ns)
    reply = rig.mapped(24, at_ns + 1)
    assert slots_read(rig) == [24, 31, 38, 45]
    rig.mapped(31, settled(rig, reply.at_ns) + 1)
    assert rig.core.counters["swap_ra_hit"] == 1 and rig.core.counters["swap_ra"] == 3
