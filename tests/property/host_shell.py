"""A fake shell around the host core: tiny frames with real bytes, a naive model beside it, vCPUs that access pages.

It follows the shell's contract at its laziest: a write to swap takes the frame's bytes only when the contract
forces it to (the slot is read or written again, or the frame is refilled), so that a core which frees a frame or
a slot too early is caught with wrong bytes. It drops every private overlay at every border, also at those the
core is not stepped for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from apf.messages import (
    Access,
    FaultMode,
    FaultRaised,
    HostRequest,
    InProgress,
    Mapped,
    PrefaultRaised,
    Retry,
    Segment,
)
from hostd.core.config import HostConfig
from hostd.core.events import (
    BorderReached,
    ClearEpt,
    FillPages,
    HostEffect,
    ReadSlot,
    Reply,
    RequestTaken,
    SegmentsLoaded,
    SetEpt,
    WriteSlot,
    ZeroFrame,
)
from hostd.core.host import HostCore

ZERO = bytes(8)
ACCESS_NS = 100
STEPS_MAX = 200_000


@dataclass
class Vcpu:
    """One vCPU: what it still has to do, and the mappings only it has."""

    vm: int
    number: int
    clock_ns: int = 0
    queue: list[tuple[int, bool, bool]] = field(default_factory=list)
    overlay: dict[int, tuple[int, bool]] = field(default_factory=dict)
    promised: Mapped | None = None
    works: dict[int, tuple[int, int]] = field(default_factory=dict)


class FakeShell:
    """Runs accesses in order of time against a ``HostCore`` and compares every byte with the model."""

    def __init__(self, config: HostConfig) -> None:
        self.core = HostCore(config)
        self.frames = [b"rubbish!"] * config.frames
        self.slots: dict[int, bytes] = {}
        self.writes: list[WriteSlot] = []
        self.epts: list[dict[int, tuple[int, bool]]] = [{} for _ in config.vms]
        self.vcpus = [Vcpu(vm, number) for vm, one in enumerate(config.vms) for number in range(one.vcpus)]
        self.model: dict[tuple[int, int], bytes] = {}
        self.accessed: set[int] = set()
        self.dirty: set[int] = set()
        self.now_ns = 0
        self.border_ns = config.window_ns
        self.serial = 0
        self.token = 0
        self.check_each_step = True

    def load(self, vm: int, pages: int) -> None:
        """Populate the first ``pages`` pages of ``vm``."""
        segments = (Segment(0, pages),) if pages else ()
        for effect in self.core.step(SegmentsLoaded(vm, segments), self.now_ns):
            self._carry_out(effect)

    def enqueue(self, vcpu: int, gfn: int, write: bool, blocking: bool) -> None:
        """Let a vCPU access a page once it gets there."""
        one = self.vcpus[vcpu]
        if not one.queue and not one.works and one.promised is None:
            one.clock_ns = max(one.clock_ns, self.now_ns)
        one.queue.append((gfn, write, blocking))

    def run(self, steps: int) -> bool:
        """Take ``steps`` steps of whichever vCPU is earliest; False if there is nothing left to do."""
        for _ in range(steps):
            busy = [one for one in self.vcpus if one.queue or one.works or one.promised]
            if not busy:
                return False
            for one in busy:
                if not one.queue and one.promised is None:
                    one.clock_ns = max(one.clock_ns, min(ready for ready, _token in one.works.values()))
            earliest = min(busy, key=lambda one: (one.clock_ns, one.vm, one.number))
            if earliest.clock_ns >= self.border_ns:
                self._cross_border()
            else:
                self.now_ns = max(self.now_ns, earliest.clock_ns)
                self._advance(earliest)
        return True

    def drain(self) -> None:
        """Finish everything, then compare every page, wherever it is, with the model."""
        assert not self.run(STEPS_MAX), "no end to it: livelock"
        while self.writes:
            self._write(self.writes.pop(0))
        pages = self.core._mm.pages
        for (vm, gfn), value in self.model.items():
            key = pages.first_key[vm] + gfn
            found = self.frames[pages.pfn[key]] if pages.pfn[key] >= 0 else self._slot(pages.slot[key])
            assert found == value, f"VM {vm} gfn {gfn}: {found!r} instead of {value!r}\n{pages.story(key)}"

    def _slot(self, slot: int) -> bytes:
        return ZERO if self.core._mm.swap.is_zero(slot) else self.slots[slot]

    def _cross_border(self) -> None:
        for one in self.vcpus:
            one.overlay.clear()
        due_ns = self.core.border_due_ns()
        if due_ns is not None and due_ns <= self.border_ns:
            zero = [pfn for pfn in self.core.writes_ahead() if self.frames[pfn] == ZERO]
            event = BorderReached(sorted(self.accessed), sorted(self.dirty), zero)
            self.accessed.clear()
            self.dirty.clear()
            self._step(event, self.border_ns)
        self.now_ns = self.border_ns
        self.border_ns += self.core.config.window_ns

    def _step(self, event: BorderReached | RequestTaken, now_ns: int) -> list[HostEffect]:
        effects = self.core.step(event, now_ns)
        for effect in effects:
            self._carry_out(effect)
        if self.check_each_step:
            self.core.check()
        return effects

    def _advance(self, one: Vcpu) -> None:
        if one.promised is not None:
            one.overlay[one.promised.gfn] = (one.promised.pfn, one.promised.writable)
            one.promised = None
        for gfn, (ready_ns, token) in one.works.items():
            if ready_ns <= one.clock_ns:
                self._request(one, PrefaultRaised(gfn, token))
                return
        if not one.queue:
            return
        gfn, write, blocking = one.queue[0]
        mapping = self._translate(one, gfn, write)
        if mapping is not None:
            self._access(one, gfn, mapping, write)
        elif gfn in one.works:
            one.clock_ns = one.works[gfn][0]
        else:
            access = Access.WRITE if write else Access.READ
            self.token += 1
            mode = FaultMode.BLOCKING if blocking else FaultMode.NOWAIT
            self._request(one, FaultRaised(gfn, access, mode, 0 if blocking else self.token))

    def _translate(self, one: Vcpu, gfn: int, write: bool) -> int | None:
        for table in (one.overlay, self.epts[one.vm]):
            pfn, writable = table.get(gfn, (-1, False))
            if pfn >= 0 and (writable or not write):
                return pfn
        return None

    def _access(self, one: Vcpu, gfn: int, pfn: int, write: bool) -> None:
        page = (one.vm, gfn)
        found, wanted = self.frames[pfn], self.model.get(page, ZERO)
        assert found == wanted, f"{self.now_ns}: {page} in frame {pfn} holds {found!r} instead of {wanted!r}"
        self.accessed.add(pfn)
        if write:
            self.serial += 1
            self.frames[pfn] = self.model[page] = self.serial.to_bytes(8, "little")
            self.dirty.add(pfn)
        one.queue.pop(0)
        one.clock_ns += ACCESS_NS

    def _request(self, one: Vcpu, request: HostRequest) -> None:
        effects = self._step(RequestTaken(one.vm, one.number, request), one.clock_ns)
        last = effects[-1]
        assert isinstance(last, Reply) and (last.vm, last.vcpu) == (one.vm, one.number)
        reply = last.reply
        assert reply.at_ns > one.clock_ns, "a reply is later than its request"
        match reply:
            case Mapped():
                assert reply.gfn == request.gfn
                if isinstance(request, PrefaultRaised):
                    del one.works[request.gfn]
                one.promised = reply
            case Retry():
                assert reply.at_ns >= self.border_ns
            case InProgress():
                assert isinstance(request, FaultRaised) and reply.work == request.work
                one.works[request.gfn] = (reply.ready_at_ns, request.work)
        one.clock_ns = reply.at_ns

    def _carry_out(self, effect: HostEffect) -> None:
        match effect:
            case ZeroFrame(pfn):
                self._refill(pfn)
                self.frames[pfn] = ZERO
            case ReadSlot(slot, pfn):
                self._refill(pfn)
                self._settle_writes(slot=slot)
                assert not self.core._mm.swap.is_zero(slot), "zeros are not read"
                self.frames[pfn] = self.slots[slot]
            case WriteSlot(slot):
                self._settle_writes(slot=slot)
                self.writes.append(effect)
            case SetEpt(vm, gfn, pfn, writable):
                self.epts[vm][gfn] = (pfn, writable)
            case ClearEpt(vm, gfn):
                del self.epts[vm][gfn]
            case FillPages():
                self._fill(effect)
            case Reply():
                pass

    def _fill(self, effect: FillPages) -> None:
        for page, pfn in zip(effect.resident.tolist(), effect.pfns.tolist(), strict=True):
            self.frames[pfn] = self.model[effect.vm, effect.segment.gfn + page] = b"L%07d" % page
            self.epts[effect.vm][effect.segment.gfn + page] = (pfn, True)
        for page, slot in zip(effect.swapped.tolist(), effect.slots.tolist(), strict=True):
            self.slots[slot] = self.model[effect.vm, effect.segment.gfn + page] = b"L%07d" % page

    def _refill(self, pfn: int) -> None:
        users = [*self.epts, *(one.overlay for one in self.vcpus)]
        assert all(pfn != used for table in users for used, _writable in table.values()), f"frame {pfn} is mapped"
        promised = [one.promised.pfn for one in self.vcpus if one.promised]
        assert pfn not in promised, f"frame {pfn} is promised"
        self._settle_writes(pfn=pfn)

    def _settle_writes(self, slot: int = -1, pfn: int = -1) -> None:
        for write in [one for one in self.writes if one.slot == slot or one.pfn == pfn]:
            self._write(write)
            self.writes.remove(write)

    def _write(self, write: WriteSlot) -> None:
        self.slots[write.slot] = self.frames[write.pfn]
