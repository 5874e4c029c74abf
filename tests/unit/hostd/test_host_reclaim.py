"""What happens at a group's limits and at the host's: refaults, memory.high, out of memory, watermarks, scarce slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apf.messages import Failed, FaultKind, GupVariant, InProgress, Mapped, PageError, Retry
from hostd.core.events import ReadSlot, ZeroFrame
from hostd.core.group import MEMCG_CHARGE_BATCH
from hostd.core.memcontrol import MAX_RECLAIM_RETRIES, high_delay_ns
from hostd.core.page import ACTIVE, DIRTY, WORKINGSET, PageState
from hostd.core.watermarks import Watermarks
from tests.unit.hostd.rig import COSTS, READ_NS, WINDOW_NS, WRITE, Rig

NewRig = Callable[..., Rig]


# Pages of zeros --------------------------------------------------------------------------------------------------------


def zeros_in_swap(new_rig: NewRig, gup: GupVariant = GupVariant.NOIO) -> Rig:
    """Page 0 has been swapped out as zeros; 100 has its frame's worth."""
    rig = new_rig(gup=gup)
    rig.load(64)
    rig.mapped(100, 0)
    pfn = rig.core._mm.pages.pfn[0]
    assert rig.core.writes_ahead()[0] == pfn and len(rig.core.writes_ahead()) == 32
    rig.border(WINDOW_NS, zero=[pfn])
    assert rig.state(0) is PageState.CACHED and rig.state(1) is PageState.WRITEBACK
    assert pfn not in dict(rig.written()).values()
    rig.core._mm.vmscan.reclaim(0, 1, WINDOW_NS)
    assert rig.state(0) is PageState.SWAPPED
    rig.core.check()
    return rig


def test_a_page_of_zeros_is_neither_written_nor_read(new_rig: NewRig) -> None:
    rig = zeros_in_swap(new_rig)
    counters = rig.core.counters
    assert (counters["pswpout"], counters["swpout_zero"], counters["nr_vmscan_write"]) == (31, 1, 32)
    hit = rig.mapped(0, WINDOW_NS + 1)
    assert hit.kind is FaultKind.MINOR and rig.effects[0] == ZeroFrame(hit.pfn) and not rig.seen(ReadSlot)
    assert not hit.writable, "its slot still stands for its bytes"
    counters = rig.core.counters
    assert (counters["pswpin"], counters["swpin_zero"], counters["pgmajfault"]) == (0, 1, 1)


@pytest.mark.parametrize("gup", [GupVariant.NOIO, GupVariant.NOWAIT])
def test_e13_a_page_of_zeros_raises_no_apf(new_rig: NewRig, gup: GupVariant) -> None:
    """E13: zero-map pages complete in the first get_user_pages (mm/page_io.c:swap_read_folio)."""
    rig = zeros_in_swap(new_rig, gup)
    assert isinstance(rig.fault(0, WINDOW_NS + 1, work=1), Mapped)


def test_the_worker_makes_it_if_only_mapped_pages_will_do(new_rig: NewRig) -> None:
    rig = zeros_in_swap(new_rig, GupVariant.FAST)
    reply = rig.in_progress(0, WINDOW_NS + 1)
    assert len(rig.seen(ZeroFrame)) == 1 and not rig.seen(ReadSlot)
    rig.border(reply.ready_at_ns + WINDOW_NS)
    assert rig.state(0) is PageState.RESIDENT and rig.slot(0) == -1, "a write fault takes the slot"
    rig.core.check()


def test_a_page_written_again_stands_for_zeros_no_more(new_rig: NewRig) -> None:
    rig = zeros_in_swap(new_rig)
    rig.mapped(0, WINDOW_NS + 1, WRITE)
    assert rig.slot(0) == -1
    assert not any(rig.core._mm.swap.is_zero(slot) for slot in range(rig.core._mm.swap.total))


# Refaults --------------------------------------------------------------------------------------------------------------


def test_a_page_that_comes_back_soon_is_active_at_once(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.thrashes(0)
    at_ns = rig.mapped(0, 0).at_ns
    far_ns = rig.mapped(1, at_ns + READ_NS).at_ns + READ_NS
    rig.border((far_ns // WINDOW_NS + 1) * WINDOW_NS)
    flags = rig.core._mm.pages.flags
    assert flags[0] & ACTIVE and flags[0] & WORKINGSET and not flags[1] & ACTIVE
    assert 0 in rig.core._mm.groups[0].lists.lists()[1]
    counters = rig.core.counters
    assert counters["workingset_refault_anon"] == 2
    assert counters["workingset_activate_anon"] == counters["workingset_restore_anon"] == 1


# memory.high -----------------------------------------------------------------------------------------------------------


def test_the_delay_above_high_grows_with_the_square_and_ends_at_two_seconds() -> None:
    """calculate_high_delay: at HZ = 250, a tenth above high is 166 jiffies of 4 ms for a batch of 64 pages."""
    assert high_delay_ns(1000, 1000, 64) == 0
    assert high_delay_ns(1010, 1000, 64) == 0, "up to a hundredth of a second is not worth the sleep"
    tenth = high_delay_ns(1100, 1000, 64)
    assert 0.6e9 < tenth < 0.7e9
    assert high_delay_ns(1050, 1000, 64) == pytest.approx(tenth / 4, rel=0.05)
    assert high_delay_ns(1100, 1000, 32) == pytest.approx(tenth / 2, rel=0.05)
    assert high_delay_ns(5000, 1000, 64) == 2_000_000_000


def charge_a_batch(rig: Rig, work: bool) -> list[int]:
    """How long each of so many first touches of pages beyond the loaded ones takes."""
    took, at_ns = [], 0
    for number in range(MEMCG_CHARGE_BATCH + 1):
        reply = rig.fault(100 + number, at_ns, WRITE, work=number + 1 if work else 0)
        assert isinstance(reply, Mapped | InProgress)
        took.append(reply.at_ns - at_ns)
        at_ns = reply.at_ns + 1
    return took


def test_a_vcpu_above_high_is_slowed_down_once_a_batch(new_rig: NewRig) -> None:
    rig = new_rig(limit=256, guest_pages=512, high=90)
    rig.load(100)
    took = charge_a_batch(rig, work=False)
    slow = [number for number, one_ns in enumerate(took) if one_ns > 10_000_000]
    assert slow == [0, MEMCG_CHARGE_BATCH]
    assert rig.core._mm.groups[0].events["high"] == 2
    assert rig.core.counters["pgscan_direct"] > 0
    assert rig.core.pressure()["0"].some_ns > 10_000_000
    rig.core.check()


def test_who_comes_when_the_group_is_back_below_high_neither_reclaims_nor_sleeps(new_rig: NewRig) -> None:
    """mm/memcontrol.c:reclaim_high looks at the group again when the task is about to go on."""
    rig = new_rig(limit=256, guest_pages=512, high=90)
    rig.load(60)
    group = rig.core._mm.groups[0]
    group.over_high = MEMCG_CHARGE_BATCH
    reply = rig.mapped(0, 1_000)
    assert reply.at_ns == 1_000 + rig.core.config.costs.ept_violation_ns
    assert (group.over_high, group.events["high"], rig.core.counters["pgscan_direct"]) == (0, 0, 0)


def test_e15_a_worker_is_not_slowed_down_and_apf_cannot_hide_that_a_vcpu_is(new_rig: NewRig) -> None:
    """E15: in the NOWAIT step the vCPU itself charges; a kworker never returns to user mode."""
    for gup, slow in ((GupVariant.FAST, False), (GupVariant.NOWAIT, True)):
        rig = new_rig(limit=256, guest_pages=512, high=90, gup=gup)
        rig.load(100)
        assert any(one_ns > 10_000_000 for one_ns in charge_a_batch(rig, work=True)) is slow


# Out of memory ---------------------------------------------------------------------------------------------------------


def test_without_a_slot_a_page_is_activated_and_the_group_is_out_of_memory_in_the_end(new_rig: NewRig) -> None:
    rig = new_rig(limit=8, swap_slots=4)
    rig.load(12)
    assert rig.core.swap_pages == 4
    at_ns = 0
    for _ in range(MAX_RECLAIM_RETRIES):
        reply = rig.fault(20, at_ns)
        assert isinstance(reply, Retry)
        at_ns = reply.at_ns
        rig.border(at_ns)
    for gfn in (20, 11):
        reply = rig.fault(gfn, at_ns, vcpu=1)
        assert reply == Failed(at_ns + COSTS.ept_violation_ns, gfn, PageError.OUT_OF_MEMORY, 0), (
            "whatever it asks for"
        )
    (line,) = rig.core.told
    assert "Memory cgroup out of memory: killed the VMM of VM 0: limit 8 pages" in line
    assert line.endswith("0 of 4 swap slots free")
    group = rig.core._mm.groups[0]
    assert group.stat["pgactivate"] > 0 and group.events["oom"] == group.events["oom_kill"] == 1
    assert group.events["max"] == MAX_RECLAIM_RETRIES + 1
    rig.core.check()


def test_scarce_slots_go_back_when_their_page_is_only_read(new_rig: NewRig) -> None:
    """mm/memory.c:should_try_to_free_swap."""
    rig = new_rig(limit=64, swap_slots=250)
    rig.load(256)
    assert rig.core.swap_pages == 192
    reply = rig.mapped(0, 0)
    rig.border((reply.at_ns // WINDOW_NS + 1) * WINDOW_NS)
    assert rig.slot(0) == -1 and rig.core._mm.pages.flags[0] & DIRTY


def test_a_population_that_does_not_fit_is_refused(new_rig: NewRig) -> None:
    rig = new_rig(limit=8, swap_slots=4)
    with pytest.raises(Exception, match=r"5 pages exceed .* 4 of 4 slots free: swap\.size is too small"):
        rig.load(13)


# The host's memory -----------------------------------------------------------------------------------------------------


def test_watermarks_are_the_kernels() -> None:
    """Of a zone of 2 GiB: min_free_kbytes = sqrt(16 * 2097152) = 5792 kB; the gap is a quarter of it, 1448 kB."""
    assert Watermarks.of(524_288) == Watermarks(1448, 1448 + 524, 1448 + 2 * 524)
    assert Watermarks.of(1_024).min == 64, "256 kB"
    assert Watermarks.of(0) == Watermarks(0, 0, 0)


def crowded(new_rig: NewRig) -> Rig:
    """Two VMs that may have 512 pages each, on a host with 600 for both: as much is free as kswapd would leave."""
    rig = new_rig(vms=2, limit=512, guest_pages=1024, managed_pages=600, reserve=1)
    assert rig.core._mm.watermarks == Watermarks(48, 60, 72)
    rig.load(400)
    rig.load(512, vm=1)
    return rig


def test_population_leaves_the_high_watermark_free(new_rig: NewRig) -> None:
    rig = crowded(new_rig)
    assert rig.core.free_frames == 72
    assert (rig.core.resident_pages(0), rig.core.resident_pages(1)) == (400, 129)


def test_kswapd_is_woken_below_low_and_reclaims_until_high(new_rig: NewRig) -> None:
    rig = crowded(new_rig)
    mm, at_ns = rig.core._mm, 0
    gfn = 600
    while mm.vmscan.kswapd_ns is None:
        at_ns = rig.mapped(gfn, at_ns, WRITE).at_ns + 1
        gfn += 1
    assert mm.watermarks.min < rig.core.free_frames < mm.watermarks.low
    assert rig.core.border_due_ns() is not None
    assert rig.core.counters["pgscan_direct"] == 0
    border_ns = (mm.vmscan.kswapd_ns // WINDOW_NS + 2) * WINDOW_NS
    rig.border(border_ns)
    rig.border(border_ns + 1000 * WINDOW_NS)
    counters = rig.core.counters
    assert counters["pgscan_kswapd"] >= 32 and counters["pgscan_direct"] == 0 and counters["kswapd_wake"] == 1
    assert rig.core.free_frames >= mm.watermarks.high and mm.vmscan.kswapd_ns is None
    rig.core.check()


def test_below_min_whoever_allocates_reclaims(new_rig: NewRig) -> None:
    rig = crowded(new_rig)
    mm = rig.core._mm
    for number in range(40):
        rig.mapped(600 + number, number, WRITE)  # no time for kswapd
    assert rig.core.counters["pgscan_kswapd"] == 0
    assert rig.core.counters["pgscan_direct"] >= 32 and rig.core.counters["allocstall"] >= 1
    assert rig.core.free_frames <= mm.watermarks.min
    assert rig.core.resident_pages(0) < 400 + 40, "the other VM's pages or its own went"
    rig.core.check()
