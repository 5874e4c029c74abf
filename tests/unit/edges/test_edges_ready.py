"""Edge cases of KVM's side from page ready on, and faults of the protocol that are injected."""

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
    injecting,
    ready,
    run_to_prefault,
    spoiled,
    vcpu,
)
from tests.unit.vcpud.vcpu_fakes import ENABLE, READY_HANDLER, VECTOR, Vcpu, core
from vcpud.core.account import Cause
from vcpud.core.apf_msr import KERNEL, USER, ApfMsrs, Outcome, SlotState
from vcpud.core.async_pf import WAKE_ALL, AsyncPfQueue
from vcpud.core.effects import AskGuest, AskHost, EnterGuest, ExitCause, InterruptPosted, WaitUntil
from vcpud.core.injected import Injected, Injection
from vcpud.core.thread import TABLE as THREAD
from vcpud.core.thread import ThreadEvent, ThreadState
from vcpud.core.vcpu import State

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
