"""What the host core does with I/Os that fail: pages not uptodate, writes that are done again, damaged slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apf.io_faults import IoFaultWish
from apf.messages import FOREVER_NS, Failed, GupVariant, HostReply, InProgress, Mapped, PageError
from apf.messages import Retry as RetryReply
from hostd.core.events import IoFaultArrived, ReadSlot, WriteSlot
from hostd.core.io_faults import Failure, IoResult
from hostd.core.page import DIRTY, PageState
from tests.unit.hostd.rig import COSTS, PROFILE, READ_NS, WINDOW_NS, WRITE, WRITE_NS, Rig

PAGES, LIMIT = 256, 64
OUT = 5  # a page that is swapped out at first
IN = 192  # the oldest that is resident


def rig(*failures: Failure, reports: bool = False, pages: int = PAGES, **more: Any) -> Rig:
    made = Rig(LIMIT, PAGES, failures=failures, reports=reports, end_ns=10**12, **more)
    made.load(pages)
    return made


def counter(made: Rig, name: str) -> int:
    return made.core.counters[name]


def evict(made: Rig, at_ns: int = 1000) -> tuple[int, list[int]]:
    """Fault pages in until reclaim has picked some, and pass the border: (its time, the pages being written)."""
    gfn = 0
    while not made.core._mm.evicting:
        made.fault(gfn, at_ns)
        gfn, at_ns = gfn + 1, at_ns + 1000
    border_ns = (at_ns // WINDOW_NS + 1) * WINDOW_NS
    picked = list(made.core._mm.evicting)
    made.border(border_ns)
    made.core.check()
    return border_ns, picked


# Reads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reports", [False, True])
def test_a_vcpu_that_sleeps_for_a_read_that_fails_gets_the_error_when_it_is_done(reports: bool) -> None:
    made = rig(Failure("read_error", 0), reports=reports)
    reply = made.fault(OUT, 1000)
    submitted_ns = 1000 + COSTS.ept_violation_ns + COSTS.swap_submit_ns
    assert isinstance(reply, Failed) and (reply.gfn, reply.error) == (OUT, PageError.READ)
    # Room had to be made for the page, as for one that is read well.
    assert reply.at_ns >= submitted_ns + READ_NS and reply.stall_ns == READ_NS
    assert made.seen(ReadSlot) == [], "the device has moved nothing"
    assert made.state(OUT) is PageState.READING
    made.core.check()
    made.border((reply.at_ns // WINDOW_NS + 1) * WINDOW_NS)
    assert made.state(OUT) is PageState.CACHED and not made.core._mm.pages.ept[OUT]
    made.core.check()
    assert (counter(made, "swap_read_error"), counter(made, "page_error")) == (1, 1)


def test_e39_a_page_that_is_not_uptodate_fails_at_once_whoever_sleeps_for_it_and_the_device_is_not_asked() -> None:
    made = rig(Failure("read_error", 0))
    first = made.fault(OUT, 1000)
    again = made.fault(OUT, first.at_ns + 1000)
    assert isinstance(again, Failed) and again.stall_ns == 0
    assert again.at_ns == first.at_ns + 1000 + COSTS.ept_violation_ns
    assert counter(made, "pswpin") == 1


@pytest.mark.parametrize("gup", list(GupVariant))
def test_e39_the_workers_error_is_nobodys_and_the_next_fault_is_left_to_it_again_for_ever(gup: GupVariant) -> None:
    made = rig(Failure("read_error", 0), gup=gup)
    at_ns, ios = 1000, 0
    for work in range(1, 6):
        reply = made.fault(OUT, at_ns, WRITE, work=work)
        assert isinstance(reply, InProgress)
        ios += len(made.seen(ReadSlot))
        wait_ns = reply.ready_at_ns - reply.at_ns
        assert wait_ns >= READ_NS if work == 1 else wait_ns == COSTS.fault_in_worker_ns + COSTS.host_fault_ns
        prefault = made.prefault(OUT, reply.ready_at_ns + 1, work=work)
        assert isinstance(prefault, Failed) and prefault.stall_ns == 0
        made.core.check()
        at_ns = prefault.at_ns + 1000
    assert ios == 0 and counter(made, "pswpin") == 1
    assert counter(made, "page_error_again") == 4
    ((vm, gfn, trouble),) = made.core.troubles()
    assert (vm, gfn, trouble.error, trouble.faults) == (0, OUT, PageError.READ, 4)


@pytest.mark.parametrize(("gup", "each"), [(GupVariant.FAST, 2), (GupVariant.NOIO, 3), (GupVariant.NOWAIT, 3)])
def test_e39_a_fault_that_fails_counts_as_a_fault_whoever_had_it(gup: GupVariant, each: int) -> None:
    """mm/memory.c:mm_account_fault: but for VM_FAULT_RETRY all count; get_user_pages_fast comes to no fault at all."""
    made = rig(Failure("read_error", 0), gup=gup)
    counts, at_ns = [], 1000
    for work in (1, 2):
        before = counter(made, "pgfault")
        reply = made.fault(OUT, at_ns, WRITE, work=work)
        assert isinstance(reply, InProgress)
        at_ns = made.prefault(OUT, reply.ready_at_ns + 1, work=work).at_ns + 1000
        counts.append(counter(made, "pgfault") - before)
    assert counts == [2, each], "the worker's and the prefault's, and from the second time on the vCPU's own"


@pytest.mark.parametrize("thrashes", [False, True])
def test_the_wait_for_a_read_that_fails_is_pressure_if_the_page_was_of_the_working_set(thrashes: bool) -> None:
    made = rig(Failure("read_error", 0))
    if thrashes:
        made.thrashes(OUT)
    reply = made.fault(OUT, 1000)
    assert isinstance(reply, Failed)
    some_ns = made.core.watched().pressure[0].totals(10**9).some_ns
    assert some_ns // READ_NS == thrashes and some_ns > 0, "reclaim is pressure at all times"


def test_reported_what_is_known_already_is_told_at_once() -> None:
    made = rig(Failure("read_error", 0), reports=True)
    first = made.fault(OUT, 1000, work=1)
    assert isinstance(first, InProgress), "nobody can know before the read is done"
    assert isinstance(made.fault(OUT, 2000, vcpu=1, work=1), InProgress), "nor while it is under way"
    assert isinstance(made.fault(OUT, first.ready_at_ns + 1000, vcpu=1, work=2), Failed)
    assert isinstance(made.prefault(OUT, first.ready_at_ns + 1000, work=1), Failed)


def test_when_reclaim_has_taken_the_page_the_next_fault_reads_it_anew() -> None:
    made = rig(Failure("read_error", 0))
    first = made.fault(OUT, 1000)
    mm = made.core._mm
    at_ns = (first.at_ns // WINDOW_NS + 1) * WINDOW_NS
    made.border(at_ns)
    assert made.state(OUT) is PageState.CACHED
    while made.state(OUT) is PageState.CACHED:
        at_ns += WINDOW_NS
        mm.vmscan.reclaim(0, 32, at_ns)
        made.border(at_ns)
    assert made.state(OUT) is PageState.SWAPPED and not mm.damage.pages
    made.core.check()
    reply = made.fault(OUT, at_ns + 1000)
    assert isinstance(reply, Mapped) and made.seen(ReadSlot) == [ReadSlot(made.slot(OUT), reply.pfn)]


@pytest.mark.parametrize("gup", [GupVariant.NOIO, GupVariant.NOWAIT])
def test_a_synchronous_device_fails_a_nowait_fault_by_way_of_the_worker(gup: GupVariant) -> None:
    made = rig(Failure("read_error", 0), gup=gup, profile=replace(PROFILE, background=False))
    assert isinstance(made.fault(OUT, 1000, work=1), InProgress)
    made.core.check()


# Writes --------------------------------------------------------------------------------------------------------------


def test_a_page_whose_write_failed_is_dirty_stays_and_is_written_again() -> None:
    made = rig(Failure("write_error", 0))
    border_ns, picked = evict(made)
    failed = picked[0]
    assert len(made.written()) == len(picked) - 1, "the device has moved nothing"
    done_ns = border_ns + len(picked) * WRITE_NS + READ_NS * 100
    made.border(done_ns)
    pages = made.core._mm.pages
    assert counter(made, "swap_write_error") == 1
    assert pages.flags[failed] & DIRTY and pages.pfn[failed] >= 0
    made.core.check()
    (line,) = made.core.told
    assert line.endswith(f" ns: Write-error on swap-device: slot {pages.slot[failed]}, gfn {failed:#x} of VM 0")
    assert isinstance(made.fault(failed, done_ns + 1000), Mapped), "its bytes are all there"
    made.core.check()


def test_a_device_that_fails_every_write_is_the_end_of_a_group_that_wants_more_than_fits() -> None:
    made = rig(Failure("write_error", 0, count=0), reserve=128)
    last = write_all_over(made)
    assert isinstance(last, Failed) and last.error is PageError.OUT_OF_MEMORY


def write_all_over(made: Rig) -> HostReply:
    """One page after the other, twice as many as fit; the reply to the last, or to the first that cannot be had."""
    at_ns, gfn = 1000, 0
    while gfn < 10_000:
        reply = made.fault(gfn % 128, at_ns, WRITE)
        if isinstance(reply, Failed):
            return reply
        gfn += not isinstance(reply, RetryReply)
        at_ns = max(at_ns + 1000, reply.at_ns)
        due_ns = made.core.border_due_ns()
        if due_ns is not None and due_ns <= at_ns:
            at_ns = (at_ns // WINDOW_NS + 1) * WINDOW_NS
            made.border(at_ns)
            made.core.check()
    return reply


@pytest.mark.parametrize(("what", "result"), [("torn_write", IoResult.TORN), ("lost_write", IoResult.LOST)])
def test_a_write_that_only_seems_done_is_found_when_the_page_is_read(what: str, result: IoResult) -> None:
    made = rig(Failure(what, 0))
    border_ns, picked = evict(made)
    damaged, well = picked[:2]
    assert [effect.result for effect in made.effects if isinstance(effect, WriteSlot)] == [result]
    assert len(made.written()) == len(picked) - 1
    at_ns = border_ns + len(picked) * WRITE_NS + WINDOW_NS
    while made.state(damaged) is not PageState.SWAPPED or made.state(well) is not PageState.SWAPPED:
        at_ns += WINDOW_NS
        made.core._mm.vmscan.reclaim(0, 32, at_ns)
        made.border(at_ns)
    slot = made.slot(damaged)
    reply = made.fault(damaged, at_ns + 1000)
    assert isinstance(reply, Failed) and reply.error is PageError[result.name]
    (read,) = made.seen(ReadSlot)
    assert isinstance(read, ReadSlot) and (read.slot, read.damaged) == (slot, True)
    assert counter(made, "swap_checksum_error") == 1
    made.core.check()
    reply = made.fault(well, at_ns + 2000)
    assert isinstance(reply, Mapped) and not made.seen(ReadSlot)[0].damaged


def test_a_damaged_slot_that_is_freed_or_written_again_is_as_good_as_any() -> None:
    made = rig(Failure("lost_write", 0))
    border_ns, picked = evict(made)
    damage = made.core._mm.damage
    assert list(damage.slots) == [made.slot(picked[0])]
    # A write fault takes the page back while it is written; its slot goes when that is done.
    reply = made.fault(picked[0], border_ns + 1000, WRITE)
    assert isinstance(reply, Mapped)
    made.border(border_ns + 100 * WINDOW_NS)
    assert damage.slots == {} and made.slot(picked[0]) == -1
    made.core.check()


# Swap is full; at run time; hung tasks -------------------------------------------------------------------------------


def test_a_page_without_a_slot_stays_and_one_that_has_its_slot_goes() -> None:
    made = rig(Failure("swap_full", 0, for_ns=10**9))
    free = len(made.core._mm.frames.free)
    reply = made.fault(OUT, 1000)
    assert isinstance(reply, RetryReply) and counter(made, "swap_full") > 0
    assert not made.core._mm.evicting and len(made.core._mm.frames.free) == free
    made.core.check()
    assert not isinstance(made.fault(OUT, 10**9 + 1000), RetryReply), "it is over"


def test_what_is_asked_for_while_the_host_runs_is_in_force_from_then_on() -> None:
    made = rig()
    assert isinstance(made.fault(OUT, 1000), Mapped)
    made.core.step(IoFaultArrived(IoFaultWish(what="read_error", vm=0, gfn=7)), WINDOW_NS)
    made.core.step(IoFaultArrived(IoFaultWish(what="slow", add_ns=5 * READ_NS, io="read")), WINDOW_NS)
    slow = made.fault(6, 10 * WINDOW_NS)
    assert isinstance(slow, Mapped) and slow.stall_ns == 6 * READ_NS
    assert isinstance(made.fault(7, 100 * WINDOW_NS), Failed)


def test_a_stop_that_an_operator_asks_for_moves_no_promise_and_one_that_was_known_did() -> None:
    asked, known = rig(), rig(Failure("stop", 3 * WINDOW_NS, for_ns=10**9))
    promised, later = asked.in_progress(OUT, 0), known.in_progress(OUT, 0)
    assert later.ready_at_ns == promised.ready_at_ns + 10**9
    asked.core.step(IoFaultArrived(IoFaultWish(what="stop", for_ns=10**9)), 3 * WINDOW_NS)
    behind = asked.in_progress(OUT + 1, 3 * WINDOW_NS + 1, vcpu=1)
    assert behind.ready_at_ns > 3 * WINDOW_NS + 10**9
    asked.border(promised.ready_at_ns // WINDOW_NS * WINDOW_NS)
    assert isinstance(asked.prefault(OUT, promised.ready_at_ns), Mapped)
    asked.core.check()


def test_who_sleeps_for_more_than_two_minutes_is_told_of() -> None:
    made = rig(Failure("stop", 0, for_ns=121 * 10**9))
    reply = made.fault(OUT, 1000)
    assert isinstance(reply, Mapped) and reply.stall_ns > 120 * 10**9
    (line,) = made.core.told
    assert "INFO: task CPU 0/KVM of VM 0 blocked for more than 120 seconds" in line
    assert line.startswith(f"at {reply.at_ns - COSTS.host_fault_ns - reply.stall_ns + 120 * 10**9} ns")


def test_nobody_is_told_of_a_sleep_that_the_end_of_the_run_cuts_short() -> None:
    made = Rig(LIMIT, PAGES, failures=(Failure("stop", 0),), end_ns=60 * 10**9)
    made.load(PAGES)
    reply = made.fault(OUT, 1000)
    assert isinstance(reply, Mapped) and 60 * 10**9 < reply.at_ns < FOREVER_NS
    assert made.core.told == []
