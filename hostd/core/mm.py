"""The state all parts of the host's mm work on, and the few things done to it from more than one part.

Time of the core's own events: what will happen by itself (a read completes, a mapping takes effect, the fault-in
worker is done, a write completes, kswapd goes on) waits in ``agenda``, a heap by time and order of scheduling, and is
carried out before anything else of the same time. ``run_until`` does that. None of these events has an effect for the
shell: everything that others wait for was settled when the event was scheduled.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from enum import IntEnum
from functools import partial
from heapq import heappop, heappush
from itertools import islice

from apf.core import CoreError
from apf.histogram import Histogram
from apf.io_faults import IoFaultWish
from apf.journal import Journal
from hostd.core import workingset
from hostd.core.backing import way_of
from hostd.core.config import HostConfig
from hostd.core.damage import Damage
from hostd.core.device import Carry, Device, MeasuredDevice, Op
from hostd.core.frames import Frames
from hostd.core.group import MAX_RECLAIM_RETRIES, STAT, MemoryGroup, high_delay_ns
from hostd.core.io_faults import Failure, IoFaults, IoResult, chances
from hostd.core.kernel_log import KernelLog
from hostd.core.lru import SWAP_CLUSTER_MAX
from hostd.core.page import (
    CACHED,
    CHARGED,
    DIRTY,
    EVICTING,
    FREED,
    LRU,
    MAPPED,
    NONE,
    PICKED,
    READ_DONE,
    READ_FAILED,
    READ_SUBMITTED,
    READING,
    REFERENCED,
    RELEASED,
    RESIDENT,
    WRITE_DONE,
    WRITE_FAILED,
    WRITE_PUT_OFF,
    WRITEBACK,
    WRITING,
    Pages,
)
from hostd.core.pressure import Pressure
from hostd.core.readahead import Settings
from hostd.core.swap import NO_SLOT, SwapArea
from hostd.core.userfault import Handlers
from hostd.core.watermarks import Watermarks

REFUSED = -1
_KSWAPD_NAP_NS = 100_000_000
"""HZ / 10."""
KILLED = -1

HOST_COUNTERS = ("border", "kswapd_wake", "pageoutrun", "kswapd_low_wmark_hit_quickly")
"""What is not counted for a group."""
COUNTERS = (*STAT, *HOST_COUNTERS)


_FAILURES = {
    (Op.READ, IoResult.ERROR): "swap_read_error",
    (Op.READ, IoResult.CHECKSUM): "swap_checksum_error",
    (Op.WRITE, IoResult.ERROR): "swap_write_error",
    (Op.WRITE, IoResult.TORN): "swap_torn_write",
    (Op.WRITE, IoResult.LOST): "swap_lost_write",
}
"""What an I/O that fails counts as."""


class Own(IntEnum):
    """The core's own events."""

    READ_DONE = 0
    WRITE_DONE = 1
    MAPPING_MADE = 2
    WORKER_DONE = 3
    KSWAPD = 4
    WORKER_REFUSED = 5


_RECLAIMABLE = (RESIDENT, CACHED)
_LISTED_NO_MORE = 0xFF & ~(LRU | REFERENCED)
# Bound once, as in ``page``.
_ON_READ, _ON_WRITE, _ON_MAPPING, _ON_WORKER, _ON_KSWAPD, _ON_REFUSAL = Own
_READ, _WRITE = Op
_OK, _ERROR = IoResult.OK, IoResult.ERROR


class Mm:
    """Pages, frames, slots, groups, the device and the agenda of one host."""

    __slots__ = (
        *("_kswapd_naps_ns", "_order", "agenda", "config", "device", "evicting", "for_kswapd", "frames", "groups"),
        *("journal", "kswapd_ns", "left", "mapping_times", "pages", "pressure", "publish", "reads", "root_pressure"),
        *("backings", "damage", "failed_ios", "handlers", "hanging", "host_stat", "io", "io_faults", "log"),
        *("read_only", "readahead", "starts_missing", "swap", "swapping", "watermarks", "window_ns", "write_failed"),
        *("_is_measured", "_read_fails", "_took_ns", "_write_fails"),
    )

    def __init__(self, config: HostConfig, journal: Journal, carry: Carry | None = None) -> None:
        config.verify()
        self.config = config
        self.window_ns = config.window_ns
        self.journal = journal
        self.pages = Pages(tuple(vm.guest_pages for vm in config.vms))
        self.frames = Frames(config.frames)
        self.backings = [vm.backing for vm in config.vms]
        self.swapping = [backing.swaps for backing in self.backings]
        """Whether the I/O of each VM is swapping in and out."""
        self.starts_missing = [backing.starts_missing for backing in self.backings]
        self.swap = SwapArea(config.slots, self.pages.total)
        if config.profile.measured and carry is None:
            raise CoreError(f"device {config.profile.name!r} is a real one, and nobody carries its I/O out")
        self.readahead = config.readahead(
            Settings(
                tuple(way_of(backing, config.profile) for backing in self.backings),
                config.page_cluster,
                config.slots,
                self.swap.page_in,
            )
        )
        self.read_only = bytearray(self.pages.total)
        """Whether a page lies in an area that the VMM may not write."""
        self.hanging: dict[int, int] = {}
        """Missing pages that a dead handler has left, with the time of the event."""
        self.handlers = [Handlers(vm.userfault, config.end_ns + 1) for vm in config.vms]
        policy = config.reclaim
        self.io_faults = IoFaults(config.failures, config.end_ns)
        self._read_fails, self._write_fails = chances(config.profile.errors, config.seed)
        served = self.io_faults.served if config.failures else None
        self.device: Device | MeasuredDevice
        if carry is not None:
            self.device = MeasuredDevice(carry, served)
        else:
            self.device = Device(config.profile, config.seed, served)
        self._is_measured = carry is not None
        self.damage = Damage()
        self.write_failed: set[int] = set()
        """Pages whose write is under way and will fail."""
        self.log = KernelLog()
        self.failed_ios: Counter[tuple[Op, IoResult]] = Counter()
        """I/Os submitted so far that come to anything but OK."""
        self.groups = [
            MemoryGroup(vm.limit_pages, vm.high_pages, policy(self.pages, self.frames.young), vm.backing.kind)
            for vm in config.vms
        ]
        self.evicting: OrderedDict[int, int] = OrderedDict()
        """Pages picked since the last border, with their VM, in the order they were picked."""
        self.for_kswapd: set[int] = set()
        """Those that kswapd picked."""
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
        self.watermarks = Watermarks.of(config.managed_pages)
        self.kswapd_ns: int | None = None
        """When kswapd goes on; None: it sleeps."""
        self._kswapd_naps_ns = 0
        self.host_stat = dict.fromkeys(HOST_COUNTERS, 0)
        # Not journaled and never asked by the core: for whoever watches.
        self.io = Histogram(), Histogram()
        """From arrival to completion of the I/Os submitted so far, by Op; without those that follow."""
        self._took_ns: tuple[list[int], list[int]] = [], []
        self.pressure = [Pressure(vm.vcpus) for vm in config.vms]
        self.root_pressure = Pressure()

    def counters(self) -> dict[str, int]:
        """All counters of all groups together, and the host's own."""
        return {name: sum(group.stat[name] for group in self.groups) for name in STAT} | self.host_stat

    def schedule(self, at_ns: int, what: Own, key: int, vm: int, write: bool = False) -> None:
        """Let ``what`` happen to page ``key`` at ``at_ns``; the page is pinned until then (a read: until mapped)."""
        self._order = order = self._order + 1
        heappush(self.agenda, (at_ns, order, what, key, vm, write))
        if what is _ON_READ:
            return
        self.pages.pins[key] += 1
        self.groups[vm].pinned += 1
        if what is _ON_MAPPING:
            heappush(self.mapping_times, at_ns)

    def settle_figures(self, now_ns: int) -> None:
        """Bring what is for whoever watches up to date, at a border: not at each, for many cost hardly more than one."""
        for pressure in (*self.pressure, self.root_pressure):
            pressure.fold(now_ns)
        for histogram, took_ns in zip(self.io, self._took_ns, strict=True):
            if took_ns:
                histogram.observe_all(took_ns)
                took_ns.clear()

    def run_until(self, now_ns: int) -> None:
        """Carry out the own events up to and including ``now_ns``."""
        agenda = self.agenda
        if not agenda or agenda[0][0] > now_ns:
            return
        pages, groups, left = self.pages, self.groups, self.left
        pins, state, flags = pages.pins, pages.state, pages.flags
        while agenda and agenda[0][0] <= now_ns:
            at_ns, _order, what, key, vm, write = heappop(agenda)
            if what is _ON_READ:
                del self.reads[key]
                pages.move(key, READ_FAILED if key in self.damage.pages else READ_DONE, at_ns)
                if self.starts_missing[vm] and self.is_place(pages.slot[key]):
                    self._fetched(key, vm, at_ns)
                if not pins[key]:
                    self._settle(key, vm, at_ns)
                continue
            if what is _ON_KSWAPD:
                self._kswapd(at_ns)
                continue
            if what is _ON_WRITE:
                self._write_done(key, vm, at_ns)
            elif what is _ON_MAPPING:
                heappop(self.mapping_times)
                if vm not in left:
                    # Mostly it is mapped already, as it is to be, by whoever was promised the mapping.
                    if state[key] != RESIDENT or (write and not flags[key] & DIRTY):
                        self.map_page(key, vm, write, at_ns)
                    self.publish[key] = vm
            else:
                self._worker_done(key, vm, at_ns, what is _ON_REFUSAL)
            groups[vm].pinned -= 1
            pins[key] = still = pins[key] - 1
            # Mostly reclaim has it already.
            if not still and (left or not flags[key] & LRU):
                self._settle(key, vm, at_ns)

    def _worker_done(self, key: int, vm: int, at_ns: int, refused: bool) -> None:
        """The worker's get_user_pages, a write fault, is over: the host maps the page, the EPT does not yet (E44).

        Of a VM that has left it finds no mm, and completes its item without a page (E55); also if it was ``refused``,
        because the VMM may not write the page (E40).
        """
        stat = self.groups[vm].stat
        if vm not in self.left and not refused and key not in self.damage.pages:  # else its error is nobody's
            stat["pgfault"] += self.pages.state[key] != RESIDENT
            self.map_page(key, vm, True, at_ns)
        stat["kvm_async_pf_completed"] += 1
        self.journal.record(at_ns, "completed", vm, key - self.pages.first_key[vm])

    def _settle(self, key: int, vm: int, at_ns: int) -> None:
        """Nobody needs page ``key`` where it is any more: reclaim may have it, or, if its VM has left, it is freed."""
        state = self.pages.state[key]
        if vm in self.left:
            if state != READING and state != NONE:
                self.free_page(key, vm, at_ns)
        elif state in _RECLAIMABLE and not self.pages.flags[key] & LRU:
            self.groups[vm].lists.add(key)

    def _write_done(self, key: int, vm: int, at_ns: int) -> None:
        """The slot holds the frame's bytes: the page is clean and, unless a fault has taken it back, next to go.

        See ``page``: it is charged again if there is room, in the group and on the host, and freed at once if not.
        """
        pages, group = self.pages, self.groups[vm]
        pages.flags[key] &= ~WRITING
        if self.write_failed and key in self.write_failed:
            self.write_failed.remove(key)
            self._write_undone(key, vm, at_ns)
            return
        group.unwritten = 0
        if pages.state[key] == WRITEBACK:
            pages.move(key, WRITE_DONE, at_ns)
            if vm in self.left:
                pages.move(key, RELEASED, at_ns)
                self.release_frame(key)
            elif group.usage < group.limit and len(self.frames.free) > self.watermarks.high:
                group.usage += 1
                group.lists.add_tail(key)
            else:
                self._release(key, group, at_ns)
                # Of whom it was taken: of kswapd if only the host is short of memory.
                group.stat["pgsteal_kswapd" if group.usage < group.limit else "pgsteal_direct"] += 1
        elif pages.flags[key] & DIRTY:
            self.free_slot(key, vm)

    def _write_undone(self, key: int, vm: int, at_ns: int) -> None:
        """end_swap_bio_write: the page is dirty as before, and stays in memory."""
        pages, group = self.pages, self.groups[vm]
        group.unwritten += 1
        gfn, slot = key - pages.first_key[vm], pages.slot[key]
        self.log.alert("write error", f"Write-error on swap-device: slot {slot}, gfn {gfn:#x} of VM {vm}", at_ns)
        pages.flags[key] |= DIRTY
        if pages.state[key] != WRITEBACK:
            self.free_slot(key, vm)
        elif vm in self.left:
            pages.move(key, WRITE_FAILED, at_ns)
            group.usage += 1  # which free_page takes away
        elif group.usage < group.limit and len(self.frames.free) > self.watermarks.min:
            pages.move(key, WRITE_FAILED, at_ns)
            group.usage += 1
            group.lists.add(key)
        else:
            pages.move(key, WRITE_PUT_OFF, at_ns)
            self.evicting[key] = vm

    def _release(self, key: int, group: MemoryGroup, at_ns: int) -> None:
        """Free the frame of a clean page in the swap cache (__remove_mapping)."""
        self.pages.move(key, RELEASED, at_ns)
        self.forget_frame(key, group)

    def forget_frame(self, key: int, group: MemoryGroup) -> None:
        """Page ``key`` is in its slot only."""
        pages = self.pages
        workingset.eviction(pages, group, key)
        if self.damage.pages:
            self.damage.forget(key)
        self.frames.release(pages.pfn[key])
        pages.pfn[key] = -1

    def map_page(self, key: int, vm: int, write: bool, now_ns: int) -> None:
        """Make page ``key``, which has its bytes in a frame, host-mapped; a write takes the slot.

        So does a read when slots are scarce (mm/memory.c:should_try_to_free_swap).
        """
        pages = self.pages
        if pages.state[key] != RESIDENT:
            pages.move(key, MAPPED, now_ns)
            write = write or (self.swap.is_full and self.swapping[vm])
        if write and not pages.flags[key] & DIRTY:
            pages.flags[key] |= DIRTY
            # A slot that is being written stays (folio_free_swap refuses under writeback): _write_done frees it.
            if not pages.flags[key] & WRITING:
                self.free_slot(key, vm)

    def free_page(self, key: int, vm: int, now_ns: int) -> None:
        """Take all from page ``key`` of a VM that has left (zap_pte_range: put_page, free_swap_and_cache)."""
        pages = self.pages
        if pages.state[key] in CHARGED:
            self.groups[vm].usage -= 1
        if pages.pfn[key] >= 0:
            self.release_frame(key)
            self.damage.forget(key)
        if pages.slot[key] >= 0:
            self.damage.freed(pages.slot[key])  # also a place: what comes there next is another file
            self.free_slot(key, vm)
            pages.slot[key] = NO_SLOT
        pages.flags[key] = 0
        pages.shadow[key] = -1
        pages.move(key, FREED, now_ns)

    def is_place(self, slot: int) -> bool:
        """Whether that is no swap slot, but a place in a file or a snapshot."""
        return slot >= self.swap.total

    def is_missing(self, key: int, vm: int) -> bool:
        """Whether page ``key``, which is SWAPPED or READING, is fetched by a userfaultfd's handler."""
        return self.starts_missing[vm] and self.is_place(self.pages.slot[key])

    def give_slot(self, key: int, vm: int, now_ns: int) -> bool:
        """Have a slot, or its place, for page ``key``, which has none; False if the swap area is full."""
        if not self.swapping[vm]:
            slot = self.swap.total + key
        else:
            slot = NO_SLOT if self.io_faults.is_swap_full(now_ns) else self.swap.allocate(key)
            if slot == NO_SLOT:
                self.groups[vm].stat["swap_full"] += 1
                return False
        self.pages.slot[key] = slot
        return True

    def free_slot(self, key: int, vm: int) -> None:
        """Take page ``key``'s slot away; a place of its own it keeps."""
        if not self.swapping[vm]:
            return
        slots, swap = self.pages.slot, self.swap
        slot = slots[key]
        if slot < swap.total:
            swap.free(slot)
        if self.damage.slots:
            self.damage.freed(slot)
        slots[key] = NO_SLOT

    def _fetched(self, key: int, vm: int, at_ns: int) -> None:
        """A handler has put page ``key`` in place: the host maps it, dirty (mfill_atomic_install_pte)."""
        pages = self.pages
        self.free_slot(key, vm)
        pages.flags[key] |= DIRTY
        pages.move(key, MAPPED, at_ns)

    def take_frame(self, key: int) -> int:
        """Give page ``key`` a free frame."""
        pfn = self.frames.take(key)
        self.pages.pfn[key] = pfn
        return pfn

    def release_frame(self, key: int) -> None:
        """Take page ``key``'s frame away."""
        self.frames.release(self.pages.pfn[key])
        self.pages.pfn[key] = -1

    def charge(self, vm: int, now_ns: int, task: bool) -> int:
        """Charge a page to the group of ``vm``; returns the ns that took, REFUSED if nothing could be reclaimed.

        ``task``: a vCPU thread charges, which can be throttled, not a kworker.
        """
        group = self.groups[vm]
        cost_ns = 0
        if group.usage >= group.limit:
            group.events["max"] += 1
            group.stat["allocstall"] += 1
            cost_ns = self.reclaim(vm, SWAP_CLUSTER_MAX, now_ns)[0]
            if group.usage >= group.limit:
                return REFUSED
        group.usage += 1
        group.fruitless = 0
        if task and group.high:
            group.note_charge()
        return cost_ns

    def reclaim(self, vm: int, want: int, now_ns: int, kswapd: bool = False) -> tuple[int, int]:
        """Reclaim ``want`` pages of a group; returns the ns that took and how many pages are free by it at once.

        The others that were taken leave their frames at the border, or when they have been written.
        """
        group, costs = self.groups[vm], self.config.costs
        before, usage = len(self.evicting), group.usage
        scan = group.lists.scan(want, partial(self._shrink, vm, group, now_ns))
        picked = len(self.evicting) - before
        freed = usage - group.usage - picked
        if kswapd:
            self.for_kswapd.update(islice(reversed(self.evicting), picked))
        stat = group.stat
        stat["pgscan_kswapd" if kswapd else "pgscan_direct"] += scan.scanned
        stat["pgsteal_kswapd" if kswapd else "pgsteal_direct"] += freed
        stat["pgrefill"] += scan.refilled
        stat["pgdeactivate"] += scan.refilled
        stat["pgactivate"] += scan.activated
        stat["pgrotated"] += scan.rotated
        group.age += scan.activated
        self.journal.record(now_ns, "reclaim", vm, scan.scanned, scan.refilled, scan.activated, picked, freed)
        cost_ns = (scan.scanned + scan.refilled) * costs.reclaim_scan_ns + scan.taken * costs.reclaim_unmap_ns
        return cost_ns, freed

    def _shrink(self, vm: int, group: MemoryGroup, now_ns: int, victims: list[int]) -> list[int]:
        """shrink_folio_list: uncharge ``victims``; those that are clean in the swap cache are free at once.

        Returns those that stay, for they need a slot and there is none.
        """
        pages, evicting, staying = self.pages, self.evicting, []
        state, flags, slot, move = pages.state, pages.flags, pages.slot, pages.move
        for key in victims:
            if state[key] == CACHED and not flags[key] & DIRTY:
                move(key, RELEASED, now_ns)
                self.forget_frame(key, group)
            elif slot[key] >= 0 or self.give_slot(key, vm, now_ns):
                move(key, PICKED, now_ns)
                evicting[key] = vm
            else:
                staying.append(key)
                continue
            flags[key] &= _LISTED_NO_MORE
        group.usage -= len(victims) - len(staying)
        return staying

    def throttle_ns(self, vm: int, at_ns: int, now_ns: int) -> int:
        """For how long a task of ``vm`` reclaims and sleeps from ``at_ns`` on, before it enters the guest; mostly 0.

        As the kernel does, it reclaims again for as long as that frees pages and the sleep would be worth while.
        """
        group = self.groups[vm]
        charged, group.over_high = group.over_high, 0
        if not charged:
            return 0
        cost_ns, want = 0, charged
        group.events["high"] += 1
        while True:
            took_ns, freed = self.reclaim(vm, want, now_ns)
            cost_ns += took_ns
            delay_ns = high_delay_ns(group.usage + self._in_transit(vm), group.high, charged)
            if not delay_ns or not freed:
                break
            want = SWAP_CLUSTER_MAX
        self.journal.record(now_ns, "high", vm, charged, cost_ns, delay_ns)
        self.pressure[vm].waits(at_ns, at_ns + cost_ns + delay_ns)
        return cost_ns + delay_ns

    def _in_transit(self, vm: int) -> int:
        """Pages of ``vm`` that are in frames and uncharged: on their way out."""
        first = self.pages.first_key[vm]
        end = first + self.config.vms[vm].guest_pages
        state = self.pages.state
        return state.count(EVICTING, first, end) + state.count(WRITEBACK, first, end)

    # The host's memory, if it has less than its groups may have: watermarks, direct reclaim, kswapd. ----------------

    def _coming(self) -> int:
        """Frames that are free, or will be when what is on its way out is out."""
        return self.frames.total - sum(group.usage for group in self.groups)

    def spare(self, now_ns: int) -> int:
        """Before a frame is taken: wake kswapd below the low watermark, reclaim below min; the ns that took.

        Follows mm/page_alloc.c:__alloc_pages_slowpath.
        """
        free, marks = len(self.frames.free), self.watermarks
        if free >= marks.low:
            return 0
        if self.kswapd_ns is None:
            self.host_stat["kswapd_wake"] += 1
            self.host_stat["pageoutrun"] += 1
            self.host_stat["kswapd_low_wmark_hit_quickly"] += now_ns < self._kswapd_naps_ns
            self._kswapd_goes_on(now_ns + self.config.costs.fault_in_worker_ns)
        if free > marks.min:
            return 0
        cost_ns = 0
        for vm, group in enumerate(self.groups):
            if self._coming() >= marks.low:
                break
            if vm not in self.left and any(group.lists.sizes()):
                group.stat["allocstall"] += 1
                cost_ns += self.reclaim(vm, SWAP_CLUSTER_MAX, now_ns)[0]
        return cost_ns

    def _kswapd(self, now_ns: int) -> None:
        """A round of mm/vmscan.c:balance_pgdat: a cluster of each group, in turn, until free pages reach high.

        When it is done it naps before it sleeps (kswapd_try_to_sleep): woken from that, it was needed again quickly.
        Departures: groups are scanned by equal shares, not by their sizes, and the CPU that kswapd runs on is no vCPU's.
        """
        self.kswapd_ns = None
        self._kswapd_naps_ns = now_ns + _KSWAPD_NAP_NS
        cost_ns = progress = 0
        for vm in range(len(self.groups)):
            if self._coming() >= self.watermarks.high:
                return
            before = self.groups[vm].usage
            cost_ns += self.reclaim(vm, SWAP_CLUSTER_MAX, now_ns, kswapd=True)[0]
            progress += before - self.groups[vm].usage
        if progress and self._coming() < self.watermarks.high:
            self._kswapd_goes_on(now_ns + max(1, cost_ns))

    def _kswapd_goes_on(self, at_ns: int) -> None:
        self.kswapd_ns = at_ns
        # Before all else of that time: a page whose mapping takes effect at a border, for the window that opens there,
        # is pinned until then, and must not be picked at that very border.
        heappush(self.agenda, (at_ns, 0, _ON_KSWAPD, -1, -1, False))

    # ------------------------------------------------------------------------------------------------------------------

    def vm_of(self, key: int) -> int:
        """Whose page ``key`` is."""
        return bisect_right(self.pages.first_key, key) - 1

    def find_zeros(self, key: int, vm: int, now_ns: int) -> None:
        """Page ``key``, which is all zeros in swap and has its frame, is in the swap cache at once, and nobody's yet."""
        self.pages.move(key, READ_SUBMITTED, now_ns)
        self.pages.move(key, READ_DONE, now_ns)
        self.groups[vm].stat["swpin_zero"] += 1
        self._settle(key, vm, now_ns)

    def fetch(self, key: int, vm: int, event_ns: int, reclaim_ns: int, now_ns: int) -> int:
        """Have a handler fetch page ``key``, which is missing and has its frame; returns when it is there."""
        pages = self.pages
        done_ns, is_left = self.handlers[vm].serve(event_ns, reclaim_ns)
        if is_left:
            self.hanging[key] = event_ns
        pages.move(key, READ_SUBMITTED, now_ns)
        self.reads[key] = done_ns
        self.schedule(done_ns, _ON_READ, key, vm)
        gfn = key - pages.first_key[vm]
        self.journal.record(now_ns, "userfault", vm, gfn, pages.slot[key], pages.pfn[key], event_ns, done_ns)
        return done_ns

    def submit_read(self, key: int, vm: int, arrival_ns: int, now_ns: int, what: str = "read") -> IoResult:
        """Submit the read of page ``key``, ``what`` in the journal, to its frame; returns what it will come to."""
        pages, damage = self.pages, self.damage
        slot, pfn, gfn = pages.slot[key], pages.pfn[key], key - pages.first_key[vm]
        start_ns, done_ns = self.device.submit(_READ, slot, arrival_ns, pfn)
        if self._is_measured:
            self._note_measured(_READ, slot, now_ns)
        self._took_ns[_READ].append(done_ns - arrival_ns)
        result, by_chance = _OK, self._read_fails()
        if by_chance or self.io_faults.is_counting:
            result = self.io_faults.result(_READ, vm, gfn, slot, now_ns, by_chance)
        if result is not _OK or damage.slots or damage.pages:
            result = damage.read(key, slot, result, done_ns)
        pages.move(key, READ_SUBMITTED, now_ns)
        self.reads[key] = done_ns
        self._order = order = self._order + 1
        heappush(self.agenda, (done_ns, order, _ON_READ, key, vm, False))
        if self.swapping[vm]:
            self.groups[vm].stat["pswpin"] += 1
        self.journal.record(now_ns, what, vm, gfn, slot, pfn, arrival_ns, start_ns, done_ns)
        if result is not _OK:
            self._note_failure(_READ, result, vm, gfn, slot, done_ns, now_ns)
        return result

    def submit_write(self, key: int, vm: int, now_ns: int) -> IoResult:
        """Submit the write of page ``key``'s frame to its slot; returns what it will come to."""
        pages, damage, stat = self.pages, self.damage, self.groups[vm].stat
        slot, pfn, gfn = pages.slot[key], pages.pfn[key], key - pages.first_key[vm]
        start_ns, done_ns = self.device.submit(_WRITE, slot, now_ns, pfn)
        if self._is_measured:
            self._note_measured(_WRITE, slot, now_ns)
        self._took_ns[_WRITE].append(done_ns - now_ns)
        result, by_chance = _OK, self._write_fails()
        if by_chance or self.io_faults.is_counting:
            result = self.io_faults.result(_WRITE, vm, gfn, slot, now_ns, by_chance)
        if result is not _OK or damage.slots:
            damage.written(slot, result)
            if result is _ERROR:
                self.write_failed.add(key)
        pages.flags[key] = pages.flags[key] & ~DIRTY | WRITING
        self.swap.zero[slot] = 0
        self.schedule(done_ns, _ON_WRITE, key, vm)
        if self.swapping[vm]:
            stat["pswpout"] += 1
        stat["nr_vmscan_write"] += 1
        self.journal.record(now_ns, "write", vm, gfn, slot, pfn, start_ns, done_ns)
        if result is not _OK:
            self._note_failure(_WRITE, result, vm, gfn, slot, done_ns, now_ns)
        return result

    def _note_measured(self, op: Op, slot: int, now_ns: int) -> None:
        assert isinstance(self.device, MeasuredDevice)
        self.journal.record(now_ns, "measured", op.name.lower(), slot, self.device.took_ns)

    def _note_failure(
        self, op: Op, result: IoResult, vm: int, gfn: int, slot: int, done_ns: int, now_ns: int
    ) -> None:
        """An I/O that was submitted will fail, or will have failed without anybody's noticing."""
        self.failed_ios[op, result] += 1
        self.groups[vm].stat[_FAILURES[op, result]] += 1
        self.journal.record(now_ns, "io_failed", vm, gfn, slot, op.name, result.name, done_ns)
        if op is Op.READ:
            what = "Read-error on swap-device"
            if result is IoResult.CHECKSUM:
                what = f"Wrong checksum on swap-device ({self.damage.slots[slot].words})"
            self.log.alert("read error", f"{what}: slot {slot}, gfn {gfn:#x} of VM {vm}", done_ns)

    def fail_ios(self, wish: IoFaultWish, now_ns: int) -> None:
        """An operator lets the device fail from now on."""
        self.io_faults.add(Failure.of(wish, now_ns))
        self.device.serve_by(self.io_faults.served)
        about = (wish.nth, wish.count, wish.vm, wish.gfn, wish.slot, wish.for_ns, wish.io, wish.factor, wish.add_ns)
        self.journal.record(now_ns, "io_fault", wish.what, *about)

    def write_zeros(self, key: int, vm: int, now_ns: int) -> None:
        """Page ``key``, on its way out, is all zeros: its slot says so, and that is all (swap_zeromap_folio_set)."""
        pages = self.pages
        pages.flags[key] &= ~DIRTY
        self.swap.set_zero(pages.slot[key], True)
        self.damage.written(pages.slot[key], IoResult.OK)
        self.groups[vm].stat["swpout_zero"] += 1
        self.journal.record(now_ns, "write_zeros", vm, key - pages.first_key[vm], pages.slot[key])
        self._write_done(key, vm, now_ns)

    def next_border_ns(self, now_ns: int) -> int:
        """The first border after ``now_ns``."""
        return (now_ns // self.window_ns + 1) * self.window_ns

    def retry_ns(self, vm: int, now_ns: int) -> int:
        """When VM ``vm`` may try again to get a page; KILLED if that has become hopeless.

        Hopeless: MAX_RECLAIM_RETRIES borders in a row the group got nothing, and nothing under way could help. Where the
        kernel tries again it waits a little too (reclaim_throttle). Then the group's only process is killed, the VMM
        (mm/memcontrol.c:mem_cgroup_out_of_memory).
        """
        group = self.groups[vm]
        at_ns = self.next_border_ns(now_ns)
        if at_ns != group.retry_ns:
            group.retry_ns = at_ns
            hopes = group.pinned or (not self.frames.free and self.agenda)
            # Writes that fail one after the other are under way all the time, and will not help.
            hopes = bool(hopes or self.evicting) and group.unwritten < MAX_RECLAIM_RETRIES * SWAP_CLUSTER_MAX
            group.fruitless = 0 if hopes else group.fruitless + 1
            if group.fruitless > MAX_RECLAIM_RETRIES:
                self._kill(vm, now_ns)
                return KILLED
        group.stat["retry"] += 1
        return at_ns

    def _kill(self, vm: int, now_ns: int) -> None:
        group, swap = self.groups[vm], self.swap
        group.killed = True
        group.events["oom"] += 1
        group.events["oom_kill"] += 1
        self.journal.record(now_ns, "oom_kill", vm, group.usage)
        self.log.alert(
            "oom-kill",
            f"Memory cgroup out of memory: killed the VMM of VM {vm}: limit {group.limit} pages, {group.usage} charged, "
            f"none reclaimable in {MAX_RECLAIM_RETRIES} windows, {swap.total - swap.in_use} of {swap.total} swap slots "
            f"free",
            now_ns,
        )
