"""Edge cases of the guest's side under pv2010, by their numbers in the KVM reference.

The load average counts tasks that run, are ready to, or wait uninterruptibly: READY, RUNNING and APF_WAIT here.
There is no steal clock: what the vCPU thread sleeps through is time of the task that was current.
"""

from __future__ import annotations

import pytest
from guest_fakes import HANDLER, MS, SWITCH, Guest, guest, spec

from apf.messages import (
    NEVER_NS,
    Account,
    InterruptArrived,
    NotPresentArrived,
    PageReadyArrived,
    TickArrived,
    TimerArrived,
)
from guestsched.core.arrivals import KillArrived
from guestsched.core.core import GuestCore
from guestsched.core.syscall import Syscall
from guestsched.core.task import TABLE, TaskEvent, TaskState

POLICIES = ["cfs", "eevdf", "rr"]


def pair(**overrides: object) -> Guest:
    """One vCPU with tasks 1 (running) and 2, booted."""
    made = guest(spec(1, account=Account.FAULTING), spec(2), **overrides)
    made.boot()
    return made


def load(made: Guest) -> int:
    """nr_running + nr_uninterruptible (kernel/sched/loadavg.c, calc_load_fold_active)."""
    return sum(state in ("READY", "RUNNING", "APF_WAIT") for state in made.states())


def test_e17_not_present_comes_before_its_ready_and_puts_the_task_to_sleep_first() -> None:
    """The worker cannot run before the guest was told: in the order in which the vCPU tells of both, nobody is lost."""
    made = pair()
    asleep = made.not_present(0x1000, MS)
    assert (asleep.task, made.states()[0]) == (2, "APF_WAIT")
    # Ready at the very first instant the vCPU goes on.
    ready = made.trap(PageReadyArrived(0x1000), asleep.at_ns)
    assert made.states()[0] in ("READY", "RUNNING") and ready.apf_ns >= HANDLER


@pytest.mark.parametrize("policy", POLICIES)
def test_e29_ready_before_not_present_leaves_a_dummy_and_nobody_sleeps(policy: str) -> None:
    made = pair(sched__policy=policy)
    running = made.told[0].task
    early = made.trap(PageReadyArrived(0x1000), MS)
    late = made.trap(NotPresentArrived(0x1000), 2 * MS)
    for told, at_ns in ((early, MS), (late, 2 * MS)):
        assert (told.task, told.registers, told.apf_ns, told.at_ns) == (running, None, HANDLER, at_ns + HANDLER)
    assert "APF_WAIT" not in made.states() and made.row(running).nvcsw == 0
    assert made.not_present(0x1000, 3 * MS).task != running, "the dummy was good for one"


def test_e30_ready_for_an_unknown_token_is_no_error_and_kept_for_its_not_present() -> None:
    made = pair()
    assert made.trap(PageReadyArrived(0x1000), MS).task == 1
    assert made.not_present(0x2000, 2 * MS).task == 2, "another token's dummy wakes nobody"
    assert made.not_present(0x1000, 3 * MS).task == 2, "this is the one"
    assert made.core._kernel.waiters.find(0x1000) is None


def test_e46_not_present_in_the_idle_task_or_with_nothing_current_never_happens() -> None:
    """The guest kernel's own code is never interrupted by it: only user code runs, so only that can fault."""
    made = pair()
    made.syscall(Syscall.WAIT, 7, now_ns=MS)
    assert made.syscall(Syscall.WAIT, 7, now_ns=2 * MS).task == 0
    with pytest.raises(AssertionError, match="not-present 0x1000 on vCPU 0 while it is idle"):
        made.trap(NotPresentArrived(0x1000), 3 * MS)


def everything_but_ready(made: Guest) -> None:
    """Ticks, timers, interrupts, other tokens, kills, another task's wake-up, and 120 s."""
    made.syscall(Syscall.NANOSLEEP, MS, now_ns=3 * MS)
    made.timer()
    made.syscall(Syscall.WAKE, 1, 5, now_ns=10 * MS)
    made.trap(InterruptArrived(), 11 * MS)
    made.trap(PageReadyArrived(0x2000), 12 * MS)
    made.arrive(KillArrived(1, 1, 1), now_ns=13 * MS)
    made.trap(InterruptArrived(), 130_000 * MS)


@pytest.mark.parametrize("policy", POLICIES)
def test_e47_waiter_is_unkillable_and_never_times_out(policy: str) -> None:
    made = pair(sched__policy=policy)
    waiter = made.told[0].task
    made.not_present(0x1000, MS)
    everything_but_ready(made)
    assert made.states()[waiter - 1] == "APF_WAIT"
    out = {rule.event for rule in TABLE.rules if rule.state is TaskState.APF_WAIT}
    assert out == {TaskEvent.PAGE_READY}
    made.stop(131_000 * MS)
    row = made.core.finish(131_000 * MS)[waiter - 1]
    assert (row.state, row.killed) == ("APF_WAIT", ""), "in D for ever"


def test_e47_no_timer_was_set_for_it() -> None:
    made = pair()
    assert made.not_present(0x1000, MS).timer_ns == NEVER_NS


def test_e48_apf_wait_is_no_iowait_but_counts_in_the_load_average() -> None:
    """schedule(), not io_schedule(): uninterruptible, charged to nobody, and nowhere marked as waiting for I/O."""
    made = guest(spec(1), spec(2), spec(3))
    made.boot()
    assert load(made) == 3
    made.not_present(0x1000, MS)
    made.not_present(0x2000, 2 * MS)
    assert made.states() == ["APF_WAIT", "APF_WAIT", "RUNNING"] and load(made) == 3
    made.syscall(Syscall.WAIT, 1, now_ns=5 * MS)
    assert load(made) == 2, "an interruptible sleeper does not count"
    assert made.told[0].task == 0 and made.told[0].account is Account.IDLE, "idle, as there is no account of iowait"
    made.trap(PageReadyArrived(0x1000), 50 * MS)
    assert made.core.cpu(0).rq.idle_ns == 45 * MS
    assert [made.row(task).sum_exec_ns for task in (1, 2)] == [MS, MS]
    assert not any("iowait" in name for name in dir(made.row(1)))
    assert [account.name for account in Account] == ["IDLE", "COUNTING", "FAULTING", "OTHER"]


@pytest.mark.parametrize("policy", POLICIES)
def test_e49_stall_is_no_steal_every_nanosecond_is_somebodys(policy: str) -> None:
    """The clock of the run queue goes on through a stall (nothing is subtracted from rq_clock_task)."""
    made = pair(apf=["off"], sched__policy=policy)
    rq = made.core.cpu(0).rq
    stalled = made.told[0].task
    at_ns = 3_000 * MS
    made.trap(TickArrived(), at_ns)
    assert rq.clock_ns == at_ns
    assert made.row(stalled).sum_exec_ns == at_ns and rq.busy_ns + rq.idle_ns == at_ns
    made.stop(at_ns + MS)
    assert sum(row.sum_exec_ns for row in made.core.results()) == at_ns + MS
    assert not any("steal" in name for name in (*dir(rq), *dir(made.core.cpu(0)), *dir(GuestCore)))


@pytest.mark.parametrize("policy", POLICIES)
def test_e49_idle_is_no_steal_either(policy: str) -> None:
    made = guest(spec(1), sched__policy=policy)
    made.boot()
    made.syscall(Syscall.NANOSLEEP, 100 * MS, now_ns=MS)
    made.trap(TimerArrived(), 400 * MS)
    rq = made.core.cpu(0).rq
    assert (rq.idle_ns, rq.busy_ns) == (399 * MS, MS)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stall_ms", [1, 8, 90, 5000])
def test_e50_sync_stall_charges_the_faulting_task_and_apf_does_not(policy: str, stall_ms: int) -> None:
    """T8, T12. The same wait for the same page, in the two modes."""
    sync = pair(apf=["off"], sched__policy=policy)
    first = sync.told[0].task
    end_ns = (1 + stall_ms) * MS
    sync.syscall(Syscall.COUNT, 0, now_ns=end_ns)
    assert sync.row(first).sum_exec_ns == end_ns and sync.row(3 - first).sum_exec_ns == 0
    apf = pair(sched__policy=policy)
    assert apf.told[0].task == first
    apf.not_present(0x1000, MS)
    apf.trap(PageReadyArrived(0x1000), end_ns)
    assert apf.row(first).sum_exec_ns == MS and apf.row(3 - first).sum_exec_ns == stall_ms * MS


def test_e50_cfs_and_eevdf_charge_the_stall_to_vruntime_once() -> None:
    """In full, whatever ticks were missed meanwhile."""
    for policy in ("cfs", "eevdf"):
        made = pair(apf=["off"], sched__policy=policy)
        task = made.core.tasks[made.told[0].task]
        before = task.entity.vruntime  # type: ignore[attr-defined]
        made.syscall(Syscall.COUNT, 0, now_ns=40 * MS)
        assert task.entity.vruntime - before == 40 * MS  # type: ignore[attr-defined]


def test_e51_vcpu_that_stalls_looks_as_if_it_ran() -> None:
    """steal_time.preempted stays 0: its task is RUNNING to the guest, so it is neither pulled nor placed elsewhere."""
    made = guest(spec(1, vcpu=None), spec(2, vcpu=1), spec(3, vcpu=0), vm__vcpus=3, apf=["off"]).boot_all()
    assert made.told[0].task == 1
    # vCPU 0 sleeps in the host from here on; vCPU 2 idles, vCPU 1 runs out of work.
    assert made.syscall(Syscall.WAIT, 1, now_ns=20 * MS, vcpu=1).task == 0
    assert made.states() == ["RUNNING", "WAIT", "READY"], "task 3 could run on no other vCPU, task 1 on any"
    assert made.core.tasks[1].cpu == 0 and made.core.cpu(1).pulled == 0
    back = made.trap(TickArrived(), 60 * MS)
    assert back.task == 3 and made.row(1).sum_exec_ns == 60 * MS, "the whole stall is charged to the task"


def test_e51_what_is_ready_behind_a_stalled_task_may_be_pulled() -> None:
    """Newidle balancing looks at queues, not at whether the vCPU behind one gets anywhere."""
    made = guest(spec(1, vcpu=None), spec(2, vcpu=None), spec(3, vcpu=None), vm__vcpus=2, apf=["off"]).boot_all()
    made.syscall(Syscall.EXIT, 0, now_ns=5 * MS, vcpu=1)
    assert (made.told[0].task, made.told[1].task) == (1, 3)
    assert made.told[1].at_ns == 5 * MS + 100 + SWITCH
