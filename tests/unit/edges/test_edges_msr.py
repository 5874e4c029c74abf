"""The MSRs of APF: what may be written when, and what follows."""

from __future__ import annotations

import pytest

from apf import messages as m
from tests.unit.edges.kvm_cases import EN, PV, handled, vcpu
from tests.unit.vcpud.vcpu_fakes import ENABLE, REASON_GPA, REGISTERS, VECTOR, Vcpu, core
from vcpud.core.apf_msr import SLOT, ApfMsrs, Outcome, SlotEvent, SlotState
from vcpud.core.async_pf import WAKE_ALL
from vcpud.core.effects import Attached, EnterGuest, ExitCause, ReadGuest

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
