"""Where tasks start, wake and move to, and that exactly those vCPUs are interrupted whom it concerns."""

from __future__ import annotations

import pytest
from guest_fakes import HANDLER, INTERRUPT, MS, SWITCH, Guest, guest, guest_of, plan, spec

from apf.messages import (
    NEVER_NS,
    Booted,
    ExceptionRaised,
    InterruptArrived,
    PageReadyArrived,
    TickArrived,
    TimerArrived,
)
from guestsched.core.arrivals import KillArrived, SpawnArrived
from guestsched.core.cpu import Phase
from guestsched.core.syscall import Syscall


def on(made: Guest) -> list[int]:
    """The vCPU of each task."""
    return [task.cpu for task in made.core.tasks.values()]


# Start ---------------------------------------------------------------------------------------------------------------


def test_tasks_start_on_the_least_loaded_vcpu_they_may_run_on() -> None:
    made = guest(
        spec(1, vcpu=None), spec(2, vcpu=None), spec(3, vcpu=0), spec(4, vcpu=None), spec(5, vcpu=None), vm__vcpus=3
    )
    assert on(made) == [0, 1, 0, 2, 1]


def test_of_equally_many_the_lighter_counts() -> None:
    made = guest(spec(1, vcpu=0, nice=-5), spec(2, vcpu=1, nice=5), spec(3, vcpu=None), vm__vcpus=2)
    assert on(made) == [0, 1, 1]


def test_task_that_starts_later_is_placed_when_it_does() -> None:
    made = guest(spec(1), spec(2, vcpu=None, start_ns=5 * MS), spec(3, vcpu=0), vm__vcpus=2)
    assert made.boot(0).timer_ns == 5 * MS and made.boot(1).task == 0
    assert made.states() == ["RUNNING", "NEW", "READY"]
    made.posts.clear()
    assert made.timer(0).task == 1
    assert on(made)[1] == 1 and made.states()[1] == "READY" and made.posts == [1]
    assert made.interrupt(6 * MS, 1).task == 2
    assert made.row(2).sum_exec_ns == 0


def test_start_that_preempts_at_home() -> None:
    made = guest(spec(1, nice=19), spec(2, start_ns=50 * MS))
    made.boot()
    assert made.timer().task in (1, 2) and made.states()[1] in ("READY", "RUNNING")
    assert made.told[0].run_until_ns < NEVER_NS or made.told[0].task == 2


def test_task_to_start_after_the_end_stays_new() -> None:
    made = guest(spec(1), spec(2, start_ns=50 * MS))
    made.boot()
    made.stop(10 * MS)
    assert [row.state for row in made.core.finish(10 * MS)] == ["RUNNING", "NEW"]


# Wake ----------------------------------------------------------------------------------------------------------------


def sleeper_and_waker(*more: int | None, sleeper: int | None = None, **overrides: object) -> Guest:
    """Task 1 sleeps on semaphore 7, having run on vCPU 0; others run."""
    tasks = [spec(1, vcpu=sleeper), *(spec(number, vcpu=vcpu) for number, vcpu in enumerate(more, start=2))]
    made = guest(*tasks, **{"vm__vcpus": 3, **overrides}).boot_all()
    assert made.told[0].task == 1
    made.syscall(Syscall.WAIT, 7, now_ns=MS)
    return made


def test_it_wakes_where_it_ran_last_if_that_idles() -> None:
    made = sleeper_and_waker(1)
    assert (made.told[0].task, made.told[1].task, made.told[2].task) == (0, 2, 0)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=2 * MS, vcpu=1)
    assert on(made)[0] == 0 and made.posts == [0]


def test_else_on_another_that_idles() -> None:
    made = sleeper_and_waker(0, 1)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=2 * MS, vcpu=1)
    assert on(made)[0] == 2 and made.posts == [2]
    assert made.interrupt(3 * MS, 2).task == 1


def test_but_not_where_it_may_not_run() -> None:
    made = sleeper_and_waker(0, 1, sleeper=0)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=2 * MS, vcpu=1)
    assert on(made)[0] == 0 and made.told[2].task == 0 and made.posts == [0]


def test_none_idles_so_it_wakes_where_it_ran_last() -> None:
    made = sleeper_and_waker(0, 1, 2)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=2 * MS, vcpu=1)
    assert on(made)[0] == 0 and made.posts == [0]


def test_the_wakers_vcpu_is_preferred_if_it_idles() -> None:
    """A page-ready in an idle vCPU, whose task last ran where another runs by now: select_idle_sibling's this_cpu."""
    made = guest(spec(1, vcpu=None), spec(2, vcpu=0), spec(3, vcpu=2), vm__vcpus=4).boot_all()
    waker = 3
    core = made.core
    kernel = core._kernel
    task = core.tasks[1]
    made.not_present(0x1000, MS)
    assert kernel._select(task, kernel.cpus[waker]).index == waker
    assert kernel._select(task, None).index == 1, "from outside: the first that idles"


def test_stopped_vcpu_wakes_nobody() -> None:
    made = sleeper_and_waker(0, 1)
    made.stop(2 * MS, vcpu=2)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=3 * MS, vcpu=1)
    assert on(made)[0] == 0 and made.posts == [0]


def test_page_ready_may_send_its_task_elsewhere() -> None:
    """It waits on vCPU 0, where another task runs; vCPU 1 idles."""
    made = guest(spec(1, vcpu=None), spec(2, vcpu=0), vm__vcpus=2).boot_all()
    made.not_present(0x1000, MS)
    ready = made.trap(PageReadyArrived(0x1000), 5 * MS)
    assert (ready.task, ready.at_ns) == (2, 5 * MS + HANDLER)
    assert on(made)[0] == 1 and made.posts == [1]
    there = made.interrupt(6 * MS, 1)
    assert (there.task, there.at_ns) == (1, 6 * MS + INTERRUPT + SWITCH)


# Posts ---------------------------------------------------------------------------------------------------------------


def test_nothing_is_posted_for_what_concerns_the_vcpu_itself() -> None:
    made = guest(spec(1), spec(2), spec(3, vcpu=1), vm__vcpus=2).boot_all()
    made.syscall(Syscall.NANOSLEEP, MS, now_ns=MS)
    made.timer()
    made.syscall(Syscall.WAIT, 7, now_ns=3 * MS)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=4 * MS)
    made.not_present(0x1000, 5 * MS)
    made.trap(PageReadyArrived(0x1000), 8 * MS)
    made.trap(ExceptionRaised(6, 0, 0), 9 * MS)
    made.syscall(Syscall.MMAP, 1, now_ns=10 * MS)
    assert made.posts == []


def test_one_post_for_all_that_one_step_does_to_a_vcpu() -> None:
    made = guest(*(spec(number) for number in (1, 2, 3)), spec(4, vcpu=1), vm__vcpus=2).boot_all()
    for number in (1, 2, 3):
        made.syscall(Syscall.WAIT, 7, now_ns=number * MS)
    made.syscall(Syscall.WAKE, 7, 3, now_ns=5 * MS, vcpu=1)
    assert made.posts == [0]


def test_vcpu_that_is_off_or_stopped_is_not_interrupted() -> None:
    made = guest(spec(1), spec(2, vcpu=1), vm__vcpus=2)
    made.boot(0)
    assert made.core.cpu(1).phase is Phase.OFF
    made.arrive(SpawnArrived(1, plan(spec(3, vcpu=1), name="new")), now_ns=MS)
    assert made.posts == []
    made.boot(1)
    made.stop(2 * MS, vcpu=1)
    made.arrive(SpawnArrived(2, plan(spec(4, vcpu=1), name="late")), now_ns=3 * MS)
    assert made.posts == [] and made.states()[3] == "NEW", "nobody can run it any more"


def test_interrupt_with_nothing_left_to_do_costs_nothing_but_a_nanosecond() -> None:
    """The tick came first and did what it was for."""
    made = guest(spec(1), spec(2), spec(3, vcpu=1), vm__vcpus=2).boot_all()
    made.syscall(Syscall.WAIT, 7, now_ns=MS)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=9 * MS, vcpu=1)
    assert made.posts == [0]
    run_until_ns = made.told[0].run_until_ns
    assert run_until_ns == NEVER_NS, "vCPU 0 knows of nothing yet, so its ticks are its own"
    woken = made.interrupt(20 * MS)
    assert woken.task == 1 and woken.at_ns == 20 * MS + INTERRUPT + SWITCH
    idle = made.trap(InterruptArrived(), 21 * MS)
    assert (idle.task, idle.at_ns) == (1, 21 * MS + 1)
    assert made.core.cpu(0).interrupts == 2


def test_any_trap_takes_notice_of_what_another_vcpu_did() -> None:
    made = guest(spec(1), spec(2), spec(3, vcpu=1), vm__vcpus=2).boot_all()
    made.syscall(Syscall.WAIT, 7, now_ns=MS)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=20 * MS, vcpu=1)
    assert made.syscall(Syscall.COUNT, 1, now_ns=21 * MS).task == 1


def test_timer_set_for_another_vcpu_is_told_with_the_interrupt() -> None:
    made = guest(spec(1), spec(2, vcpu=1), vm__vcpus=2).boot_all()
    late = spec(3, vcpu=1, start_ns=20 * MS)
    made.arrive(SpawnArrived(1, plan(late, name="late")), now_ns=MS)
    assert made.posts == [1] and made.told[1].timer_ns == NEVER_NS
    assert made.interrupt(2 * MS, 1).timer_ns == 20 * MS


# Newidle balancing ---------------------------------------------------------------------------------------------------


def test_vcpu_that_runs_out_of_work_takes_some_from_the_one_that_has_most() -> None:
    made = guest(
        spec(1, vcpu=0),
        *(spec(number, vcpu=1) for number in (2, 3)),
        *(spec(n, vcpu=None) for n in (4, 5, 6)),
        vm__vcpus=3,
    )
    assert on(made) == [0, 1, 1, 2, 0, 2]
    for vcpu in range(3):
        made.boot(vcpu)
    made.syscall(Syscall.EXIT, 0, now_ns=MS, vcpu=0)
    assert made.told[0].task == 5, "its own first"
    made.posts.clear()
    pulled = made.syscall(Syscall.EXIT, 0, now_ns=2 * MS, vcpu=0)
    assert pulled.task == 6, "vCPU 1's may not leave it"
    assert on(made)[5] == 0 and made.core.cpu(0).pulled == 1 and made.posts == []
    assert made.records("pull") == [("6", "2", "0")], "the other one is not interrupted, it has but less to do"


def test_pull_respects_affinity() -> None:
    made = guest(spec(1, vcpu=1), spec(2, vcpu=0), spec(3, vcpu=0), vm__vcpus=2).boot_all()
    assert made.syscall(Syscall.EXIT, 0, now_ns=MS, vcpu=1).task == 0
    assert on(made) == [1, 0, 0] and made.core.cpu(1).pulled == 0


def test_running_task_is_never_pulled() -> None:
    made = guest(spec(1, vcpu=None), spec(2, vcpu=None), vm__vcpus=2).boot_all()
    assert made.syscall(Syscall.EXIT, 0, now_ns=MS, vcpu=0).task == 0
    assert made.states() == ["DEAD", "RUNNING"] and on(made)[1] == 1


def test_vcpu_that_boots_without_work_looks_for_some() -> None:
    made = guest(*(spec(number, vcpu=None) for number in (1, 2, 3)), vm__vcpus=2)
    assert on(made) == [0, 1, 0]
    assert made.boot(0).task == 1
    made.arrive(KillArrived(1, 1, 2), now_ns=MS)
    assert made.trap(Booted(), MS, vcpu=1).task == 3 and on(made)[2] == 1


def test_pulled_task_goes_on_with_its_registers_and_its_time() -> None:
    made = guest(spec(1, vcpu=None), spec(2, vcpu=1), spec(3, vcpu=None), vm__vcpus=2).boot_all()
    assert on(made) == [0, 1, 0]
    changed = made.held[0]
    made.trap(TickArrived(), 12 * MS)
    assert made.told[0].task == 3 and made.states()[0] == "READY"
    there = made.syscall(Syscall.EXIT, 0, now_ns=13 * MS, vcpu=1)
    assert (there.task, there.registers) == (1, changed)
    made.syscall(Syscall.EXIT, 0, now_ns=20 * MS, vcpu=1)
    assert made.row(1).sum_exec_ns == 12 * MS + 7 * MS
    assert made.row(1).vcpu == 1


def test_tasks_of_a_vcpu_that_was_pulled_from_need_no_tick_any_more() -> None:
    """The tick that was announced comes, changes nothing, and is the last."""
    made = guest(spec(1, vcpu=None), spec(2, vcpu=1), spec(3, vcpu=None), vm__vcpus=2).boot_all()
    announced_ns = made.told[0].run_until_ns
    made.syscall(Syscall.EXIT, 0, now_ns=MS, vcpu=1)
    assert made.told[1].task == 3
    told = made.trap(TickArrived(), announced_ns + MS)
    assert (told.task, told.run_until_ns) == (1, NEVER_NS)


# Lifetimes -----------------------------------------------------------------------------------------------------------


def test_lifetime_counts_from_the_start_and_kills_wherever_it_is() -> None:
    made = guest(spec(1, lifetime_ns=10 * MS), spec(2))
    assert made.boot().timer_ns == 10 * MS
    dispatch = made.timer()
    assert dispatch.task == 2 and made.row(1).killed == "its lifetime is over"
    assert made.row(1).state == "DEAD" and made.logs == []


def test_lifetime_of_a_task_that_starts_later() -> None:
    made = guest(spec(1), spec(2, start_ns=5 * MS, lifetime_ns=10 * MS))
    made.boot()
    made.timer()
    assert made.told[0].timer_ns == 15 * MS
    made.timer()
    assert made.row(2).state == "DEAD"


def test_task_that_ends_before_its_lifetime_leaves_a_timer_that_does_nothing() -> None:
    made = guest(spec(1, lifetime_ns=10 * MS), spec(2))
    made.boot()
    made.syscall(Syscall.EXIT, 3, now_ns=MS)
    assert made.timer().task == 2
    assert (made.row(1).killed, made.row(1).status) == ("", 3)


def test_lifetime_of_a_task_that_another_vcpu_runs_by_now() -> None:
    made = guest(spec(1, vcpu=None, lifetime_ns=20 * MS), spec(2, vcpu=1), spec(3, vcpu=None), vm__vcpus=2).boot_all()
    made.trap(TickArrived(), 12 * MS)
    made.syscall(Syscall.EXIT, 0, now_ns=13 * MS, vcpu=1)
    assert made.told[1].task == 1
    made.trap(TimerArrived(), 20 * MS, vcpu=0)
    assert made.posts == [1] and made.states()[0] == "RUNNING", "it runs until its vCPU hears of it"
    assert made.interrupt(21 * MS, 1).task == 0
    assert made.row(1).killed == "its lifetime is over"


@pytest.mark.parametrize("policy", ["cfs", "eevdf", "rr"])
def test_two_processes_on_all_vcpus_take_turns(policy: str) -> None:
    made = guest_of(
        plan(spec(1, vcpu=None), spec(2, vcpu=None), name="one"),
        plan(spec(3, vcpu=None), name="other"),
        vm__vcpus=2,
        sched__policy=policy,
    ).boot_all()
    assert sorted(on(made)) == [0, 0, 1]
    assert {made.told[vcpu].asid for vcpu in range(2)} <= {1, 2}
    for vcpu in range(2):
        assert made.told[vcpu].spaces[0].asid == made.told[vcpu].asid
