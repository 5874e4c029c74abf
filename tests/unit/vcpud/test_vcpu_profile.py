"""The profile's timer: what it finds, what it costs, and what comes of samples that nobody could take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from vcpu_fakes import Vcpu, core

from apf import messages as m
from apf.costs import Costs
from apf.messages import KernelPath, Sample
from vcpud.core.account import Cause
from vcpud.core.effects import EnterGuest, ExitCause
from vcpud.core.sampler import Sampler

COSTS = Costs()
TICK_NS = 4_000_000
PERIOD_NS, PHASE_NS = 1_000_000, 300_000
RIP = 0x40_0010


def vcpu(task: int = 1, mode: m.ApfMode = m.ApfMode.OFF, **changes: int) -> Vcpu:
    machine = Vcpu(core(mode, **{"sample_period_ns": PERIOD_NS, "sample_phase_ns": PHASE_NS, **changes}))
    machine.boot(task)
    return machine


def test_sample_of_a_task_comes_on_time_and_says_where_it_is() -> None:
    machine = vcpu()
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == PHASE_NS
    machine.run_out(rip=RIP)
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == PHASE_NS + PERIOD_NS
    assert machine.core.now_ns == PHASE_NS + COSTS.profile_sample_ns
    assert machine.core.account.spent_ns[Cause.KERNEL] == 100 + COSTS.profile_sample_ns
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == (Sample(1, RIP, KernelPath.USER, 1),)
    machine.dispatch()
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == (), "each is told once"
    assert machine.core.counters.samples == 1


def test_samples_at_one_place_are_counted_together() -> None:
    machine = vcpu(sample_period_ns=PERIOD_NS // 10, sample_phase_ns=0)
    for rip in (RIP, RIP, RIP + 4, RIP):
        machine.run_out(rip=rip)
    machine.run(10, ExitCause.SYSCALL)
    user = [sample for sample in machine.asked().samples if sample.path is KernelPath.USER]
    assert user == [Sample(1, RIP, KernelPath.USER, 3), Sample(1, RIP + 4, KernelPath.USER, 1)]


def syscall(machine: Vcpu) -> None:
    machine.run(10, ExitCause.SYSCALL)


def exception(machine: Vcpu) -> None:
    machine.run(10, ExitCause.EXCEPTION, vector=6)


def interrupt(machine: Vcpu) -> None:
    machine.interrupt(10)


def timer(machine: Vcpu) -> None:
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(timer_ns=machine.core.now_ns + 150)
    machine.run_out()


def fetched(machine: Vcpu) -> None:
    machine.run(10, ExitCause.SYSCALL)
    machine.dispatch(fetch=((0x5000, 1),))
    machine.copied(b"x")


def not_present(machine: Vcpu) -> None:
    machine.fault(5)
    machine.in_progress(5_000_000)
    machine.reason()


def page_ready(machine: Vcpu) -> None:
    machine.async_fault(5, 20_000)
    machine.run_out()
    machine.mapped()
    machine.reason()


@pytest.mark.parametrize(
    ("act", "path"),
    [
        (syscall, KernelPath.SYSCALL),
        (fetched, KernelPath.SYSCALL),
        (exception, KernelPath.EXCEPTION),
        (interrupt, KernelPath.INTERRUPT),
        (timer, KernelPath.TIMER),
        (not_present, KernelPath.NOT_PRESENT),
        (page_ready, KernelPath.PAGE_READY),
    ],
)
def test_sample_of_the_guest_kernel_says_on_which_path_it_was(act: Callable[[Vcpu], None], path: KernelPath) -> None:
    machine = vcpu(mode=m.ApfMode.PV2010)
    act(machine)
    assert machine.core.now_ns < PHASE_NS
    machine.dispatch(cost_ns=PHASE_NS)
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == (Sample(0, 0, path, 1),)


def test_sample_at_boot_is_of_the_scheduler_and_that_of_a_tick_is_the_ticks() -> None:
    machine = vcpu(sample_phase_ns=50)
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == (Sample(0, 0, KernelPath.SCHEDULE, 1),)
    machine = vcpu(sample_period_ns=10 * TICK_NS, sample_phase_ns=TICK_NS + 500)
    machine.run_out()
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == (Sample(0, 0, KernelPath.TICK, 1),)


@pytest.mark.parametrize("stall_ns", [2_000_000, 2 * TICK_NS])
def test_samples_due_in_a_stall_come_as_one(stall_ns: int) -> None:
    """hrtimer_forward_now: those that were missed are missing, and the next is in step.

    It is where the vCPU goes on, at the task, also if ticks were missed too: one interrupt serves both.
    """
    machine = vcpu()
    machine.run(10, ExitCause.EPT_VIOLATION, gfn=5, access=m.Access.WRITE, rip=RIP)
    machine.mapped(stall_ns=stall_ns)
    assert machine.core.counters.samples == 1
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == PHASE_NS + stall_ns
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == (Sample(1, RIP, KernelPath.USER, 1),)


def test_an_idle_vcpu_is_not_woken_but_all_its_samples_are_counted() -> None:
    machine = vcpu(task=0, end_ns=20 * PERIOD_NS)
    machine.wait()
    assert machine.trap() == m.Stopped()
    assert machine.asked().samples == (Sample(0, 0, KernelPath.IDLE, 20),)
    assert machine.core.counters.samples == 0, "none cost anything"
    assert machine.core.account.spent_ns[Cause.IDLE] == 20 * PERIOD_NS - 100


def test_without_a_profile_nothing_is_sampled() -> None:
    machine = vcpu(sample_period_ns=0, sample_phase_ns=0)
    assert isinstance(machine.next, EnterGuest) and machine.next.until_ns == TICK_NS
    machine.run(10, ExitCause.SYSCALL)
    assert machine.asked().samples == ()


def test_sampler_alone_stays_in_step() -> None:
    sampler = Sampler(100, 30)
    assert sampler.next_ns == 30
    sampler.in_kernel(129, KernelPath.TICK)
    assert sampler.next_ns == 130
    sampler.in_task(130, 7, RIP)
    assert sampler.next_ns == 230
    sampler.idled(229)
    sampler.idled(429)
    assert sampler.drain() == (
        Sample(0, 0, KernelPath.TICK, 1),
        Sample(0, 0, KernelPath.IDLE, 2),
        Sample(7, RIP, KernelPath.USER, 1),
    )
    assert sampler.drain() == () and sampler.next_ns == 430
