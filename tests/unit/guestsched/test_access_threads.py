"""Access threads: batches, what each access met, cancellation, refusals, replays, traces."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from guest_fakes import MEMORY_GVA, MEMORY_PAGES, MS, RING_GVA, Guest, access_plan, access_spec, guest_of, plan, spec

from apf.messages import NEVER_NS, PAGE_SIZE, FaultKind, FaultMet, PageReadyArrived
from guestsched.core.access import BATCH_MAX, QUEUE_MAX, WORDS_MAX, Access, AccessQueue, retired, ring_of
from guestsched.core.arrivals import (
    AccessArrived,
    AccessCancelled,
    AccessDone,
    KillArrived,
    ProcessEnded,
    Refusal,
    Refused,
    ReplayArrived,
    ReplayDone,
)
from guestsched.core.syscall import Syscall
from guestsched.core.task import AccessList, TraceAccess

BYTES = MEMORY_PAGES * PAGE_SIZE


def serving(threads: int = 1, *others: int, vcpus: int = 1) -> Guest:
    """A process of access threads, on vCPU 0 in turns or on one each, all waiting for work."""
    specs = [access_spec(n + 1, place=n, vcpu=n % vcpus) for n in range(threads)]
    made = guest_of(access_plan(*specs, *(spec(number) for number in others)), vm__vcpus=vcpus).boot_all()
    for thread in range(threads):
        made.syscall(Syscall.TAKE, now_ns=(thread + 1) * 10_000, vcpu=thread % vcpus)
    assert made.states()[:threads] == ["WAIT"] * threads
    return made


def gpa(made: Guest, gva: int) -> int:
    extent = made.core.processes[1].extent_of(gva)
    assert extent is not None
    return extent.gfn * PAGE_SIZE + gva - extent.gva


def gfn(made: Guest, page: int) -> int:
    return gpa(made, MEMORY_GVA) // PAGE_SIZE + page


def entries(made: Guest, count: int, place: int = 0) -> list[tuple[int, ...]]:
    """What the ring of an access thread says."""
    ring = gpa(made, RING_GVA + place * PAGE_SIZE)
    return [struct.unpack("<QQQQ", made.read(ring + 32 * i, 32)) for i in range(count)]


def perform(made: Guest, *done_ns: int, place: int = 0) -> None:
    """The access thread has performed its batch, an access at each of these times."""
    for i, at_ns in enumerate(done_ns):
        made.write(gpa(made, RING_GVA + place * PAGE_SIZE) + 32 * i + 24, struct.pack("<Q", at_ns))


def access(ticket: int, offset: int = 0, words: int = 1, write: bool = False, process: int = 1) -> AccessArrived:
    return AccessArrived(ticket, process, offset, words, write)


def refusal(made: Guest, arrival: Any, now_ns: int = MS) -> Refused:
    (answer,) = made.arrive(arrival, now_ns=now_ns)
    assert isinstance(answer, Refused) and answer.ticket == arrival.ticket
    return answer


# Accesses ------------------------------------------------------------------------------------------------------------


def test_access_wakes_a_thread_that_finds_it_in_its_ring() -> None:
    made = serving()
    assert made.arrive(access(7, offset=8, words=3, write=True), now_ns=MS) == []
    assert made.posts == [0] and made.states() == ["READY"]
    dispatch = made.interrupt(2 * MS)
    assert dispatch.task == 1 and made.result() == 1 and dispatch.log_faults
    (copy,) = dispatch.copies
    assert copy[0] == gpa(made, RING_GVA) and len(copy[1]) == 32
    assert entries(made, 1) == [(MEMORY_GVA + 8, 3 | 1 << 63, 0, 0)]


def test_its_done_time_comes_from_the_ring_when_the_thread_takes_again() -> None:
    made = serving()
    made.arrive(access(7), now_ns=MS)
    made.interrupt(2 * MS)
    assert made.told[0].syscall_fetch == ((gpa(made, RING_GVA), 32),) and made.answers == []
    perform(made, 2_400_000)
    assert made.syscall(Syscall.TAKE, now_ns=3 * MS).task == 0
    assert made.answers == [AccessDone(7, MS, 2_400_000, None, 1)]
    assert made.states() == ["WAIT"]
    assert made.records("retired") == [("7", "2400000", "HIT")]


def test_next_batch_follows_without_a_wait() -> None:
    made = serving()
    made.arrive(access(7), now_ns=MS)
    made.interrupt(2 * MS)
    made.arrive(access(8, offset=16), access(9, offset=24), now_ns=3 * MS)
    assert made.posts == [], "its thread is at work, and asks when it is done"
    perform(made, 2_400_000)
    dispatch = made.syscall(Syscall.TAKE, now_ns=4 * MS)
    assert dispatch.task == 1 and made.result() == 2
    assert [entry[0] for entry in entries(made, 2)] == [MEMORY_GVA + 16, MEMORY_GVA + 24]


def test_accesses_are_shared_among_idle_threads() -> None:
    made = serving(threads=2, vcpus=2)
    made.arrive(*(access(ticket, offset=8 * ticket) for ticket in range(5)), now_ns=MS)
    assert sorted(made.posts) == [0, 1]
    for vcpu, expected in ((0, [0, 8, 16]), (1, [24, 32])):
        made.interrupt(2 * MS, vcpu)
        assert made.result(vcpu) == len(expected)
        assert [e[0] - MEMORY_GVA for e in entries(made, len(expected), vcpu)] == expected


def test_batch_has_an_end() -> None:
    made = serving()
    made.arrive(*(access(ticket) for ticket in range(BATCH_MAX + 10)), now_ns=MS)
    made.interrupt(2 * MS)
    assert made.result() == BATCH_MAX and len(made.core.processes[1].accesses.waiting) == 10
    perform(made, *range(BATCH_MAX))
    assert sum(n for _, n in made.told[0].syscall_fetch) == BATCH_MAX * 32 <= PAGE_SIZE
    made.syscall(Syscall.TAKE, now_ns=3 * MS)
    assert made.result() == 10 and [answer.ticket for answer in made.answers] == list(range(BATCH_MAX))  # type: ignore


def test_share_of_a_queue() -> None:
    queue = AccessQueue()
    queue.waiting.extend(Access(n, 0, 1, False, 0, ()) for n in range(10))
    queue.idle.extend([2, 3])
    assert [a.ticket for a in queue.take_batch()] == [0, 1, 2, 3]
    queue.idle.clear()
    assert len(queue.take_batch()) == 6 and queue.take_batch() == []


def test_fault_is_that_of_the_first_access_to_its_page() -> None:
    made = serving()
    arrivals = [access(1, 0), access(2, PAGE_SIZE), access(3, 8), access(4, 2 * PAGE_SIZE - 8, words=2)]
    made.arrive(*arrivals, now_ns=MS)
    made.interrupt(2 * MS)
    faults = (FaultMet(gfn(made, 0), FaultKind.MINOR), FaultMet(gfn(made, 1), FaultKind.MAJOR))
    made.trap(PageReadyArrived(0x9000), 2_100_000, faults=faults, min_flt=1, maj_flt=1)
    perform(made, 1, 2, 3, 4)
    last = (FaultMet(gfn(made, 2), FaultKind.ASYNC), FaultMet(1, FaultKind.MAJOR))
    made.syscall(Syscall.TAKE, now_ns=3 * MS, faults=last)
    met = {done.ticket: done.met for done in made.answers if isinstance(done, AccessDone)}
    assert met == {1: FaultKind.MINOR, 2: FaultKind.MAJOR, 3: None, 4: FaultKind.ASYNC}
    assert (made.row(1).min_flt, made.row(1).maj_flt) == (1, 1)


def test_worst_fault_of_an_access_counts_and_those_of_the_batch_before_are_gone() -> None:
    first = Access(1, 0, 1024, False, 0, (5, 6))
    faults = [FaultMet(6, FaultKind.MAJOR), FaultMet(5, FaultKind.MINOR)]
    assert [one.met for one in retired([first], b"", faults)] == [FaultKind.MAJOR]
    made = serving()
    made.arrive(access(1), now_ns=MS)
    made.interrupt(2 * MS)
    made.arrive(access(2), now_ns=2 * MS)
    made.syscall(Syscall.TAKE, now_ns=3 * MS, faults=(FaultMet(gfn(made, 0), FaultKind.MINOR),))
    made.syscall(Syscall.TAKE, now_ns=5 * MS)
    met = [done.met for done in made.answers if isinstance(done, AccessDone)]
    assert met == [FaultKind.MINOR, None]


def test_ring_entries_are_packed_as_the_program_reads_them() -> None:
    batch = [Access(1, 0x1000, 2, False, 0, (), think=7), Access(2, 0x2000, 1, True, 0, ())]
    assert struct.unpack("<8Q", ring_of(batch)) == (0x1000, 2, 7, 0, 0x2000, 1 | 1 << 63, 0, 0)


def test_thread_that_waits_for_a_page_is_passed_over() -> None:
    made = serving(threads=2)
    made.arrive(access(1), now_ns=MS)
    made.interrupt(2 * MS)
    made.not_present(0x1000, 3 * MS)
    made.arrive(access(2), now_ns=4 * MS)
    assert made.interrupt(5 * MS).task == 2, "the other thread"
    assert made.states() == ["APF_WAIT", "RUNNING"]


# Refusals and cancellation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "words"),
    [(0, 0), (0, WORDS_MAX + 1), (4, 1), (BYTES, 1), (BYTES - 8, 2), (0, -1)],
)
def test_access_outside_the_memory_or_of_no_words_is_refused(offset: int, words: int) -> None:
    made = serving()
    answer = refusal(made, access(3, offset, words))
    assert (
        answer.why is Refusal.INVALID_ARGUMENT and f"the memory of process 1 has {MEMORY_PAGES} pages" in answer.text
    )
    assert made.states() == ["WAIT"] and made.posts == []


@pytest.mark.parametrize(("offset", "words"), [(BYTES - 8, 1), (0, BYTES // 8), (PAGE_SIZE - 8, 2)])
def test_access_up_to_the_end_and_across_pages_is_fine(offset: int, words: int) -> None:
    made = serving()
    assert made.arrive(access(3, offset, words), now_ns=MS) == []


def test_process_that_is_none_or_has_no_access_threads_is_refused() -> None:
    made = guest_of(plan(spec(1), name="plain"), access_plan(access_spec(2))).boot_all()
    assert refusal(made, access(1, process=9)).why is Refusal.NOT_FOUND
    assert refusal(made, access(1, process=1)).why is Refusal.FAILED_PRECONDITION
    assert refusal(made, ReplayArrived(1, 1, AccessList(()))).why is Refusal.FAILED_PRECONDITION


def test_queue_has_an_end() -> None:
    made = guest_of(access_plan(access_spec(1))).boot_all()
    answers = made.arrive(*(access(ticket) for ticket in range(QUEUE_MAX + 2)), now_ns=MS)
    assert [answer.ticket for answer in answers if isinstance(answer, Refused)] == [QUEUE_MAX, QUEUE_MAX + 1]
    assert {answer.why for answer in answers if isinstance(answer, Refused)} == {Refusal.RESOURCE_EXHAUSTED}


def test_cancelled_access_is_forgotten_unless_a_thread_has_it() -> None:
    made = serving()
    made.arrive(access(1), now_ns=MS)
    made.arrive(access(2), access(3), now_ns=MS)
    assert made.arrive(AccessCancelled(1, 1), AccessCancelled(9, 1), AccessCancelled(2, 8), now_ns=MS) == []
    (answer,) = made.arrive(AccessCancelled(2, 1), now_ns=MS)
    assert isinstance(answer, Refused) and (answer.ticket, answer.why) == (2, Refusal.CANCELLED)
    assert made.arrive(AccessCancelled(2, 1), now_ns=MS) == [], "once"
    made.interrupt(2 * MS)
    made.syscall(Syscall.TAKE, now_ns=3 * MS)
    assert made.result() == 1
    assert [answer.ticket for answer in made.answers if isinstance(answer, AccessDone)] == [1]
    assert [a.ticket for a in made.core._kernel.works[1].batch] == [3]


# Threads that die ----------------------------------------------------------------------------------------------------


def test_what_a_dead_thread_had_is_refused_and_the_rest_is_for_the_others() -> None:
    made = serving(threads=2)
    made.arrive(access(1), now_ns=MS)
    made.interrupt(2 * MS)
    assert made.told[0].task == 1
    made.arrive(KillArrived(50, 1, 1), now_ns=2 * MS)
    made.arrive(access(2), now_ns=2 * MS)
    made.interrupt(3 * MS)
    refused = [answer for answer in made.answers if isinstance(answer, Refused)]
    assert [(answer.ticket, answer.why) for answer in refused] == [(1, Refusal.FAILED_PRECONDITION)]
    assert made.told[0].task == 2 and made.result() == 1


def test_with_the_last_thread_all_that_waits_is_refused() -> None:
    made = serving(1, 2)
    replay = ReplayArrived(4, 1, AccessList((TraceAccess(0, 1, False),)))
    made.arrive(access(1), now_ns=MS)
    made.arrive(access(2), access(3), replay, now_ns=MS)
    made.arrive(KillArrived(50, 1, 1), now_ns=MS)
    refused = [answer.ticket for answer in made.answers if isinstance(answer, Refused)]
    assert refused == [1, 2, 3, 4], "each ticket has its one answer"
    queue = made.core.processes[1].accesses
    assert not queue.waiting and not queue.replays and not queue.idle
    assert refusal(made, access(5)).why is Refusal.FAILED_PRECONDITION
    assert ProcessEnded(1) not in made.answers, "task 2 lives"


def test_idle_thread_that_is_killed_gets_no_work() -> None:
    made = serving(threads=2)
    made.arrive(KillArrived(50, 1, 1), now_ns=MS)
    made.arrive(access(1), now_ns=2 * MS)
    assert made.interrupt(3 * MS).task == 2


def test_thread_killed_before_it_takes_again_has_done_its_batch() -> None:
    made = serving()
    made.arrive(access(1), now_ns=MS)
    made.interrupt(2 * MS)
    perform(made, 5)
    made.arrive(KillArrived(50, 1, 1), access(2), now_ns=3 * MS)
    made.syscall(Syscall.TAKE, now_ns=4 * MS)
    done = [answer for answer in made.answers if isinstance(answer, AccessDone | Refused)]
    assert [(type(answer).__name__, answer.ticket) for answer in done] == [("AccessDone", 1), ("Refused", 2)]
    assert made.states() == ["DEAD"] and made.answers[-1] == ProcessEnded(1)


# Replays and traces --------------------------------------------------------------------------------------------------


def listed(*pages: int, think: int = 0, at_ns: int = 0) -> AccessList:
    return AccessList(tuple(TraceAccess(page * PAGE_SIZE, 1, page % 2 == 1, think, at_ns) for page in pages))


def test_replay_is_for_one_thread_and_answered_once_with_what_its_accesses_met() -> None:
    made = serving(threads=2)
    pages = [n % MEMORY_PAGES for n in range(BATCH_MAX + 3)]
    assert made.arrive(ReplayArrived(6, 1, listed(*pages, think=5)), now_ns=MS) == []
    made.interrupt(2 * MS)
    assert made.result() == BATCH_MAX and made.states() == ["RUNNING", "WAIT"]
    assert entries(made, 2) == [(MEMORY_GVA, 1, 5, 0), (MEMORY_GVA + PAGE_SIZE, 1 | 1 << 63, 5, 0)]
    faults = (FaultMet(gfn(made, 0), FaultKind.MAJOR), FaultMet(gfn(made, 1), FaultKind.MINOR))
    again = made.trap(PageReadyArrived(0x9000), 2_100_000, faults=faults)
    assert again.task == 1
    dispatch = made.syscall(Syscall.TAKE, now_ns=3 * MS)
    assert (dispatch.task, dispatch.fetch, made.result()) == (1, (), 3) and made.answers == []
    made.syscall(Syscall.TAKE, now_ns=4 * MS)
    met = ((None, BATCH_MAX + 1), (FaultKind.MINOR, 1), (FaultKind.MAJOR, 1))
    assert made.answers == [ReplayDone(6, MS, 4 * MS, met, 1)]
    assert made.states() == ["WAIT", "WAIT"]


def test_accesses_go_before_replays_and_replays_in_order() -> None:
    made = guest_of(access_plan(access_spec(1))).boot_all()
    arrivals = (ReplayArrived(1, 1, listed(3)), ReplayArrived(2, 1, listed(4)), access(3))
    made.arrive(*arrivals, now_ns=MS)
    for now_ms in (2, 4, 6, 8):
        made.syscall(Syscall.TAKE, now_ns=now_ms * MS)
    assert [(type(answer).__name__, answer.ticket) for answer in made.answers] == [  # type: ignore[union-attr]
        ("AccessDone", 3), ("ReplayDone", 1), ("ReplayDone", 2),
    ]  # fmt: skip
    assert made.answers[1].met == ((None, 1),), "what one met is not the next one's"  # type: ignore[union-attr]


def test_replay_beyond_the_memory_is_refused_whole() -> None:
    made = serving()
    answer = refusal(made, ReplayArrived(6, 1, listed(1, MEMORY_PAGES)))
    assert answer.why is Refusal.INVALID_ARGUMENT and answer.text.startswith("items[1]:")
    assert made.states() == ["WAIT"]


def test_replay_of_a_thread_that_dies_is_refused() -> None:
    made = serving()
    made.arrive(ReplayArrived(6, 1, listed(1, 2)), now_ns=MS)
    made.interrupt(2 * MS)
    made.arrive(KillArrived(50, 1, 1), now_ns=2 * MS)
    made.interrupt(3 * MS)
    assert [a.ticket for a in made.answers if isinstance(a, Refused)] == [6]


def traced(accesses: AccessList) -> Guest:
    return guest_of(access_plan(access_spec(1, trace=accesses), spec(2))).boot_all()


def test_trace_is_performed_in_batches_and_then_the_task_exits() -> None:
    made = traced(listed(*[1] * (BATCH_MAX + 1)))
    assert made.syscall(Syscall.TAKE, now_ns=MS).task == 1 and made.result() == BATCH_MAX
    assert made.syscall(Syscall.TAKE, now_ns=2 * MS).task == 1 and made.result() == 1
    assert made.syscall(Syscall.TAKE, now_ns=3 * MS).task == 2
    assert (made.row(1).state, made.row(1).status, made.row(1).killed) == ("DEAD", 0, "")
    assert made.answers == []


def test_trace_waits_for_the_times_it_names() -> None:
    items = (
        TraceAccess(0, 1, False),
        TraceAccess(8, 1, False, at_ns=20 * MS),
        TraceAccess(16, 1, False, at_ns=20 * MS),
    )
    made = traced(AccessList(items))
    made.syscall(Syscall.TAKE, now_ns=MS)
    assert made.result() == 1, "only what may start by now"
    dispatch = made.syscall(Syscall.TAKE, now_ns=2 * MS)
    assert (dispatch.task, dispatch.timer_ns) == (2, 20 * MS) and made.states()[0] == "SLEEP"
    back = made.timer()
    assert back.task == 1 and made.result() == 2
    assert [entry[0] for entry in entries(made, 2)] == [MEMORY_GVA + 8, MEMORY_GVA + 16]
    made.syscall(Syscall.TAKE, now_ns=25 * MS)
    assert made.states()[0] == "DEAD" and made.told[0].timer_ns == NEVER_NS


def test_trace_that_is_behind_its_times_does_not_wait() -> None:
    made = traced(listed(1, 2, at_ns=5 * MS))
    assert made.syscall(Syscall.TAKE, now_ns=9 * MS).task == 1 and made.result() == 2


def test_trace_thread_takes_no_accesses_from_outside() -> None:
    made = traced(listed(1))
    assert refusal(made, access(1)).why is Refusal.FAILED_PRECONDITION


def test_sleeping_trace_thread_can_be_killed() -> None:
    made = traced(listed(1, at_ns=50 * MS))
    assert made.syscall(Syscall.TAKE, now_ns=MS).task == 2
    made.arrive(KillArrived(50, 1, 1), now_ns=2 * MS)
    assert made.states()[0] == "DEAD"
    assert made.timer().task == 2
