"""How long to poll for what comes next before one sleeps until it does.

Who sleeps is woken by an interrupt to an idle core: some 25 us until it runs, with cold caches, and some 10 us for who
wakes it. Where the next message comes sooner than that it is better to look again and again, and where it does not, that
only takes the core from others. So KVM polls before it lets a vCPU's thread sleep, for as long as has been worth it
lately, and this does it by the same rule.
"""

from __future__ import annotations

from typing import Final

MAX_NS: Final = 200_000
"""Of the module parameters of KVM on x86: ``halt_poll_ns``, and three more below."""
GROW: Final = 2
GROW_START_NS: Final = 10_000
SHRINK: Final = 2


class HaltPoll:
    """One waiter's polling time: ``ns``, wall time, from 0 to ``MAX_NS`` (kvm_vcpu_halt, virt/kvm/kvm_main.c)."""

    def __init__(self) -> None:
        self.ns = 0

    def waited(self, wall_ns: int) -> None:
        """What was waited for came after that long, polling and sleep together."""
        if wall_ns <= self.ns:
            return
        if wall_ns > MAX_NS:
            self._shrink()
        else:
            self.ns = min(max(self.ns * GROW, GROW_START_NS), MAX_NS)  # grow_halt_poll_ns

    def _shrink(self) -> None:
        """shrink_halt_poll_ns."""
        self.ns //= SHRINK
        if self.ns < GROW_START_NS:
            self.ns = 0
