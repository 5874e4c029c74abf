"""I/Os that fail and are not an anonymous page's own: of readahead, a mapped file, shared memory, missing memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from apf.messages import Failed, FaultKind, GupVariant, InProgress, Mapped, PageError, Segment
from hostd.core.backing import FILE, MEMFD, USERFAULT, Backing
from hostd.core.events import ReadSlot, SegmentsLoaded, VmLeft
from hostd.core.io_faults import Failure
from hostd.core.page import DIRTY, READAHEAD, PageState
from hostd.core.readahead import KernelReadahead
from tests.unit.hostd.rig import COSTS, READ_NS, WINDOW_NS, WRITE, WRITE_NS, Rig

NewRig = Callable[..., Rig]
EPT_NS = COSTS.ept_violation_ns
LATE_NS = 1000 * WINDOW_NS
FAST, NOIO, NOWAIT = GupVariant
READ_FAILS, WRITE_FAILS = "read_error", "write_error"


def failing(new_rig: NewRig, *failures: Failure, **options: Any) -> Rig:
    """A rig of 256 pages, of which 0 to 191 are out of memory: anonymous ones in the slots of the same numbers."""
    rig = new_rig(failures=failures, end_ns=10**12, **options)
    rig.load(256)
    return rig


def counter(rig: Rig, *names: str) -> list[int]:
    return [rig.core.counters[name] for name in names]


def settled(rig: Rig, at_ns: int) -> int:
    """Let everything under way end; returns when."""
    late_ns = (at_ns // WINDOW_NS + 1000) * WINDOW_NS
    rig.border(late_ns)
    return late_ns


def evicted(rig: Rig, at_ns: int) -> int:
    """Throw all that can go out of memory, in two rounds; returns when that is done."""
    at_ns = settled(rig, at_ns)
    for _ in range(2):
        rig.core._mm.vmscan.reclaim(0, 256, at_ns)
        rig.border(at_ns + WINDOW_NS)
        at_ns = settled(rig, at_ns + 256 * WRITE_NS)
    return at_ns


# Read ahead of any fault -----------------------------------------------------------------------------------------------

AHEAD = Failure(READ_FAILS, 0, gfn=21)


def test_a_page_read_ahead_whose_read_fails_is_nobodys_error(new_rig: NewRig) -> None:
    """mm/page_io.c:__end_swap_bio_read unlocks it, not uptodate; swapin_readahead has long returned. Others are read."""
    rig = failing(new_rig, AHEAD, readahead=KernelReadahead)
    reply = rig.mapped(20, 0)
    read = [effect.slot for effect in rig.seen(ReadSlot) if isinstance(effect, ReadSlot)]
    assert read == [17, 18, 19, 20, 22, 23, 24], "of the one that fails the device moves nothing"
    assert reply.kind is FaultKind.MAJOR and rig.state(21) is PageState.READING
    settled(rig, reply.at_ns)
    rig.core.check()
    assert [rig.state(gfn) for gfn in (20, 21, 22)] == [PageState.RESIDENT, PageState.CACHED, PageState.CACHED]
    assert not rig.core._mm.pages.ept[21]
    assert counter(rig, "pgmajfault", "pswpin", "swap_ra") == [1, 8, 7]
    assert counter(rig, "swap_read_error", "page_error", "page_error_again") == [1, 0, 0]
    ((_vm, gfn, trouble),) = rig.core.troubles()
    assert (gfn, trouble.error, trouble.faults) == (21, PageError.READ, 0)


def test_who_faults_on_it_finds_it_in_the_swap_cache_and_not_uptodate(new_rig: NewRig) -> None:
    """do_swap_page: VM_FAULT_SIGBUS; it counts as a hit all the same, which swap_cache_get_folio counted before."""
    rig = failing(new_rig, AHEAD, readahead=KernelReadahead)
    at_ns = settled(rig, rig.mapped(20, 0).at_ns)
    assert rig.fault(21, at_ns + 1) == Failed(at_ns + 1 + EPT_NS, 21, PageError.READ, 0)
    assert not rig.core._mm.pages.flags[21] & READAHEAD
    assert counter(rig, "swap_ra_hit", "pswpin", "pgmajfault", "page_error") == [1, 8, 1, 1]
    assert rig.mapped(22, at_ns + 2).kind is FaultKind.MINOR, "its neighbour is well"


def test_who_waits_for_it_while_it_is_read_gets_the_error_when_the_read_is_done(new_rig: NewRig) -> None:
    """E10's page with E39's end: __folio_lock_or_retry sleeps until the read unlocks it."""
    rig = failing(new_rig, AHEAD, readahead=KernelReadahead)
    first = rig.mapped(20, 0)
    second = rig.fault(21, 1, vcpu=1)
    assert isinstance(second, Failed) and second.stall_ns > 0
    assert second.at_ns == first.at_ns - COSTS.host_fault_ns + READ_NS, "the next one that the device reads"
    assert counter(rig, "pswpin") == [8]


@pytest.mark.parametrize("gup", GupVariant)
def test_left_to_the_worker_it_is_in_vain_and_no_second_read(new_rig: NewRig, gup: GupVariant) -> None:
    rig = failing(new_rig, AHEAD, readahead=KernelReadahead, gup=gup)
    first = rig.in_progress(20, 0, vcpu=0, work=1)
    second = rig.in_progress(21, first.at_ns + 1, vcpu=1, work=1)
    assert not rig.seen(ReadSlot)
    late_ns = settled(rig, second.ready_at_ns)
    assert isinstance(rig.prefault(20, late_ns + 1, vcpu=0), Mapped)
    assert isinstance(rig.prefault(21, late_ns + 1, vcpu=1), Failed)
    assert counter(rig, "kvm_async_pf_completed", "pswpin") == [2, 8]


def test_where_the_page_that_faults_cannot_be_read_those_read_with_it_can(new_rig: NewRig) -> None:
    rig = failing(new_rig, Failure(READ_FAILS, 0, gfn=20), readahead=KernelReadahead)
    reply = rig.fault(20, 0)
    assert isinstance(reply, Failed) and len(rig.seen(ReadSlot)) == 7
    late_ns = settled(rig, reply.at_ns)
    rig.core.check()
    assert [rig.mapped(gfn, late_ns + gfn).kind for gfn in (19, 21)] == [FaultKind.MINOR] * 2
    assert counter(rig, "swap_ra_hit", "pgmajfault", "page_error") == [2, 1, 1]


def test_a_page_that_failed_ahead_is_read_anew_when_reclaim_has_taken_it(new_rig: NewRig) -> None:
    """mm/vmscan.c:__remove_mapping takes it like any clean page of the swap cache, with no write."""
    rig = failing(new_rig, AHEAD, readahead=KernelReadahead)
    at_ns = evicted(rig, rig.mapped(20, 0).at_ns)
    assert rig.state(21) is PageState.SWAPPED and rig.slot(21) == 21 and not rig.core._mm.damage.pages
    assert rig.mapped(21, at_ns + 1).kind is FaultKind.MAJOR
    assert counter(rig, "page_error") == [0]


# A mapped file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gup", GupVariant)
def test_a_page_of_a_file_that_cannot_be_read_is_sigbus_to_who_sleeps_and_a_loop_to_others(
    new_rig: NewRig, gup: GupVariant
) -> None:
    """mm/filemap.c:filemap_fault; hva_to_pfn takes it for NEEDS_IO, async_pf_execute ignores it (E39)."""
    rig = failing(new_rig, Failure(READ_FAILS, 0, gfn=5), backing=FILE, gup=gup)
    first = rig.in_progress(5, 0, work=1)
    assert rig.seen(ReadSlot) == []
    late_ns = settled(rig, first.ready_at_ns)
    assert isinstance(rig.prefault(5, late_ns + 1), Failed)
    again = rig.in_progress(5, late_ns + 10, work=2)
    assert again.ready_at_ns - again.at_ns == COSTS.fault_in_worker_ns + COSTS.host_fault_ns
    asleep = rig.fault(5, late_ns + 20, vcpu=1)
    assert asleep == Failed(late_ns + 20 + EPT_NS, 5, PageError.READ, 0)
    rig.core.check()
    assert counter(rig, "swap_read_error", "pgmajfault", "pswpin", "workingset_refault_anon") == [1, 1, 0, 0]


def test_around_a_page_of_a_file_others_that_fail_are_nobodys_error(new_rig: NewRig) -> None:
    """mm/filemap.c:do_sync_mmap_readahead."""
    rig = failing(new_rig, Failure(READ_FAILS, 0, gfn=103), backing=FILE, readahead=KernelReadahead)
    late_ns = settled(rig, rig.mapped(100, 0).at_ns)
    assert isinstance(rig.fault(103, late_ns + 1), Failed)
    assert rig.mapped(104, late_ns + 2).kind is FaultKind.MINOR
    assert counter(rig, "swap_ra", "page_error") == [0, 1]


@pytest.mark.parametrize("backing", [FILE, MEMFD])
def test_a_page_whose_write_failed_is_dirty_in_its_place_or_slot_and_is_written_again(
    new_rig: NewRig, backing: Backing
) -> None:
    """folio_end_writeback, of a file after mapping_set_error; of shared memory end_swap_bio_write redirties it."""
    rig = failing(new_rig, Failure(WRITE_FAILS, 0, gfn=200), backing=backing)
    pages = rig.core._mm.pages
    at_ns = 0
    while not rig.core.counters["swap_write_error"]:
        rig.core._mm.vmscan.reclaim(0, 32, at_ns)
        rig.border(at_ns + WINDOW_NS)
        at_ns = settled(rig, at_ns)
    rig.core.check()
    assert pages.flags[200] & DIRTY and pages.pfn[200] >= 0
    where = rig.slot(200)
    assert where == (rig.core.config.slots + 200 if backing is FILE else where) >= 0
    evicted(rig, at_ns)
    assert rig.state(200) is PageState.SWAPPED and counter(rig, "swap_write_error") == [1]


@pytest.mark.parametrize(("what", "error"), [("torn_write", PageError.TORN), ("lost_write", PageError.LOST)])
def test_a_place_of_a_file_that_does_not_hold_what_was_written_is_found_and_stays_so(
    new_rig: NewRig, what: str, error: PageError
) -> None:
    """A place is never freed, and who cannot read a page cannot write it. (The kernel keeps no checksums.)"""
    rig = failing(new_rig, Failure(what, 0, gfn=200), backing=FILE)
    place = rig.core.config.slots + 200
    at_ns = evicted(rig, 0)
    assert rig.core._mm.damage.slots == {place: error}
    failed = rig.fault(200, at_ns + 1)
    assert isinstance(failed, Failed) and failed.error is error
    assert rig.seen(ReadSlot) == [ReadSlot(place, rig.core._mm.pages.pfn[200], damaged=True)]
    assert counter(rig, "swap_checksum_error") == [1]
    evicted(rig, failed.at_ns)
    rig.core.check()
    assert rig.core._mm.damage.slots == {place: error}, "what was not read is not written back either"


def test_the_next_vm_in_its_place_finds_its_file_whole(new_rig: NewRig) -> None:
    """It is loaded with a file of its own, of which every page was written."""
    rig = failing(new_rig, Failure("lost_write", 0, gfn=5), backing=FILE)
    at_ns = evicted(rig, rig.mapped(5, 0, WRITE).at_ns)
    assert list(rig.core._mm.damage.slots) == [rig.core.config.slots + 5]
    rig.core.step(VmLeft(0), at_ns)
    rig.core.step(SegmentsLoaded(0, (Segment(0, 256),)), at_ns)
    rig.core.check()
    assert rig.mapped(5, at_ns + 1).kind is FaultKind.MAJOR
    (read,) = rig.seen(ReadSlot)
    assert isinstance(read, ReadSlot) and not read.damaged


# Shared memory ---------------------------------------------------------------------------------------------------------


def test_e14_shared_memory_sleeps_for_its_read_and_hears_of_the_error_from_the_worker_only(new_rig: NewRig) -> None:
    """mm/shmem.c:shmem_swapin_folio sleeps in folio_lock, then -EIO: to hva_to_pfn one more page that needs I/O."""
    rig = failing(new_rig, Failure(READ_FAILS, 0, gfn=5), backing=MEMFD, gup=NOWAIT)
    reply = rig.in_progress(5, 0, work=1)
    assert counter(rig, "kvm_try_async_get_page", "pgmajfault", "pswpin") == [1, 1, 1]
    late_ns = settled(rig, reply.ready_at_ns)
    assert isinstance(rig.prefault(5, late_ns + 1), Failed)
    assert rig.slot(5) >= 0, "it was never mapped, so its slot is not freed"
    rig.core.check()


@pytest.mark.parametrize("gup", [FAST, NOIO])
def test_shared_memory_left_to_the_worker_fails_as_anonymous_memory_does(new_rig: NewRig, gup: GupVariant) -> None:
    rig = failing(new_rig, Failure(READ_FAILS, 0, gfn=5), backing=MEMFD, gup=gup)
    reply = rig.in_progress(5, 0, work=1)
    assert reply.ready_at_ns >= READ_NS
    late_ns = settled(rig, reply.ready_at_ns)
    assert isinstance(rig.prefault(5, late_ns + 1), Failed)


def test_reported_shared_memory_that_slept_in_vain_is_told_at_once(new_rig: NewRig) -> None:
    rig = failing(new_rig, Failure(READ_FAILS, 0, gfn=5), backing=MEMFD, gup=NOWAIT, reports=True)
    reply = rig.fault(5, 0, work=1)
    assert isinstance(reply, Failed) and reply.stall_ns == READ_NS
    assert counter(rig, "kvm_try_async_get_page") == [0]


# A userfaultfd ---------------------------------------------------------------------------------------------------------


def test_what_a_handler_fetches_is_no_io_of_the_device_and_cannot_fail_with_it(new_rig: NewRig) -> None:
    """mm/userfaultfd.c:mfill_atomic copies from the handler's memory; how a handler fails is E56."""
    every = (Failure(READ_FAILS, 0, count=0), Failure("swap_full", 0))
    rig = failing(new_rig, *every, backing=USERFAULT, gup=NOWAIT)
    assert isinstance(rig.mapped(0, 0), Mapped)
    reply = rig.in_progress(1, 10, work=1)
    late_ns = settled(rig, reply.ready_at_ns)
    assert isinstance(rig.prefault(1, late_ns + 1), Mapped)
    assert counter(rig, "swap_read_error", "page_error", "userfault_event") == [0, 0, 2]


def test_once_fetched_it_swaps_and_fails_as_anonymous_memory_does(new_rig: NewRig) -> None:
    """do_swap_page: the first read of the swap device is the one that fails, not the first fault."""
    rig = failing(new_rig, Failure(READ_FAILS, 0), backing=USERFAULT, gup=NOWAIT)
    at_ns = evicted(rig, rig.mapped(0, 0, WRITE).at_ns)
    assert rig.state(0) is PageState.SWAPPED and 0 <= rig.slot(0) < rig.core.config.slots
    reply = rig.fault(0, at_ns + 1, work=1)
    assert isinstance(reply, InProgress)
    late_ns = settled(rig, reply.ready_at_ns)
    assert isinstance(rig.prefault(0, late_ns + 1), Failed)
    assert counter(rig, "swap_read_error", "userfault_event") == [1, 1]
    rig.core.check()


def test_a_fetched_page_whose_write_fails_stays_and_its_handler_is_not_asked_again(new_rig: NewRig) -> None:
    rig = failing(new_rig, Failure(WRITE_FAILS, 0), backing=USERFAULT)
    at_ns = settled(rig, rig.mapped(0, 0, WRITE).at_ns)
    rig.core._mm.vmscan.reclaim(0, 32, at_ns)
    rig.border(at_ns + WINDOW_NS)
    assert not rig.written()
    at_ns = settled(rig, at_ns + WINDOW_NS)
    assert counter(rig, "swap_write_error") == [1] and rig.core._mm.pages.flags[0] & DIRTY
    assert rig.mapped(0, at_ns + 1).kind is FaultKind.MINOR
    assert counter(rig, "userfault_event") == [1]
    rig.core.check()
