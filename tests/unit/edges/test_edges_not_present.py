"""Edge cases of KVM's side until the guest is told: what is asynchronous, how much of it, and page not present."""

from __future__ import annotations

from typing import Any

import pytest

from apf import messages as m
from tests.unit.edges.kvm_cases import (
    COSTS,
    EN,
    FAR_NS,
    PV,
    TICK_NS,
    handled,
    in_the_kernel,
    ready,
    run_to_prefault,
    spoiled,
    vcpu,
)
from tests.unit.vcpud.vcpu_fakes import ENABLE, REASON_GPA, REGISTERS, TOKEN_GPA, VECTOR, Vcpu, core
from vcpud.core.apf_msr import INTERRUPTS_OFF, KERNEL, USER, ApfMsrs, Context
from vcpud.core.async_pf import ASYNC_PF_PER_VCPU, ItemState
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    EnterGuest,
    ExitCause,
    FillShadow,
    GuestMemoryRead,
    GuestMemoryWritten,
    GuestReplied,
    HostReplied,
    InjectReason,
    ReadGuest,
    ReasonRead,
    ShadowFilled,
    WriteGuest,
)
from vcpud.core.injected import Injected
from vcpud.core.thread import ThreadState
from vcpud.core.vcpu import State

# Eligibility and limits ----------------------------------------------------------------------------------------------


def test_e01_the_65th_fault_is_synchronous_on_this_vcpu_only() -> None:
    machine, other = vcpu(), vcpu(vcpu=4)
    for gfn in range(ASYNC_PF_PER_VCPU):
        machine.async_fault(gfn, FAR_NS)
    machine.fault(999)
    assert machine.request() == m.FaultRaised(999, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    other.fault(999)
    request = other.request()
    assert isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT


def test_e02_a_guest_that_never_clears_its_token_drives_the_vcpu_to_synchronous_faults() -> None:
    machine = vcpu()
    for gfn in range(ASYNC_PF_PER_VCPU + 1):  # the first is delivered and never acknowledged
        machine.async_fault(gfn, 10_000)
        if gfn == 0:
            ready(machine)
            machine.dispatch(2)
        else:
            machine.run(50_000, ExitCause.SYSCALL)
            machine.dispatch(2)
    assert len(machine.core.async_pf.done) == len(machine.core.async_pf) == ASYNC_PF_PER_VCPU
    machine.fault(999)
    assert machine.request() == m.FaultRaised(999, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    assert machine.core.counters.sync_limit == 1


NOT_ELIGIBLE = {
    "IF=0": Context(3, interrupts=False),
    "STI or MOV SS": Context(3, shadow=True),
    "exception pending": Context(3, pending=True),
    "event to reinject": Context(3, reinject=True),
    "IF=0 in the kernel": INTERRUPTS_OFF,
}


@pytest.mark.parametrize("why", NOT_ELIGIBLE)
def test_e03_what_may_not_be_interrupted_sleeps(why: str) -> None:
    msrs = ApfMsrs(PV)
    msrs.write(m.MSR_KVM_ASYNC_PF_EN, EN)
    assert msrs.can_do(USER) and msrs.can_do(KERNEL)
    assert not msrs.can_do(NOT_ELIGIBLE[why])


def test_e03_no_local_apic_in_the_kernel_no_asynchronous_faults() -> None:
    msrs = ApfMsrs(PV)
    msrs.lapic_in_kernel = False
    assert not msrs.can_do(USER)


@pytest.mark.parametrize("where", ["reads the token", "stores 0"])
def test_e03_a_handlers_access_with_interrupts_off_is_synchronous(where: str) -> None:
    """The page of the per-CPU words is out: the vCPU sleeps for it, and no token is spent."""
    machine = vcpu()
    machine.async_fault(5, 10_000)
    run_to_prefault(machine)
    if where == "reads the token":
        machine.words[TOKEN_GPA] = bytes(4)
        while machine.core.state is not State.READY:
            machine.last = machine.core.step(machine_event(machine), machine.core.now_ns)
        machine.last = machine.core.step(GuestMemoryRead(None), machine.core.now_ns)
    else:
        machine.mapped()
        machine.out.add(TOKEN_GPA)
        handled(machine)
    asked = machine.request()
    assert isinstance(asked, m.FaultRaised)
    assert (asked.gfn, asked.mode, asked.work) == (REASON_GPA >> 12, m.FaultMode.BLOCKING, 0)
    assert machine.core.counters.sync_kernel == 1 and len(machine.core.async_pf) == 0
    machine.out.clear()
    machine.mapped(stall_ns=80_000)
    assert isinstance(machine.next, AskGuest if where == "reads the token" else EnterGuest)


def machine_event(machine: Vcpu) -> Any:
    """What a shell says to the effect that is next, every page being there."""
    match machine.next:
        case AskHost(request=request):
            at_ns = machine.core.now_ns + 700
            return HostReplied(m.Mapped(at_ns, request.gfn, 7, True, m.FaultKind.MINOR, 0))
        case ReadGuest(gpa=gpa):
            return GuestMemoryRead(machine.words.get(gpa, bytes(4)))
        case WriteGuest(gpa=gpa, data=data):
            machine.words[gpa] = data
            return GuestMemoryWritten(True)
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("mode", [PV, m.ApfMode.PV2010, m.ApfMode.HALT])
def test_e04_a_kernel_fault_with_interrupts_on_halts_and_brings_no_event(mode: m.ApfMode) -> None:
    machine = vcpu(mode)
    in_the_kernel(machine)
    traps = machine.core.counters.traps
    request = machine.request()
    assert isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT
    machine.in_progress(1_000_000)
    assert machine.core.state is State.HALTED and machine.core.thread.state is ThreadState.APF_HALT
    (item,) = machine.core.async_pf.queue
    assert not item.injected and not item.user
    machine.wait()
    machine.mapped()
    assert machine.next == WriteGuest(0x5000, b"ab"), "the access again, and nobody was told"
    assert machine.core.counters.traps == traps and machine.token == 0
    assert machine.core.counters.not_present == 0 and len(machine.core.async_pf) == 0
    machine.copied()
    assert isinstance(machine.next, EnterGuest)


def test_e04_a_tick_in_such_a_halt_is_served_but_does_not_preempt_the_kernel() -> None:
    machine = vcpu()
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(1, copies=((0x5000, b"ab"),), run_until_ns=1)
    machine.not_mapped()
    machine.in_progress(10 * TICK_NS)
    machine.wait()
    assert machine.trap() == m.TickArrived() and machine.asked().kernel
    machine.dispatch(1, run_until_ns=1)
    assert machine.next == WriteGuest(0x5000, b"ab"), "whatever the dispatch says, the kernel goes on"
    machine.not_mapped()
    assert machine.core.state is State.HALTED and machine.core.counters.repeated == 1
    machine.interrupt(1000)
    assert machine.trap() == m.InterruptArrived() and machine.asked().kernel
    machine.dispatch(1)
    machine.copied()
    assert machine.trap() == m.InterruptArrived() and not machine.asked().kernel, "on the way to user mode"
    assert isinstance(machine.dispatch(1), EnterGuest)


def test_e05_e06_en_without_as_int_is_disabled_and_the_host_alone_is_asynchronous() -> None:
    machine = Vcpu(core(PV))
    steps = (m.MsrWrite(m.MSR_KVM_ASYNC_PF_INT, VECTOR), m.MsrWrite(m.MSR_KVM_ASYNC_PF_EN, REASON_GPA | 1))
    machine.boot(steps=steps)
    assert isinstance(machine.next, EnterGuest) and not machine.core.msrs.enabled
    machine.fault(5)
    machine.in_progress(1_000_000)
    assert machine.core.state is State.HALTED
    machine.wait()
    machine.mapped()
    assert isinstance(machine.next, EnterGuest) and machine.core.counters.ready == 0 and machine.token == 0


def test_e07_an_interrupt_ends_the_halt_and_the_access_halts_again() -> None:
    machine = vcpu()
    machine.async_fault(5, 10 * TICK_NS)
    machine.fault(5)
    assert machine.core.state is State.HALTED
    halted_ns = machine.core.now_ns
    machine.wait()
    assert machine.core.counters.ticks == 1 and isinstance(machine.next, EnterGuest)
    assert machine.core.counters.halt_ns == TICK_NS - halted_ns
    machine.fault(5)
    assert machine.core.counters.repeated == 2 and len(machine.core.async_pf) == 1, "no second work item"


def test_e08_another_task_on_the_same_page_halts_the_whole_vcpu() -> None:
    machine = vcpu()
    token = machine.async_fault(5, 1_000_000)
    machine.fault(5)
    assert machine.core.state is State.HALTED and machine.core.counters.not_present == 1
    machine.wait()
    assert machine.request() == m.PrefaultRaised(5, token)


def test_e09_two_vcpus_on_one_page_have_a_token_each() -> None:
    tokens = {vcpu(vcpu=number).async_fault(5, FAR_NS) for number in (3, 4)}
    assert {token & 0xFFF for token in tokens} == {3, 4}


def test_e16_no_memory_for_the_item_is_a_synchronous_fault_and_no_error() -> None:
    machine = spoiled(Injected.ALLOC_FAILURE)
    machine.run(2000, ExitCause.EPT_VIOLATION, gfn=5)
    assert machine.request() == m.FaultRaised(5, m.Access.READ, m.FaultMode.BLOCKING, 0)
    machine.mapped(stall_ns=80_000)
    assert isinstance(machine.next, EnterGuest) and machine.core.counters.sync_alloc == 1
    machine.fault(6)
    request = machine.request()
    assert isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT


def test_e53_without_hlt_exits_only_what_the_guest_can_be_told_of_is_asynchronous() -> None:
    machine = vcpu(hlt_exits=False)
    machine.async_fault(5, FAR_NS)
    in_the_kernel(machine, 0x9000)
    assert machine.request() == m.FaultRaised(9, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    deaf = vcpu(m.ApfMode.HALT, hlt_exits=False)
    deaf.fault(5)
    assert deaf.request() == m.FaultRaised(5, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    assert deaf.core.counters.sync_ineligible == 1


# Page not present ----------------------------------------------------------------------------------------------------


def test_e17_not_present_goes_out_before_the_worker_may_run() -> None:
    """Also when the flags word's page is out and the injection takes longer than the I/O."""
    machine = vcpu()
    machine.fault(5)
    machine.in_progress(10_000)
    (item,) = machine.core.async_pf.queue
    assert item.state is ItemState.LISTED
    machine.step(ReasonRead(None))
    machine.mapped(stall_ns=90_000)
    assert machine.core.now_ns > item.ready_at_ns and item.state is ItemState.LISTED
    machine.reason()
    assert item.state is ItemState.PENDING and isinstance(machine.trap(), m.NotPresentArrived)


def test_e18_no_ready_for_a_token_whose_not_present_was_not_injected() -> None:
    machine = vcpu()
    in_the_kernel(machine)
    machine.in_progress(100_000)
    machine.interrupt()
    machine.dispatch(1)  # an interrupt in between makes no difference
    machine.not_mapped()
    machine.wait()
    machine.mapped()
    assert machine.core.counters.ready == 1, "the wake-all of the boot"
    assert not machine.core.msrs.pageready_pending


def shadow_fault(machine: Vcpu, gfn: int) -> None:
    """An exit for a page that neither the shadow table nor the host has."""
    machine.fault(gfn)
    assert machine.next == FillShadow(gfn, m.Access.WRITE)
    machine.step(ShadowFilled(False))


@pytest.mark.parametrize("same", [True, False])
def test_e43_another_address_space_is_not_prefaulted_and_ready_comes_all_the_same(same: bool) -> None:
    machine = vcpu(shadow=True)
    shadow_fault(machine, 5)
    machine.in_progress(100_000)
    machine.reason()
    trap = machine.trap()
    assert isinstance(trap, m.NotPresentArrived)
    account = m.Account.FAULTING
    dispatch = m.Dispatch(machine.core.now_ns + 100, 2, 1 if same else 2, account, REGISTERS, m.NEVER_NS)
    machine.step(GuestReplied(dispatch))
    machine.run_out()
    if same:
        assert machine.request() == m.PrefaultRaised(5, trap.token)
        machine.mapped()
    assert machine.trap() == m.PageReadyArrived(trap.token)
    assert machine.core.counters.prefault_skipped == (not same) and machine.token == trap.token
    handled(machine, 2)
    machine.run(10, ExitCause.EPT_VIOLATION, gfn=6, access=m.Access.WRITE)
    machine.step(ShadowFilled(False))
    asked = machine.request()
    assert isinstance(asked, m.FaultRaised) and asked.forgotten == (() if same else (trap.token,))


def test_e43_an_idle_vcpu_keeps_its_address_space() -> None:
    machine = vcpu(shadow=True)
    shadow_fault(machine, 5)
    machine.in_progress(100_000)
    machine.reason()
    machine.dispatch(0)
    machine.wait()
    assert isinstance(machine.request(), m.PrefaultRaised)


def test_a_shadow_fault_that_the_hosts_mapping_settles_is_kvms_own() -> None:
    machine = vcpu(shadow=True)
    now_ns = machine.core.now_ns
    machine.fault(5)
    machine.step(ShadowFilled(True))
    assert isinstance(machine.next, EnterGuest) and machine.core.counters.shadow_faults == 1
    assert machine.core.now_ns == now_ns + 10 + COSTS.ept_violation_ns and machine.core.counters.faults == 0


def test_e45_the_words_page_is_out_and_kvms_own_access_sleeps() -> None:
    machine = vcpu()
    machine.fault(5)
    machine.in_progress(10_000)
    assert machine.next == InjectReason(REASON_GPA, 1)
    machine.step(ReasonRead(None))
    assert machine.request() == m.FaultRaised(REASON_GPA >> 12, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    machine.mapped(stall_ns=80_000)
    machine.reason()
    machine.out.add(TOKEN_GPA)
    machine.dispatch(2, registers=REGISTERS)
    assert machine.request() == m.FaultRaised(REASON_GPA >> 12, m.Access.READ, m.FaultMode.BLOCKING, 0)
    machine.out.clear()
    machine.mapped(stall_ns=80_000)
    assert isinstance(machine.request(), m.PrefaultRaised)
    machine.out.add(TOKEN_GPA)
    machine.mapped()
    assert machine.request() == m.FaultRaised(REASON_GPA >> 12, m.Access.WRITE, m.FaultMode.BLOCKING, 0)
    machine.out.clear()
    machine.mapped()
    assert isinstance(machine.trap(), m.PageReadyArrived)


def test_e46_send_always_delivers_in_the_kernel_nothing_else_does() -> None:
    steps = (*ENABLE[PV][:1], m.MsrWrite(m.MSR_KVM_ASYNC_PF_EN, EN | m.ASYNC_PF_SEND_ALWAYS))
    machine = Vcpu(core(PV))
    machine.boot(steps=steps)
    handled(machine, 1)
    in_the_kernel(machine)
    machine.in_progress(1_000_000)
    machine.reason()
    assert isinstance(machine.trap(), m.NotPresentArrived) and machine.asked().kernel
    assert not ApfMsrs(PV).can_deliver(USER), "not enabled"
