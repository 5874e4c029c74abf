"""A fake shell around the host core: tiny frames with real bytes, a naive model beside it, vCPUs that access pages.

It follows the shell's contract at its laziest: a write to swap takes the frame's bytes only when the contract
forces it to (the slot is read or written again, or the frame is refilled), so that a core which frees a frame or
a slot too early is caught with wrong bytes. It drops every private overlay at every border, also at those the
core is not stepped for.

Writes that are torn or lost really are, and reads that fail bring nothing: the core must say of every read whether it
is good, and a page that is not must never be mapped. An access that cannot be had is given up.

After every step it looks at every page by itself (``Naive``): its bytes, wherever they are, are the model's; nobody else
has its frame or slot, as far as mappings tell; limits hold and nothing is lost. VMs leave and join at borders, and one
whose group is out of memory leaves, if it really is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from apf.core import CoreError
from apf.hostmem import EPT_WRITE
from apf.io_faults import IoFaultWish
from apf.messages import (
    PAGE_SHIFT,
    Access,
    Failed,
    FaultMode,
    FaultRaised,
    HostRequest,
    InProgress,
    Mapped,
    PageError,
    PrefaultRaised,
    Retry,
    Segment,
)
from hostd.core.config import HostConfig
from hostd.core.events import (
    BorderReached,
    ClearVm,
    FillPages,
    HostEffect,
    IoFaultArrived,
    ReadSlot,
    Reply,
    RequestTaken,
    RewriteEpt,
    SegmentsLoaded,
    VmLeft,
    WriteSlot,
    WriteSlots,
    ZeroFrame,
)
from hostd.core.host import HostCore
from hostd.core.io_faults import IoResult
from hostd.core.page import PageState

ZERO = bytes(8)
ACCESS_NS = 100
STEPS_MAX = 200_000


class Touch(NamedTuple):
    """An access to a page; ``zero``: it is written full of zeros."""

    gfn: int
    write: bool
    blocking: bool
    zero: bool = False


@dataclass
class Vcpu:
    """One vCPU: what it still has to do, and the mappings only it has."""

    vm: int
    number: int
    clock_ns: int = 0
    queue: list[Touch] = field(default_factory=list)
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
        self.bad_slots: set[int] = set()
        """Those whose last write was torn or lost."""
        self.wishes: list[IoFaultWish] = []
        self.may_fail = {failure.what for failure in config.failures}
        """What failures there have been, by name."""
        self.given_up = 0
        self.epts: list[dict[int, tuple[int, bool]]] = [{} for _ in config.vms]
        self.vcpus = [Vcpu(vm, number) for vm, one in enumerate(config.vms) for number in range(one.vcpus)]
        self.model: dict[tuple[int, int], bytes] = {}
        self.accessed: set[int] = set()
        self.dirty: set[int] = set()
        self.now_ns = 0
        self.border_ns = config.window_ns
        self.serial = 0
        self.token = 0
        self.check_every = 1
        """Look at everything after so many steps; 0: never."""
        self._steps = 0
        self.gone: set[int] = set()
        self.leaving: set[int] = set()
        self.joining: dict[int, int] = {}
        self.killed = 0
        self.is_intact = True
        """No step has been left half done by an assertion."""
        self.naive = Naive(self)

    def load(self, vm: int, pages: int) -> bool:
        """Populate the first ``pages`` pages of ``vm``; False if they do not fit into memory and swap."""
        segments = (Segment(0, pages),) if pages else ()
        try:
            effects = self.core.step(SegmentsLoaded(vm, segments), self.now_ns)
        except CoreError as error:
            if "swap.size is too small" not in str(error) or self.naive.free_slots() >= pages:
                raise
            return False
        for effect in effects:
            self._carry_out(effect)
        return True

    def fail(self, wish: IoFaultWish) -> None:
        """Let the device fail from the next border on."""
        self.wishes.append(wish)

    def leave(self, vm: int) -> None:
        """VM ``vm`` ends here and now, whatever it was doing, and leaves at the next border."""
        if vm in self.gone or vm in self.leaving:
            return
        self.leaving.add(vm)
        for one in self.vcpus:
            if one.vm == vm:
                one.queue.clear()
                one.works.clear()
                one.promised = None

    def join(self, vm: int, pages: int) -> None:
        """Another VM takes the place of ``vm``, which has left or is about to, once that is free."""
        if vm in self.gone or vm in self.leaving:
            self.joining[vm] = pages

    def enqueue(self, vcpu: int, gfn: int, write: bool, blocking: bool, zero: bool = False) -> None:
        """Let a vCPU access a page once it gets there; not one of a VM that is not there."""
        one = self.vcpus[vcpu]
        if one.vm in self.gone or one.vm in self.leaving:
            return
        if not one.queue and not one.works and one.promised is None:
            one.clock_ns = max(one.clock_ns, self.now_ns)
        one.queue.append(Touch(gfn, write, blocking, zero))

    def run(self, steps: int) -> bool:
        """Take ``steps`` steps of whichever vCPU is earliest; False if there is nothing left to do."""
        for _ in range(steps):
            busy = [one for one in self.vcpus if one.queue or one.works or one.promised]
            if not busy and not self.leaving:
                return False
            for one in busy:
                if not one.queue and one.promised is None:
                    one.clock_ns = max(one.clock_ns, min(ready for ready, _token in one.works.values()))
            earliest = min(busy, key=lambda one: (one.clock_ns, one.vm, one.number), default=None)
            if earliest is None or earliest.clock_ns >= self.border_ns:
                self._cross_border(self.border_ns if earliest is None else earliest.clock_ns)
            else:
                self.now_ns = max(self.now_ns, earliest.clock_ns)
                self._advance(earliest)
        return True

    def drain(self) -> None:
        """Finish everything, then compare every page, wherever it is, with the model."""
        self.check_every = 16 if self.check_every else 0
        assert not self.run(STEPS_MAX), "no end to it: livelock"
        while self.writes:
            self._write(self.writes.pop(0))
        self.naive.check()

    def is_lost(self, key: int) -> bool:
        """Whether page ``key``'s bytes are nowhere any more, but for what a torn or lost write has left."""
        pages = self.core._mm.pages
        there = pages.pfn[key] >= 0 and key not in self.core._mm.damage.pages
        return not there and pages.slot[key] in self.bad_slots

    def slot_bytes(self, slot: int) -> bytes:
        """What would be read from ``slot`` now, were the last write to it done."""
        if self.core._mm.swap.is_zero(slot):
            return ZERO
        pending = [write for write in self.writes if write.slot == slot]
        return self.frames[pending[-1].pfn] if pending else self.slots[slot]

    def _cross_border(self, next_ns: int) -> None:
        """Do the border's work, and open the window in which somebody goes on, at ``next_ns``."""
        for one in self.vcpus:
            one.overlay.clear()
        due_ns = self.core.border_due_ns()
        if self.leaving or (due_ns is not None and due_ns <= self.border_ns):
            zero = [pfn for pfn in self.core.writes_ahead() if self.frames[pfn] == ZERO]
            event = BorderReached(sorted(self.accessed), sorted(self.dirty), zero)
            self.accessed.clear()
            self.dirty.clear()
            self._step(event, self.border_ns)
        self.now_ns = self.border_ns
        for vm in sorted(self.leaving):
            self._leave(vm)
        for vm in sorted(self.joining):
            self._join(vm)
        for wish in self.wishes:
            self.core.step(IoFaultArrived(wish), self.border_ns)
            self.may_fail.add(wish.what)
        self.wishes.clear()
        self.border_ns = (next_ns // self.core.config.window_ns + 1) * self.core.config.window_ns

    def _leave(self, vm: int) -> None:
        for effect in self.core.step(VmLeft(vm), self.border_ns):
            self._carry_out(effect)
        self.leaving.discard(vm)
        self.gone.add(vm)
        self.model = {page: value for page, value in self.model.items() if page[0] != vm}
        self.naive.check()
        self.core.check()

    def _join(self, vm: int) -> None:
        if vm in self.leaving or self.core.gone_ns(vm) > self.border_ns:
            return
        pages = self.joining.pop(vm)
        if self.load(vm, pages) or self.load(vm, 0):
            self.gone.discard(vm)

    def _step(self, event: BorderReached | RequestTaken, now_ns: int) -> list[HostEffect]:
        self.is_intact = False
        effects = self.core.step(event, now_ns)
        for effect in effects:
            self._carry_out(effect)
        self._steps += 1
        if self.check_every and self._steps % self.check_every == 0:
            self.core.check()
            self.naive.check()
        self.is_intact = True
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
        gfn, write, blocking, zero = one.queue[0]
        mapping = self._translate(one, gfn, write)
        if mapping is not None:
            self._access(one, gfn, mapping, write, zero)
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

    def _access(self, one: Vcpu, gfn: int, pfn: int, write: bool, zero: bool) -> None:
        page = (one.vm, gfn)
        found, wanted = self.frames[pfn], self.model.get(page, ZERO)
        assert found == wanted, f"{self.now_ns}: {page} in frame {pfn} holds {found!r} instead of {wanted!r}"
        self.accessed.add(pfn)
        if write:
            self.serial += 1
            self.frames[pfn] = self.model[page] = ZERO if zero else self.serial.to_bytes(8, "little")
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
            case Failed(error=PageError.OUT_OF_MEMORY):
                self.naive.assert_out_of_memory(one.vm)
                self.killed += 1
                self.leave(one.vm)
            case Failed():
                assert self.core.lost(one.vm, np.array([reply.gfn]))[0] == reply.error
                assert reply.gfn == request.gfn and self.may_fail & {"read_error", "torn_write", "lost_write"}
                self._give_up(one, request)
            case InProgress():
                assert isinstance(request, FaultRaised) and reply.work == request.work
                one.works[request.gfn] = (reply.ready_at_ns, request.work)
        one.clock_ns = reply.at_ns

    def _give_up(self, one: Vcpu, request: HostRequest) -> None:
        """The task that touched the page is killed, or as good as that."""
        if isinstance(request, PrefaultRaised):
            del one.works[request.gfn]
        while one.queue and one.queue[0].gfn == request.gfn:
            one.queue.pop(0)
            self.given_up += 1

    def _carry_out(self, effect: HostEffect) -> None:
        match effect:
            case ZeroFrame(pfn):
                self._refill(pfn)
                self.frames[pfn] = ZERO
            case ReadSlot(slot, pfn, damaged):
                self._refill(pfn)
                self._settle_writes(slot=slot)
                assert damaged == (slot in self.bad_slots), f"slot {slot}: the core says damaged: {damaged}"
                assert not self.core._mm.swap.is_zero(slot), "zeros are not read"
                self.frames[pfn] = self.slots[slot]
            case WriteSlots(pairs):
                for slot, pfn in zip(pairs[::2], pairs[1::2], strict=True):
                    self._settle_writes(slot=slot)
                    self.writes.append(WriteSlot(slot, pfn, IoResult.OK))
                    self.bad_slots.discard(slot)
            case WriteSlot(slot):
                self._settle_writes(slot=slot)
                self.writes.append(effect)
                self.bad_slots.add(slot)
            case RewriteEpt(vm, entries):
                for gfn, entry in entries.items():
                    if entry:
                        self.epts[vm][gfn] = (entry >> PAGE_SHIFT, bool(entry & EPT_WRITE))
                    else:
                        del self.epts[vm][gfn]
            case FillPages():
                self._fill(effect)
            case ClearVm(vm):
                self.epts[vm].clear()
            case Reply():
                pass

    def _fill(self, effect: FillPages) -> None:
        for page, pfn in zip(effect.resident.tolist(), effect.pfns.tolist(), strict=True):
            self._refill(pfn)
            self.frames[pfn] = self.model[effect.vm, effect.segment.gfn + page] = b"L%07d" % page
            self.epts[effect.vm][effect.segment.gfn + page] = (pfn, True)
        for page, slot in zip(effect.swapped.tolist(), effect.slots.tolist(), strict=True):
            self._settle_writes(slot=slot)
            self.bad_slots.discard(slot)
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
        value, old = self.frames[write.pfn], self.slots.get(write.slot, b"rubbish!")
        match write.result:
            case IoResult.OK:
                self.slots[write.slot] = value
            case IoResult.TORN:
                self.slots[write.slot] = value[:4] + old[4:]
            case IoResult.LOST:
                self.slots[write.slot] = old


class Naive:
    """Counts by going through all pages, one by one."""

    def __init__(self, shell: FakeShell) -> None:
        self.shell = shell
        config = shell.core.config
        self.frames, self.slots = config.frames, config.slots

    def check(self) -> None:
        """Every page's bytes, everybody's share."""
        shell, mm = self.shell, self.shell.core._mm
        pages, swap = mm.pages, mm.swap
        owners: dict[int, int] = {}
        slots: dict[int, int] = {}
        for vm, config in enumerate(shell.core.config.vms):
            first, charged = pages.first_key[vm], 0
            for gfn in range(config.guest_pages):
                key = first + gfn
                pfn, slot, state = pages.pfn[key], pages.slot[key], PageState(pages.state[key])
                if pfn >= 0:
                    assert owners.setdefault(pfn, key) == key, f"frame {pfn} is shared"
                if slot >= 0:
                    assert slots.setdefault(slot, key) == key, f"slot {slot} is shared"
                charged += state in (PageState.RESIDENT, PageState.CACHED, PageState.READING)
                if (vm, gfn) in shell.model and not shell.is_lost(key):
                    there = pfn >= 0 and key not in mm.damage.pages
                    found = shell.frames[pfn] if there else shell.slot_bytes(slot) if slot >= 0 else b"nothing"
                    wanted = shell.model[vm, gfn]
                    assert found == wanted, f"VM {vm} gfn {gfn}: {found!r}, not {wanted!r}\n{pages.story(key)}"
            assert charged == mm.groups[vm].usage <= config.limit_pages, f"VM {vm}: memory.current, memory.max"
        used = sum(slot < self.slots for slot in slots)
        assert used == swap.in_use <= swap.total == self.slots, "slots in use are those that pages have"
        assert sum(swap.is_used(slot) for slot in range(self.slots)) == used, "a slot is lost"
        assert len(owners) + len(mm.frames.free) == self.frames, "a frame is lost"
        self._check_mappings(owners)

    def _check_mappings(self, owners: dict[int, int]) -> None:
        """Whoever can reach a frame reaches the page that has it."""
        shell, first_key = self.shell, self.shell.core._mm.pages.first_key
        tables = list(enumerate(shell.epts)) + [(one.vm, one.overlay) for one in shell.vcpus]
        for vm, table in tables:
            if vm not in shell.gone:
                for gfn, (pfn, _writable) in table.items():
                    assert owners.get(pfn) == first_key[vm] + gfn, f"VM {vm} gfn {gfn} maps frame {pfn}"
        for one in shell.vcpus:
            if one.promised is not None:
                promised = one.promised
                assert owners.get(promised.pfn) == first_key[one.vm] + promised.gfn, f"promised: {promised}"

    def free_slots(self) -> int:
        """Slots that nobody uses."""
        swap = self.shell.core._mm.swap
        return sum(not swap.is_used(slot) for slot in range(self.slots))

    def assert_out_of_memory(self, vm: int) -> None:
        """Nothing that would help VM ``vm`` can be reclaimed, now or when what is under way is over."""
        mm = self.shell.core._mm
        if "write_error" in self.shell.may_fail and mm.groups[vm].unwritten:
            return  # none of its writes has been done for a long time
        config = self.shell.core.config.vms[vm]
        full = mm.groups[vm].usage >= config.limit_pages
        for other in [vm] if full else range(len(self.shell.core.config.vms)):
            assert other in self.shell.gone or not self._helps(other), f"VM {vm} is killed, and VM {other} has pages"

    def _helps(self, vm: int) -> bool:
        mm = self.shell.core._mm
        first = mm.pages.first_key[vm]
        for key in range(first, first + self.shell.core.config.vms[vm].guest_pages):
            state = PageState(mm.pages.state[key])
            if state in (PageState.EVICTING, PageState.WRITEBACK, PageState.READING) or mm.pages.pins[key]:
                return True
            held = state in (PageState.RESIDENT, PageState.CACHED)
            free = self.free_slots() and not mm.io_faults.is_swap_full(self.shell.core.now_ns)
            if held and (mm.pages.slot[key] >= 0 or free or mm.backings[vm].fixed_place):
                return True
        return False
