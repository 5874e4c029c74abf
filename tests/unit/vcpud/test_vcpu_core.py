"""The vCPU's run loop, exit by exit. E01.. are the cases of the KVM reference."""

from __future__ import annotations

import pytest
from vcpu_fakes import REASON_GPA, REGISTERS, Vcpu, core

from apf import messages as m
from apf.costs import Costs
from vcpud.core.account import Cause
from vcpud.core.async_pf import ASYNC_PF_PER_VCPU
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    Attached,
    EnterGuest,
    ExitCause,
    Finish,
    InjectReason,
    LoadTask,
    MapPage,
    ReasonRead,
    WaitUntil,
)
from vcpud.core.vcpu import TRANSITIONS, State

COSTS = Costs()
TICK_NS = 4_000_000


def vcpu(**changes: object) -> Vcpu:
    """A booted vCPU that runs task 1."""
    machine = Vcpu(core(**changes))  # type: ignore[arg-type]  # by name
    machine.boot()
    return machine


def test_every_state_can_be_left_and_reached() -> None:
    assert set(TRANSITIONS) == set(State)
    targets = {state for states in TRANSITIONS.values() for state in states}
    assert targets == set(State) - {State.NEW}
    assert [state for state in State if not TRANSITIONS[state]] == [State.FINISHED]


@pytest.mark.parametrize("state", list(State))
def test_moves_off_the_table_are_refused(state: State) -> None:
    machine = core()
    for target in State:
        machine.state = state
        if target in TRANSITIONS[state]:
            machine._move(target)
            assert machine.state is target
        else:
            with pytest.raises(AssertionError, match="vCPU 3"):
                machine._move(target)


def test_boot_loads_the_task_and_runs_it() -> None:
    machine = vcpu()
    load, enter = machine.last
    assert load == LoadTask(1, REGISTERS)
    assert enter == EnterGuest(100, TICK_NS)


def test_a_blocking_fault_is_invisible_to_the_guest_in_off_mode() -> None:
    """No trap, no reason word, no token, though the guest asked for APF; the time is the host's."""
    machine = vcpu(mode=m.ApfMode.OFF)
    machine.fault(5)
    assert machine.request() == m.FaultRaised(5, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    machine.mapped(cost_ns=2000, stall_ns=80_000)
    page, enter = machine.last
    assert page == MapPage(5, 77, True)
    assert isinstance(enter, EnterGuest)
    assert machine.core.now_ns == 110 + 82_000
    assert machine.core.account.spent_ns[Cause.STALL] == 80_000
    assert machine.core.counters.faults_major == 1 and machine.core.counters.traps == 1
    assert machine.core.counters.not_present == machine.core.counters.ready == len(machine.core.async_pf) == 0


def test_a_guest_that_has_not_enabled_apf_is_not_told() -> None:
    """The host's half is at work all the same."""
    machine = Vcpu(core())
    machine.step(Attached())
    machine.dispatch(1, registers=REGISTERS)
    machine.fault(5)
    assert machine.request() == m.FaultRaised(5, m.Access.WRITE, m.FaultMode.NOWAIT, 1 << 12 | 3)
    machine.in_progress(100_000)
    assert machine.core.state is State.HALTED and machine.core.counters.traps == 1


def test_not_present_and_ready() -> None:
    machine = vcpu()
    machine.fault(5)
    request = machine.request()
    assert isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT
    token = request.work
    assert token == 1 << 12 | 3
    machine.in_progress(100_000)
    assert machine.next == InjectReason(REASON_GPA, 1)
    machine.reason()
    assert machine.next == AskGuest(m.NotPresentArrived(token), with_registers=True, maj_flt=1)
    machine.dispatch(2, registers=REGISTERS, apf_ns=100)
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == 110 + 100_000
    machine.run_out()
    assert machine.request() == m.PrefaultRaised(5, token)
    machine.mapped(700)
    assert machine.last == [MapPage(5, 77, True), InjectReason(REASON_GPA, 2)]
    machine.reason()
    assert machine.trap() == m.PageReadyArrived(token)
    assert len(machine.core.async_pf) == 0
    counters = machine.core.counters
    assert (counters.not_present, counters.ready, counters.faults_async) == (1, 1, 1)
    apf_ns = 2 * COSTS.apf_inject_ns + COSTS.apf_ready_exit_ns + 700 + 100
    assert machine.core.account.spent_ns[Cause.APF] == apf_ns
    assert machine.core.account.spent_ns[Cause.STALL] == 0


def test_e01_e02_the_65th_fault_is_synchronous() -> None:
    machine = vcpu()
    tokens = {machine.async_fault(gfn, 1_000_000_000) for gfn in range(ASYNC_PF_PER_VCPU)}
    assert len(tokens) == ASYNC_PF_PER_VCPU == len(machine.core.async_pf)
    machine.fault(999)
    assert machine.request() == m.FaultRaised(999, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    assert machine.core.counters.sync_limit == 1
    machine.mapped()
    assert machine.core.state is State.RUNNING


def test_e02_what_is_done_but_not_delivered_counts() -> None:
    """An item leaves the queue with its page ready, not when its I/O is over."""
    machine = vcpu()
    machine.async_fault(5, 50_000)
    machine.run_out()
    assert isinstance(machine.request(), m.PrefaultRaised) and len(machine.core.async_pf) == 1
    machine.mapped()
    assert len(machine.core.async_pf) == 1
    machine.reason()
    assert len(machine.core.async_pf) == 0


def test_e08_a_repeated_fault_halts_until_the_page_is_ready() -> None:
    machine = vcpu()
    token = machine.async_fault(5, 500_000)
    ready_ns = machine.core.async_pf.next_done_ns()
    before = machine.core.async_pf.next_token()
    machine.fault(5)
    assert machine.core.state is State.HALTED and machine.next == WaitUntil(ready_ns, interruptible=True)  # type: ignore[arg-type]
    assert machine.core.counters.repeated == 1
    assert machine.core.async_pf.next_token() == before + (1 << 12), "a repeated fault takes no token"
    machine.wait()
    assert machine.request() == m.PrefaultRaised(5, token)
    assert machine.core.account.spent_ns[Cause.STALL] > 0


def test_e07_an_interrupt_ends_the_apf_halt() -> None:
    machine = vcpu()
    machine.async_fault(5, 10 * TICK_NS)
    machine.fault(5)
    assert machine.next == WaitUntil(TICK_NS, interruptible=True)
    machine.wait()
    assert machine.core.state is State.RUNNING and machine.core.counters.ticks == 1
    assert isinstance(machine.next, EnterGuest)
    machine.fault(5)  # the guest runs into it again
    assert machine.core.counters.repeated == 2


def test_e37_evicted_again_before_ready() -> None:
    """The prefault sleeps for the page; the guest is told only when it is mapped."""
    machine = vcpu()
    machine.async_fault(5, 50_000)
    machine.run_out()
    machine.mapped(700, stall_ns=90_000)
    assert machine.core.counters.prefault_again == 1
    assert machine.core.counters.faults_major == 0
    assert machine.core.account.spent_ns[Cause.STALL] == 90_000
    assert machine.next == InjectReason(REASON_GPA, 2)


def test_a_prefault_may_have_to_be_retried() -> None:
    machine = vcpu()
    token = machine.async_fault(5, 50_000)
    machine.run_out()
    machine.retry(20_000)
    assert machine.request() == m.PrefaultRaised(5, token)
    assert machine.core.counters.retries == 1


@pytest.mark.parametrize("ready", [False, True])
def test_e45_the_reason_words_page_is_out(ready: bool) -> None:
    """KVM's own write faults it in synchronously and delivers then, whether for not-present or for ready."""
    machine = vcpu()
    if ready:
        machine.async_fault(5, 50_000)
        machine.run_out()
        machine.mapped()
    else:
        machine.fault(5)
        machine.in_progress(50_000)
    inject = machine.next
    machine.step(ReasonRead(None))
    assert machine.next == AskHost(m.FaultRaised(REASON_GPA >> 12, m.Access.WRITE, m.FaultMode.BLOCKING, 0))
    machine.retry(20_000)
    assert machine.next == inject, "after a Retry it tries again"
    machine.step(ReasonRead(None))
    machine.mapped(stall_ns=30_000)
    assert machine.next == inject
    machine.reason()
    assert isinstance(machine.trap(), m.PageReadyArrived if ready else m.NotPresentArrived)


def test_a_retried_fault_runs_the_access_again() -> None:
    machine = vcpu()
    machine.fault(5)
    machine.retry(20_000)
    assert isinstance(machine.next, EnterGuest)
    assert machine.core.counters.faults_minor == machine.core.counters.faults_major == 0
    machine.fault(5)
    assert isinstance(machine.request(), m.FaultRaised)


def test_ticks_missed_in_a_stall_come_as_one() -> None:
    machine = vcpu(mode=m.ApfMode.OFF)
    machine.fault(5)
    machine.mapped(stall_ns=5 * TICK_NS)
    assert machine.core.counters.ticks == 1
    assert machine.core.account.spent_ns[Cause.KERNEL] == 100 + COSTS.tick_ns
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == 6 * TICK_NS


@pytest.mark.parametrize(("run_until_ns", "traps"), [(TICK_NS + 1, False), (TICK_NS, True), (1, True)])
def test_only_a_tick_that_may_switch_traps(run_until_ns: int, traps: bool) -> None:
    machine = Vcpu(core())
    machine.boot(run_until_ns=run_until_ns)
    machine.run_out()
    assert isinstance(machine.next, AskGuest if traps else EnterGuest)
    assert machine.core.counters.ticks == 1


def test_an_idle_vcpu_has_no_tick() -> None:
    machine = Vcpu(core(end_ns=10 * TICK_NS))
    machine.boot(task=0)
    assert machine.next == WaitUntil(10 * TICK_NS, interruptible=True)
    machine.wait()
    assert machine.next == AskGuest(m.Stopped(), with_registers=False)
    assert machine.core.account.spent_ns[Cause.IDLE] == 10 * TICK_NS - 100


def test_ready_before_tick() -> None:
    """KVM_REQ_APF_READY is looked at before interrupts are injected."""
    machine = vcpu()
    machine.async_fault(5, TICK_NS - 110)
    machine.run_out()
    assert machine.core.now_ns == TICK_NS + COSTS.apf_ready_exit_ns
    assert isinstance(machine.request(), m.PrefaultRaised) and machine.core.counters.ticks == 0


def test_the_end() -> None:
    machine = vcpu(end_ns=1_000_000)
    machine.run_out()
    assert machine.next == AskGuest(m.Stopped(), with_registers=True)
    assert machine.dispatch(0) == Finish()
    assert sum(machine.core.account.spent_ns.values()) == 1_000_000
    with pytest.raises(AssertionError):
        machine.core._move(State.RUNNING)


def test_an_exit_at_the_end_is_not_taken() -> None:
    machine = vcpu(end_ns=1000)
    machine.run(5000, ExitCause.EPT_VIOLATION, gfn=5)
    assert machine.trap() == m.Stopped()
    assert machine.core.counters.faults_async == 0
    assert sum(machine.core.account.spent_ns.values()) == 1000


def test_system_calls_and_exceptions_are_traps() -> None:
    machine = vcpu()
    machine.run(10, ExitCause.SYSCALL)
    assert machine.trap() == m.SyscallRaised()
    machine.dispatch(1)
    machine.run(10, ExitCause.EXCEPTION, vector=14, address=0x123000, rip=0x400007)
    assert machine.trap() == m.ExceptionRaised(14, 0x123000, 0x400007)


def test_time_does_not_go_back() -> None:
    machine = vcpu()
    with pytest.raises(AssertionError, match="time went back"):
        machine.core.step(ReasonRead(1), machine.core.now_ns - 1)
