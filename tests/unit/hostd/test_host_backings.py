"""What guest memory is made of in the host: a mapped file, shared memory, and memory behind a userfaultfd."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apf.core import CoreError
from apf.messages import FaultKind, GupVariant, InProgress, Mapped, Segment
from hostd.core.backing import BACKINGS, FILE, MEMFD, USERFAULT
from hostd.core.events import FillPages, ReadSlot, SegmentsLoaded, VmLeft, ZeroFrame
from hostd.core.page import DIRTY, PageState
from hostd.core.readahead import FILE_PAGES, KernelReadahead
from hostd.core.userfault import UserfaultConfig
from tests.unit.hostd.rig import COSTS, PROFILE, READ_NS, WINDOW_NS, WRITE, WRITE_NS, Rig

NewRig = Callable[..., Rig]
EPT_NS = COSTS.ept_violation_ns
LATE_NS = 1000 * WINDOW_NS
FAST, NOIO, NOWAIT = GupVariant
END_NS = 100 * LATE_NS


def evict(rig: Rig, at_ns: int) -> int:
    """Throw all that can go out of memory, in two rounds; returns when that is done."""
    mm = rig.core._mm
    rig.border(at_ns)
    for _ in range(2):
        mm.vmscan.reclaim(0, 256, at_ns)
        rig.border((at_ns // WINDOW_NS + 1) * WINDOW_NS)
        at_ns = (at_ns // WINDOW_NS + 100 + 256 * WRITE_NS // WINDOW_NS) * WINDOW_NS
        rig.border(at_ns)
    return at_ns


def place(rig: Rig, gfn: int) -> int:
    return rig.core.config.slots + gfn


# A mapped file ---------------------------------------------------------------------------------------------------------


def test_pages_of_a_file_have_their_places_and_no_slots(new_rig: NewRig) -> None:
    rig = new_rig(backing=FILE)
    rig.load(256)
    assert rig.core.swap_pages == 0
    assert [rig.slot(gfn) for gfn in (0, 1, 191, 192)] == [place(rig, 0), place(rig, 1), place(rig, 191), -1]
    rig.mapped(0, 0, WRITE)
    rig.border(LATE_NS)
    assert rig.slot(0) == place(rig, 0), "also when it is dirty"
    evict(rig, LATE_NS)
    assert rig.state(0) is PageState.SWAPPED and rig.slot(192) == place(rig, 192)
    assert rig.core.swap_pages == 0


def test_a_file_is_read_as_a_major_fault_and_is_no_swap(new_rig: NewRig) -> None:
    rig = new_rig(backing=FILE)
    rig.load(256)
    assert rig.mapped(0, 0).kind is FaultKind.MAJOR
    evict(rig, LATE_NS)
    rig.mapped(0, 4 * LATE_NS)
    counters = rig.core.counters
    assert counters["pgmajfault"] == 2
    assert counters["workingset_refault_file"] == 2 and counters["workingset_refault_anon"] == 0
    assert not any(counters[name] for name in ("pswpin", "pswpout", "swap_ra", "swpout_zero", "swap_cache_hit"))


def test_clean_pages_of_a_file_are_dropped_and_dirty_ones_written_to_their_places(new_rig: NewRig) -> None:
    rig = new_rig(backing=FILE, limit=2)
    rig.load(8)
    rig.mapped(0, 0)
    rig.mapped(1, 10 * READ_NS, WRITE)
    rig.border(LATE_NS)
    mm = rig.core._mm
    mm.vmscan.reclaim(0, 2, LATE_NS)
    rig.border(LATE_NS + WINDOW_NS)
    assert list(dict(rig.written())) == [place(rig, 1)]
    assert rig.state(0) is PageState.SWAPPED and rig.core.counters["swap_dropped_clean"] == 1


def test_a_page_of_zeros_of_a_file_is_written_like_any_other(new_rig: NewRig) -> None:
    rig = new_rig(backing=FILE, limit=2)
    rig.load(8)
    rig.core._mm.vmscan.reclaim(0, 2, 0)
    ahead = rig.core.writes_ahead()
    rig.border(WINDOW_NS, zero=ahead)
    assert len(rig.written()) == len(ahead) == 2


@pytest.mark.parametrize(("gup", "finds"), [(FAST, False), (NOIO, True), (NOWAIT, True)])
def test_t14_a_page_in_the_page_cache_that_is_not_mapped(new_rig: NewRig, gup: GupVariant, finds: bool) -> None:
    """T14's other half: get_user_pages_fast fails on it, a look without I/O finds it."""
    rig = new_rig(backing=FILE, gup=gup, readahead=KernelReadahead)
    rig.load(256)
    at_ns = rig.mapped(20, 0).at_ns + 100 * READ_NS
    rig.border(at_ns // WINDOW_NS * WINDOW_NS)
    assert rig.state(30) is PageState.CACHED
    reply = rig.fault(30, at_ns, work=1)
    assert isinstance(reply, Mapped) is finds and not rig.seen(ReadSlot)
    assert rig.core.counters["pgmajfault"] == 1


@pytest.mark.parametrize("gup", GupVariant)
def test_a_fault_on_a_file_is_asynchronous_and_reads_around(new_rig: NewRig, gup: GupVariant) -> None:
    rig = new_rig(backing=FILE, gup=gup, readahead=KernelReadahead)
    rig.load(256)
    rig.in_progress(100, 0)
    read = [effect.slot - rig.core.config.slots for effect in rig.seen(ReadSlot) if isinstance(effect, ReadSlot)]
    assert read == list(range(84, 84 + FILE_PAGES))


def test_the_first_touch_of_a_hole_is_zeros_without_io(new_rig: NewRig) -> None:
    rig = new_rig(backing=FILE)
    assert rig.mapped(0, 0).kind is FaultKind.MINOR and rig.seen(ZeroFrame)
    evict(rig, LATE_NS)
    assert rig.mapped(0, 4 * LATE_NS).kind is FaultKind.MAJOR
    assert rig.seen(ReadSlot) == [ReadSlot(place(rig, 0), rig.core._mm.pages.pfn[0])]


# Shared memory ---------------------------------------------------------------------------------------------------------


def test_e14_shared_memory_sleeps_where_others_start_a_read_and_go_on(new_rig: NewRig) -> None:
    """E14: shmem_swapin_folio takes folio_lock, so FOLL_NOWAIT sleeps and no APF comes of it."""
    rig = new_rig(backing=MEMFD, gup=NOWAIT)
    rig.load(256)
    first = rig.mapped(0, 0, vcpu=0, work=1)
    assert first.kind is FaultKind.MAJOR and first.stall_ns == READ_NS
    second = rig.mapped(0, 10, vcpu=1, work=2)
    assert second.kind is FaultKind.MAJOR and not rig.seen(ReadSlot), "another's read is waited for too"
    counters = rig.core.counters
    assert counters["kvm_try_async_get_page"] == 0 and counters["pgmajfault"] == 1


@pytest.mark.parametrize("gup", [FAST, NOIO])
def test_e14_what_does_no_io_leaves_it_to_the_worker(new_rig: NewRig, gup: GupVariant) -> None:
    """The other side of E14: the proposals of 2010 would have made it asynchronous."""
    rig = new_rig(backing=MEMFD, gup=gup)
    rig.load(256)
    assert isinstance(rig.fault(0, 0, work=1), InProgress)


def test_e14_swapping_shared_memory_in_frees_the_slot_even_for_a_read(new_rig: NewRig) -> None:
    rig = new_rig(backing=MEMFD, gup=NOWAIT, limit=1)
    rig.load(8)
    assert rig.mapped(0, 0).writable
    rig.border(LATE_NS)
    assert rig.slot(0) == -1 and rig.core._mm.pages.flags[0] & DIRTY
    rig.core._mm.vmscan.reclaim(0, 1, LATE_NS)
    rig.border(LATE_NS + WINDOW_NS)
    assert len(rig.written()) == 1


def test_e14_shared_memory_is_read_ahead_by_slot_whatever_the_device(new_rig: NewRig) -> None:
    """mm/shmem.c:shmem_swapin_cluster."""
    rig = new_rig(backing=MEMFD, readahead=KernelReadahead)
    rig.load(256)
    rig.mapped(20, 0)
    assert [effect.slot for effect in rig.seen(ReadSlot) if isinstance(effect, ReadSlot)] == list(range(16, 24))


@pytest.mark.parametrize("gup", [NOIO, NOWAIT])
def test_the_first_touch_of_shared_memory_raises_no_apf(new_rig: NewRig, gup: GupVariant) -> None:
    assert new_rig(backing=MEMFD, gup=gup).mapped(0, 0, work=1).kind is FaultKind.MINOR


# A userfaultfd ---------------------------------------------------------------------------------------------------------

SERVICE_NS = 50_000


def restored(new_rig: NewRig, gup: GupVariant = NOWAIT, dies_ns: int | None = None, handlers: int = 1) -> Rig:
    """A VM restored from a snapshot that has its first 128 pages; the other 128 are zeros."""
    handling = UserfaultConfig(handlers, SERVICE_NS, dies_ns)
    rig = new_rig(backing=USERFAULT, gup=gup, userfault=handling, end_ns=END_NS)
    rig.load(128)
    return rig


def test_all_of_a_restored_vm_is_missing_and_what_it_held_is_in_the_snapshot(new_rig: NewRig) -> None:
    rig = restored(new_rig)
    [fill] = rig.effects
    assert isinstance(fill, FillPages) and len(fill.resident) == 0
    assert fill.slots.tolist() == [place(rig, gfn) for gfn in range(128)]
    assert {rig.state(gfn) for gfn in range(256)} == {PageState.SWAPPED}
    assert rig.core.resident_pages(0) == rig.core.swap_pages == 0


@pytest.mark.parametrize("gup", GupVariant)
def test_e56_the_attempt_that_may_not_sleep_tells_nobody_and_the_worker_tells_once(
    new_rig: NewRig, gup: GupVariant
) -> None:
    rig = restored(new_rig, gup)
    reply = rig.in_progress(0, 0)
    assert reply.at_ns == EPT_NS, "the vCPU does nothing but leave it to the worker"
    event_ns = EPT_NS + COSTS.fault_in_worker_ns
    assert reply.ready_at_ns == event_ns + SERVICE_NS + COSTS.host_fault_ns
    counters = rig.core.counters
    assert counters["userfault_event"] == 1
    assert not any(counters[name] for name in ("pgmajfault", "pswpin", "allocstall"))
    assert rig.seen(ReadSlot) == [ReadSlot(place(rig, 0), rig.core._mm.pages.pfn[0])]
    mapped = rig.prefault(0, reply.ready_at_ns)
    assert isinstance(mapped, Mapped) and mapped.kind is FaultKind.MINOR
    assert rig.core.counters["userfault_event"] == 1


def test_e56_two_workers_are_two_events_and_one_page(new_rig: NewRig) -> None:
    rig = restored(new_rig)
    first = rig.in_progress(0, 0, vcpu=0, work=1)
    second = rig.in_progress(0, 100, vcpu=1, work=2)
    assert not rig.seen(ReadSlot) and rig.core.counters["userfault_event"] == 2
    assert second.ready_at_ns == first.ready_at_ns, "UFFDIO_COPY wakes all who wait for the page"


def test_who_may_sleep_waits_for_the_handler(new_rig: NewRig) -> None:
    rig = restored(new_rig)
    reply = rig.mapped(0, 0)
    assert reply.kind is FaultKind.MAJOR and reply.stall_ns == SERVICE_NS
    assert rig.core.counters["userfault_event"] == 1 and rig.core.counters["pgmajfault"] == 0
    totals = rig.core.pressure()["0"]
    assert totals.some_ns == 0, "it is no memory stall"


@pytest.mark.parametrize(("handlers", "rounds"), [(1, 3), (2, 2), (4, 1)])
def test_handlers_take_events_in_turn(new_rig: NewRig, handlers: int, rounds: int) -> None:
    rig = restored(new_rig, handlers=handlers)
    replies = [rig.in_progress(gfn, 0, work=gfn + 1) for gfn in range(3)]
    waits = [reply.ready_at_ns - EPT_NS - COSTS.fault_in_worker_ns - COSTS.host_fault_ns for reply in replies]
    assert waits[-1] == rounds * SERVICE_NS


def test_pages_the_snapshot_does_not_have_are_zeros(new_rig: NewRig) -> None:
    rig = restored(new_rig)
    rig.mapped(200, 0)
    assert rig.seen(ZeroFrame) and not rig.seen(ReadSlot)


def test_a_page_once_fetched_is_anonymous_memory(new_rig: NewRig) -> None:
    rig = restored(new_rig)
    reply = rig.in_progress(0, 0)
    rig.border(LATE_NS)
    assert rig.state(0) is PageState.RESIDENT and rig.slot(0) == -1 and rig.core._mm.pages.flags[0] & DIRTY
    late_ns = evict(rig, LATE_NS)
    assert rig.state(0) is PageState.SWAPPED and 0 <= rig.slot(0) < rig.core.config.slots
    rig.prefault(0, max(late_ns, reply.ready_at_ns) + 1)
    counters = rig.core.counters
    assert (counters["userfault_event"], counters["pgmajfault"], counters["pswpin"]) == (1, 1, 1)


def test_missing_pages_are_not_read_ahead(new_rig: NewRig) -> None:
    rig = new_rig(backing=USERFAULT, readahead=KernelReadahead)
    rig.load(256)
    at_ns = 0
    for gfn in range(17, 25):
        at_ns = rig.mapped(gfn, at_ns + 1, WRITE).at_ns
    late_ns = evict(rig, at_ns + LATE_NS)
    rig.mapped(18, late_ns + 1)
    read = [effect.pfn for effect in rig.seen(ReadSlot) if isinstance(effect, ReadSlot)]
    assert [rig.core._mm.frames.owner[pfn] for pfn in read] == [17, 18, 19, 20, 21, 22]
    assert rig.state(16) is PageState.SWAPPED


def test_e56_a_dead_handler_blocks_worker_task_and_vm(new_rig: NewRig) -> None:
    """E56: what it had begun it finishes; all else waits until the run is over, and so does a VM in this place."""
    rig = restored(new_rig, dies_ns=SERVICE_NS)
    served = rig.in_progress(0, 0, work=1)
    left = rig.in_progress(1, 10, work=2)
    assert served.ready_at_ns < END_NS < left.ready_at_ns
    asleep = rig.mapped(2, 2 * SERVICE_NS, vcpu=1)
    assert asleep.at_ns > END_NS
    assert [gfn for gfn, _since_ns in rig.core.hanging(0)] == [1, 2]
    border_ns = LATE_NS
    rig.border(border_ns)
    rig.core.step(VmLeft(0), border_ns)
    assert rig.core.gone_ns(0) > END_NS
    rig.core.check()


def test_a_vm_in_the_place_of_another_finds_none_of_its_pages(new_rig: NewRig) -> None:
    for backing in BACKINGS.values():
        rig = new_rig(backing=backing)
        rig.load(256)
        at_ns = rig.mapped(0, 0, WRITE).at_ns
        border_ns = evict(rig, at_ns + LATE_NS)
        rig.core.step(VmLeft(0), border_ns)
        assert rig.core.swap_pages == 0 and rig.core.free_frames == rig.core.config.frames
        rig.core.step(SegmentsLoaded(0, (Segment(100, 10),)), border_ns)
        reply = rig.mapped(0, border_ns + 1)
        assert rig.effects[0] == ZeroFrame(reply.pfn), backing.name


def test_swap_may_be_smaller_than_what_a_file_has_no_need_to_swap(new_rig: NewRig) -> None:
    new_rig(backing=FILE, swap_slots=1).load(256)
    with pytest.raises(CoreError, match=r"swap\.size is too small"):
        Rig(swap_slots=1, profile=PROFILE).load(256)


# Areas that the VMM may not write --------------------------------------------------------------------------------------


def rom(new_rig: NewRig, gup: GupVariant) -> Rig:
    """A VM whose first 256 pages are a ROM, of which 64 are in memory, and whose other 256 are not."""
    rig = new_rig(gup=gup, read_only=True, guest_pages=512)
    segments = (Segment(0, 256, read_only=True), Segment(256, 256))
    rig.effects = rig.core.step(SegmentsLoaded(0, segments), 0)
    return rig


@pytest.mark.parametrize("gup", GupVariant)
def test_e40_the_worker_fails_at_once_and_the_prefault_waits(new_rig: NewRig, gup: GupVariant) -> None:
    """E40: FOLL_WRITE fails in check_vma_flags. What the vCPU has started under NOWAIT goes on meanwhile."""
    rig = rom(new_rig, gup)
    reply = rig.in_progress(0, 0)
    assert reply.ready_at_ns == reply.at_ns + COSTS.fault_in_worker_ns + COSTS.host_fault_ns
    assert len(rig.seen(ReadSlot)) == (gup is NOWAIT)
    submitted_ns = reply.at_ns
    mapped = rig.prefault(0, reply.ready_at_ns)
    assert isinstance(mapped, Mapped) and mapped.kind is FaultKind.MAJOR and not mapped.writable
    assert len(rig.seen(ReadSlot)) == (gup is not NOWAIT)
    if gup is NOWAIT:
        assert mapped.at_ns == submitted_ns + READ_NS + COSTS.host_fault_ns
    counters = rig.core.counters
    assert (counters["prefault_sync"], counters["pgmajfault"], counters["kvm_async_pf_completed"]) == (1, 1, 1)


def test_e40_on_a_page_under_read_the_worker_fails_too(new_rig: NewRig) -> None:
    rig = rom(new_rig, NOWAIT)
    rig.mapped(0, 0, vcpu=0)
    reply = rig.in_progress(0, 10, vcpu=1)
    assert reply.ready_at_ns == reply.at_ns + COSTS.fault_in_worker_ns + COSTS.host_fault_ns


def test_e40_a_read_only_page_keeps_its_slot_and_is_dropped_unwritten(new_rig: NewRig) -> None:
    """The other side of E41."""
    rig = rom(new_rig, NOIO)
    reply = rig.in_progress(0, 0)
    rig.prefault(0, reply.ready_at_ns)
    rig.border(LATE_NS)
    assert rig.state(0) is PageState.RESIDENT and rig.slot(0) >= 0
    before = rig.core.counters["swap_dropped_clean"]
    evict(rig, LATE_NS)
    assert rig.state(0) is PageState.SWAPPED and rig.core.counters["swap_dropped_clean"] == before + 1


@pytest.mark.parametrize("gup", GupVariant)
def test_e40_concerns_no_page_that_may_be_written(new_rig: NewRig, gup: GupVariant) -> None:
    rig = rom(new_rig, gup)
    reply = rig.in_progress(300, 0)
    assert reply.ready_at_ns >= READ_NS
    rig.prefault(300, reply.ready_at_ns)
    assert rig.core.counters["prefault_sync"] == 0


def test_a_write_to_a_read_only_area_is_an_error(new_rig: NewRig) -> None:
    rig = rom(new_rig, NOIO)
    with pytest.raises(CoreError, match="VM 0 writes to gfn 0x3, which its VMM has mapped read-only: -EFAULT"):
        rig.fault(3, 0, WRITE)
