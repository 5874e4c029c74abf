"""What the guest kernel reads and writes for a task, and the faults it tells that task's row of."""

from __future__ import annotations

import pytest
from vcpu_fakes import REGISTERS, Vcpu, core

from apf import messages as m
from vcpud.core.account import Cause
from vcpud.core.effects import AskHost, EnterGuest, ExitCause, LoadTask, ReadGuest, SetSpace, WaitUntil, WriteGuest
from vcpud.core.vcpu import State

SPACE = m.AddressSpace(2, (m.Extent(0x40_0000, 10, 1, writable=False, executable=True),))


def called(**changes: object) -> Vcpu:
    """A vCPU whose task has made a system call."""
    machine = Vcpu(core(**changes))  # type: ignore[arg-type]  # by name
    machine.boot()
    machine.run(10, ExitCause.SYSCALL)
    return machine


def test_writes_come_before_the_task_runs() -> None:
    machine = called()
    machine.dispatch(2, registers=REGISTERS, spaces=(SPACE,), copies=((0x5000, b"ab"), (0x6FF0, b"cd")))
    assert machine.last == [SetSpace(SPACE), LoadTask(1, REGISTERS), WriteGuest(0x5000, b"ab")]
    assert machine.copied() == WriteGuest(0x6FF0, b"cd") and machine.core.state is State.COPY
    assert isinstance(machine.copied(), EnterGuest)
    assert machine.core.counters.traps == 2 and machine.core.counters.kernel_faults == 0


def test_fetch_comes_back_as_one_piece_after_the_writes() -> None:
    machine = called()
    machine.dispatch(copies=((0x5000, b"ab"),), fetch=((0x5FFE, 2), (0x9000, 3)))
    machine.copied()
    assert machine.next == ReadGuest(0x5FFE, 2)
    machine.copied(b"12")
    assert machine.next == ReadGuest(0x9000, 3)
    machine.copied(b"345")
    assert machine.trap() == m.Fetched(b"12345") and machine.asked().with_registers
    machine.dispatch(fetch=((0x5000, 1),))
    machine.copied(b"x")
    assert machine.trap() == m.Fetched(b"x"), "nothing is left of the fetch before"


@pytest.mark.parametrize("mode", list(m.ApfMode))
@pytest.mark.parametrize("reads", [True, False])
def test_its_faults_are_not_the_tasks(reads: bool, mode: m.ApfMode) -> None:
    machine = called(mode=mode)
    machine.dispatch(**{"fetch": ((0x5008, 2),)} if reads else {"copies": ((0x5008, b"ab"),)})
    copy = machine.next
    access = m.Access.READ if reads else m.Access.WRITE
    machine.not_mapped()
    work = 0 if mode is m.ApfMode.OFF else 1 << 12 | 3
    asked = m.FaultMode.NOWAIT if work else m.FaultMode.BLOCKING
    assert machine.next == AskHost(m.FaultRaised(5, access, asked, work))
    assert machine.core.state is State.KERNEL_FAULT
    kernel_ns = machine.core.account.spent_ns[Cause.KERNEL]
    machine.mapped(2000, stall_ns=80_000)
    assert machine.next == copy, "it tries again"
    assert machine.core.account.spent_ns[Cause.KERNEL] == kernel_ns + 2000
    assert machine.core.account.spent_ns[Cause.STALL] == 80_000
    machine.copied(b"ab")
    if not reads:
        machine.run(10, ExitCause.SYSCALL)
    assert (machine.asked().min_flt, machine.asked().maj_flt, machine.asked().faults) == (0, 0, ())
    assert machine.core.counters.kernel_faults == 1 and machine.core.counters.not_present == 0


def test_its_fault_may_have_to_be_retried_more_than_once() -> None:
    machine = called()
    machine.dispatch(fetch=((0x5008, 2),))
    copy = machine.next
    for _ in range(2):
        machine.not_mapped()
        machine.retry(20_000)
        assert machine.next == copy and machine.core.state is State.COPY
    machine.copied(b"ab")
    assert machine.trap() == m.Fetched(b"ab") and machine.core.counters.retries == 2


def test_page_that_is_gone_again_before_it_was_copied_faults_again() -> None:
    machine = called()
    machine.dispatch(copies=((0x5000, b"ab"),))
    for _ in range(2):
        machine.not_mapped()
        machine.mapped()
    assert isinstance(machine.copied(), EnterGuest) and machine.core.counters.kernel_faults == 2


def test_page_that_a_task_waits_for_is_not_waited_for_a_second_time() -> None:
    """The same page is with the fault-in worker: the guest kernel's access halts until that is done (E08)."""
    machine = Vcpu(core())
    machine.boot()
    machine.async_fault(5, 1_000_000)
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(2, copies=((0x5000, b"ab"),))
    copy = machine.next
    machine.not_mapped()
    assert machine.core.state is State.HALTED and machine.core.counters.repeated == 1
    assert machine.core.async_pf.next_done_ns() == 1_000_110 and len(machine.core.async_pf) == 1
    machine.wait()
    machine.mapped()
    machine.reason()
    assert isinstance(machine.trap(), m.PageReadyArrived) and machine.asked().kernel
    assert machine.dispatch(2) == copy, "back to what was interrupted"


def test_page_ready_and_timer_that_become_due_meanwhile_come_after_it() -> None:
    machine = Vcpu(core())
    machine.boot()
    machine.async_fault(5, 50_000)
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(2, copies=((0x6000, b"ab"),), timer_ns=60_000)
    machine.not_mapped()
    machine.mapped(stall_ns=80_000)
    assert isinstance(machine.copied(), AskHost) and isinstance(machine.request(), m.PrefaultRaised)
    machine.mapped()
    machine.reason()
    assert isinstance(machine.trap(), m.PageReadyArrived)
    machine.dispatch(2, timer_ns=60_000)
    assert machine.trap() == m.TimerArrived()


def test_what_a_system_call_needs_is_read_before_it_is_told() -> None:
    machine = called()
    machine.dispatch(syscall_fetch=((0x5FFE, 2), (0x9000, 3)))
    assert isinstance(machine.next, EnterGuest), "not before there is one"
    machine.run(10, ExitCause.SYSCALL)
    assert machine.core.state is State.COPY and machine.next == ReadGuest(0x5FFE, 2)
    machine.copied(b"12")
    machine.not_mapped()
    assert machine.request() == m.FaultRaised(9, m.Access.READ, m.FaultMode.NOWAIT, 1 << 12 | 3)
    machine.mapped()
    machine.copied(b"345")
    assert machine.trap() == m.SyscallRaised(b"12345") and machine.asked().with_registers
    assert (machine.asked().min_flt, machine.asked().maj_flt) == (0, 0)
    machine.dispatch()
    machine.run(10, ExitCause.SYSCALL)
    assert machine.trap() == m.SyscallRaised(), "the next one's dispatch did not ask for any"


def test_other_traps_bring_nothing_of_what_a_system_call_would() -> None:
    machine = called()
    machine.dispatch(syscall_fetch=((0x5000, 2),), timer_ns=50_000)
    machine.run_out()
    assert machine.trap() == m.TimerArrived()
    machine.dispatch(fetch=((0x7000, 1),), syscall_fetch=((0x5000, 2),))
    machine.copied(b"x")
    assert machine.trap() == m.Fetched(b"x")


def test_interrupt_during_the_entry_of_a_system_call_comes_after_the_call() -> None:
    machine = called()
    machine.dispatch(syscall_fetch=((0x5000, 2),))
    machine.run(10, ExitCause.SYSCALL)
    machine.interrupt()
    machine.copied(b"ab")
    assert machine.trap() == m.SyscallRaised(b"ab")
    machine.dispatch()
    assert machine.trap() == m.InterruptArrived()


# Faults in traps -----------------------------------------------------------------------------------------------------


def test_faults_since_the_last_trap_are_told_with_the_next() -> None:
    machine = Vcpu(core(m.ApfMode.OFF))
    machine.boot(log_faults=True)
    for gfn, stall_ns in ((5, 0), (6, 90_000), (5, 0)):
        machine.fault(gfn)
        machine.mapped(stall_ns=stall_ns)
    machine.run(10, ExitCause.SYSCALL)
    asked = machine.asked()
    assert (asked.min_flt, asked.maj_flt) == (2, 1)
    kinds = [(5, m.FaultKind.MINOR), (6, m.FaultKind.MAJOR), (5, m.FaultKind.MINOR)]
    assert [(met.gfn, met.kind) for met in asked.faults] == kinds
    machine.dispatch(log_faults=True)
    machine.run(10, ExitCause.SYSCALL)
    assert (machine.asked().min_flt, machine.asked().maj_flt, machine.asked().faults) == (0, 0, ())


def test_asynchronous_fault_is_a_major_one_and_told_with_its_own_not_present() -> None:
    machine = Vcpu(core())
    machine.boot(log_faults=True)
    machine.fault(5)
    machine.in_progress(1_000_000)
    machine.reason()
    assert isinstance(machine.trap(), m.NotPresentArrived)
    assert (machine.asked().maj_flt, machine.asked().faults) == (1, (m.FaultMet(5, m.FaultKind.ASYNC),))


def test_prefaults_and_reason_words_are_nobodys_faults() -> None:
    machine = Vcpu(core())
    machine.boot()
    machine.async_fault(5, 50_000)
    machine.run_out()
    machine.mapped(700, stall_ns=90_000)
    machine.reason()
    assert isinstance(machine.trap(), m.PageReadyArrived)
    assert (machine.asked().min_flt, machine.asked().maj_flt) == (0, 0)


def test_faults_are_listed_only_if_asked_for_and_only_so_many() -> None:
    machine = Vcpu(core(m.ApfMode.OFF))
    machine.boot()
    machine.fault(5)
    machine.mapped()
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().min_flt == 1 and machine.asked().faults == ()
    machine.dispatch(log_faults=True)
    for gfn in range(m.FAULTS_LOGGED_MAX + 3):
        machine.fault(gfn)
        machine.mapped(cost_ns=1)
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().min_flt == m.FAULTS_LOGGED_MAX + 3
    assert [met.gfn for met in machine.asked().faults] == list(range(m.FAULTS_LOGGED_MAX))


def test_retried_fault_is_counted_when_it_is_settled() -> None:
    machine = Vcpu(core(m.ApfMode.OFF))
    machine.boot()
    machine.fault(5)
    machine.retry(1000)
    assert not isinstance(machine.next, WaitUntil)
    machine.fault(5)
    machine.mapped()
    machine.run(10, ExitCause.SYSCALL)
    assert (machine.asked().min_flt, machine.asked().maj_flt) == (1, 0)
