"""Posted interrupts and the guest's timers: when they come, in which state, and in which order with the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from vcpu_fakes import REGISTERS, Vcpu, core

from apf import messages as m
from apf.costs import Costs
from vcpud.core.account import Cause
from vcpud.core.effects import EnterGuest, ExitCause, Finish, HostReplied, WaitUntil
from vcpud.core.vcpu import State

COSTS = Costs()
TICK_NS = 4_000_000
MS = 1_000_000
Act = Callable[[Vcpu], object]


def vcpu(**changes: object) -> Vcpu:
    """A booted vCPU that runs task 1."""
    machine = Vcpu(core(**changes))  # type: ignore[arg-type]  # by name
    machine.boot()
    return machine


# Interrupts ----------------------------------------------------------------------------------------------------------


def test_a_running_guest_is_kicked_out_and_traps() -> None:
    machine = vcpu()
    machine.interrupt(after_ns=500, rip=0x40_0020)
    assert machine.trap() == m.InterruptArrived() and machine.asked().with_registers
    assert machine.core.now_ns == 600 and machine.core.retired == 500
    assert machine.core.account.spent_ns[Cause.FAULTING] == 500, "what it had run is its own"
    assert (machine.core.counters.interrupts, machine.core.counters.exits) == (1, 1)


def test_an_idle_vcpu_is_woken_and_says_how_long_it_idled() -> None:
    machine = Vcpu(core())
    machine.boot(task=0)
    machine.interrupt(after_ns=10 * MS)
    assert machine.trap() == m.InterruptArrived() and not machine.asked().with_registers
    assert machine.core.account.spent_ns[Cause.IDLE] == 10 * MS
    assert machine.core.counters.exits == 0, "it was out of the guest"


def test_an_interrupt_ends_the_apf_halt() -> None:
    """E07: as any other; the time before it was a stall."""
    machine = vcpu()
    machine.async_fault(5, 10 * TICK_NS)
    machine.fault(5)
    assert machine.core.state is State.HALTED
    stalled_ns = machine.core.account.spent_ns[Cause.STALL]
    machine.interrupt(after_ns=700)
    assert machine.trap() == m.InterruptArrived() and machine.asked().with_registers
    assert machine.core.account.spent_ns[Cause.STALL] == stalled_ns + 700
    machine.dispatch(2)
    machine.fault(5)  # the guest runs into it again
    assert machine.core.state is State.HALTED and machine.core.counters.repeated == 2


def page_fault(machine: Vcpu) -> None:
    machine.fault(5)


def retry(machine: Vcpu) -> None:
    machine.fault(5)
    machine.step(HostReplied(m.Retry(machine.core.now_ns + 1000)))


def injecting(machine: Vcpu) -> None:
    machine.fault(5)
    machine.in_progress(MS)


def prefault(machine: Vcpu) -> None:
    machine.async_fault(5, 50_000)
    machine.run_out()


def ready(machine: Vcpu) -> None:
    prefault(machine)
    machine.mapped()


def system_call(machine: Vcpu) -> None:
    machine.run(10, ExitCause.SYSCALL)


def fetching(machine: Vcpu) -> None:
    system_call(machine)
    machine.dispatch(fetch=((0x5000, 2),))


def kernel_fault(machine: Vcpu) -> None:
    fetching(machine)
    machine.not_mapped()


def fetched(machine: Vcpu) -> None:
    machine.copied(b"ab")
    machine.dispatch()


def told(machine: Vcpu) -> None:
    machine.reason()
    machine.dispatch(2, registers=REGISTERS)


@pytest.mark.parametrize(
    ("state", "before", "after"),
    [
        (State.FAULT, page_fault, [Vcpu.mapped]),
        (State.RETRY, retry, [Vcpu.wait]),
        (State.NOT_PRESENT, injecting, [told]),
        (State.PREFAULT, prefault, [Vcpu.mapped, told]),
        (State.READY, ready, [told]),
        (State.TRAP, system_call, [Vcpu.dispatch]),
        (State.COPY, fetching, [fetched]),
        (State.KERNEL_FAULT, kernel_fault, [Vcpu.mapped, fetched]),
    ],
)
def test_elsewhere_it_waits_until_the_vcpu_would_enter_the_guest(state: State, before: Act, after: list[Act]) -> None:
    machine = vcpu()
    before(machine)
    assert machine.core.state is state
    effect, now_ns, traps = machine.next, machine.core.now_ns, machine.core.counters.traps
    machine.interrupt()
    assert (machine.core.state, machine.next, machine.core.now_ns) == (state, effect, now_ns)
    assert machine.core.counters.interrupts == 0
    for act in after:
        act(machine)
    assert machine.trap() == m.InterruptArrived() and machine.core.counters.interrupts == 1
    assert machine.core.counters.traps > traps
    machine.dispatch()
    assert isinstance(machine.next, EnterGuest), "it comes once"


def test_every_state_has_been_covered() -> None:
    covered = {State.FAULT, State.RETRY, State.NOT_PRESENT, State.PREFAULT, State.READY, State.TRAP, State.COPY}
    assert set(State) - covered == {
        *(State.NEW, State.STOPPING, State.FINISHED),  # not yet or no longer in the guest
        *(State.RUNNING, State.IDLE, State.HALTED, State.KERNEL_FAULT),
        *(State.SLOT, State.PRESENT, State.STEPS, State.DRAIN),  # of pv: tests/unit/edges
        State.SHADOW,  # no time passes there
    }


def test_an_interrupt_after_the_last_trap_changes_nothing() -> None:
    machine = vcpu(end_ns=1000)
    machine.run_out()
    assert machine.trap() == m.Stopped()
    machine.interrupt()
    assert machine.dispatch(0) == Finish()
    machine.interrupt()
    assert machine.next == Finish() and machine.core.counters.interrupts == 0


def test_several_before_the_vcpu_looks_are_one() -> None:
    machine = vcpu()
    machine.fault(5)
    machine.interrupt()
    machine.interrupt()
    machine.mapped()
    machine.dispatch()
    assert isinstance(machine.next, EnterGuest) and machine.core.counters.interrupts == 1


def test_page_ready_comes_before_an_interrupt_and_an_interrupt_before_the_tick() -> None:
    """KVM_REQ_APF_READY first, then what the local APIC has."""
    machine = vcpu()
    machine.async_fault(5, TICK_NS - 110)
    machine.interrupt(after_ns=TICK_NS - machine.core.now_ns)
    assert isinstance(machine.request(), m.PrefaultRaised)
    machine.mapped()
    told(machine)
    assert machine.trap() == m.InterruptArrived() and machine.core.counters.ticks == 0
    machine.dispatch()
    assert machine.core.counters.ticks == 1


def test_an_interrupt_at_the_end_is_not_taken() -> None:
    machine = vcpu(end_ns=1000)
    machine.interrupt(after_ns=900)
    assert machine.trap() == m.Stopped()


# Timers --------------------------------------------------------------------------------------------------------------


def test_a_timer_comes_on_time() -> None:
    machine = vcpu()
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(timer_ns=50_000)
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == 50_000
    exits = machine.core.counters.exits
    machine.run_out()
    assert machine.trap() == m.TimerArrived() and machine.core.now_ns == 50_000
    assert (machine.core.counters.timers, machine.core.counters.exits) == (1, exits + 1)


@pytest.mark.parametrize("stall_ns", [40_000, 90 * MS])
def test_a_timer_that_was_due_in_a_stall_comes_late_and_once(stall_ns: int) -> None:
    machine = Vcpu(core(m.ApfMode.OFF))
    machine.boot(timer_ns=30_000)
    machine.fault(5)
    machine.mapped(2000, stall_ns=stall_ns)
    late_ns = machine.core.now_ns
    assert machine.trap() == m.TimerArrived() and late_ns >= 110 + 2000 + stall_ns
    machine.dispatch(timer_ns=m.NEVER_NS)
    assert isinstance(machine.next, EnterGuest) and machine.core.counters.timers == 1


def test_a_timer_ends_idling() -> None:
    machine = Vcpu(core())
    machine.boot(task=0, timer_ns=7 * MS)
    assert machine.next == WaitUntil(7 * MS, interruptible=True)
    machine.wait()
    assert machine.trap() == m.TimerArrived() and not machine.asked().with_registers
    assert machine.core.account.spent_ns[Cause.IDLE] == 7 * MS - 100
    assert machine.core.counters.ticks == 0, "NO_HZ: no tick before it"


def test_a_timer_ends_the_apf_halt() -> None:
    machine = vcpu()
    machine.async_fault(5, 10 * TICK_NS, then=lambda v: v.dispatch(2, registers=REGISTERS, timer_ns=200_000))
    machine.fault(5)
    assert machine.next == WaitUntil(200_000, interruptible=True)
    machine.wait()
    assert machine.trap() == m.TimerArrived()


@pytest.mark.parametrize(("run_until_ns", "first"), [(m.NEVER_NS, m.TimerArrived()), (1, m.TickArrived())])
def test_tick_and_timer_at_once_are_taken_in_this_order(run_until_ns: int, first: m.Trap) -> None:
    machine = Vcpu(core())
    machine.boot(run_until_ns=run_until_ns, timer_ns=TICK_NS)
    machine.run_out()
    assert machine.trap() == first and machine.core.counters.ticks == 1
    assert machine.core.now_ns == TICK_NS + COSTS.tick_ns, "the tick's handler ran before"


def test_a_timer_that_is_due_at_once_traps_before_the_guest_runs() -> None:
    machine = vcpu()
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(timer_ns=5)
    assert machine.trap() == m.TimerArrived() and machine.core.retired == 10


# The end -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [0, 1])
def test_shutdown_ends_the_run_now(task: int) -> None:
    machine = Vcpu(core(end_ns=m.FOREVER_NS))
    machine.boot(task=task)
    machine.interrupt(after_ns=5000)
    machine.dispatch(task, shutdown=True)
    assert machine.trap() == m.Stopped()
    ended_ns = machine.core.now_ns
    assert ended_ns == 5200 and machine.dispatch(0) == Finish()
    assert sum(machine.core.account.spent_ns.values()) == ended_ns, "the last reply's time is after the end"


def test_shutdown_while_the_kernel_reads_memory_lets_it_end_that_first() -> None:
    machine = vcpu()
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(fetch=((0x5000, 2),), shutdown=True)
    machine.copied(b"ab")
    assert machine.trap() == m.Fetched(b"ab")
    machine.dispatch(shutdown=True)
    assert machine.trap() == m.Stopped() and machine.dispatch(0) == Finish()
    assert sum(machine.core.account.spent_ns.values()) == 100 + 10 + 200


def test_an_idle_vcpu_of_an_endless_run_waits_for_an_interrupt_alone() -> None:
    machine = Vcpu(core(end_ns=m.FOREVER_NS))
    machine.boot(task=0)
    assert machine.next == WaitUntil(m.FOREVER_NS, interruptible=True)
