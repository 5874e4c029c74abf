"""The state that all parts of the host's mm work on, and the few things done to it from more than one part.

Time of the core's own events: what will happen by itself (a read completes, a mapping takes effect, the fault-in
worker is done, a write completes, kswapd goes on) waits in ``agenda``, a heap by time and order of scheduling, and is
carried out before anything else of the same time (``mm``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from enum import IntEnum
from heapq import heappush

from apf.journal import Journal
from hostd.core import workingset
from hostd.core.backing import way_of
from hostd.core.config import HostConfig
from hostd.core.damage import Damage
from hostd.core.frames import Frames
from hostd.core.group import MemoryGroup
from hostd.core.io_faults import IoFaults
from hostd.core.kernel_log import KernelLog
from hostd.core.page import (
    CACHED,
    CHARGED,
    DIRTY,
    FREED,
    LRU,
    MAPPED,
    NONE,
    READING,
    RESIDENT,
    WRITING,
    Pages,
)
from hostd.core.pressure import Pressure
from hostd.core.readahead import Settings
from hostd.core.swap import NO_SLOT, SwapArea
from hostd.core.userfault import Handlers
from hostd.core.watermarks import Watermarks

HOST_COUNTERS = ("border", "kswapd_wake", "pageoutrun", "kswapd_low_wmark_hit_quickly")
"""What is not counted for a group."""


class Own(IntEnum):
    """The core's own events."""

    READ_DONE = 0
    WRITE_DONE = 1
    MAPPING_MADE = 2
    WORKER_DONE = 3
    KSWAPD = 4
    WORKER_REFUSED = 5


_RECLAIMABLE = (RESIDENT, CACHED)
# Bound once, as in ``page``.
_ON_READ, _ON_MAPPING = Own.READ_DONE, Own.MAPPING_MADE


class MmState:
    """Pages, frames, slots, groups and the agenda of one host."""

    __slots__ = (
        *(
            "agenda",
            "backings",
            "config",
            "damage",
            "evicting",
            "frames",
            "groups",
            "handlers",
            "hanging",
            "host_stat",
        ),
        *(
            "io_faults",
            "journal",
            "left",
            "log",
            "mapping_times",
            "order",
            "pages",
            "pressure",
            "publish",
            "read_only",
        ),
        *("readahead", "reads", "root_pressure", "starts_missing", "swap", "swapping", "watermarks"),
    )

    def __init__(self, config: HostConfig, journal: Journal) -> None:
        config.verify()
        self.config = config
        self.journal = journal
        self.pages = Pages(tuple(vm.guest_pages for vm in config.vms))
        self.frames = Frames(config.frames)
        self.backings = [vm.backing for vm in config.vms]
        self.swapping = [backing.swaps for backing in self.backings]
        """Whether the I/O of each VM is swapping in and out."""
        self.starts_missing = [backing.starts_missing for backing in self.backings]
        self.swap = SwapArea(config.slots, self.pages.total)
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
        self.io_faults = IoFaults(config.failures, config.end_ns)
        self.damage = Damage()
        self.log = KernelLog()
        policy = config.reclaim
        self.groups = [
            MemoryGroup(vm.limit_pages, vm.high_pages, policy(self.pages, self.frames.young), vm.backing.kind)
            for vm in config.vms
        ]
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
        self.order = 0
        """Of what was scheduled last."""
        self.left: set[int] = set()
        """VMs that are no more; pages of theirs that an I/O or a worker still has are freed when it lets go."""
        self.watermarks = Watermarks.of(config.managed_pages)
        self.host_stat = dict.fromkeys(HOST_COUNTERS, 0)
        self.pressure = [Pressure(vm.vcpus) for vm in config.vms]
        self.root_pressure = Pressure()

    def schedule(self, at_ns: int, what: Own, key: int, vm: int, write: bool = False) -> None:
        """Let ``what`` happen to page ``key`` at ``at_ns``; the page is pinned until then (a read: until mapped)."""
        self.order = order = self.order + 1
        heappush(self.agenda, (at_ns, order, what, key, vm, write))
        if what is _ON_READ:
            return
        self.pages.pins[key] += 1
        self.groups[vm].pinned += 1
        if what is _ON_MAPPING:
            heappush(self.mapping_times, at_ns)

    def settle(self, key: int, vm: int, at_ns: int) -> None:
        """Nobody needs page ``key`` where it is any more: reclaim may have it, or, if its VM has left, it is freed."""
        state = self.pages.state[key]
        if vm in self.left:
            if state != READING and state != NONE:
                self.free_page(key, vm, at_ns)
        elif state in _RECLAIMABLE and not self.pages.flags[key] & LRU:
            self.groups[vm].lists.add(key)

    def vm_of(self, key: int) -> int:
        """Whose page ``key`` is."""
        return bisect_right(self.pages.first_key, key) - 1

    # A page's frame, slot and mapping. --------------------------------------------------------------------------------

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
            # A slot that is being written stays (folio_free_swap refuses under writeback): ``write_done`` frees it.
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

    def forget_frames(self, keys: Sequence[int], group: MemoryGroup) -> None:
        """Pages ``keys`` of one group are in their slots only."""
        pfns, release = self.pages.pfn, self.frames.release
        workingset.eviction(self.pages, group, keys)
        for key in keys:
            release(pfns[key])
            pfns[key] = -1
        if self.damage.pages:
            for key in keys:
                self.damage.forget(key)

    def release_frame(self, key: int) -> None:
        """Take page ``key``'s frame away."""
        self.frames.release(self.pages.pfn[key])
        self.pages.pfn[key] = -1

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
