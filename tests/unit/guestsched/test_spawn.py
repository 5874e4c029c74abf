"""Processes made while the guest runs: execve by the first task, the others after it; and the shutdown."""

from __future__ import annotations

import pytest
from guest_fakes import CODE, CODE_GVA, MS, SWITCH, Guest, guest, guest_of, plan, spec

from apf.core import CoreError
from apf.messages import NEVER_NS, PAGE_SIZE, ExceptionRaised, Stopped
from guestsched.core.arrivals import (
    KillArrived,
    ProcessEnded,
    Refusal,
    Refused,
    ShutdownArrived,
    SpawnArrived,
    Spawned,
)
from guestsched.core.kernel import TASKS_MAX
from guestsched.core.process import OutOfMemory, Region
from guestsched.core.syscall import Syscall

PROGRAM = bytes(range(256)) * 20
BIG = Region(0x60_0000, 2, PROGRAM, writable=False, executable=True)


def idle_guest(vcpus: int = 1) -> Guest:
    """A guest whose one task sleeps for ever."""
    made = guest(spec(1), vm__vcpus=vcpus).boot_all()
    made.syscall(Syscall.WAIT, 1, now_ns=MS)
    return made


def spawn(made: Guest, *tasks: int, now_ns: int = 2 * MS, vcpu: int | None = 0, **more: object) -> Spawned:
    made_plan = plan(*(spec(number, vcpu=vcpu) for number in tasks), name="new", regions=(CODE, BIG), **more)
    (answer,) = made.arrive(SpawnArrived(5, made_plan), now_ns=now_ns)
    assert isinstance(answer, Spawned)
    return answer


def test_spawned_process_is_told_and_its_first_task_alone_starts() -> None:
    made = idle_guest()
    assert spawn(made, 2, 3) == Spawned(5, 2, (2, 3), 2 * MS)
    assert made.posts == [0] and made.states() == ["WAIT", "READY", "NEW"]


def test_first_task_copies_the_program_and_then_the_others_start() -> None:
    made = idle_guest()
    spawn(made, 2, 3)
    first = made.interrupt(3 * MS)
    code, big = (extent.gfn * PAGE_SIZE for extent in made.core.processes[2].extents)
    assert first.task == 2 and first.asid == 2
    assert first.copies == ((code, CODE.data), (big, PROGRAM[:4096]), (big + 4096, PROGRAM[4096:]))
    assert first.fetch == ((code, 1),), "the kernel hears when it is done"
    assert made.states()[2] == "NEW"
    after = made.fetched(9 * MS)
    assert (after.task, after.fetch, after.copies) == (2, (), ())
    assert made.states() == ["WAIT", "RUNNING", "READY"]
    assert made.row(2).sum_exec_ns == 6 * MS, "it is the first task's time"
    assert made.read(big, 5120) == PROGRAM


def test_others_start_on_other_vcpus_and_copy_nothing() -> None:
    made = idle_guest(vcpus=2)
    spawn(made, 2, 3, vcpu=None)
    copying = made.posts[0]
    made.interrupt(3 * MS, copying)
    made.fetched(4 * MS, copying)
    other = 1 - copying
    assert made.posts == [other]
    there = made.interrupt(5 * MS, other)
    assert (there.task, there.copies, there.fetch) == (3, (), ()) and there.spaces[0].asid == 2


def test_nothing_preempts_a_copying_task() -> None:
    made = idle_guest()
    spawn(made, 2)
    made.interrupt(3 * MS)
    with pytest.raises(CoreError, match="the kernel was reading memory"):
        made.syscall(Syscall.EXIT, 0, now_ns=4 * MS)
    spawn(made, 3, now_ns=4 * MS)
    assert made.states() == ["WAIT", "RUNNING", "READY"]
    made.fetched(5 * MS)
    assert made.told[0].task == 2


def test_first_task_killed_before_it_copied_ends_the_process_once() -> None:
    made = idle_guest()
    spawn(made, 2, 3, 4)
    before = len(made.answers)
    made.arrive(KillArrived(6, 2, 2), now_ns=2 * MS)
    assert made.states()[1:] == ["DEAD", "DEAD", "DEAD"]
    assert [made.row(task).killed for task in (2, 3, 4)] == [
        "killed from outside",
        *["its process could not start"] * 2,
    ]
    assert [a for a in made.answers[before:] if isinstance(a, ProcessEnded)] == [ProcessEnded(2)]


def test_another_task_killed_before_the_first_copied_never_starts() -> None:
    made = idle_guest()
    spawn(made, 2, 3)
    made.arrive(KillArrived(6, 2, 3), now_ns=2 * MS)
    made.interrupt(3 * MS)
    made.fetched(4 * MS)
    assert made.states() == ["WAIT", "RUNNING", "DEAD"]


def test_first_task_killed_while_it_copies_dies_when_it_has() -> None:
    made = idle_guest()
    spawn(made, 2, 3)
    made.interrupt(3 * MS)
    made.arrive(KillArrived(6, 2, 2), now_ns=3 * MS)
    assert made.states()[1] == "RUNNING"
    assert made.fetched(4 * MS).task == 3, "the program is there, so the others may run it"
    assert made.states()[1:] == ["DEAD", "RUNNING"]


def test_process_killed_while_its_first_task_copies_ends_whole() -> None:
    made = idle_guest()
    spawn(made, 2, 3)
    made.interrupt(3 * MS)
    made.arrive(KillArrived(6, 2, 0), now_ns=3 * MS)
    assert made.fetched(4 * MS).task == 0
    assert made.states()[1:] == ["DEAD", "DEAD"]
    assert [a for a in made.answers if isinstance(a, ProcessEnded)] == [ProcessEnded(2)]


def test_start_times_and_lifetimes_count_from_the_spawn() -> None:
    made = idle_guest()
    later = plan(spec(2, lifetime_ns=10 * MS), name="later", regions=(CODE,))
    made.arrive(SpawnArrived(5, later), now_ns=20 * MS)
    assert made.interrupt(20 * MS).timer_ns == 30 * MS
    made.fetched(21 * MS)
    assert made.timer().task == 0 and made.row(2).killed == "its lifetime is over"


def test_no_more_tasks_than_pids() -> None:
    made = idle_guest()
    many = plan(*[spec(2)] * TASKS_MAX, name="many")
    assert made.arrive(SpawnArrived(5, many), now_ns=2 * MS) == [
        Refused(5, Refusal.RESOURCE_EXHAUSTED, f"1 tasks there are, {TASKS_MAX} more: at most {TASKS_MAX}")
    ]
    assert len(made.core.tasks) == 1 and len(made.core.processes) == 1


def test_no_more_memory_than_there_is() -> None:
    made = idle_guest()
    huge = plan(spec(2), name="huge", regions=(Region(CODE_GVA, 1 << 30, b"\x90"),))
    (answer,) = made.arrive(SpawnArrived(5, huge), now_ns=2 * MS)
    assert isinstance(answer, Refused) and answer.why is Refusal.RESOURCE_EXHAUSTED
    assert answer.text.startswith("process huge: 1073741824 pages of guest memory wanted,")
    assert len(made.core.processes) == 1
    assert spawn(made, 2).process == 2, "the number was not used up"


def test_guest_that_cannot_hold_its_processes_is_none() -> None:
    with pytest.raises(OutOfMemory):
        guest_of(plan(spec(1), regions=(Region(CODE_GVA, 1 << 30, b"\x90"),)))


def test_frames_of_a_process_that_ended_are_not_given_again() -> None:
    made = idle_guest()
    spawn(made, 2)
    gfn = made.core.processes[2].extents[0].gfn
    made.arrive(KillArrived(6, 2, 0), now_ns=2 * MS)
    spawn(made, 3, now_ns=3 * MS)
    assert made.core.processes[3].extents[0].gfn > gfn


def test_processes_at_boot_are_loaded_and_copy_nothing() -> None:
    made = guest(spec(1))
    dispatch = made.boot()
    assert (dispatch.copies, dispatch.fetch) == ((), ())


# Shutdown ------------------------------------------------------------------------------------------------------------


def test_shutdown_stops_every_vcpu_at_its_next_trap() -> None:
    made = guest(spec(1), spec(2, vcpu=1), vm__vcpus=3, duration_s=0).boot_all()
    made.arrive(ShutdownArrived(), now_ns=MS)
    assert sorted(made.posts) == [0, 1, 2]
    for vcpu in range(3):
        assert not made.told[vcpu].shutdown
        assert made.interrupt(2 * MS, vcpu).shutdown
        last = made.trap(Stopped(), 3 * MS, vcpu)
        assert not last.shutdown
    assert [row.state for row in made.core.finish(3 * MS)] == ["RUNNING", "RUNNING"]


def test_shutdown_while_memory_is_read_is_told_again_after_it() -> None:
    data = Region(0x5000_0000, 1, demand_zero=True)
    made = guest_of(plan(spec(1), regions=(CODE, data)), duration_s=0)
    made.boot()
    made.syscall(Syscall.WRITE, 1, data.gva, 3, now_ns=MS)
    made.arrive(ShutdownArrived(), now_ns=2 * MS)
    assert made.fetched(3 * MS).shutdown and len(made.logs) == 1
    made.stop(4 * MS)
    made.core.finish(4 * MS)


def test_what_arrives_after_the_end_starts_nobody() -> None:
    made = guest(spec(1))
    made.boot()
    made.stop(MS)
    (answer,) = made.arrive(SpawnArrived(5, plan(spec(2), name="late")), now_ns=2 * MS)
    assert isinstance(answer, Spawned) and made.states()[1] == "NEW" and made.posts == []


def test_arrivals_of_one_time_take_effect_in_their_order() -> None:
    made = idle_guest()
    new = plan(spec(2), name="new")
    answers = made.arrive(SpawnArrived(1, new), KillArrived(2, 2, 0), SpawnArrived(3, new), now_ns=2 * MS)
    assert [type(answer).__name__ for answer in answers] == ["Spawned", "ProcessEnded", "KillTaken", "Spawned"]
    assert made.states() == ["WAIT", "DEAD", "READY"]
    assert made.interrupt(3 * MS).task == 3


def test_time_of_the_last_step_is_known() -> None:
    made = idle_guest()
    spawn(made, 2, now_ns=7 * MS)
    assert made.core.now_ns == 7 * MS
    assert made.told[0].timer_ns == NEVER_NS


def test_exception_of_a_spawned_task_is_its_own() -> None:
    made = idle_guest()
    spawn(made, 2)
    made.interrupt(3 * MS)
    made.fetched(4 * MS)
    dispatch = made.trap(ExceptionRaised(14, 0x10, 0x60_0000), 5 * MS)
    assert (dispatch.task, dispatch.at_ns) == (0, 5 * MS + SWITCH) and ProcessEnded(2) in made.answers
