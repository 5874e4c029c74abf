"""What the guest does about memory that its host cannot get back: one task dies, or all of it."""

from __future__ import annotations

import pytest
from guest_fakes import CODE_GVA, MS, Guest, access_plan, access_spec, guest, guest_of, spec

from apf.messages import ExceptionRaised, PageError, PageReadyArrived, RunFailed, Store
from guestsched.core.arrivals import AccessArrived, Refused
from guestsched.core.syscall import Syscall

MACHINE_CHECK = 18
CHECK = ExceptionRaised(MACHINE_CHECK, 0x5000, 0x40_0123)


def test_a_machine_check_kills_the_task_that_used_the_memory_and_no_other() -> None:
    made = guest(spec(1), spec(2), **{"swap.errors": "report"})
    made.boot()
    after = made.trap(CHECK, MS)
    assert after.task == 2 and not after.shutdown
    why = "SIGBUS: the memory at guest-physical 0x5000 has failed (#MC, vector 18) at rip 0x400123"
    assert (made.row(1).state, made.row(1).killed, made.row(2).state) == ("DEAD", why, "RUNNING")
    assert made.logs[-1].text == f"task 1 toy/1 (program toy, vCPU 0) killed: {why}" and made.logs[-1].warning


@pytest.mark.parametrize("mode", ["pv2010", "pv"])
def test_ready_with_an_error_kills_who_waits_when_it_would_run(mode: str) -> None:
    made = guest(spec(1), spec(2), apf=[mode], **{"swap.errors": "report"})
    made.boot()
    made.not_present(0x1000, MS)
    assert made.states() == ["APF_WAIT", "RUNNING"]
    ready = made.trap(PageReadyArrived(0x1000, failed=True), 2 * MS)
    assert ready.task == 2
    if mode == "pv":
        (cleared, _ack) = ready.steps
        assert isinstance(cleared, Store) and cleared.data == bytes(8), "the token, and the error behind it"
    killed = made.row(1).killed or made.core.tasks[1].doomed
    assert killed == "SIGBUS: the host cannot get the page it waits for (page error, token 0x1000)"
    made.syscall(Syscall.EXIT, now_ns=3 * MS)
    assert (made.row(1).state, made.row(1).killed) == ("DEAD", killed)


def test_ready_with_an_error_before_its_not_present_is_a_dummy_like_any() -> None:
    made = guest(spec(1), **{"swap.errors": "report"})
    made.boot()
    made.trap(PageReadyArrived(0x1000, failed=True), MS)
    after = made.not_present(0x1000, 2 * MS)
    assert after.task == 1 and not made.core.tasks[1].doomed, "it executes the access again, and is told then"


def test_memory_that_fails_in_a_copy_ends_the_system_call_with_the_task() -> None:
    made = guest(spec(1), spec(2), **{"swap.errors": "report"})
    made.boot()
    made.syscall(Syscall.WRITE, 1, CODE_GVA, 8, now_ns=MS)
    assert made.told[0].fetch
    after = made.trap(ExceptionRaised(MACHINE_CHECK, 0x5000, 0), made.told[0].at_ns)
    assert after.task == 2 and not after.fetch and made.row(1).killed.endswith("at an access of the kernel for it")
    made.syscall(Syscall.WRITE, 1, CODE_GVA, 8, now_ns=2 * MS)
    made.fetched(3 * MS)


def test_accesses_from_outside_that_a_killed_thread_had_are_refused() -> None:
    made = guest_of(access_plan(access_spec(1)), **{"swap.errors": "report"})
    made.boot()
    while made.told[0].fetch:
        made.fetched(made.told[0].at_ns)
    made.syscall(Syscall.TAKE, now_ns=MS)
    made.arrive(AccessArrived(7, 1, 0, 1, True), now_ns=2 * MS)
    made.interrupt(3 * MS)
    made.trap(CHECK, 4 * MS)
    assert [answer.ticket for answer in made.answers if isinstance(answer, Refused)] == [7]


def check_ends(made: Guest, now_ns: int) -> None:
    after = made.trap(RunFailed(5, PageError.LOST), now_ns)
    assert after.shutdown and not after.fetch and not after.copies
    made.stop(after.at_ns)
    assert "gfn 0x5" in made.core.failed and "its write to the swap device was lost" in made.core.failed


def test_a_vmm_that_ends_takes_all_vcpus_along() -> None:
    made = guest(spec(1), spec(2, vcpu=1), **{"vm.vcpus": 2}).boot_all()
    check_ends(made, MS)
    assert made.posts == [1] and "task 1 toy/1" in made.core.failed and len(made.logs) == 1
    other = made.interrupt(2 * MS, vcpu=1)
    assert other.shutdown
    made.stop(other.at_ns, vcpu=1)
    assert made.states() == ["RUNNING", "RUNNING"]


def test_only_the_first_vcpu_that_fails_says_so() -> None:
    made = guest(spec(1), spec(2, vcpu=1), **{"vm.vcpus": 2}).boot_all()
    check_ends(made, MS)
    assert made.trap(RunFailed(6, PageError.READ), 2 * MS, vcpu=1).shutdown
    assert len(made.logs) == 1 and "gfn 0x6" not in made.core.failed


def test_a_vmm_may_end_while_the_kernel_reads_for_a_task() -> None:
    made = guest(spec(1))
    made.boot()
    made.syscall(Syscall.WRITE, 1, CODE_GVA, 8, now_ns=MS)
    check_ends(made, made.told[0].at_ns)


def test_an_idle_vcpus_failure_is_the_kernels() -> None:
    made = guest()
    made.boot()
    check_ends(made, MS)
    assert "which the guest kernel needs" in made.core.failed
