"""Situations of a vCPU that edge cases of KVM's side begin with: mostly of ``pv``, the protocol since 5.8."""

from __future__ import annotations

from typing import Any

from apf import messages as m
from apf.costs import Costs
from tests.unit.vcpud.vcpu_fakes import READY_HANDLER, REASON_GPA, REGISTERS, Vcpu, core
from vcpud.core.effects import AskHost, EnterGuest, ExitCause
from vcpud.core.injected import Injected, Injection

COSTS = Costs()
PV = m.ApfMode.PV
TICK_NS = 4_000_000
FAR_NS = 500_000_000
EN = REASON_GPA | m.ASYNC_PF_ENABLED | m.ASYNC_PF_DELIVERY_AS_INT


def vcpu(mode: m.ApfMode = PV, **changes: Any) -> Vcpu:
    """A booted vCPU that runs task 1 in the modern protocol; the ready of its wake-all is behind it."""
    machine = Vcpu(core(mode, **changes))
    machine.boot()
    return machine


def injecting(what: Injected, at_ns: int = 0, **more: int) -> Vcpu:
    """The same, with a fault of the protocol to come."""
    return vcpu(injections=(Injection(what, at_ns, **more),))


def spoiled(what: Injected, **more: int) -> Vcpu:
    """The same for events: those of the boot's wake-all are not what is hit."""
    machine = Vcpu(core(PV, injections=(Injection(what, 4_205, **more),)))
    machine.boot()
    return machine


def handled(machine: Vcpu, task: int = 2, **changes: Any) -> None:
    """The guest's handler of page ready runs: token 0, ACK."""
    assert isinstance(machine.trap(), m.PageReadyArrived)
    machine.dispatch(task, steps=READY_HANDLER, registers=REGISTERS if task else None, **changes)


def run_to_prefault(machine: Vcpu) -> m.PrefaultRaised:
    """Let the guest run until a page is to be mapped before it is told of."""
    while not isinstance(machine.next, AskHost):
        machine.run_out() if isinstance(machine.next, EnterGuest) else machine.wait()
    request = machine.request()
    assert isinstance(request, m.PrefaultRaised)
    return request


def ready(machine: Vcpu) -> int:
    """The next page ready, up to its trap; its token."""
    run_to_prefault(machine)
    machine.mapped()
    trap = machine.trap()
    assert isinstance(trap, m.PageReadyArrived)
    return trap.token


def idle(machine: Vcpu) -> None:
    """The guest has nothing to run."""
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(0)


def in_the_kernel(machine: Vcpu, gpa: int = 0x5000) -> None:
    """A system call's access to guest memory, which is not mapped."""
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(1, copies=((gpa, b"ab"),))
    machine.not_mapped()
