"""A page that cannot be had: the end of the VM, a task that is told, or nobody who hears of it."""

from __future__ import annotations

import pytest
from vcpu_fakes import REASON_GPA, REGISTERS, TOKEN_GPA, Vcpu, core

from apf import messages as m
from vcpud.core.effects import AskHost, EnterGuest, ExitCause, HostReplied, InjectReason, ReasonRead, WaitUntil
from vcpud.core.page_ready import REASON_ERROR, REASON_READY
from vcpud.core.state import State

OFF, HALT, PV2010, PV = m.ApfMode.OFF, m.ApfMode.HALT, m.ApfMode.PV2010, m.ApfMode.PV
READ = m.PageError.READ
RIP = 0x40_0123


def vcpu(mode: m.ApfMode, *, reports: bool) -> Vcpu:
    machine = Vcpu(core(mode, reports=reports))
    machine.boot()
    return machine


def failed(machine: Vcpu, stall_ns: int = 0, error: m.PageError = READ) -> None:
    """hostd cannot have the page that was asked for."""
    request = machine.request()
    at_ns = machine.core.now_ns + 1000 + stall_ns
    machine.step(HostReplied(m.Failed(at_ns, request.gfn, error, stall_ns)))


def fails_asynchronously(machine: Vcpu, gfn: int = 5) -> int:
    """A fault that is left to the worker, whose get_user_pages fails: up to the answer to the prefault."""
    token = machine.async_fault(gfn, 50_000)
    machine.run_out()
    assert machine.request() == m.PrefaultRaised(gfn, token)
    failed(machine)
    return token


@pytest.mark.parametrize("mode", [OFF, HALT, PV2010, PV])
def test_e39_a_vcpu_that_sleeps_for_it_returns_to_the_vmm_which_ends(mode: m.ApfMode) -> None:
    machine = vcpu(mode, reports=False)
    machine.fault(5)
    failed(machine, stall_ns=80_000, error=m.PageError.TORN)
    assert machine.trap() == m.RunFailed(5, m.PageError.TORN) and not machine.asked().kernel
    assert (machine.core.counters.faults_failed, machine.core.counters.stall_ns) == (1, 80_000)
    machine.dispatch(1, shutdown=True)
    assert machine.trap() == m.Stopped()


@pytest.mark.parametrize("mode", [OFF, HALT, PV2010, PV])
def test_reported_it_is_a_machine_check_in_the_task_and_the_vcpu_goes_on(mode: m.ApfMode) -> None:
    machine = vcpu(mode, reports=True)
    machine.run(10, ExitCause.EPT_VIOLATION, gfn=5, access=m.Access.WRITE, rip=RIP)
    failed(machine)
    assert machine.trap() == m.ExceptionRaised(18, 5 << 12, RIP)
    machine.dispatch(2, registers=REGISTERS)
    assert isinstance(machine.next, EnterGuest)


@pytest.mark.parametrize("mode", [PV2010, PV])
def test_e39_the_workers_error_is_invisible_and_the_access_is_executed_again_for_ever(mode: m.ApfMode) -> None:
    machine = vcpu(mode, reports=False)
    tokens = []
    for _ in range(3):
        tokens.append(fails_asynchronously(machine))
        if mode is PV2010:
            assert machine.next == InjectReason(REASON_GPA, REASON_READY)
            machine.reason()
        assert machine.trap() == m.PageReadyArrived(tokens[-1])
        steps = () if mode is PV2010 else (m.Store(TOKEN_GPA, bytes(4)), m.MsrWrite(m.MSR_KVM_ASYNC_PF_ACK, 1))
        machine.dispatch(1, registers=REGISTERS, steps=steps)
        assert isinstance(machine.next, EnterGuest)
    assert len(set(tokens)) == 3 and machine.core.counters.prefault_failed == 3


def test_reported_pv_tells_it_by_the_word_behind_the_token() -> None:
    machine = vcpu(PV, reports=True)
    machine.words.clear()
    token = fails_asynchronously(machine)
    assert machine.words[TOKEN_GPA] == token.to_bytes(4, "little") + b"\1\0\0\0"
    assert machine.trap() == m.PageReadyArrived(token, failed=True)
    machine.dispatch(
        2, registers=REGISTERS, steps=(m.Store(TOKEN_GPA, bytes(8)), m.MsrWrite(m.MSR_KVM_ASYNC_PF_ACK, 1))
    )
    well = machine.async_fault(6, 50_000)
    machine.run_out()
    machine.mapped()
    assert machine.words[TOKEN_GPA] == well.to_bytes(4, "little") + bytes(4)
    assert machine.trap() == m.PageReadyArrived(well)


def test_reported_pv2010_tells_it_by_another_bit_of_the_reason() -> None:
    machine = vcpu(PV2010, reports=True)
    token = fails_asynchronously(machine)
    assert machine.next == InjectReason(REASON_GPA, REASON_READY | REASON_ERROR)
    machine.reason()
    assert machine.trap() == m.PageReadyArrived(token, failed=True)


def test_a_vcpu_that_halted_for_it_executes_the_access_again() -> None:
    machine = vcpu(HALT, reports=True)
    machine.fault(5)
    machine.in_progress(50_000)
    assert isinstance(machine.next, WaitUntil)
    machine.wait()
    failed(machine)
    assert isinstance(machine.next, EnterGuest)


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("mode", [OFF, HALT, PV2010, PV])
def test_a_vmm_killed_for_lack_of_memory_ends_whoever_asks(mode: m.ApfMode, reports: bool) -> None:
    machine = vcpu(mode, reports=reports)
    machine.fault(5)
    failed(machine, error=m.PageError.OUT_OF_MEMORY)
    assert machine.trap() == m.RunFailed(5, m.PageError.OUT_OF_MEMORY) and not machine.asked().kernel
    machine.dispatch(1, shutdown=True)
    assert machine.trap() == m.Stopped()


@pytest.mark.parametrize("mode", [PV2010, PV])
def test_also_one_that_maps_the_page_of_a_work_item(mode: m.ApfMode) -> None:
    machine = vcpu(mode, reports=True)
    token = machine.async_fault(5, 50_000)
    machine.run_out()
    assert machine.request() == m.PrefaultRaised(5, token)
    failed(machine, error=m.PageError.OUT_OF_MEMORY)
    assert machine.trap() == m.RunFailed(5, m.PageError.OUT_OF_MEMORY)
    machine.dispatch(1, shutdown=True)
    assert machine.trap() == m.Stopped()


# Accesses of the guest kernel's and of KVM's --------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("reports", [False, True])
def test_a_copy_of_the_kernels_for_the_task(reports: bool, reads: bool) -> None:
    machine = vcpu(OFF, reports=reports)
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(
        **{"fetch": ((0x5008, 2), (0x9000, 4))} if reads else {"copies": ((0x5008, b"ab"), (0x9000, b"c"))}
    )
    machine.not_mapped()
    assert isinstance(machine.next, AskHost)
    failed(machine)
    expected = m.ExceptionRaised(18, 0x5000, 0) if reports else m.RunFailed(5, READ)
    assert machine.trap() == expected and not machine.asked().kernel
    machine.dispatch(2, registers=REGISTERS)
    assert isinstance(machine.next, EnterGuest), "the rest of the copy is forgotten"


@pytest.mark.parametrize("reports", [False, True])
def test_the_handlers_own_words_are_the_end_of_the_vm(reports: bool) -> None:
    machine = vcpu(PV, reports=reports)
    token = machine.async_fault(5, 50_000)
    machine.run_out()
    machine.mapped()
    assert machine.trap() == m.PageReadyArrived(token)
    machine.out.add(TOKEN_GPA)
    machine.dispatch(
        1, registers=REGISTERS, steps=(m.Store(TOKEN_GPA, bytes(4)), m.MsrWrite(m.MSR_KVM_ASYNC_PF_ACK, 1))
    )
    failed(machine)
    assert machine.trap() == m.RunFailed(REASON_GPA >> 12, READ)
    machine.dispatch(1, shutdown=True)
    assert machine.trap() == m.Stopped(), "and the steps that were left are not done"


@pytest.mark.parametrize("mode", [PV2010, PV])
def test_a_not_present_that_cannot_be_told_is_a_halt(mode: m.ApfMode) -> None:
    machine = vcpu(mode, reports=False)
    machine.fault(5)
    machine.in_progress(50_000)
    machine.step(ReasonRead(None))
    failed(machine)
    assert machine.core.state is State.HALTED and machine.core.counters.not_present == 0
    machine.wait()
    machine.mapped()
    assert isinstance(machine.next, EnterGuest), "no ready comes either (E18)"


def test_a_token_that_cannot_be_written_is_a_ready_lost() -> None:
    machine = vcpu(PV, reports=False)
    machine.async_fault(5, 50_000)
    machine.run_out()
    machine.out.add(TOKEN_GPA)
    machine.mapped()
    failed(machine)
    assert isinstance(machine.next, EnterGuest)
    assert len(machine.core.async_pf) == 0 and not machine.core.msrs.pageready_pending
    assert machine.core.counters.ready == 1, "that of the boot's wake-all"


def test_a_slot_that_cannot_be_read_is_not_free() -> None:
    machine = vcpu(PV, reports=False)
    machine.async_fault(5, 50_000)
    machine.out.add(TOKEN_GPA)
    machine.run_out()
    failed(machine)
    assert isinstance(machine.next, EnterGuest) and len(machine.core.async_pf.done) == 1


def test_a_reason_word_that_cannot_be_written_is_a_ready_of_2010_lost() -> None:
    machine = vcpu(PV2010, reports=False)
    machine.async_fault(5, 50_000)
    machine.run_out()
    machine.mapped()
    machine.step(ReasonRead(None))
    failed(machine)
    assert isinstance(machine.next, EnterGuest)
    assert len(machine.core.async_pf) == 0 and machine.core.counters.ready == 0
