"""Edge cases of the guest's side of the protocol since 5.8, by their numbers in the KVM reference."""

from __future__ import annotations

import pytest

from apf.core import CoreError
from apf.messages import (
    APF_TOKEN_OFFSET,
    ASYNC_PF_DELIVERY_AS_INT,
    ASYNC_PF_ENABLED,
    ASYNC_PF_SEND_ALWAYS,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    Fetched,
    InterruptArrived,
    MsrWrite,
    NotPresentArrived,
    PageReadyArrived,
    Stopped,
    Store,
    TickArrived,
)
from guestsched.core.kvm import HYPERVISOR_CALLBACK_VECTOR, reason_gpa
from guestsched.core.syscall import Syscall
from tests.unit.guestsched.guest_fakes import HANDLER, INTERRUPT, MS, Guest, guest, spec

WAKE_ALL = 0xFFFF_FFFF


def pair(**overrides: object) -> Guest:
    """One vCPU with tasks 1 (running) and 2, booted, in the protocol since 5.8."""
    made = guest(spec(1), spec(2), **{"apf": ["pv"], **overrides})
    made.boot()
    return made


def ack(vcpu: int = 0) -> tuple[Store, MsrWrite]:
    """What the handler of page ready does before it ends."""
    return Store(reason_gpa(vcpu) + APF_TOKEN_OFFSET, bytes(4)), MsrWrite(MSR_KVM_ASYNC_PF_ACK, 1)


def test_e34_the_vector_is_written_before_en_and_never_send_always() -> None:
    made = guest(spec(1), spec(2), vm__vcpus=2, apf=["pv"])
    for vcpu in (0, 1):
        en = reason_gpa(vcpu) | ASYNC_PF_ENABLED | ASYNC_PF_DELIVERY_AS_INT
        told = made.boot(vcpu)
        assert told.steps == (
            MsrWrite(MSR_KVM_ASYNC_PF_INT, HYPERVISOR_CALLBACK_VECTOR),
            MsrWrite(MSR_KVM_ASYNC_PF_EN, en),
        )
    assert not en & ASYNC_PF_SEND_ALWAYS


@pytest.mark.parametrize("mode", ["off", "halt"])
def test_e05_a_guest_without_apf_enables_nothing_and_is_told_of_nothing(mode: str) -> None:
    made = guest(spec(1), apf=[mode])
    assert made.boot().steps == ()
    for trap in (NotPresentArrived(0x1000), PageReadyArrived(0x1000)):
        with pytest.raises(CoreError, match="has not enabled APF"):
            made.trap(trap, MS)


def test_e19_page_ready_is_acknowledged_after_its_token_is_cleared() -> None:
    made = pair()
    made.not_present(0x1000, MS)
    told = made.trap(PageReadyArrived(0x1000), 2 * MS)
    assert told.steps == ack() and told.apf_ns >= HANDLER and "APF_WAIT" not in made.states()
    assert made.trap(TickArrived(), made.told[0].run_until_ns + 100 * MS).steps == (), "nothing else acknowledges"


def test_e30_an_interrupt_too_many_reads_token_0_and_leaves_a_dummy_that_the_next_removes() -> None:
    made = pair()
    for number, there in ((1, True), (2, False)):
        assert made.trap(PageReadyArrived(0), number * MS).steps == ack(), "it acknowledges all the same"
        assert (made.core._kernel.waiters.find(0) is not None) is there


def test_e31_wake_all_wakes_only_who_waits_on_this_vcpu() -> None:
    made = guest(spec(1), spec(2), spec(3, vcpu=1), spec(4, vcpu=1), vm__vcpus=2, apf=["pv"]).boot_all()
    made.not_present(0x1000, MS, vcpu=0)
    made.not_present(0x1001, MS, vcpu=1)
    told = made.trap(PageReadyArrived(WAKE_ALL), 2 * MS, 0)
    assert told.steps == ack() and made.states().count("APF_WAIT") == 1
    assert made.core._kernel.waiters.find(0x1001) is not None


def test_e29_ready_first_leaves_a_dummy_and_the_task_does_not_sleep() -> None:
    made = pair()
    made.trap(PageReadyArrived(0x1000), MS)
    made.not_present(0x1000, 2 * MS)
    assert "APF_WAIT" not in made.states()


def test_e46_a_not_present_in_the_kernel_is_a_bug_of_the_host() -> None:
    made = pair()
    with pytest.raises(AssertionError, match="async #PF in kernel mode, and it had not asked for that"):
        made.trap(NotPresentArrived(0x1000), MS, kernel=True)


def test_e46_a_guest_that_asked_for_it_panics_and_every_vcpu_stops() -> None:
    made = guest(spec(1), spec(2), vm__vcpus=2, apf=["pv"], kvm__send_always=True)
    en = made.boot().steps[1]
    assert isinstance(en, MsrWrite) and en.value & ASYNC_PF_SEND_ALWAYS
    made.boot(1)
    made.posts.clear()
    told = made.trap(NotPresentArrived(0x1000), MS, kernel=True)
    assert told.shutdown and made.posts == [1]
    assert "Kernel panic - not syncing: Host injected async #PF in kernel mode" in made.logs[-1].text
    assert made.interrupt(2 * MS, vcpu=1).shutdown
    made.trap(Stopped(), told.at_ns, kernel=True)


def test_an_interrupt_in_the_kernel_preempts_nothing_until_it_is_on_its_way_to_user_mode() -> None:
    made = guest(spec(1), spec(2), spec(3), apf=["pv"])
    made.boot()
    made.not_present(0x1000, MS)
    made.syscall(Syscall.COUNT, 1, now_ns=2 * MS)
    running = made.told[0].task
    tick = made.trap(TickArrived(), 400 * MS, kernel=True)
    ready = made.trap(PageReadyArrived(0x1000), 401 * MS, kernel=True)
    for told in (tick, ready):
        assert told.task == running and told.registers is None and not told.copies and not told.fetch
    assert ready.steps == ack() and made.states().count("READY") == 2
    assert made.core.cpu(0).need_resched
    back = made.trap(InterruptArrived(), 402 * MS)
    assert back.task != running and back.at_ns >= 402 * MS + INTERRUPT


def test_a_system_call_that_reads_memory_is_gone_on_with_after_interrupts() -> None:
    made = guest(spec(1), spec(2), apf=["pv"])
    made.boot()
    gva = 0x40_0000
    told = made.syscall(Syscall.WRITE, 1, gva, 3, now_ns=MS)
    assert told.fetch
    middle = made.trap(TickArrived(), 300 * MS, kernel=True)
    assert middle.fetch == () and middle.task == told.task
    with pytest.raises(CoreError, match="from the kernel"):
        made.trap(Fetched(b"abc"), 301 * MS, kernel=True)
    assert made.trap(Fetched(b"abc"), 302 * MS).task
    assert made.logs, "what was written is there"
