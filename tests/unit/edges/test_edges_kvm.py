"""Edge cases of KVM's side, by their numbers in the KVM reference: mostly of ``pv``, the protocol since 5.8."""

from __future__ import annotations

from typing import Any

import pytest

from apf import messages as m
from apf.costs import Costs
from tests.unit.vcpud.vcpu_fakes import (
    ENABLE,
    READY_HANDLER,
    REASON_GPA,
    REGISTERS,
    TOKEN_GPA,
    VECTOR,
    Vcpu,
    core,
)
from vcpud.core.account import Cause
from vcpud.core.apf_msr import INTERRUPTS_OFF, KERNEL, SLOT, USER, ApfMsrs, Context, Outcome, SlotEvent, SlotState
from vcpud.core.async_pf import ASYNC_PF_PER_VCPU, WAKE_ALL, AsyncPfQueue, ItemState
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    Attached,
    EnterGuest,
    ExitCause,
    FillShadow,
    GuestMemoryRead,
    GuestMemoryWritten,
    GuestReplied,
    HostReplied,
    InjectReason,
    InterruptPosted,
    ReadGuest,
    ReasonRead,
    ShadowFilled,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.injected import Injected, Injection
from vcpud.core.thread import TABLE as THREAD
from vcpud.core.thread import ThreadEvent, ThreadState
from vcpud.core.vcpu import State

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


# Page ready ----------------------------------------------------------------------------------------------------------


def test_e19_what_is_done_while_the_token_is_set_waits_for_the_ack() -> None:
    machine = vcpu()
    first = machine.async_fault(5, 100_000)
    second = machine.async_fault(6, 150_000)
    assert ready(machine) == first and machine.token == first
    machine.dispatch(2, cost_ns=200_000, steps=())  # its handler is slow: nothing is cleared yet
    assert isinstance(machine.next, EnterGuest), "the second is done, and stays there"
    assert [item.token for item in machine.core.async_pf.done] == [second]
    machine.run(10, ExitCause.SYSCALL)
    exits = machine.core.counters.exits
    machine.dispatch(2, steps=READY_HANDLER)
    assert machine.request() == m.PrefaultRaised(6, second), "ACK looks at the list again"
    assert machine.core.counters.exits == exits + 1, "its exit is the only one"
    machine.mapped()
    assert machine.trap() == m.PageReadyArrived(second)


def test_e20_an_exit_between_the_store_and_the_ack_delivers_early_and_the_ack_clears_the_new_pending() -> None:
    machine = vcpu()
    machine.async_fault(5, 100_000)
    second = machine.async_fault(6, 150_000)
    ready(machine)
    machine.core.step(*posted(machine))
    machine.dispatch(2, cost_ns=200_000, steps=READY_HANDLER)
    assert machine.request() == m.PrefaultRaised(6, second)
    assert machine.core.msrs.pageready_pending and len(machine.core._steps) == 1, "before the ACK"
    machine.mapped()
    assert machine.token == second and not machine.core.msrs.pageready_pending, "the old ACK cleared the new pending"
    assert machine.core.msrs.slot(machine.token) is SlotState.LEFT
    assert machine.trap() == m.PageReadyArrived(second)
    handled(machine)
    assert machine.trap() == m.InterruptArrived()


def posted(machine: Vcpu) -> tuple[Any, int]:
    """An interrupt is posted while the core waits for an answer."""
    return InterruptPosted(machine.core.retired, None), machine.core.now_ns


def test_e21_k_completions_are_k_interrupts_and_k_acks_in_the_order_of_completion() -> None:
    machine = vcpu()
    waits = {
        machine.async_fault(gfn, wait_ns): wait_ns for gfn, wait_ns in ((5, 900_000), (6, 500_000), (7, 700_000))
    }
    acks = machine.core.counters.acks
    order = []
    for _ in waits:
        order.append(ready(machine))
        handled(machine)
    assert order == sorted(waits, key=lambda token: waits[token])
    assert machine.core.counters.acks == acks + 3 and machine.core.counters.ready == 3 + 1


def test_e22_only_the_first_into_an_empty_list_kicks_and_only_if_nothing_is_pending() -> None:
    machine = spoiled(Injected.DROPPED_ACK, nth=1)
    machine.async_fault(5, 100_000)
    ready(machine)
    handled(machine)
    assert machine.token == 0 and machine.core.msrs.pageready_pending, "CLEARED: the ACK got lost"
    machine.async_fault(6, 500_000)
    done_ns = machine.core.async_pf.next_done_ns()
    assert done_ns is not None
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == TICK_NS > done_ns, "no kick"
    machine.run_out()
    assert isinstance(machine.request(), m.PrefaultRaised), "the next exit, for the tick, delivers it"
    assert machine.core.counters.ticks == 0


def test_e23_ready_wakes_an_idle_vcpu_though_its_vector_does_not() -> None:
    machine = Vcpu(core(PV))
    machine.boot(steps=ENABLE[PV][1:])  # no vector
    assert machine.token == WAKE_ALL
    machine.words.clear()  # another guest kernel clears it, as E35's
    machine.async_fault(5, 100_000, then=lambda vcpu: vcpu.dispatch(0))
    assert machine.core.thread.state is ThreadState.HLT
    run_to_prefault(machine)
    assert machine.core.thread.state is ThreadState.GUEST, "out of HLT"
    machine.mapped()
    assert machine.core.state is State.IDLE and machine.core.counters.ready == 0
    assert (ThreadState.HLT, ThreadEvent.DONE) in {(rule.state, rule.event) for rule in THREAD.rules}


def test_e24_what_cannot_be_delivered_does_not_make_hlt_spin_and_is_retried_when_the_lapic_is_on() -> None:
    machine = vcpu(injections=(Injection(Injected.LAPIC_OFF, 50_000, for_ns=2 * TICK_NS),))
    token = machine.async_fault(5, 100_000, then=lambda vcpu: vcpu.dispatch(0))
    steps = 0
    while not isinstance(machine.next, AskHost):
        steps += 1
        machine.wait()
    assert steps == 3, "the LAPIC goes off; the item is done; the LAPIC is on: no more"
    assert machine.core.now_ns >= 50_000 + 2 * TICK_NS
    assert machine.request() == m.PrefaultRaised(5, token)
    machine.mapped()
    assert machine.trap() == m.PageReadyArrived(token)


def test_e25_a_time_without_paging_loses_no_ready() -> None:
    machine = vcpu(injections=(Injection(Injected.PAGING_OFF, 50_000, for_ns=TICK_NS),))
    token = machine.async_fault(5, 100_000)
    machine.run_out()
    machine.fault(6)
    machine.in_progress(10_000)
    assert machine.core.state is State.HALTED, "no #PF without paging"
    seen = []
    for _ in range(6):
        if isinstance(machine.next, AskHost):
            machine.mapped()
        elif isinstance(machine.next, AskGuest):
            trap = machine.trap()
            assert isinstance(trap, m.PageReadyArrived)
            seen.append(trap.token)
            break
        else:
            machine.run_out() if isinstance(machine.next, EnterGuest) else machine.wait()
    assert seen == [token]


def test_e26_no_token_is_zero_whatever_the_id_was() -> None:
    for number in (0, 5):
        queue = AsyncPfQueue(number)
        queue._id = (1 << 20) - 2
        assert [queue.next_token() >> 12 for _ in range(3)] == [(1 << 20) - 1, 1, 2]


def test_e27_no_token_is_the_one_that_wakes_all() -> None:
    queue = AsyncPfQueue(0xFFF)
    queue._id = (1 << 20) - 2
    assert queue.next_token() == 1 << 12 | 0xFFF
    with pytest.raises(AssertionError):
        AsyncPfQueue(0x1000)


def test_e28_a_live_token_is_passed_over_when_the_id_wraps() -> None:
    machine = vcpu()
    live = {machine.async_fault(gfn, FAR_NS) for gfn in range(3)}
    machine.core.async_pf._id = (1 << 20) - 1
    assert machine.async_fault(9, FAR_NS) not in live


def test_e32_no_wake_all_while_anything_is_done() -> None:
    machine = spoiled(Injected.LOST_READY, count=1)
    machine.async_fault(5, 10_000)
    run_to_prefault(machine)
    machine.mapped()  # delivered, and its interrupt is lost: the slot is full
    machine.async_fault(6, 10_000)
    machine.run(50_000, ExitCause.SYSCALL)
    machine.dispatch(2)
    assert len(machine.core.async_pf.done) == 1
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(2, steps=(m.MsrWrite(m.MSR_KVM_ASYNC_PF_EN, EN),))
    assert not any(item.wakeup_all for item in machine.core.async_pf.queue)


def test_e33_a_restore_discards_what_was_under_way_and_wakes_all() -> None:
    machine = injecting(Injected.RESTORE, 300_000)
    for gfn in (5, 6):
        machine.async_fault(gfn, 1_000_000)
    machine.run_out()
    assert machine.trap() == m.PageReadyArrived(WAKE_ALL)
    assert len(machine.core.async_pf) == 0 and machine.core.counters.dropped == 2
    handled(machine, 1)
    machine.fault(5)
    request = machine.request()
    assert isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT, "every waiter faults again"


@pytest.mark.parametrize("how", [Injected.RESTORE_WITHOUT_INT, Injected.RESTORE_INT_LATE])
def test_e34_a_restore_without_the_vector_fills_the_slot_for_ever(how: Injected) -> None:
    machine = injecting(how, 300_000)
    machine.async_fault(5, 1_000_000)
    machine.run_out()
    while isinstance(machine.next, EnterGuest) and machine.core.now_ns < 350_000:
        machine.run_out()
    assert machine.token == WAKE_ALL and machine.core.msrs.pageready_pending, "told to vector 0: nobody hears it"
    assert machine.core.msrs.vector == (VECTOR if how is Injected.RESTORE_INT_LATE else 0)
    machine.async_fault(6, 100_000)
    for _ in range(4):
        machine.run_out()
    assert machine.core.counters.ready == 1 and len(machine.core.async_pf.done) == 1, "nothing gets through any more"


def test_e34_lost_msrs_leave_the_waiters_asleep_and_later_faults_to_the_host_alone() -> None:
    machine = injecting(Injected.MSR_LOST, 300_000)
    machine.async_fault(5, 1_000_000)
    machine.run_out()
    assert not machine.core.msrs.enabled and len(machine.core.async_pf) == 0
    machine.fault(6)
    machine.in_progress(100_000)
    assert machine.core.state is State.HALTED


def test_e35_a_token_left_in_memory_blocks_every_ready_until_the_guest_clears_and_acknowledges_it() -> None:
    machine = injecting(Injected.TOKEN_LEFT, 50_000)
    token = machine.async_fault(5, 100_000)
    for _ in range(3):
        machine.run_out()
    assert machine.core.msrs.slot(machine.token) is SlotState.LEFT
    assert [item.token for item in machine.core.async_pf.done] == [token] and machine.core.counters.ready == 1
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(2, steps=READY_HANDLER[1:])
    assert len(machine.core.async_pf.done) == 1, "an ACK alone frees nothing"
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(2, steps=READY_HANDLER)
    assert machine.request() == m.PrefaultRaised(5, token)


def test_e36_disabling_waits_for_running_workers_and_drops_all() -> None:
    machine = vcpu()
    machine.async_fault(5, 300_000)
    machine.async_fault(6, 100_000)
    machine.run(10_000, ExitCause.SYSCALL)
    running_ns = max(item.ready_at_ns for item in machine.core.async_pf.queue)
    machine.dispatch(1, steps=(m.MsrWrite(m.MSR_KVM_ASYNC_PF_EN, 0),))
    assert machine.core.state is State.DRAIN and machine.next == WaitUntil(running_ns)
    machine.wait()
    assert isinstance(machine.next, EnterGuest) and machine.core.now_ns == running_ns
    assert machine.core.counters.dropped == 2 and len(machine.core.async_pf) == 0
    assert machine.core.counters.ready == 1, "no event for either"
    assert machine.core.account.spent_ns[Cause.STALL] > 0


def test_e37_a_page_evicted_again_makes_the_prefault_sleep() -> None:
    machine = vcpu()
    token = machine.async_fault(5, 50_000)
    run_to_prefault(machine)
    machine.mapped(stall_ns=90_000)
    assert machine.core.counters.prefault_again == 1 and machine.core.account.spent_ns[Cause.STALL] == 90_000
    assert machine.trap() == m.PageReadyArrived(token)


def test_e38_a_page_evicted_after_its_prefault_is_a_new_fault_with_a_new_token() -> None:
    machine = vcpu()
    first = machine.async_fault(5, 50_000)
    assert ready(machine) == first
    handled(machine, 1)
    assert machine.async_fault(5, 50_000) != first


def test_e52_an_idle_guest_waits_in_hlt_until_page_ready() -> None:
    machine = vcpu()
    token = machine.async_fault(5, 3 * TICK_NS, then=lambda vcpu: vcpu.dispatch(0))
    assert machine.core.state is State.IDLE and machine.core.thread.state is ThreadState.HLT
    idle_ns = machine.core.now_ns
    assert machine.next == WaitUntil(machine.core.async_pf.next_done_ns(), interruptible=True)  # type: ignore[arg-type]
    run_to_prefault(machine)
    assert machine.core.account.spent_ns[Cause.IDLE] == machine.core.now_ns - COSTS.apf_ready_exit_ns - idle_ns
    machine.mapped()
    assert machine.trap() == m.PageReadyArrived(token) and machine.core.counters.ticks == 0


def test_e60_bit_2_is_taken_and_changes_nothing_without_a_nested_guest() -> None:
    msrs = ApfMsrs(PV)
    assert msrs.write(m.MSR_KVM_ASYNC_PF_EN, EN | m.ASYNC_PF_DELIVERY_AS_PF_VMEXIT) is Outcome.ENABLED
    assert msrs.as_pf_vmexit and msrs.can_deliver(USER) and not msrs.can_deliver(KERNEL)


# Injected faults that have no entry of their own ---------------------------------------------------------------------


def test_e47_a_lost_ready_leaves_its_task_asleep_and_everything_behind_it() -> None:
    machine = spoiled(Injected.LOST_READY)
    first = machine.async_fault(5, 100_000)
    machine.async_fault(6, 150_000)
    run_to_prefault(machine)
    machine.mapped()
    for _ in range(3):
        machine.run_out()
    assert machine.token == first and machine.core.counters.ready == 1 and len(machine.core.async_pf.done) == 1


def test_e30_a_duplicated_ready_finds_token_0() -> None:
    machine = spoiled(Injected.DUPLICATE_READY)
    token = machine.async_fault(5, 100_000)
    assert ready(machine) == token
    handled(machine)
    assert machine.trap() == m.PageReadyArrived(0), "the handler runs a second time and reads an empty word"
    handled(machine)
    assert machine.core.msrs.slot(machine.token) is SlotState.FREE


def test_e30_a_duplicated_ready_of_2010_names_its_token_twice() -> None:
    machine = Vcpu(core(m.ApfMode.PV2010, injections=(Injection(Injected.DUPLICATE_READY, 0),)))
    machine.boot()
    token = machine.async_fault(5, 100_000)
    machine.run_out()
    machine.mapped()
    for _ in range(2):
        machine.reason()
        assert machine.trap() == m.PageReadyArrived(token)
        machine.dispatch(2)
    assert isinstance(machine.next, EnterGuest)


# MSRs ----------------------------------------------------------------------------------------------------------------

_EN, _INT, _ACK = m.MSR_KVM_ASYNC_PF_EN, m.MSR_KVM_ASYNC_PF_INT, m.MSR_KVM_ASYNC_PF_ACK


@pytest.mark.parametrize(
    ("mode", "msr", "value", "outcome"),
    [
        (PV, _EN, EN, Outcome.ENABLED),
        (PV, _EN, EN | 1 << 4, Outcome.GP),
        (PV, _EN, EN | 1 << 5, Outcome.GP),
        (PV, _EN, EN & ~8, Outcome.DISABLED),
        (PV, _EN, EN & ~1, Outcome.DISABLED),
        (PV, _EN, 0, Outcome.DISABLED),
        (PV, _EN, EN | 1 << 40, Outcome.GP),  # no such memory
        (PV, _INT, 0xF3, Outcome.NOTHING),
        (PV, _INT, 0x1F3, Outcome.GP),
        (PV, _ACK, 1, Outcome.ACKNOWLEDGED),
        (PV, _ACK, 0, Outcome.NOTHING),
        (PV, _ACK, 2, Outcome.NOTHING),
        (PV, 0x4B564D05, 1, Outcome.GP),
        (m.ApfMode.PV2010, _EN, REASON_GPA | 1, Outcome.ENABLED),
        (m.ApfMode.PV2010, _EN, EN, Outcome.GP),  # bit 3 is younger
        (m.ApfMode.PV2010, _INT, 0xF3, Outcome.GP),
        (m.ApfMode.PV2010, _ACK, 1, Outcome.GP),
        (m.ApfMode.HALT, _EN, EN, Outcome.GP),
        (m.ApfMode.OFF, _EN, 0, Outcome.GP),
    ],
)
def test_every_write_of_an_msr(mode: m.ApfMode, msr: int, value: int, outcome: Outcome) -> None:
    msrs = ApfMsrs(mode, guest_bytes=1 << 30)
    assert msrs.write(msr, value) is outcome
    if outcome is Outcome.GP:
        assert (msrs.en, msrs.vector, msrs.pageready_pending) == (0, 0, False)


def test_a_refused_write_leaves_what_was_written_before() -> None:
    machine = vcpu()
    before = machine.core.msrs.en
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(1, steps=(m.MsrWrite(_EN, EN | 1 << 4), m.MsrWrite(_INT, 0x100)))
    assert machine.core.counters.msr_gp == 2
    assert (machine.core.msrs.en, machine.core.msrs.vector) == (before, VECTOR)


def test_without_a_local_apic_in_the_kernel_only_zero_can_be_written() -> None:
    msrs = ApfMsrs(PV)
    msrs.lapic_in_kernel = False
    assert msrs.write(_EN, EN) is msrs.write(_INT, VECTOR) is Outcome.GP
    assert msrs.write(_EN, 0) is Outcome.NOTHING


def test_every_enabling_write_wakes_all() -> None:
    machine = vcpu()
    assert machine.core.counters.wake_all == 1
    for number in (2, 3):
        machine.run(10, ExitCause.SYSCALL)
        machine.dispatch(1, steps=ENABLE[PV])
        assert machine.trap() == m.PageReadyArrived(WAKE_ALL)
        handled(machine, 1)
        assert machine.core.counters.wake_all == number


@pytest.mark.parametrize("state", list(SlotState))
def test_the_slot_is_what_its_two_words_say(state: SlotState) -> None:
    words = {
        SlotState.FREE: (0, False),
        SlotState.FILLED: (0x1003, True),
        SlotState.CLEARED: (0, True),
        SlotState.LEFT: (0x1003, False),
    }
    msrs = ApfMsrs(PV)
    token, msrs.pageready_pending = words[state]
    assert msrs.slot(token) is state
    assert (SLOT.after(state, SlotEvent.DELIVERED) is not None) == (token == 0), "what is set is never overwritten"


def test_booting_without_apf_is_one_trap() -> None:
    machine = Vcpu(core(m.ApfMode.HALT))
    machine.step(Attached())
    machine.dispatch(1, registers=REGISTERS)
    assert isinstance(machine.next, EnterGuest) and machine.core.counters.traps == 1


def test_e34_an_interrupt_that_outlives_its_msrs_still_reads_the_guests_own_token_word() -> None:
    core = vcpu().core
    gpa = core.msrs.token_gpa
    core._irr = 1
    core.msrs.reset()
    assert core.msrs.token_gpa != gpa
    assert core._take_ready() == [ReadGuest(gpa, 4)]
