"""I/O of pages: submitted to the device, completed, or failed; and pages of zeros, which need none.

Follows mm/page_io.c. What an I/O comes to, and when, is settled as it is submitted (``device``, ``io_faults``), and
takes effect when it completes. A read's completion does no more than unlock the page (__end_swap_bio_read), and is
carried out where the agenda is (``mm``); a write's (end_swap_bio_write) is here. A failure is counted, and told to the
host's operator.

A page of zeros keeps its slot, and is neither written (swap_zeromap_folio_set) nor read (swap_read_folio_zeromap).

Departures: a page of zeros, or one that a synchronous device writes, is not under writeback any more when pageout comes
back, and shrink_folio_list frees it in the same scan; here it is put next in line as if a write had ended. What such a
device takes to write is no vCPU's time. If a page is written to while it is under writeback, its slot is freed when the
write ends; in the kernel it stays in the swap cache, and is written to that slot again. zswap's I/O is counted as pswpin
and pswpout, not as zswpin and zswpout.
"""

from __future__ import annotations

from collections import Counter
from heapq import heappush

from apf.core import CoreError
from apf.histogram import Histogram
from apf.io_faults import IoFaultWish
from hostd.core.device import Carry, Device, MeasuredDevice, Op
from hostd.core.events import ReadSlot
from hostd.core.io_faults import Failure, IoResult, chances
from hostd.core.page import (
    DIRTY,
    READ_DONE,
    READ_SUBMITTED,
    RELEASED,
    WRITE_DONE,
    WRITE_FAILED,
    WRITE_PUT_OFF,
    WRITEBACK,
    WRITING,
)
from hostd.core.state import MmState, Own

_FAILURES = {
    (Op.READ, IoResult.ERROR): "swap_read_error",
    (Op.READ, IoResult.CHECKSUM): "swap_checksum_error",
    (Op.WRITE, IoResult.ERROR): "swap_write_error",
    (Op.WRITE, IoResult.TORN): "swap_torn_write",
    (Op.WRITE, IoResult.LOST): "swap_lost_write",
}
"""What an I/O that fails counts as."""
# Bound once, as in ``page``.
_ON_READ, _ON_WRITE = Own.READ_DONE, Own.WRITE_DONE
_READ, _WRITE = Op
_CLEAN, _WRITTEN = 0xFF & ~DIRTY, 0xFF & ~WRITING
_OK, _ERROR = IoResult.OK, IoResult.ERROR


class PageIo:
    """The device of one host, and its I/O."""

    __slots__ = (
        *("_device", "_is_measured", "_mm", "_read_fails", "_times", "_write_fails"),
        *("failed_ios", "write_failed"),
    )

    def __init__(self, mm: MmState, carry: Carry | None = None) -> None:
        config = mm.config
        if config.profile.measured and carry is None:
            raise CoreError(f"device {config.profile.name!r} is a real one, and nobody carries its I/O out")
        self._mm = mm
        self._read_fails, self._write_fails = chances(config.profile.errors, config.seed)
        served = mm.io_faults.served if config.failures else None
        self._device: Device | MeasuredDevice
        if carry is not None:
            self._device = MeasuredDevice(carry, served)
        else:
            self._device = Device(config.profile, config.seed, served)
        self._is_measured = carry is not None
        self.write_failed: set[int] = set()
        """Pages whose write is under way and will fail."""
        self.failed_ios: Counter[tuple[Op, IoResult]] = Counter()
        """I/Os submitted so far that come to anything but OK."""
        # Not journaled and never asked by the core: for whoever watches.
        self._times: list[tuple[Histogram, list[int]]] = [(Histogram(), []) for _ in Op]
        """By Op: how long I/Os took, and what is not counted yet. Pairs are replaced, not changed: see ``times``."""

    def settle_figures(self) -> None:
        """Count what has been submitted since this was called last."""
        for op in Op:
            if self._times[op][1]:
                self._times[op] = (self.times(op), [])

    def times(self, op: Op) -> Histogram:
        """From arrival to completion, of all I/Os submitted so far.

        Another thread may ask at any moment: it counts in a copy and changes nothing.
        """
        counted, took_ns = self._times[op]
        histogram = Histogram(list(counted.cells))
        histogram.observe_all(took_ns.copy())
        return histogram

    def submit_read(self, key: int, vm: int, arrival_ns: int, now_ns: int, what: str = "read") -> ReadSlot | None:
        """Submit the read of page ``key``, ``what`` in the journal, to its frame; None: the device moves nothing."""
        mm = self._mm
        pages, damage = mm.pages, mm.damage
        slot, pfn, gfn = pages.slot[key], pages.pfn[key], key - pages.first_key[vm]
        start_ns, done_ns = self._device.submit(_READ, slot, arrival_ns, pfn)
        if self._is_measured:
            self._note_measured(_READ, slot, now_ns)
        self._times[_READ][1].append(done_ns - arrival_ns)
        result, by_chance = _OK, self._read_fails()
        if by_chance or mm.io_faults.is_counting:
            result = mm.io_faults.result(_READ, vm, gfn, slot, now_ns, by_chance)
        if result is not _OK or damage.slots or damage.pages:
            result = damage.read(key, slot, result, done_ns)
        pages.move(key, READ_SUBMITTED, now_ns)
        mm.reads[key] = done_ns
        mm.order = order = mm.order + 1
        heappush(mm.agenda, (done_ns, order, _ON_READ, key, vm, False))
        if mm.swapping[vm]:
            mm.groups[vm].stat["pswpin"] += 1
        mm.journal.record((now_ns, what, vm, gfn, slot, pfn, arrival_ns, start_ns, done_ns))
        if result is _OK:
            return ReadSlot(slot, pfn)
        self._note_failure(_READ, result, vm, gfn, slot, done_ns, now_ns)
        return None if result is _ERROR else ReadSlot(slot, pfn, True)

    def read_zeros(self, key: int, vm: int, now_ns: int) -> None:
        """Page ``key``, which is all zeros in swap and has its frame, is in the swap cache at once, and nobody's yet."""
        mm = self._mm
        mm.pages.move(key, READ_SUBMITTED, now_ns)
        mm.pages.move(key, READ_DONE, now_ns)
        mm.groups[vm].stat["swpin_zero"] += 1
        mm.settle(key, vm, now_ns)

    def submit_write(self, key: int, vm: int, now_ns: int) -> IoResult:
        """Submit the write of page ``key``'s frame to its slot; returns what it will come to."""
        mm = self._mm
        pages, damage, group = mm.pages, mm.damage, mm.groups[vm]
        stat = group.stat
        slot, pfn, gfn = pages.slot[key], pages.pfn[key], key - pages.first_key[vm]
        start_ns, done_ns = self._device.submit(_WRITE, slot, now_ns, pfn)
        if self._is_measured:
            self._note_measured(_WRITE, slot, now_ns)
        self._times[_WRITE][1].append(done_ns - now_ns)
        result, by_chance = _OK, self._write_fails()
        if by_chance or mm.io_faults.is_counting:
            result = mm.io_faults.result(_WRITE, vm, gfn, slot, now_ns, by_chance)
        if result is not _OK or damage.slots:
            damage.written(slot, result)
            if result is _ERROR:
                self.write_failed.add(key)
        pages.flags[key] = pages.flags[key] & _CLEAN | WRITING
        mm.swap.zero[slot] = 0
        pages.pins[key] += 1
        group.pinned += 1
        mm.order = order = mm.order + 1
        heappush(mm.agenda, (done_ns, order, _ON_WRITE, key, vm, False))
        if mm.swapping[vm]:
            stat["pswpout"] += 1
        stat["nr_vmscan_write"] += 1
        mm.journal.record((now_ns, "write", vm, gfn, slot, pfn, start_ns, done_ns))
        if result is not _OK:
            self._note_failure(_WRITE, result, vm, gfn, slot, done_ns, now_ns)
        return result

    def write_zeros(self, key: int, vm: int, now_ns: int) -> None:
        """Page ``key``, on its way out, is all zeros: its slot says so, and that is all (swap_zeromap_folio_set)."""
        mm, pages = self._mm, self._mm.pages
        pages.flags[key] &= ~DIRTY
        mm.swap.set_zero(pages.slot[key], True)
        mm.damage.written(pages.slot[key], IoResult.OK)
        stat = mm.groups[vm].stat
        stat["swpout_zero"] += 1
        stat["nr_vmscan_write"] += 1  # without I/O too: mm/vmscan.c:pageout
        mm.journal.record((now_ns, "write_zeros", vm, key - pages.first_key[vm], pages.slot[key]))
        self.write_done(key, vm, now_ns)

    def write_done(self, key: int, vm: int, at_ns: int) -> None:
        """The slot holds the frame's bytes: the page is clean and, unless a fault has taken it back, next to go.

        See ``page``: it is charged again if there is room, in the group and on the host, and freed at once if not.
        """
        mm = self._mm
        pages, group = mm.pages, mm.groups[vm]
        was = pages.flags[key]
        pages.flags[key] = was & _WRITTEN
        if self.write_failed and key in self.write_failed:
            self.write_failed.remove(key)
            self._write_undone(key, vm, at_ns)
            return
        group.unwritten = 0
        if pages.state[key] == WRITEBACK:
            pages.move(key, WRITE_DONE, at_ns)
            if vm in mm.left:
                pages.move(key, RELEASED, at_ns)
                mm.release_frame(key)
            elif group.usage < group.limit and len(mm.frames.free) > mm.watermarks.high:
                group.usage += 1
                group.lists.add_tail(key)
                if was & WRITING:  # a page of zeros never is
                    group.stat["pgrotated"] += 1
            else:
                pages.move(key, RELEASED, at_ns)
                mm.forget_frames((key,), group)
                # Of whom it was taken: of kswapd if only the host is short of memory.
                group.stat["pgsteal_kswapd" if group.usage < group.limit else "pgsteal_direct"] += 1
        elif was & DIRTY:
            mm.free_slot(key, vm)

    def _write_undone(self, key: int, vm: int, at_ns: int) -> None:
        """end_swap_bio_write: the page is dirty as before, and stays in memory."""
        mm = self._mm
        pages, group = mm.pages, mm.groups[vm]
        group.unwritten += 1
        gfn, slot = key - pages.first_key[vm], pages.slot[key]
        mm.log.alert("write error", f"Write-error on swap-device: slot {slot}, gfn {gfn:#x} of VM {vm}", at_ns)
        pages.flags[key] |= DIRTY
        if pages.state[key] != WRITEBACK:
            mm.free_slot(key, vm)
        elif vm in mm.left:
            pages.move(key, WRITE_FAILED, at_ns)
            group.usage += 1  # which free_page takes away
        elif group.usage < group.limit and len(mm.frames.free) > mm.watermarks.min:
            pages.move(key, WRITE_FAILED, at_ns)
            group.usage += 1
            group.lists.add(key)
        else:
            pages.move(key, WRITE_PUT_OFF, at_ns)
            mm.evicting[key] = vm

    def _note_measured(self, op: Op, slot: int, now_ns: int) -> None:
        assert isinstance(self._device, MeasuredDevice)
        self._mm.journal.record((now_ns, "measured", op.name.lower(), slot, self._device.took_ns))

    def _note_failure(
        self, op: Op, result: IoResult, vm: int, gfn: int, slot: int, done_ns: int, now_ns: int
    ) -> None:
        """An I/O that was submitted will fail, or will have failed without anybody's noticing."""
        mm = self._mm
        self.failed_ios[op, result] += 1
        mm.groups[vm].stat[_FAILURES[op, result]] += 1
        mm.journal.record((now_ns, "io_failed", vm, gfn, slot, op.name, result.name, done_ns))
        if op is Op.READ:
            what = "Read-error on swap-device"
            if result is IoResult.CHECKSUM:
                what = f"Wrong checksum on swap-device ({mm.damage.slots[slot].words})"
            mm.log.alert("read error", f"{what}: slot {slot}, gfn {gfn:#x} of VM {vm}", done_ns)

    def fail_ios(self, wish: IoFaultWish, now_ns: int) -> None:
        """An operator lets the device fail from now on."""
        mm = self._mm
        mm.io_faults.add(Failure.of(wish, now_ns))
        self._device.serve_by(mm.io_faults.served)
        about = (wish.nth, wish.count, wish.vm, wish.gfn, wish.slot, wish.for_ns, wish.io, wish.factor, wish.add_ns)
        mm.journal.record((now_ns, "io_fault", wish.what, *about))
