"""The state all parts of the host's mm work on, and the few things done to it from more than one part.

Time of the core's own events: what will happen by itself (a read completes, a mapping takes effect, the fault-in
worker is done, a write completes) waits in ``agenda``, a heap by time and order of scheduling, and is carried out
before anything else of the same time. ``run_until`` does that. None of these events has an effect for the shell:
everything that others wait for was settled when the event was scheduled.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum
from heapq import heappop, heappush

from apf.core import CoreError
from apf.histogram import Histogram
from apf.journal import Journal
from hostd.core.config import HostConfig
from hostd.core.device import Device, Op
from hostd.core.frames import Frames
from hostd.core.group import SWAP_CLUSTER_MAX, MemoryGroup
from hostd.core.page import CHARGED, DIRTY, LRU, WRITING, PageEvent, Pages, PageState
from hostd.core.pressure import Pressure
from hostd.core.swap import SwapArea

FRUITLESS_BORDERS_MAX = 1000
REFUSED = -1

COUNTERS = (
    *("pf_taken", "pf_fixed", "pgfault", "pgmajfault", "pswpin", "pswpout"),
    *("pgscan_direct", "pgsteal_direct", "pgrefill", "pgdeactivate", "pgactivate", "allocstall"),
    *("swap_cache_hit", "zero_fill", "wp_fault", "read_wait", "eviction_cancelled", "swap_dropped_clean"),
    *("kvm_try_async_get_page", "kvm_async_pf_completed", "prefault", "prefault_sync", "retry", "border"),
)


class Own(IntEnum):
    """The core's own events."""

    READ_DONE = 0
    WRITE_DONE = 1
    MAPPING_MADE = 2
    WORKER_DONE = 3


class Mm:
    """Pages, frames, slots, groups, the device and the agenda of one host."""

    __slots__ = (
        *("_order", "agenda", "config", "counters", "device", "evicting", "frames", "groups", "journal"),
        *(
            "io",
            "left",
            "mapping_times",
            "pages",
            "pressure",
            "publish",
            "reads",
            "root_pressure",
            "swap",
            "window_ns",
        ),
    )

    def __init__(self, config: HostConfig, journal: Journal) -> None:
        config.verify()
        self.config = config
        self.window_ns = config.window_ns
        self.journal = journal
        self.pages = Pages(tuple(vm.guest_pages for vm in config.vms))
        self.frames = Frames(config.frames)
        self.swap = SwapArea(config.slots)
        self.device = Device(config.profile, config.seed)
        self.groups = [MemoryGroup(vm.limit_pages, self.pages, self.frames.young) for vm in config.vms]
        self.evicting: OrderedDict[int, int] = OrderedDict()
        """Pages picked since the last border, with their VM, in the order they were picked."""
        self.publish: dict[int, int] = {}
        """Pages whose EPT entry the next border looks at, with their VM."""
        self.mapping_times: list[int] = []
        """Heap of the times at which mappings under way take effect."""
        self.reads: dict[int, int] = {}
        """Pages under read, with the time the read is done."""
        self.agenda: list[tuple[int, int, Own, int, int, bool]] = []
        """Heap of (time, order, what, page, VM, write)."""
        self.left: set[int] = set()
        """VMs that are no more; pages of theirs that an I/O or a worker still has are freed when it lets go."""
        self._order = 0
        self.counters = dict.fromkeys(COUNTERS, 0)
        # Not journaled and never asked by the core: for whoever watches.
        self.io = tuple(Histogram() for _ in Op)
        """From arrival to completion of the I/Os submitted so far, by Op."""
        self.pressure = [Pressure(vm.vcpus) for vm in config.vms]
        self.root_pressure = Pressure()

    def schedule(self, at_ns: int, what: Own, key: int, vm: int, write: bool = False) -> None:
        """Let ``what`` happen to page ``key`` at ``at_ns``; the page is pinned until then (a read: until mapped)."""
        self._order += 1
        heappush(self.agenda, (at_ns, self._order, what, key, vm, write))
        if what is Own.READ_DONE:
            return
        self.pages.pins[key] += 1
        self.groups[vm].pinned += 1
        if what is Own.MAPPING_MADE:
            heappush(self.mapping_times, at_ns)

    def run_until(self, now_ns: int) -> None:
        """Carry out the own events up to and including ``now_ns``."""
        agenda, pages = self.agenda, self.pages
        while agenda and agenda[0][0] <= now_ns:
            at_ns, _order, what, key, vm, write = heappop(agenda)
            if what is Own.READ_DONE:
                del self.reads[key]
                pages.move(key, PageEvent.READ_DONE, at_ns)
                if vm in self.left and not pages.pins[key]:
                    self.free_page(key, vm, at_ns)
                continue
            if what is Own.WRITE_DONE:
                self._write_done(key, at_ns)
            elif what is Own.MAPPING_MADE:
                heappop(self.mapping_times)
                if vm not in self.left:
                    self.map_page(key, write, at_ns)
                    self.publish[key] = vm
            else:
                self._worker_done(key, vm, at_ns)
            self._unpin(key, vm, at_ns)

    def _worker_done(self, key: int, vm: int, at_ns: int) -> None:
        """The worker's get_user_pages, a write fault, is over: the host maps the page, the EPT does not yet (E44).

        Of a VM that has left it finds no mm, and completes its item without a page (E55).
        """
        if vm not in self.left:
            self.counters["pgfault"] += self.pages.state[key] != PageState.RESIDENT
            self.map_page(key, True, at_ns)
        self.counters["kvm_async_pf_completed"] += 1
        self.journal.record(at_ns, "completed", vm, key - self.pages.first_key[vm])

    def _unpin(self, key: int, vm: int, at_ns: int) -> None:
        pages, group = self.pages, self.groups[vm]
        pages.pins[key] -= 1
        group.pinned -= 1
        if vm in self.left:
            if not pages.pins[key] and pages.state[key] != PageState.READING:
                self.free_page(key, vm, at_ns)
        elif not pages.pins[key] and pages.state[key] == PageState.RESIDENT and not pages.flags[key] & LRU:
            group.add(key)

    def _write_done(self, key: int, at_ns: int) -> None:
        """The slot holds the frame's bytes: free the frame, unless a fault has taken the page back."""
        pages = self.pages
        pages.flags[key] &= ~WRITING
        if pages.state[key] == PageState.WRITEBACK:
            pages.move(key, PageEvent.WRITE_DONE, at_ns)
            pages.move(key, PageEvent.RELEASED, at_ns)
            self.release_frame(key)
        elif pages.flags[key] & DIRTY:
            self.free_slot(key)

    def map_page(self, key: int, write: bool, now_ns: int) -> None:
        """Make page ``key``, which has its bytes in a frame, host-mapped; a write takes the slot."""
        pages = self.pages
        if pages.state[key] != PageState.RESIDENT:
            pages.move(key, PageEvent.MAPPED, now_ns)
        if write and not pages.flags[key] & DIRTY:
            pages.flags[key] |= DIRTY
            # A slot that is being written stays (folio_free_swap refuses under writeback): _write_done frees it.
            if not pages.flags[key] & WRITING:
                self.free_slot(key)

    def free_page(self, key: int, vm: int, now_ns: int) -> None:
        """Take all from page ``key`` of a VM that has left (zap_pte_range: put_page, free_swap_and_cache)."""
        pages = self.pages
        if pages.state[key] in CHARGED:
            self.groups[vm].usage -= 1
        if pages.pfn[key] >= 0:
            self.release_frame(key)
        if pages.slot[key] >= 0:
            self.free_slot(key)
        pages.flags[key] = 0
        pages.move(key, PageEvent.FREED, now_ns)

    def free_slot(self, key: int) -> None:
        """Take page ``key``'s slot away."""
        self.swap.free(self.pages.slot[key])
        self.pages.slot[key] = -1

    def take_frame(self, key: int) -> int:
        """Give page ``key`` a free frame."""
        pfn = self.frames.take(key)
        self.pages.pfn[key] = pfn
        return pfn

    def release_frame(self, key: int) -> None:
        """Take page ``key``'s frame away."""
        self.frames.release(self.pages.pfn[key])
        self.pages.pfn[key] = -1

    def charge(self, vm: int, now_ns: int) -> int:
        """Charge a page to the group of ``vm``; returns the ns that took, REFUSED if nothing could be reclaimed."""
        group = self.groups[vm]
        cost_ns = 0
        if group.usage >= group.limit:
            cost_ns = self._reclaim(vm, group, now_ns)
            if group.usage >= group.limit:
                return REFUSED
        group.usage += 1
        group.fruitless = 0
        return cost_ns

    def _reclaim(self, vm: int, group: MemoryGroup, now_ns: int) -> int:
        scan = group.scan(SWAP_CLUSTER_MAX)
        pages, counters, costs = self.pages, self.counters, self.config.costs
        for key in scan.picked:
            pages.move(key, PageEvent.PICKED, now_ns)
            self.evicting[key] = vm
        picked = len(scan.picked)
        group.usage -= picked
        counters["allocstall"] += 1
        counters["pgscan_direct"] += scan.scanned
        group.scanned += scan.scanned
        counters["pgrefill"] += scan.refilled
        counters["pgdeactivate"] += scan.refilled
        counters["pgactivate"] += scan.activated
        self.journal.record(now_ns, "reclaim", vm, scan.scanned, scan.refilled, scan.activated, picked)
        return (scan.scanned + scan.refilled) * costs.reclaim_scan_ns + picked * costs.reclaim_unmap_ns

    def submit(self, op: Op, key: int, vm: int, arrival_ns: int, now_ns: int) -> int:
        """Submit an I/O between page ``key``'s frame and slot; returns when it is done."""
        pages = self.pages
        slot, gfn = pages.slot[key], key - pages.first_key[vm]
        start_ns, done_ns = self.device.submit(op, slot, arrival_ns)
        self.io[op].observe(done_ns - arrival_ns)
        if op is Op.READ:
            pages.move(key, PageEvent.READ_SUBMITTED, now_ns)
            self.reads[key] = done_ns
            self.schedule(done_ns, Own.READ_DONE, key, vm)
            self.counters["pswpin"] += 1
            self.journal.record(now_ns, "read", vm, gfn, slot, pages.pfn[key], arrival_ns, start_ns, done_ns)
        else:
            pages.flags[key] = pages.flags[key] & ~DIRTY | WRITING
            self.schedule(done_ns, Own.WRITE_DONE, key, vm)
            self.counters["pswpout"] += 1
            self.journal.record(now_ns, "write", vm, gfn, slot, pages.pfn[key], start_ns, done_ns)
        return done_ns

    def next_border_ns(self, now_ns: int) -> int:
        """The first border after ``now_ns``."""
        return (now_ns // self.window_ns + 1) * self.window_ns

    def retry_ns(self, vm: int, now_ns: int) -> int:
        """When VM ``vm`` may try again to get a page; CoreError if that has become hopeless.

        Hopeless: for FRUITLESS_BORDERS_MAX borders in a row the group got nothing, and nothing under way could help.
        """
        group = self.groups[vm]
        at_ns = self.next_border_ns(now_ns)
        if at_ns != group.retry_ns:
            group.retry_ns = at_ns
            group.fruitless = 0 if group.pinned else group.fruitless + 1
            if group.fruitless > FRUITLESS_BORDERS_MAX:
                raise CoreError(
                    f"memory group of VM {vm} is out of memory: limit {group.limit} pages, {group.usage} charged, "
                    f"none reclaimable for {FRUITLESS_BORDERS_MAX} windows: limit too small"
                )
        self.counters["retry"] += 1
        return at_ns
