"""Carries out what the host core decides: on the frames and EPTs in shared memory, and on the swap file.

Used by the daemon and by the twin alike; neither gRPC nor clocks come in here.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import assert_never

import numpy as np
import numpy.typing as npt
from numba import carray, njit

from apf.hostmem import HostMemory, ept_entry
from apf.io_faults import IoFaultWish
from apf.messages import PAGE_SIZE, HostReply, HostRequest, PageError, Segment
from apf.native import pointer_u8, pointer_u64
from apf.process import Failure
from hostd.contents import Audit, fill
from hostd.core.events import (
    BorderReached,
    ClearVm,
    FillPages,
    HostEffect,
    IoFaultArrived,
    Pfns,
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
from hostd.core.frames import FEW
from hostd.core.host import HostCore
from hostd.core.io_faults import IoResult
from hostd.swapfile import SwapFile

log = logging.getLogger(__name__)
_BULK_PAGES = 512
"""Pages handled at once: 2 MiB, which stay in a core's cache between two passes over them."""


class SwapCorrupted(Failure):
    """The swap file does not have what was written to it, and nobody asked for that."""


class HostShell:
    """The core with its memory. Not thread-safe: the caller holds a lock or has one thread."""

    def __init__(self, core: HostCore, memory: HostMemory, swap: SwapFile) -> None:
        assert core.config.frames == memory.geometry.frames
        self.core = core
        self._memory = memory
        self._address = memory.address
        # What single entries are looked up in: an item of an array of numpy costs twice that of a memoryview.
        self._generation = memory.generation.data
        self._epts = [ept.data for ept in memory.epts]
        self.swap = swap
        self._loaded: dict[int, tuple[Segment, ...]] = {}
        frames = memory.geometry.frames
        self._found = np.empty(2 * frames, np.int64)
        at = [int(one.ctypes.data) for one in (memory.accessed, memory.dirty, self._found)]
        self._take_used = partial(_take_used, at[0], at[1], frames, at[2])
        self._audited = Audit()
        self.on_use: Callable[[int, npt.NDArray[np.int64]], None] | None = None
        """Told at each border that has work of the frames used since the last one, ascending."""
        self._lines = core.told
        self._told = 0

    def load(self, vm: int, segments: tuple[Segment, ...], now_ns: int = 0) -> None:
        """Fill a VM's memory: before window 0, or at the border at which it joins."""
        self._carry_out(self.core.step(SegmentsLoaded(vm, segments), now_ns))
        self.swap.settle()
        self._loaded[vm] = segments

    def leave(self, vm: int, now_ns: int, intact: bool = True) -> None:
        """VM ``vm`` leaves at a border, whose own work is done. ``intact``: its vCPUs ended well, so audit its pages."""
        segments = self._loaded.pop(vm)
        if intact:
            self._audit_vm(self._audited, vm, segments)
        self._carry_out(self.core.step(VmLeft(vm), now_ns))

    def fail_ios(self, wish: IoFaultWish, now_ns: int) -> None:
        """An operator lets the device fail, from the border at ``now_ns`` on."""
        self._carry_out(self.core.step(IoFaultArrived(wish), now_ns))

    def take(self, vm: int, vcpu: int, request: HostRequest, now_ns: int) -> HostReply:
        """Answer a vCPU's request, whose turn it is."""
        reply = self._carry_out(self.core.step(RequestTaken(vm, vcpu, request), now_ns))
        assert reply is not None
        return reply

    def border(self, now_ns: int) -> None:
        """All vCPUs stand at the border: fold what they used, let the core work, rewrite the EPT."""
        used, written = self._take_used()
        found, both = self._found, used + written
        accessed: Pfns
        dirty: Pfns
        if both <= FEW:  # as plain integers, which plain loops are for
            numbers = found[:both].tolist()
            accessed, dirty = numbers[:used], numbers[used:]
        else:
            accessed, dirty = found[:used].copy(), found[used:both].copy()
        if self.on_use is not None:
            self.on_use(now_ns, np.asarray(accessed, np.int64))
        zero: Sequence[int] = ()
        if ahead := self.core.writes_ahead():
            table = array("q", ahead)
            zero = table[: _take_zero(self._address, table.buffer_info()[0], len(table))]
        self._carry_out(self.core.step(BorderReached(accessed, dirty, zero), now_ns))

    def audit(self) -> Audit:
        """Check the stamps of every page of every VM, wherever it is, also of VMs when they left. Changes nothing."""
        audit = deepcopy(self._audited)
        for vm, segments in self._loaded.items():
            self._audit_vm(audit, vm, segments)
        return audit

    def _audit_vm(self, audit: Audit, vm: int, segments: tuple[Segment, ...]) -> None:
        for segment in segments:
            for first in range(0, segment.pages, _BULK_PAGES):
                numbers = np.arange(first, min(first + _BULK_PAGES, segment.pages), dtype=np.int64)
                if segment.stamps:
                    self._audit_pages(audit, vm, segment, numbers)

    def _audit_pages(self, audit: Audit, vm: int, segment: Segment, numbers: npt.NDArray[np.int64]) -> None:
        pfns, slots = self.core.locate(vm, numbers + segment.gfn)
        why = self.core.lost(vm, numbers + segment.gfn)
        audit.lost.update(PageError(error).name.lower() for error in why[why > 0].tolist())
        audit.pages += int((why > 0).sum())
        numbers, pfns, slots = numbers[why == 0], pfns[why == 0], slots[why == 0]
        held = pfns >= 0
        audit.take(segment, numbers[held], self._memory.frames[pfns[held]])
        swapped = ~held & (slots >= 0)
        zero = swapped & self.core.zero_slots(slots)
        audit.take(segment, numbers[zero], np.zeros((int(zero.sum()), self._memory.frames.shape[1]), np.uint8))
        read = swapped & ~zero
        order = np.argsort(slots[read], kind="stable")
        audit.take(segment, numbers[read][order], *self.swap.read_many(slots[read][order]))
        if segment.demand_zero:  # what is nowhere was never touched, or lacks in the sum of writes
            return
        lost = int((~held & ~swapped).sum())
        audit.pages += lost
        audit.corrupt += lost

    def _carry_out(self, effects: list[HostEffect]) -> HostReply | None:
        # In the order of how often they come, and not by match: see ``apf.core.message``.
        reply = None
        for effect in effects:
            if type(effect) is Reply:
                reply = effect.reply
            elif type(effect) is ReadSlot:
                self._read(effect)
            elif type(effect) is RewriteEpt:
                ept = self._epts[effect.vm]
                for gfn, entry in effect.entries.items():
                    ept[gfn] = entry
            elif type(effect) is WriteSlots:
                self.swap.write_all(effect.pairs, self._address)
            elif type(effect) is WriteSlot:
                self._write_badly(effect)
            elif type(effect) is ZeroFrame:
                self._memory.frames[effect.pfn] = 0
                self._generation[effect.pfn] += 1
            elif isinstance(effect, FillPages):
                self._fill_pages(effect)
            elif isinstance(effect, ClearVm):
                self._memory.epts[effect.vm][:] = 0
            else:
                assert_never(effect)
        if len(self._lines) > self._told:
            for line in self._lines[self._told :]:
                log.warning("%s", line)
            self._told = len(self._lines)
        return reply

    def _read(self, effect: ReadSlot) -> None:
        """A slot's bytes, which must be those of its last write exactly if the core says so."""
        slot, pfn = effect.slot, effect.pfn
        wrong = self.swap.read_to(slot, self._address + pfn * PAGE_SIZE)
        self._generation[pfn] += 1
        if wrong and not effect.damaged:
            vm, gfn = self.core.owner_of(pfn)
            raise SwapCorrupted(f"{self.swap.path}: slot {slot}, which has gfn {gfn:#x} of VM {vm}: {wrong}")
        assert wrong or not effect.damaged, f"slot {slot} was damaged when it was written, and its checksum is right"

    def _write_badly(self, effect: WriteSlot) -> None:
        frame = self._memory.frames[effect.pfn]
        match effect.result:
            case IoResult.TORN:
                self.swap.tear(effect.slot, frame)
            case IoResult.LOST:
                self.swap.lose(effect.slot, frame)
            case _:
                raise AssertionError(f"{effect}: such a write moves nothing")

    def _fill_pages(self, effect: FillPages) -> None:
        """Generate pages in bulk: swapped ones into the file, resident ones into frames and the EPT."""
        memory, segment = self._memory, effect.segment
        scratch = np.empty((_BULK_PAGES, memory.frames.shape[1]), np.uint8)
        for first in range(0, len(effect.swapped), _BULK_PAGES):
            numbers = effect.swapped[first : first + _BULK_PAGES]
            slots = effect.slots[first : first + _BULK_PAGES]
            pages = scratch[: len(numbers)]
            fill(segment, numbers, pages)
            for run in np.split(np.arange(len(slots)), np.flatnonzero(np.diff(slots) != 1) + 1):
                if len(run):
                    self.swap.write_run(int(slots[run[0]]), pages[run[0] : run[-1] + 1])
        for first in range(0, len(effect.resident), _BULK_PAGES):
            numbers = effect.resident[first : first + _BULK_PAGES]
            pfns = effect.pfns[first : first + _BULK_PAGES]
            pages = scratch[: len(numbers)]
            fill(segment, numbers, pages)
            memory.frames[pfns] = pages
            memory.generation[pfns] += 1
            entries = pfns.astype(np.uint64) << np.uint64(12) | np.uint64(ept_entry(0, True))
            memory.epts[effect.vm][segment.gfn + numbers] = entries


# Natively, and with addresses for arrays: an array costs half a microsecond to hand over.


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def _take_zero(frames_at: int, pfns_at: int, count: int) -> int:
    """Moves those of ``count`` frame numbers to the front whose pages are all zeros; how many there are.

    Most pages say no with their first words.
    """
    pfns = carray(pointer_u64(pfns_at), count)
    found = 0
    for nth in range(count):
        words = carray(pointer_u64(frames_at + np.int64(pfns[nth]) * PAGE_SIZE), PAGE_SIZE // 8)
        for word in words:
            if word:
                break
        else:
            pfns[found] = pfns[nth]
            found += 1
    return found


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def _take_set(flags_at: int, count: int, found_at: int) -> int:
    """How many of ``count`` bytes are set; clears them. Their numbers, ascending, go to ``found_at``, 64 bits each."""
    flags, found = carray(pointer_u8(flags_at), count), carray(pointer_u64(found_at), count)
    taken = 0
    # Eight at a time: most are clear.
    words = carray(pointer_u64(flags_at), count // 8)
    for group in range(len(words)):
        if words[group]:
            for number in range(group * 8, group * 8 + 8):
                if flags[number]:
                    flags[number] = 0
                    found[taken] = number
                    taken += 1
    for number in range(len(words) * 8, count):
        if flags[number]:
            flags[number] = 0
            found[taken] = number
            taken += 1
    return taken


@njit("UniTuple(int64, 2)(int64, int64, int64, int64)", cache=True, nogil=True)
def _take_used(accessed_at: int, dirty_at: int, frames: int, found_at: int) -> tuple[int, int]:
    """The frames that were used, and behind them at ``found_at`` those that were written; how many of each."""
    used = _take_set(accessed_at, frames, found_at)
    return used, _take_set(dirty_at, frames, found_at + 8 * used)
