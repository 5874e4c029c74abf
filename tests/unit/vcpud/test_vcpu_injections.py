"""Faults of the protocol that a Dispatch brings are in force from its time on."""

from __future__ import annotations

from vcpu_fakes import READY_HANDLER, Vcpu, core

from apf import messages as m
from vcpud.core.effects import EnterGuest, ExitCause
from vcpud.core.injected import Injected, Injection
from vcpud.core.vcpu import State

WAIT_NS = 50_000


def vcpu(**changes: object) -> Vcpu:
    machine = Vcpu(core(m.ApfMode.PV, **changes))  # type: ignore[arg-type]  # by name
    machine.boot()
    return machine


def told(machine: Vcpu, *faults: m.ProtocolFault) -> None:
    """The vCPU is interrupted and told of them."""
    machine.interrupt()
    assert machine.trap() == m.InterruptArrived()
    machine.dispatch(injections=faults)


def page(machine: Vcpu, gfn: int) -> bool:
    """A page that is waited for; whether the guest is told that it is ready."""
    token = machine.async_fault(gfn, WAIT_NS)
    machine.run_out()
    machine.mapped()
    if isinstance(machine.next, EnterGuest):
        return False
    assert machine.trap() == m.PageReadyArrived(token)
    machine.dispatch(steps=READY_HANDLER)
    return True


def test_without_any_every_page_is_told() -> None:
    machine = vcpu()
    assert [page(machine, gfn) for gfn in (5, 6, 7)] == [True] * 3
    assert machine.core.counters.injected == 0


def test_events_are_counted_from_the_dispatch_on() -> None:
    machine = vcpu()
    assert page(machine, 5), "before"
    told(machine, m.ProtocolFault("lost_ready", nth=2))
    assert [page(machine, 6), page(machine, 7)] == [True, False]
    assert machine.core.counters.injected == 1


def test_it_comes_beside_what_the_scenario_injects() -> None:
    machine = vcpu(injections=(Injection(Injected.LOST_READY, 0, nth=5),))  # after two that wake all
    told(machine, m.ProtocolFault("dropped_ack"))
    assert page(machine, 5) and machine.core.msrs.pageready_pending, "the ACK was dropped"
    assert machine.core.counters.injected == 1
    told(machine, m.ProtocolFault("restore"))
    assert machine.trap() == m.PageReadyArrived(0xFFFF_FFFF), "a restore wakes all"
    machine.dispatch(steps=READY_HANDLER)
    assert not machine.core.msrs.pageready_pending
    assert [page(machine, 6), page(machine, 7)] == [True, False]
    assert machine.core.counters.injected == 3


def test_what_has_a_length_begins_at_once_and_ends() -> None:
    machine = vcpu()
    told(machine, m.ProtocolFault("lapic_off", for_ns=700))
    began_ns = machine.core.now_ns
    assert not machine.core.msrs.lapic_enabled
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == began_ns + 700
    machine.run_out()
    assert machine.core.msrs.lapic_enabled and machine.core.now_ns == began_ns + 700


def test_one_that_comes_while_the_guest_kernel_waits_is_in_force_too() -> None:
    machine = vcpu()
    machine.async_fault(5, 1_000_000)
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(2, fetch=((0x5000, 2),))
    machine.not_mapped()
    assert machine.core.state is State.HALTED
    machine.interrupt(after_ns=500)
    assert machine.trap() == m.InterruptArrived() and machine.asked().kernel
    machine.dispatch(2, injections=(m.ProtocolFault("lapic_off", for_ns=700),))
    assert not machine.core.msrs.lapic_enabled and machine.core.state is State.COPY
    assert machine.core.counters.injected == 1
