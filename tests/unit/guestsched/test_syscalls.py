"""Every system call, with good arguments and bad ones."""

from __future__ import annotations

import pytest
from guest_fakes import (
    CODE_GVA,
    INTERRUPT,
    MS,
    SWITCH,
    SYSCALL,
    Guest,
    access_plan,
    access_spec,
    guest,
    guest_of,
    plan,
    spec,
)

from apf import registers as register_file
from apf.core import CoreError
from apf.messages import NEVER_NS, PAGE_SIZE, ExceptionRaised, Fetched, TickArrived
from guestsched.core.process import MAP_GVA, Region
from guestsched.core.syscall import SEMAPHORE_MAX, SEMAPHORES_MAX, WRITE_MAX, Syscall

EFAULT, ENOMEM, EINVAL, ENOSYS = -14, -12, -22, -38
DATA_GVA = 0x5000_0000


@pytest.fixture
def one() -> Guest:
    """One vCPU with task 1, booted."""
    made = guest(spec(1))
    made.boot()
    return made


@pytest.fixture
def pair() -> Guest:
    """One vCPU with tasks 1 (running) and 2, booted."""
    made = guest(spec(1), spec(2))
    made.boot()
    return made


def test_numbers_are_those_of_linux_and_above_4095_the_emulators_own() -> None:
    linux = {"WRITE": 1, "MMAP": 9, "SCHED_YIELD": 24, "NANOSLEEP": 35, "EXIT": 60, "CLOCK_GETTIME": 228}
    assert {call.name: call.value for call in Syscall if call < 4096} == linux
    assert {call.name for call in Syscall if call >= 4096} == {"COUNT", "WAIT", "WAKE", "TAKE"}


@pytest.mark.parametrize("number", [0, 2, 39, 4095, 4100, (1 << 64) - 1, Syscall.TAKE])
def test_number_that_is_none_is_enosys(one: Guest, number: int) -> None:
    """And take is none, but for access threads."""
    dispatch = one.syscall(number, now_ns=MS)
    assert (dispatch.task, dispatch.at_ns, one.result()) == (1, MS + SYSCALL, ENOSYS)


def test_call_changes_rax_alone(one: Guest) -> None:
    before = one.held[0] or b""
    one.syscall(Syscall.COUNT, 5, now_ns=MS)
    after = one.held[0] or b""
    assert register_file.replace(after, rax=0, rdi=0) == register_file.replace(before, rax=0)


# Exit, count ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "status"), [(0, 0), (7, 7), ((1 << 64) - 3, -3), (1 << 63, -(1 << 63))])
def test_exit_leaves_its_status(pair: Guest, given: int, status: int) -> None:
    assert pair.syscall(Syscall.EXIT, given, now_ns=MS).task == 2
    row = pair.row(1)
    assert (row.state, row.status, row.killed, row.nvcsw) == ("DEAD", status, "", 1)


def test_count_adds_and_wraps(one: Guest) -> None:
    for add in (5, 7):
        one.syscall(Syscall.COUNT, add, now_ns=MS)
        assert one.result() == 0
    assert one.row(1).counted == 12
    one.syscall(Syscall.COUNT, (1 << 64) - 2, now_ns=2 * MS)
    assert one.row(1).counted == 10


# Sleep ---------------------------------------------------------------------------------------------------------------


def test_sleep_ends_with_its_timer_and_the_task_preempts(pair: Guest) -> None:
    dispatch = pair.syscall(Syscall.NANOSLEEP, 10 * MS, now_ns=MS)
    assert (dispatch.task, dispatch.timer_ns, dispatch.at_ns) == (2, 11 * MS, MS + SYSCALL + SWITCH)
    assert pair.states() == ["SLEEP", "RUNNING"]
    back = pair.timer()
    assert (back.task, back.at_ns, back.timer_ns) == (1, 11 * MS + INTERRUPT + SWITCH, NEVER_NS)
    assert pair.result() == 0 and (pair.row(1).nvcsw, pair.row(2).nivcsw) == (1, 1)


def test_sleeping_is_charged_to_nobody_and_all_asleep_means_idle(pair: Guest) -> None:
    pair.syscall(Syscall.NANOSLEEP, 10 * MS, now_ns=MS)
    idle = pair.syscall(Syscall.NANOSLEEP, 3 * MS, now_ns=2 * MS)
    assert (idle.task, idle.timer_ns) == (0, 5 * MS)
    assert pair.timer().task == 2
    assert pair.core.cpu(0).rq.idle_ns == 3 * MS
    assert (pair.row(1).sum_exec_ns, pair.row(2).sum_exec_ns) == (MS, MS)


def test_sleep_of_nothing_is_a_nanosecond(one: Guest) -> None:
    assert one.syscall(Syscall.NANOSLEEP, 0, now_ns=MS).timer_ns == MS + 1


def test_sleep_of_all_time_never_ends(one: Guest) -> None:
    dispatch = one.syscall(Syscall.NANOSLEEP, (1 << 64) - 1, now_ns=MS)
    assert (dispatch.task, dispatch.timer_ns) == (0, NEVER_NS)


def test_timers_expire_in_order_and_together_when_late() -> None:
    made = guest(spec(1), spec(2), spec(3))
    made.boot()
    for task, ns in ((1, 9 * MS), (2, 5 * MS), (3, 7 * MS)):
        assert made.told[0].task == task
        made.syscall(Syscall.NANOSLEEP, ns, now_ns=task * MS)
    assert made.told[0].timer_ns == 7 * MS
    assert made.timer(late_ns=2 * MS).timer_ns == 10 * MS, "2 is due at 7, 3 and 1 at 10"
    assert made.states() == ["SLEEP", "RUNNING", "SLEEP"]
    made.timer()
    assert sorted(made.states()) == ["READY", "READY", "RUNNING"]


def test_timer_before_its_time_is_refused(one: Guest) -> None:
    one.syscall(Syscall.NANOSLEEP, 5 * MS, now_ns=MS)
    with pytest.raises(CoreError, match="its timer was to expire at 6000000 ns"):
        one.timer(late_ns=-1)


# Semaphores ----------------------------------------------------------------------------------------------------------


def test_semaphore_counts_what_is_there(one: Guest) -> None:
    one.syscall(Syscall.WAKE, 3, 2, now_ns=MS)
    assert one.result() == 0
    for _ in range(2):
        assert one.syscall(Syscall.WAIT, 3, now_ns=MS * 2).task == 1 and one.result() == 0
    assert one.syscall(Syscall.WAIT, 3, now_ns=MS * 3).task == 0
    assert one.states() == ["WAIT"]


def test_semaphore_wakes_in_order_of_arrival() -> None:
    made = guest(*(spec(number) for number in range(1, 5)))
    made.boot()
    for number in (1, 2, 3):
        assert made.told[0].task == number
        made.syscall(Syscall.WAIT, 9, now_ns=number * MS)
    assert made.states() == ["WAIT", "WAIT", "WAIT", "RUNNING"]
    made.syscall(Syscall.WAKE, 9, 2, now_ns=3 * MS + 200_000)
    assert made.states()[2] == "WAIT" and made.states().count("WAIT") == 1
    process = made.core.processes[1]
    assert list(process.semaphores[9].waiting) == [3] and process.semaphores[9].count == 0


def test_wake_beyond_the_waiters_is_kept(pair: Guest) -> None:
    pair.syscall(Syscall.WAIT, 9, now_ns=MS)
    pair.syscall(Syscall.WAKE, 9, 5, now_ns=MS + 200_000)
    semaphore = pair.core.processes[1].semaphores[9]
    assert (semaphore.count, list(semaphore.waiting)) == (4, [])
    assert sorted(pair.states()) == ["READY", "RUNNING"]


def test_woken_waiter_gets_0(pair: Guest) -> None:
    pair.syscall(Syscall.WAIT, 9, now_ns=MS)
    woken = pair.syscall(Syscall.WAKE, 9, 1, now_ns=20 * MS)
    assert woken.task == 1 and pair.result() == 0, "it preempts, having slept long"


def test_wake_of_nothing_wakes_nobody(pair: Guest) -> None:
    pair.syscall(Syscall.WAIT, 9, now_ns=MS)
    assert pair.syscall(Syscall.WAKE, 9, 0, now_ns=2 * MS).task == 2 and pair.result() == 0
    assert pair.states() == ["WAIT", "RUNNING"]


def test_semaphore_that_would_overflow_is_einval_and_stays(one: Guest) -> None:
    one.syscall(Syscall.WAKE, 1, SEMAPHORE_MAX, now_ns=MS)
    assert one.result() == 0
    for more in (1, 1 << 63):
        one.syscall(Syscall.WAKE, 1, more, now_ns=MS * 2)
        assert one.result() == EINVAL
    assert one.core.processes[1].semaphores[1].count == SEMAPHORE_MAX


@pytest.mark.parametrize("call", [Syscall.WAIT, Syscall.WAKE])
def test_semaphore_number_must_fit_32_bits(one: Guest, call: Syscall) -> None:
    one.syscall(call, 1 << 32, 1, now_ns=MS)
    assert one.result() == EINVAL and one.told[0].task == 1


def test_process_has_so_many_semaphores_and_no_more(one: Guest) -> None:
    semaphores = one.core.processes[1].semaphores
    one.syscall(Syscall.WAKE, 1, 1, now_ns=MS)
    semaphores.update(dict.fromkeys(range(2, SEMAPHORES_MAX + 1), semaphores[1]))
    one.syscall(Syscall.WAKE, SEMAPHORES_MAX + 1, 1, now_ns=2 * MS)
    assert one.result() == EINVAL
    one.syscall(Syscall.WAKE, SEMAPHORES_MAX, 1, now_ns=3 * MS)
    assert one.result() == 0


def test_semaphores_of_two_processes_are_two() -> None:
    made = guest_of(plan(spec(1), name="one"), plan(spec(2), name="other"))
    made.boot()
    made.syscall(Syscall.WAIT, 5, now_ns=MS)
    made.syscall(Syscall.WAKE, 5, 1, now_ns=2 * MS)
    assert made.states() == ["WAIT", "RUNNING"] and made.core.processes[2].semaphores[5].count == 1


# Memory --------------------------------------------------------------------------------------------------------------


def test_mmap_gives_fresh_pages_that_this_vcpu_knows_at_once(one: Guest) -> None:
    dispatch = one.syscall(Syscall.MMAP, PAGE_SIZE + 1, now_ns=MS)
    assert one.result() == MAP_GVA
    (space,) = dispatch.spaces
    extent = space.extents[-1]
    assert (extent.gva, extent.pages, extent.writable, extent.executable) == (MAP_GVA, 2, True, False)
    assert extent.gfn == space.extents[0].gfn + 1, "frames come one after the other"
    assert one.syscall(Syscall.COUNT, 1, now_ns=2 * MS).spaces == ()


@pytest.mark.parametrize(
    ("size", "error"), [(0, EINVAL), (1 << 47, EINVAL), ((1 << 64) - 1, EINVAL), (1 << 40, ENOMEM), (3 << 30, ENOMEM)]
)
def test_mmap_that_cannot_be_changes_nothing(one: Guest, size: int, error: int) -> None:
    dispatch = one.syscall(Syscall.MMAP, size, now_ns=MS)
    assert one.result() == error and dispatch.spaces == ()
    assert one.core.processes[1].version == 1
    one.syscall(Syscall.MMAP, 1, now_ns=2 * MS)
    assert one.result() == MAP_GVA


def two_vcpus() -> Guest:
    """A process with a task on each of two vCPUs."""
    return guest(spec(1), spec(2, vcpu=1), vm__vcpus=2).boot_all()


def test_page_another_vcpu_has_mapped_is_a_spurious_fault_once() -> None:
    made = two_vcpus()
    made.syscall(Syscall.MMAP, 1, now_ns=MS)
    gva = made.result()
    assert made.posts == [], "nobody tells the other"
    fault = ExceptionRaised(14, gva + 8, CODE_GVA)
    again = made.trap(fault, 2 * MS, vcpu=1)
    assert (again.task, again.registers, made.logs) == (2, None, [])
    assert [space.extents[-1].gva for space in again.spaces] == [gva]
    # Now it knows; a fault there would be one.
    assert made.trap(fault, 3 * MS, vcpu=1).task == 0
    assert made.row(2).killed.startswith("bad address")


@pytest.mark.parametrize("vector_and_address", [(14, 0xDEAD_0000), (6, MAP_GVA)])
def test_other_exceptions_kill_also_when_the_address_space_has_changed(vector_and_address: tuple[int, int]) -> None:
    made = two_vcpus()
    made.syscall(Syscall.MMAP, 1, now_ns=MS)
    vector, address = vector_and_address
    made.trap(ExceptionRaised(vector, address, CODE_GVA), 2 * MS, vcpu=1)
    assert made.states() == ["RUNNING", "DEAD"]


# Write ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def writer() -> Guest:
    """A task with two pages of data."""
    made = guest_of(
        plan(spec(1), spec(2), regions=(Region(CODE_GVA, 1, b"\x90", executable=True, writable=False), DATA))
    )
    made.boot()
    return made


DATA = Region(DATA_GVA, 2, demand_zero=True)


def data_gpa(made: Guest) -> int:
    extent = made.core.processes[1].extent_of(DATA_GVA)
    assert extent is not None
    return extent.gfn * PAGE_SIZE


def test_write_reads_memory_and_tells_the_log(writer: Guest) -> None:
    gpa = data_gpa(writer) + PAGE_SIZE - 3
    writer.write(gpa, b"hello\n\n")
    dispatch = writer.syscall(Syscall.WRITE, 1, DATA_GVA + PAGE_SIZE - 3, 7, now_ns=MS)
    assert (dispatch.task, dispatch.fetch, dispatch.copies) == (1, ((gpa, 3), (gpa + 3, 4)), ())
    back = writer.fetched(2 * MS)
    assert (back.task, back.fetch, writer.result()) == (1, (), 7)
    (log,) = writer.logs
    assert (log.at_ns, log.text, log.warning) == (2 * MS, "task 1 toy/1: hello", False)


def test_what_is_no_text_is_shown_all_the_same(writer: Guest) -> None:
    writer.write(data_gpa(writer), b"\xff\x00a")
    writer.syscall(Syscall.WRITE, 2, DATA_GVA, 3, now_ns=MS)
    writer.fetched(2 * MS)
    assert writer.logs[0].text == "task 1 toy/1: \ufffd\x00a"


@pytest.mark.parametrize(
    ("gva", "length", "result"),
    [
        (DATA_GVA, 0, 0),
        (0, 0, 0),
        (DATA_GVA, WRITE_MAX + 1, EINVAL),
        (DATA_GVA, (1 << 64) - 1, EINVAL),
        (0, 1, EFAULT),
        (DATA_GVA + 2 * PAGE_SIZE - 1, 2, EFAULT),
        (DATA_GVA - 1, 2, EFAULT),
        ((1 << 64) - 1, 2, EFAULT),
    ],
)
def test_write_of_nothing_or_of_what_is_not_there(writer: Guest, gva: int, length: int, result: int) -> None:
    dispatch = writer.syscall(Syscall.WRITE, 1, gva, length, now_ns=MS)
    assert (dispatch.task, dispatch.fetch, writer.result(), writer.logs) == (1, (), result, [])


def test_write_of_the_most_there_may_be_and_of_code(writer: Guest) -> None:
    assert sum(n for _, n in writer.syscall(Syscall.WRITE, 1, DATA_GVA, WRITE_MAX, now_ns=MS).fetch) == WRITE_MAX
    writer.fetched(2 * MS)
    assert writer.result() == WRITE_MAX
    assert writer.syscall(Syscall.WRITE, 1, CODE_GVA, 4, now_ns=3 * MS).fetch


def test_nothing_else_may_come_while_memory_is_read(writer: Guest) -> None:
    writer.syscall(Syscall.WRITE, 1, DATA_GVA, 3, now_ns=MS)
    with pytest.raises(CoreError, match="but the kernel was reading memory for its task"):
        writer.trap(TickArrived(), 100 * MS)
    with pytest.raises(CoreError, match="2 bytes fetched, 3 were asked for"):
        writer.trap(Fetched(b"ab"), 100 * MS)


def test_memory_that_nobody_asked_for_is_refused(one: Guest) -> None:
    with pytest.raises(CoreError, match="but the kernel was not reading memory"):
        one.trap(Fetched(b""), MS)


def test_nothing_preempts_in_the_midst_of_a_call_but_at_its_end() -> None:
    """Another vCPU wakes a task here meanwhile; need_resched waits for the way back to user mode."""
    regions = (Region(CODE_GVA, 1, b"\x90", executable=True, writable=False), DATA)
    made = guest_of(plan(spec(1), spec(2), spec(3, vcpu=1), regions=regions), vm__vcpus=2).boot_all()
    made.syscall(Syscall.WAIT, 7, now_ns=MS)
    assert made.told[0].task == 2
    made.syscall(Syscall.WRITE, 1, DATA_GVA, 3, now_ns=30 * MS)
    made.syscall(Syscall.WAKE, 7, 1, now_ns=31 * MS, vcpu=1)
    assert made.posts == [0] and made.states() == ["READY", "RUNNING", "RUNNING"]
    assert made.fetched(32 * MS).task == 1
    assert register_file.get(made.core.tasks[2].registers, "rax") == 3


# Take, of those that are access threads -------------------------------------------------------------------------------


def test_take_without_work_waits() -> None:
    made = guest_of(access_plan(access_spec(1)))
    made.boot()
    assert made.syscall(Syscall.TAKE, now_ns=MS).task == 0
    assert made.states() == ["WAIT"]
