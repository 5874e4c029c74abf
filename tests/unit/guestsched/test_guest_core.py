"""The guest kernel's step: what each trap does, what it costs, and what a vCPU may not do."""

from __future__ import annotations

import pytest
from guest_fakes import HANDLER, MS, SWITCH, SYSCALL, Guest, guest, space, spec

from apf import registers as register_file
from apf.core import CoreError
from apf.messages import (
    MSR_KVM_ASYNC_PF_EN,
    NEVER_NS,
    Account,
    Booted,
    ExceptionRaised,
    MsrWrite,
    NotPresentArrived,
    PageReadyArrived,
    TickArrived,
    Trap,
    TrapRaised,
)
from guestsched.core.apf_wait import bucket_of
from guestsched.core.core import TrapTaken
from guestsched.core.task import TaskResult

WAKE_ALL = 0xFFFF_FFFF


@pytest.fixture
def pair() -> Guest:
    """One vCPU with tasks 1 (running) and 2, booted."""
    made = guest(spec(1, account=Account.FAULTING), spec(2))
    made.boot()
    return made


def syscall(made: Guest, number: int, now_ns: int) -> tuple[int, bytes | None]:
    dispatch = made.syscall(number, now_ns=now_ns)
    return dispatch.task, dispatch.registers


def row(made: Guest, task: int) -> TaskResult:
    return made.core.results()[task - 1]


# Boot


def test_boot_picks_the_first_task_and_tells_of_spaces_and_the_reason_word() -> None:
    made = guest(spec(1), spec(2, vcpu=1), vm__vcpus=2)
    first, second = made.boot(0), made.boot(1)
    assert (first.task, second.task) == (1, 2)
    assert first.spaces == second.spaces == (space(vcpus=2),)
    assert first.steps == (MsrWrite(MSR_KVM_ASYNC_PF_EN, 0x1001),)
    assert second.steps == (MsrWrite(MSR_KVM_ASYNC_PF_EN, 0x2001),)
    assert (first.at_ns, first.apf_ns, first.run_until_ns) == (SWITCH, 0, NEVER_NS)
    assert first.registers == spec(1).registers
    assert (first.asid, first.account) == (1, Account.COUNTING)


def test_boot_without_apf_enables_nothing() -> None:
    made = guest(spec(1), apf=["off"])
    assert made.boot().steps == ()


def test_vcpu_without_tasks_idles_for_ever() -> None:
    made = guest(spec(1), vm__vcpus=2)
    idle = made.boot(1)
    assert (idle.task, idle.asid, idle.account, idle.registers) == (0, 0, Account.IDLE, None)
    assert (idle.at_ns, idle.run_until_ns) == (1, NEVER_NS)


def test_spaces_and_msr_are_told_once(pair: Guest) -> None:
    later = pair.trap(NotPresentArrived(0x1000), MS)
    assert later.spaces == () and later.steps == ()


# Ticks


def test_tick_at_run_until_switches() -> None:
    made = guest(spec(1), spec(2))
    first = made.boot()
    assert first.run_until_ns == 3 * MS + 1
    second = made.trap(TickArrived(), 4 * MS)
    assert (second.task, second.at_ns, second.apf_ns) == (2, 4 * MS + SWITCH, 0)
    assert second.registers == spec(2).registers
    assert second.run_until_ns == 8 * MS, "its slice is over at 7 ms, but it is behind task 1 until 8 ms"
    assert (row(made, 1).nivcsw, row(made, 1).nvcsw) == (1, 0)


def test_preempted_task_gets_its_registers_back(pair: Guest) -> None:
    changed = register_file.replace(pair.held[0] or b"", rbx=99)
    pair.trap(TickArrived(), 4 * MS, registers=changed)
    assert pair.trap(TickArrived(), 8 * MS).registers == changed
    assert row(pair, 1).values == (("count", 99),)


def test_tick_before_run_until_is_the_vcpus_own(pair: Guest) -> None:
    with pytest.raises(CoreError, match="ticks before 3000001 ns change nothing"):
        pair.trap(TickArrived(), 3 * MS)


def test_stall_until_the_tick_is_charged_to_the_task_that_stalled(pair: Guest) -> None:
    """E50, and one late tick counts once."""
    pair.trap(TickArrived(), 12 * MS)
    assert (row(pair, 1).sum_exec_ns, row(pair, 2).sum_exec_ns) == (12 * MS, 0)


# Not present, page ready


def test_not_present_puts_the_task_to_sleep_and_runs_another(pair: Guest) -> None:
    """T12."""
    dispatch = pair.trap(NotPresentArrived(0x1000), MS)
    assert (dispatch.task, dispatch.registers) == (2, spec(2).registers)
    assert dispatch.at_ns - MS == dispatch.apf_ns == HANDLER + SWITCH
    assert dispatch.run_until_ns == NEVER_NS
    assert (row(pair, 1).state, row(pair, 1).nvcsw) == ("APF_WAIT", 1)


def test_wait_is_not_charged(pair: Guest) -> None:
    """E50: with APF the task sleeps, so the wait adds nothing to its time."""
    pair.trap(NotPresentArrived(0x1000), MS)
    pair.trap(PageReadyArrived(0x1000), 9 * MS)
    assert (row(pair, 1).sum_exec_ns, row(pair, 2).sum_exec_ns) == (MS, 8 * MS)


def test_ready_puts_the_task_back_and_it_preempts(pair: Guest) -> None:
    """T13: re-executes the access with the registers it trapped with."""
    at_fault = register_file.replace(pair.held[0] or b"", rip=0x40_0123)
    pair.trap(NotPresentArrived(0x1000), MS, registers=at_fault)
    back = pair.trap(PageReadyArrived(0x1000), 9 * MS)
    assert (back.task, back.registers) == (1, at_fault)
    assert back.at_ns - 9 * MS == back.apf_ns == HANDLER + SWITCH


def test_ready_that_does_not_preempt_lets_current_go_on(pair: Guest) -> None:
    pair.trap(NotPresentArrived(0x1000), MS)
    back = pair.trap(PageReadyArrived(0x1000), 2 * MS)
    assert (back.task, back.registers) == (2, None)
    assert back.at_ns - 2 * MS == back.apf_ns == HANDLER
    assert row(pair, 1).state == "READY"
    assert 2 * MS < back.run_until_ns < NEVER_NS


def test_woken_task_that_preempts_is_preferred_to_one_slightly_ahead_of_it() -> None:
    """The next buddy: task 3 is leftmost, but by less than the wakeup granularity."""
    made = guest(spec(1), spec(2), spec(3))
    made.boot()
    assert made.trap(NotPresentArrived(0x1000), MS // 2).task == 2
    assert made.trap(PageReadyArrived(0x1000), 5 * MS // 2).task == 1
    assert made.core.cpu(0).rq.waiting_ids() == [3, 2]


def test_everybody_waits_so_the_vcpu_idles_until_ready(pair: Guest) -> None:
    pair.trap(NotPresentArrived(0x1000), MS)
    idle = pair.trap(NotPresentArrived(0x2000), 2 * MS)
    assert (idle.task, idle.run_until_ns, idle.apf_ns) == (0, NEVER_NS, HANDLER + SWITCH)
    back = pair.trap(PageReadyArrived(0x2000), 5 * MS)
    assert back.task == 2
    assert pair.core.cpu(0).rq.idle_ns == 3 * MS


def test_ready_before_not_present_means_no_sleep(pair: Guest) -> None:
    """E29, E30: the dummy is consumed, the task goes on and faults again if it must."""
    early = pair.trap(PageReadyArrived(0x1000), MS)
    assert (early.task, early.registers, early.apf_ns) == (1, None, HANDLER)
    late = pair.trap(NotPresentArrived(0x1000), 2 * MS)
    assert (late.task, late.registers, late.apf_ns) == (1, None, HANDLER)
    assert pair.trap(NotPresentArrived(0x1000), 3 * MS).task == 2


def test_ready_for_an_unknown_token_while_idle() -> None:
    """E30."""
    made = guest(vm__vcpus=1)
    made.boot()
    assert made.trap(PageReadyArrived(0x1000), MS).task == 0


def test_wake_all_wakes_this_vcpus_waiters_only() -> None:
    """E31."""
    made = guest(spec(1), spec(2, vcpu=1), spec(3), vm__vcpus=2)
    made.boot(0)
    made.boot(1)
    made.trap(NotPresentArrived(0x1000), MS)
    made.trap(NotPresentArrived(0x2000), 2 * MS)
    made.trap(NotPresentArrived(0x1001), 3 * MS, vcpu=1)
    assert bucket_of(0x2000) < bucket_of(0x1000), "so the walk meets task 3 first, and both are equally far"
    assert made.trap(PageReadyArrived(WAKE_ALL), 50 * MS).task == 3
    assert [row(made, task).state for task in (1, 2, 3)] == ["READY", "APF_WAIT", "RUNNING"]


def test_wake_all_with_nobody_waiting_leaves_no_dummy(pair: Guest) -> None:
    """The host sends it when the MSR is written."""
    pair.trap(PageReadyArrived(WAKE_ALL), MS)
    assert pair.trap(NotPresentArrived(0x1000), 2 * MS).task == 2


def test_lost_ready_is_a_wait_for_ever(pair: Guest) -> None:
    """E47: nothing else ends the wait, not even the end of the run."""
    pair.trap(NotPresentArrived(0x1000), MS)
    pair.trap(ExceptionRaised(6, 0, 0x40_0000), 200_000 * MS)
    assert pair.told[0].run_until_ns == NEVER_NS
    pair.stop(300_000 * MS)
    assert pair.core.finish(300_000 * MS)[0].state == "APF_WAIT"


def test_not_present_while_idle_never_happens() -> None:
    """E46."""
    made = guest()
    made.boot()
    with pytest.raises(AssertionError, match="not-present 0x1000 on vCPU 0 while it is idle"):
        made.trap(NotPresentArrived(0x1000), MS)


# System calls, exceptions


def test_clock_is_the_traps_time(pair: Guest) -> None:
    task, registers = syscall(pair, 228, 1_234_567)
    assert task == 1 and registers is not None
    assert register_file.get(registers, "rax") == 1_234_567
    assert pair.told[0].at_ns == 1_234_567 + SYSCALL and pair.told[0].apf_ns == 0


def test_unknown_call_is_enosys(pair: Guest) -> None:
    _, registers = syscall(pair, 39, MS)
    assert registers is not None and register_file.get(registers, "rax") == 2**64 - 38
    assert register_file.get(registers, "rbx") == 1


def test_yield_gives_way_and_returns_0(pair: Guest) -> None:
    task, _ = syscall(pair, 24, MS)
    assert task == 2 and pair.told[0].at_ns == MS + SYSCALL + SWITCH
    task, registers = syscall(pair, 24, 3 * MS)
    assert task == 1 and registers is not None and register_file.get(registers, "rax") == 0


def test_yield_to_a_task_further_on_than_the_granularity_goes_on(pair: Guest) -> None:
    """Task 1 is at 4 ms of vruntime, the granularity is 1 ms."""
    pair.trap(TickArrived(), 4 * MS)
    assert syscall(pair, 24, 7 * MS - 1)[0] == 2


def test_yield_to_a_task_a_granularity_further_on_gives_way(pair: Guest) -> None:
    pair.trap(TickArrived(), 4 * MS)
    assert syscall(pair, 24, 7 * MS)[0] == 1


def test_yield_alone_goes_on() -> None:
    made = guest(spec(1))
    made.boot()
    task, registers = syscall(made, 24, MS)
    assert task == 1 and registers is not None and register_file.get(registers, "rax") == 0


def test_exit_ends_the_task_without_a_message(pair: Guest) -> None:
    assert syscall(pair, 60, MS)[0] == 2
    assert syscall(pair, 60, 2 * MS)[0] == 0
    assert [row(pair, task).state for task in (1, 2)] == ["DEAD", "DEAD"]
    assert pair.logs == [] and pair.told[0].run_until_ns == NEVER_NS


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        (ExceptionRaised(6, 0, 0x40_0007), "illegal instruction (#UD, vector 6) at rip 0x400007"),
        (ExceptionRaised(14, 0xDEAD000, 0x40_0007), "bad address 0xdead000 (#PF, vector 14) at rip 0x400007"),
        (ExceptionRaised(14, 0, 0x40_0007), "bad address 0x0 (#PF, vector 14) at rip 0x400007"),
        (ExceptionRaised(13, 0, 0x40_0007), "privileged instruction or protection violation (#GP, vector 13)"),
        (ExceptionRaised(0x80, 0, 0x40_0007), "unexpected interrupt (no exception, vector 128) at rip 0x400007"),
    ],
)
def test_exception_kills_that_task_only_and_says_why(pair: Guest, trap: ExceptionRaised, words: str) -> None:
    dispatch = pair.trap(trap, MS)
    assert dispatch.task == 2
    (log,) = pair.logs
    assert log.at_ns == MS
    assert log.text.startswith("task 1 toy/1 (program toy, vCPU 0) killed: " + words)
    assert row(pair, 1).state == "DEAD" and row(pair, 1).killed.startswith(words)
    assert row(pair, 2).killed == ""


def test_last_task_killed_leaves_the_vcpu_idle_for_ever() -> None:
    made = guest(spec(1))
    made.boot()
    dispatch = made.trap(ExceptionRaised(6, 0, 0), MS)
    assert (dispatch.task, dispatch.run_until_ns) == (0, NEVER_NS)


# The end, the contract


def test_end_of_run_counts_every_ns_and_journals_the_counters(pair: Guest) -> None:
    pair.trap(NotPresentArrived(0x1000), MS)
    last = pair.stop(10 * MS, 0)
    assert last.at_ns > 10 * MS
    before = pair.journal.records
    rows = pair.core.finish(10 * MS)
    assert [(row.id, row.sum_exec_ns, row.values) for row in rows] == [
        (1, MS, (("count", 1),)),
        (2, 9 * MS, (("count", 2),)),
    ]
    assert pair.journal.records == before + 2


def test_finish_before_all_stopped_is_an_own_bug(pair: Guest) -> None:
    with pytest.raises(AssertionError, match=r"vCPUs \[0\] have not stopped"):
        pair.core.finish(MS)


def test_free_protocol_still_takes_a_nanosecond() -> None:
    made = guest(spec(1), costs__apf_handler_ns=0, costs__context_switch_ns=0)
    assert made.boot().at_ns == 1
    dispatch = made.trap(NotPresentArrived(0x1000), MS)
    assert (dispatch.at_ns, dispatch.apf_ns) == (MS + 1, 1)


@pytest.mark.parametrize(
    ("trap", "now_ns", "message"),
    [
        (Booted(), MS, "Booted.*but it is UP"),
        (PageReadyArrived(1), SWITCH - 1, "before 1500 ns"),
        (PageReadyArrived(1 << 32), MS, "32 bits"),
        (PageReadyArrived(-1), MS, "32 bits"),
        (NotPresentArrived(WAKE_ALL), MS, "nobody can wait for it"),
    ],
)
def test_peer_that_breaks_the_contract_is_told_and_changes_nothing(
    pair: Guest, trap: Trap, now_ns: int, message: str
) -> None:
    records, digest = pair.journal.records, pair.journal.digest()
    with pytest.raises(CoreError, match=message):
        pair.trap(trap, now_ns)
    pair.core.check()
    assert (pair.journal.records, pair.journal.digest()) == (records, digest)
    assert pair.trap(TickArrived(), 4 * MS).task == 2


@pytest.mark.parametrize("registers", [None, b"", bytes(16)])
def test_running_task_traps_with_its_registers(pair: Guest, registers: bytes | None) -> None:
    with pytest.raises(CoreError, match="it runs task 1"):
        pair.core.step(TrapTaken(0, TrapRaised(TickArrived(), registers)), 4 * MS)


def test_idle_vcpu_has_no_registers() -> None:
    made = guest()
    made.boot()
    with pytest.raises(CoreError, match="it is idle"):
        made.trap(PageReadyArrived(1), MS, registers=register_file.new())


def test_nothing_before_boot_and_nothing_after_the_end() -> None:
    made = guest(spec(1))
    with pytest.raises(CoreError, match="it is OFF"):
        made.trap(PageReadyArrived(1), 0)
    made.boot()
    made.stop(MS)
    with pytest.raises(CoreError, match="it is STOPPED"):
        made.trap(PageReadyArrived(1), 2 * MS)


def test_token_of_another_vcpu_is_refused() -> None:
    made = guest(spec(1), spec(2, vcpu=1), vm__vcpus=2)
    made.boot(0)
    made.boot(1)
    made.trap(NotPresentArrived(0x1000), MS)
    with pytest.raises(CoreError, match="the token is vCPU 0's"):
        made.trap(PageReadyArrived(0x1000), MS, vcpu=1)
    assert made.trap(PageReadyArrived(0x1000), 2 * MS).task == 1


def test_apf_event_without_apf_is_refused() -> None:
    made = guest(spec(1), apf=["off"])
    made.boot()
    with pytest.raises(CoreError, match="has not enabled APF"):
        made.trap(PageReadyArrived(1), MS)


def test_unknown_vcpu_is_refused(pair: Guest) -> None:
    with pytest.raises(CoreError, match="no vCPU 1: this VM has 1"):
        pair.core.step(TrapTaken(1, TrapRaised(Booted(), None)), 0)


def test_same_traps_same_digest() -> None:
    digests = []
    for token in (0x1000, 0x1000, 0x2000):
        made = guest(spec(1), spec(2))
        made.boot()
        made.trap(NotPresentArrived(token), MS)
        made.stop(2 * MS)
        made.core.finish(2 * MS)
        digests.append(made.journal.digest())
    assert digests[0] == digests[1] != digests[2]
