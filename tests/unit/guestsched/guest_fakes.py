"""A guest kernel with made-up tasks, and traps to give it: what the tests of the guest kernel's core share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apf import registers as register_file
from apf.journal import Journal
from apf.messages import Account, AddressSpace, Booted, Dispatch, Extent, Stopped, Trap, TrapRaised
from apf.scenario import Scenario, load
from guestsched.core.core import Effect, GuestCore, Log, Reply, TrapTaken
from guestsched.core.image import Image
from guestsched.core.task import TaskSpec

SPACE = AddressSpace(1, (Extent(0x40_0000, 10, 1, writable=False, executable=True),))


def scenario(**overrides: Any) -> Scenario:
    """A scenario of one mode; ``vm__vcpus=2`` sets ``vm.vcpus``."""
    chosen: dict[str, Any] = {"apf": ["pv2010"], "vm.vcpus": 1}
    chosen |= {name.replace("__", "."): value for name, value in overrides.items()}
    return load(None, chosen)


def spec(number: int, vcpu: int = 0, nice: int = 0, account: Account = Account.COUNTING) -> TaskSpec:
    """Task ``number`` with ``number`` in RBX, which it reports as ``count``."""
    return TaskSpec(
        name=f"toy/{number}",
        program="toy",
        vcpu=vcpu,
        asid=1,
        account=account,
        registers=register_file.new(rip=0x40_0000, rbx=number),
        results=(("count", "rbx"),),
        nice=nice,
    )


@dataclass
class Guest:
    """A GuestCore and what each vCPU was last told; ``now_ns`` is the last trap's time."""

    core: GuestCore
    journal: Journal
    told: dict[int, Dispatch] = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)
    held: dict[int, bytes | None] = field(default_factory=dict)

    def trap(self, trap: Trap, now_ns: int, vcpu: int = 0, registers: bytes | None = None) -> Dispatch:
        """Raise ``trap`` with the registers the vCPU holds (or ``registers``); its Dispatch."""
        given = registers if registers is not None else self.held.get(vcpu)
        effects = self.core.step(TrapTaken(vcpu, TrapRaised(trap, given)), now_ns)
        self.core.check()
        return self._take(effects, now_ns, vcpu, given)

    def _take(self, effects: Sequence[Effect], now_ns: int, vcpu: int, given: bytes | None) -> Dispatch:
        *logs, reply = effects
        assert isinstance(reply, Reply) and reply.vcpu == vcpu
        for log in logs:
            assert isinstance(log, Log)
            self.logs.append(log)
        dispatch = reply.dispatch
        assert dispatch.at_ns > now_ns
        assert 0 <= dispatch.apf_ns <= dispatch.at_ns - now_ns
        self.held[vcpu] = (dispatch.registers or given) if dispatch.task else None
        self.told[vcpu] = dispatch
        return dispatch

    def boot(self, vcpu: int = 0) -> Dispatch:
        """The vCPU's first trap."""
        return self.trap(Booted(), 0, vcpu)

    def stop(self, now_ns: int, vcpu: int = 0) -> Dispatch:
        """The vCPU's last trap."""
        return self.trap(Stopped(), now_ns, vcpu)


def guest(*tasks: TaskSpec, **overrides: Any) -> Guest:
    """A guest with these tasks, not booted."""
    journal = Journal()
    image = Image(segments=(), spaces=(SPACE,), tasks=tasks)
    return Guest(GuestCore(scenario(**overrides), image, journal), journal)
