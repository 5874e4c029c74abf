"""A host core with round figures, and short ways to send it events."""

from __future__ import annotations

from typing import Any, TypeVar

from apf.costs import Costs
from apf.messages import (
    Access,
    FaultMode,
    FaultRaised,
    GupVariant,
    HostReply,
    InProgress,
    Mapped,
    PrefaultRaised,
    Segment,
)
from hostd.core.backing import ANON, Backing
from hostd.core.config import HostConfig, VmConfig
from hostd.core.device import DeviceProfile
from hostd.core.events import BorderReached, HostEffect, Reply, RequestTaken, RewriteEpt, SegmentsLoaded, WriteSlots
from hostd.core.host import HostCore
from hostd.core.lru import Policy
from hostd.core.page import Pages, PageState
from hostd.core.userfault import ONE_HANDLER, UserfaultConfig

WINDOW_NS = 20_000
READ_NS, WRITE_NS = 100_000, 40_000
PROFILE = DeviceProfile("test", 1, True, READ_NS, (READ_NS, READ_NS), (WRITE_NS, WRITE_NS), 0, 0, 0)
COSTS = Costs()
READ, WRITE = Access.READ, Access.WRITE


_Lists = TypeVar("_Lists", bound=Policy)


class Rig:
    """One core; ``effects`` holds those of the last step."""

    def __init__(
        self,
        limit: int = 64,
        guest_pages: int = 256,
        vms: int = 1,
        reserve: int = 64,
        gup: GupVariant = GupVariant.NOIO,
        profile: DeviceProfile = PROFILE,
        high: int = 0,
        backing: Backing = ANON,
        userfault: UserfaultConfig = ONE_HANDLER,
        read_only: bool = False,
        **host: Any,
    ) -> None:
        one = VmConfig(guest_pages, limit, 2, high, backing, userfault, read_only)
        self.core = HostCore(HostConfig(1, gup, COSTS, WINDOW_NS, (one,) * vms, profile, reserve, **host))
        self.effects: list[HostEffect] = []

    def load(self, pages: int, vm: int = 0) -> None:
        """Populate: of 256 pages and a limit of 64 the first 192 are swapped out."""
        self.effects = self.core.step(SegmentsLoaded(vm, (Segment(0, pages),)), 0)

    def thrashes(self, *gfns: int) -> None:
        """Let these pages of VM 0, which are in swap, have been evicted just now, out of the working set."""
        for gfn in gfns:
            self.core._mm.pages.shadow[gfn] = 1 << 41 | 1

    def fault(
        self, gfn: int, at_ns: int, access: Access = READ, vcpu: int = 0, vm: int = 0, work: int = 0
    ) -> HostReply:
        """A fault: NOWAIT if it has a work item, else BLOCKING."""
        mode = FaultMode.NOWAIT if work else FaultMode.BLOCKING
        self.effects = self.core.step(RequestTaken(vm, vcpu, FaultRaised(gfn, access, mode, work)), at_ns)
        return self._reply()

    def mapped(
        self, gfn: int, at_ns: int, access: Access = READ, vcpu: int = 0, vm: int = 0, work: int = 0
    ) -> Mapped:
        """A fault that must be answered Mapped."""
        reply = self.fault(gfn, at_ns, access, vcpu, vm, work)
        assert isinstance(reply, Mapped), reply
        return reply

    def in_progress(self, gfn: int, at_ns: int, access: Access = READ, vcpu: int = 0, work: int = 1) -> InProgress:
        """A NOWAIT fault that must be answered InProgress."""
        reply = self.fault(gfn, at_ns, access, vcpu, work=work)
        assert isinstance(reply, InProgress), reply
        return reply

    def prefault(self, gfn: int, at_ns: int, vcpu: int = 0, work: int = 1) -> HostReply:
        """The work item's page is ready."""
        self.effects = self.core.step(RequestTaken(0, vcpu, PrefaultRaised(gfn, work)), at_ns)
        return self._reply()

    def border(
        self,
        at_ns: int,
        accessed: list[int] | None = None,
        dirty: list[int] | None = None,
        zero: list[int] | None = None,
    ) -> list[HostEffect]:
        """A border."""
        self.effects = self.core.step(BorderReached(accessed or [], dirty or [], zero or []), at_ns)
        return self.effects

    def state(self, gfn: int) -> PageState:
        """Where a page of VM 0 is."""
        return PageState(self.core._mm.pages.state[gfn])

    def slot(self, gfn: int) -> int:
        """The slot of a page of VM 0."""
        return int(self.core._mm.pages.slot[gfn])

    def seen(self, kind: type[HostEffect]) -> list[HostEffect]:
        """The last step's effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def written(self) -> list[tuple[int, int]]:
        """Slot and frame of each page that the last step writes, all of it."""
        pairs = [number for effect in self.effects if isinstance(effect, WriteSlots) for number in effect.pairs]
        return list(zip(pairs[::2], pairs[1::2], strict=True))

    def entries(self, vm: int = 0) -> dict[int, int]:
        """What the last step changes in the EPT of ``vm``."""
        changed = [effect for effect in self.effects if isinstance(effect, RewriteEpt) and effect.vm == vm]
        assert len(changed) <= 1
        return changed[0].entries if changed else {}

    def _reply(self) -> HostReply:
        last = self.effects[-1]
        assert isinstance(last, Reply)
        return last.reply


def filled(policy: type[_Lists], count: int) -> tuple[_Lists, Pages, bytearray]:
    """A policy that has been given so many pages, one after the other."""
    pages, young = Pages((count,)), bytearray(count)
    made = policy(pages, young)
    for key in range(count):
        pages.pfn[key] = key
        made.add(key)
    return made, pages, young
