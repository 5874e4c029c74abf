"""A kill takes effect at once where a task can be interrupted, else when it would next run user code."""

from __future__ import annotations

import pytest
from guest_fakes import CODE, MS, SWITCH, SYSCALL, Guest, guest, guest_of, plan, spec

from apf.messages import PageReadyArrived, SyscallRaised
from guestsched.core.arrivals import KillArrived, KillTaken, ProcessEnded, Refusal, Refused
from guestsched.core.core import GuestCore
from guestsched.core.process import Region
from guestsched.core.syscall import Syscall

WHY = "killed from outside"
DATA = Region(0x5000_0000, 1, demand_zero=True)


def kill(made: Guest, task: int, now_ns: int, process: int = 1) -> None:
    (answer,) = [
        a for a in made.arrive(KillArrived(9, process, task), now_ns=now_ns) if not isinstance(a, ProcessEnded)
    ]
    assert answer == KillTaken(9, (task,))


def check_dead(made: Guest, task: int, why: str = WHY) -> None:
    row = made.row(task)
    assert (row.state, row.killed, row.status) == ("DEAD", why, 0)


def test_new_task_never_starts() -> None:
    made = guest(spec(1), spec(2, start_ns=5 * MS))
    made.boot()
    kill(made, 2, MS)
    check_dead(made, 2)
    assert made.timer().task == 1 and made.posts == []
    check_dead(made, 2)


def test_ready_task_leaves_its_queue() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    kill(made, 2, MS)
    check_dead(made, 2)
    assert made.core.cpu(0).rq.waiting_ids() == [] and made.row(2).sum_exec_ns == 0


def test_running_task_is_interrupted_and_dies_on_the_way_back() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    kill(made, 1, MS)
    assert made.posts == [0] and made.states() == ["RUNNING", "READY"]
    after = made.interrupt(2 * MS)
    assert after.task == 2 and after.at_ns == 2 * MS + 1_000 + SWITCH
    check_dead(made, 1)
    assert made.row(1).sum_exec_ns == 2 * MS, "what it ran until then is its own"


def test_whatever_the_running_task_traps_for_first_is_the_end_of_it() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    kill(made, 1, MS)
    assert made.syscall(Syscall.CLOCK_GETTIME, now_ns=2 * MS).task == 2
    check_dead(made, 1)


def test_running_task_that_exits_just_then_has_exited() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    kill(made, 1, MS)
    made.syscall(Syscall.EXIT, 5, now_ns=2 * MS)
    assert (made.row(1).state, made.row(1).status, made.row(1).killed) == ("DEAD", 5, "")


def test_sleeper_dies_at_once_and_its_timer_does_nothing() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    made.syscall(Syscall.NANOSLEEP, 10 * MS, now_ns=MS)
    kill(made, 1, 2 * MS)
    check_dead(made, 1)
    assert made.timer().task == 2


def test_waiter_on_a_semaphore_dies_at_once_and_is_not_woken() -> None:
    made = guest(spec(1), spec(2), spec(3))
    made.boot()
    made.syscall(Syscall.WAIT, 7, now_ns=MS)
    made.syscall(Syscall.WAIT, 7, now_ns=2 * MS)
    kill(made, 1, 3 * MS)
    check_dead(made, 1)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=4 * MS)
    assert made.states()[1] in ("READY", "RUNNING"), "the next in line"


def test_waiter_for_a_page_cannot_be_killed_until_it_is_there() -> None:
    """E47: TASK_UNINTERRUPTIBLE; then it dies before it runs user code."""
    made = guest(spec(1), spec(2))
    made.boot()
    made.not_present(0x1000, MS)
    kill(made, 1, 2 * MS)
    assert made.states()[0] == "APF_WAIT" and made.posts == []
    ready = made.trap(PageReadyArrived(0x1000), 9 * MS)
    assert ready.task == 2, "it would preempt, and dies instead"
    check_dead(made, 1)
    assert made.row(1).sum_exec_ns == MS


def test_killed_waiter_for_a_page_that_is_woken_elsewhere_dies_there() -> None:
    made = guest(spec(1, vcpu=None), spec(2, vcpu=0), vm__vcpus=2).boot_all()
    made.not_present(0x1000, MS)
    kill(made, 1, 2 * MS)
    made.trap(PageReadyArrived(0x1000), 9 * MS)
    assert made.posts == [1] and made.states()[0] == "READY"
    assert made.interrupt(10 * MS, 1).task == 0
    check_dead(made, 1)


def test_task_in_a_system_call_ends_it_first() -> None:
    made = guest_of(plan(spec(1), spec(2), regions=(CODE, DATA)))
    made.boot()
    made.syscall(Syscall.WRITE, 1, DATA.gva, 3, now_ns=MS)
    kill(made, 1, 2 * MS)
    assert made.posts == [0] and made.states()[0] == "RUNNING"
    assert made.fetched(3 * MS).task == 2
    check_dead(made, 1)
    assert len(made.logs) == 1, "what it wrote was written"


def test_delayed_sleeper_leaves_the_queue_it_still_competes_on() -> None:
    """EEVDF: it owes time, so it sleeps on the queue."""
    made = guest(spec(1), spec(2), sched__policy="eevdf")
    made.boot()
    running = made.told[0].task
    made.syscall(Syscall.NANOSLEEP, 100 * MS, now_ns=3 * MS)
    entity = made.core.tasks[running].entity
    assert made.states()[running - 1] == "SLEEP" and entity.delayed
    load = made.core.cpu(0).rq.load
    kill(made, running, 3 * MS + 300_000)
    check_dead(made, running)
    assert not entity.delayed and made.core.cpu(0).rq.load == load - entity.weight


@pytest.mark.parametrize("task", [1, 2])
def test_dead_task_is_not_killed_again(task: int) -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    made.syscall(Syscall.EXIT, 5, now_ns=MS)
    kill(made, 2, 2 * MS)
    made.interrupt(3 * MS)
    assert made.arrive(KillArrived(9, 1, task), now_ns=4 * MS) == [KillTaken(9, ())]
    assert (made.row(1).killed, made.row(2).killed) == ("", WHY)


def test_first_reason_stands() -> None:
    made = guest(spec(1, lifetime_ns=5 * MS), spec(2))
    made.boot()
    made.not_present(0x1000, MS)
    made.timer()
    kill(made, 1, 6 * MS)
    made.trap(PageReadyArrived(0x1000), 7 * MS)
    check_dead(made, 1, "its lifetime is over")


def test_process_is_all_its_tasks_and_its_end_is_told_once() -> None:
    made = guest_of(plan(spec(1), spec(2), spec(3, start_ns=50 * MS), name="one"), plan(spec(4), name="other"))
    made.boot()
    made.not_present(0x1000, MS)
    assert made.arrive(KillArrived(9, 1, 0), now_ns=2 * MS) == [KillTaken(9, (1, 2, 3))]
    assert made.states() == ["APF_WAIT", "RUNNING", "DEAD", "READY"]
    assert made.interrupt(3 * MS).task == 4
    assert not any(isinstance(answer, ProcessEnded) for answer in made.answers)
    made.trap(PageReadyArrived(0x1000), 9 * MS)
    assert [answer for answer in made.answers if isinstance(answer, ProcessEnded)] == [ProcessEnded(1)]
    assert made.told[0].task == 4


@pytest.mark.parametrize(
    ("process", "task", "text"),
    [(7, 0, "process 7: there is none"), (0, 0, "process 0"), (1, 2, "task 2 of process 1: there is none")],
)
def test_nobody_to_kill_is_said(process: int, task: int, text: str) -> None:
    made = guest_of(plan(spec(1), name="one"), plan(spec(2), name="other"))
    made.boot()
    (answer,) = made.arrive(KillArrived(9, process, task), now_ns=MS)
    assert isinstance(answer, Refused) and answer.why is Refusal.NOT_FOUND and answer.text.startswith(text)
    assert made.states() == ["RUNNING", "READY"]


def test_last_task_exit_ends_the_process() -> None:
    made = guest(spec(1))
    made.boot()
    made.syscall(Syscall.EXIT, 0, now_ns=MS)
    assert made.answers == [ProcessEnded(1)]


def test_kill_before_the_vcpu_ever_booted() -> None:
    made = guest(spec(1), spec(2))
    kill(made, 1, 0)
    assert made.boot().task == 2 and made.posts == []


def test_costs_of_a_kill_are_those_of_the_trap_and_the_switch() -> None:
    made = guest(spec(1), spec(2))
    made.boot()
    kill(made, 1, MS)
    dispatch = made.trap(SyscallRaised(), 2 * MS)
    assert dispatch.at_ns == 2 * MS + SYSCALL + SWITCH
    assert isinstance(made.core, GuestCore)
