"""Faults of the protocol that the operator injects reach their vCPU with its next Dispatch, or are refused."""

from __future__ import annotations

import pytest
from guest_fakes import MS, guest, spec

from apf.messages import InterruptArrived, ProtocolFault
from guestsched.core.arrivals import InjectArrived, InjectTaken, Refusal, Refused, ShutdownArrived
from guestsched.core.outside import INJECTIONS_MAX

LOST = ProtocolFault("lost_ready", 2, 3)
LEFT = ProtocolFault("token_left")
STOPPED = "vcpu = 0: it has stopped"


def test_the_vcpu_is_interrupted_and_told_once() -> None:
    made = guest(spec(1), vm__vcpus=2).boot_all()
    assert made.arrive(InjectArrived(7, 1, LOST), InjectArrived(8, 1, LEFT), now_ns=MS) == []
    assert made.posts == [1]
    assert made.trap(InterruptArrived(), MS, 0).injections == (), "another vCPU's"
    told = made.interrupt(2 * MS, 1)
    assert told.injections == (LOST, LEFT) and told.task == 0
    assert made.answers == [InjectTaken(7, told.at_ns), InjectTaken(8, told.at_ns)]
    assert made.trap(InterruptArrived(), 3 * MS, 1).injections == ()
    assert made.records("arrive_inject") == [
        ("7", "1", "lost_ready", "2", "3", "0"),
        ("8", "1", "token_left", "1", "1", "0"),
    ]
    assert made.records("inject") == [
        ("1", "7", "lost_ready", str(told.at_ns)),
        ("1", "8", "token_left", str(told.at_ns)),
    ]


def test_a_vcpu_whose_kernel_was_interrupted_is_told_too() -> None:
    made = guest(spec(1)).boot_all()
    made.arrive(InjectArrived(7, 0, LOST), now_ns=MS)
    assert made.trap(InterruptArrived(), MS, kernel=True).injections == (LOST,)


def test_a_vcpu_that_is_not_up_is_told_when_it_boots() -> None:
    made = guest(spec(1))
    made.arrive(InjectArrived(7, 0, LOST), now_ns=0)
    assert made.posts == [] and made.boot().injections == (LOST,)


def test_what_is_not_there_is_refused() -> None:
    made = guest(spec(1), vm__vcpus=2).boot_all()
    text = "vcpu = 2: this VM has 0 to 1"
    assert made.arrive(InjectArrived(7, 2, LOST), now_ns=MS) == [Refused(7, Refusal.INVALID_ARGUMENT, text)]
    made.stop(MS)
    assert made.arrive(InjectArrived(8, 0, LOST), now_ns=MS) == [Refused(8, Refusal.FAILED_PRECONDITION, STOPPED)]
    assert made.posts == []


@pytest.mark.parametrize("shutdown", [True, False])
def test_a_vcpu_that_only_stops_takes_none(shutdown: bool) -> None:
    made = guest(spec(1), duration_s="0.002").boot_all()
    last = [ShutdownArrived()] if shutdown else []
    made.arrive(InjectArrived(7, 0, LOST), *last, now_ns=MS)
    assert made.interrupt(MS if shutdown else 2 * MS - 1).injections == () and made.answers == []
    assert made.stop(3 * MS).injections == ()
    assert made.answers == [Refused(7, Refusal.FAILED_PRECONDITION, STOPPED)]


def test_there_is_an_end_to_them() -> None:
    made = guest(spec(1), vm__vcpus=2).boot_all()
    assert made.arrive(*(InjectArrived(n, 0, LOST) for n in range(INJECTIONS_MAX)), now_ns=MS) == []
    (refused,) = made.arrive(InjectArrived(5000, 0, LOST), now_ns=MS)
    assert isinstance(refused, Refused) and refused.why is Refusal.RESOURCE_EXHAUSTED
    assert made.arrive(InjectArrived(5001, 1, LOST), now_ns=MS) == []
    assert len(made.interrupt(MS).injections) == INJECTIONS_MAX
