"""How long who waits polls, by KVM's rule (kvm_vcpu_halt)."""

from __future__ import annotations

import pytest

from apf.haltpoll import GROW_START_NS, MAX_NS, HaltPoll

_LONG_NS = MAX_NS + 1


def after(*waits_ns: int) -> int:
    halt_poll = HaltPoll()
    for wait_ns in waits_ns:
        halt_poll.waited(wait_ns)
    return halt_poll.ns


@pytest.mark.parametrize(
    ("waits_ns", "ns"),
    [
        ((), 0),
        ((_LONG_NS,), 0),
        ((MAX_NS,), GROW_START_NS),
        ((50_000, 50_000), 2 * GROW_START_NS),
        ((50_000, 9_000), GROW_START_NS),  # polling was enough
        ((150_000,) * 5, 16 * GROW_START_NS),
        ((150_000,) * 9, 16 * GROW_START_NS),  # enough from here on
        ((MAX_NS,) * 9, MAX_NS),
        ((50_000, 50_000, _LONG_NS), GROW_START_NS),
        ((50_000, _LONG_NS), 0),  # less than it starts with is nothing
    ],
)
def test_it_grows_with_short_waits_and_shrinks_with_long_ones(waits_ns: tuple[int, ...], ns: int) -> None:
    assert after(*waits_ns) == ns
