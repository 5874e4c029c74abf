"""Which pages to read besides the one that is faulted in: readahead policies, and the kernel's own.

A policy is asked when a fault starts a read (``window``), and told when a fault finds its page in the swap cache or the
page cache (``found``). It answers with pages in the order in which they are to be read, the faulted one in its place; of
those only pages that are in no frame are read, so it need not ask. Whoever faults allocates and submits them all, under
one plug (block/blk-core.c:blk_start_plug), before it waits for its own.

``KernelReadahead`` goes one of three ways, by what a VM's memory is made of (``Way``):

- by slot: a block of the swap area, aligned to its size, around the page's slot (mm/swap_state.c:swap_cluster_readahead,
  one state for the host): if the device rotates, and always for shmem (mm/shmem.c:shmem_swapin_cluster);
- by address: a window around the page (swap_vma_readahead; a state for each VMA, and the VM's memory is one). Both grow
  and shrink by how many pages read ahead were of use (__swapin_nr_pages);
- a file: read-around, 128 KiB with the page in their middle, until misses exceed hits by 100
  (mm/filemap.c:do_sync_mmap_readahead; a state for each file, one a VM).

Departures: the swap area has no header, so slot 0 is like any other; the host looks its page up once a fault, not again
when the read is over; of a file, no further window is started when PG_readahead is met (do_async_mmap_readahead), and
neighbours in the page cache are not mapped along (do_fault_around).

``StrideReadahead``: the reference prediction table of Chen and Baer, Effective hardware-based data prefetching for
high-performance processors (IEEE Transactions on Computers 44, 1995). Departures: an entry is a vCPU, for want of the
faulting instruction; only what faults is seen; only a stride that has held is followed, since a useless read costs more
here; and as many strides ahead as the kernel's largest window is long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from apf.core import message

PMD_PAGES = 512
ORDER_CEILING = 5
"""SWAP_RA_ORDER_CEILING: a window by address is no larger than 2 to the power of this."""
HITS_MAX = 63
"""SWAP_RA_HITS_MAX."""
FILE_PAGES = 32
"""VM_READAHEAD_PAGES: 128 KiB, read_ahead_kb of a block device by default."""
LOTS_OF_MISSES = 100
"""MMAP_LOTSAMISS."""
_HITS_AT_FIRST = 4
"""swapin_readahead_hits, GET_SWAP_RA_VAL: so that the first window is a large one."""


@message
class SwapFault:
    """A fault on page ``key`` of the host, which lies in ``slot``; ``first`` and ``end`` bound the VM's pages."""

    key: int
    slot: int
    vm: int
    vcpu: int
    first: int
    end: int


class Way(IntEnum):
    """By which neighbourhood the kernel reads ahead for a VM."""

    ADDRESS = 0
    SLOT = 1
    FILE = 2


_ADDRESS, _SLOT, _FILE = Way


@dataclass(frozen=True, slots=True)
class Settings:
    """What a policy is made for: the way of each VM, and ``page_in(slot)``, the page whose slot that is, -1 if nobody's.

    ``slots``: of the swap area.
    """

    ways: tuple[Way, ...]
    page_cluster: int
    slots: int
    page_in: Callable[[int], int]


class Readahead(ABC):
    """A policy. Deterministic: what it answers depends on what it was asked and told before, and on nothing else."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def window(self, fault: SwapFault) -> Sequence[int]:
        """Pages to read, in that order, among them ``fault.key``."""

    def found(self, fault: SwapFault, first_hit: bool) -> None:  # noqa: B027 - a policy need not care
        """A fault found its page in a cache. ``first_hit``: it was read ahead, and this is its first use."""

    def forget(self, vm: int) -> None:  # noqa: B027 - a policy need not care
        """VM ``vm`` has left; another may come in its place."""


class NoReadahead(Readahead):
    """The page itself (page_cluster 0)."""

    def window(self, fault: SwapFault) -> Sequence[int]:
        """See ``Readahead``."""
        return (fault.key,)


def pages_to_read(previous: int, offset: int, hits: int, pages_max: int, last_window: int) -> int:
    """Length of the next window (mm/swap_state.c:__swapin_nr_pages), 1 for the page alone.

    ``previous`` and ``offset`` are where the last fault was and this one is, in pages; ``hits`` how many pages read
    ahead were used since.
    """
    if hits:
        pages = max(4, 1 << (hits + 1).bit_length())
    else:
        pages = 2 if -1 <= offset - previous <= 1 and offset != previous else 1
        if last_window <= 2 and pages <= pages_max:  # the common case: no window to shrink
            return pages
    return max(min(pages, pages_max), last_window // 2)


def address_window(previous: int, offset: int, length: int, first: int, end: int) -> tuple[int, int]:
    """Pages [start, stop) of a window of ``length`` at ``offset``, within a VMA [first, end) whose pages start at a PMD.

    Onwards from the fault if the last one was just below, up to it if just above, else around it
    (mm/swap_state.c:swap_vma_ra_win).
    """
    if offset == previous + 1:
        left = offset
    elif offset == previous - 1:
        left = offset - length + 1
    else:
        left = offset - (length - 1) // 2
    pmd = first + (offset - first) // PMD_PAGES * PMD_PAGES
    return max(left, first, pmd), min(left + length, end, pmd + PMD_PAGES)


@dataclass(slots=True)
class _Vma:
    """vma->swap_readahead_info: the last fault, the last window, and hits since."""

    previous: int = -PMD_PAGES
    window: int = 0
    hits: int = _HITS_AT_FIRST


class KernelReadahead(Readahead):
    """mm/swap_state.c:swapin_readahead; mm/filemap.c:filemap_fault."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._vmas = [_Vma() for _ in settings.ways]
        self._misses = [0] * len(settings.ways)
        """file_ra_state.mmap_miss of each VM's file."""
        self._area = _Vma()
        self._area_max = 1 << settings.page_cluster
        self._vma_max = 1 << min(settings.page_cluster, ORDER_CEILING)

    def window(self, fault: SwapFault) -> Sequence[int]:
        """See ``Readahead``."""
        way = self.settings.ways[fault.vm]
        if way is _ADDRESS:
            return self._by_address(fault)
        return self._by_slot(fault) if way is _SLOT else self._around(fault)

    def _by_slot(self, fault: SwapFault) -> Sequence[int]:
        """swap_cluster_readahead with swapin_nr_pages: neighbours in the swap area, whosesoever they are."""
        area, slot = self._area, fault.slot
        if self._area_max <= 1:
            return (fault.key,)
        hits, area.hits = area.hits, 0
        area.window = pages_to_read(area.previous, slot, hits, self._area_max, area.window)
        if not hits:
            area.previous = slot
        if area.window == 1:
            return (fault.key,)
        mask = area.window - 1
        page_in = self.settings.page_in
        slots = range(slot & ~mask, min(slot | mask, self.settings.slots - 1) + 1)
        return [key for key in map(page_in, slots) if key >= 0]

    def _by_address(self, fault: SwapFault) -> Sequence[int]:
        """swap_vma_readahead."""
        vma = self._vmas[fault.vm]
        if self._vma_max <= 1:
            return (fault.key,)
        previous = vma.previous
        vma.window = pages_to_read(previous, fault.key, vma.hits, self._vma_max, vma.window)
        vma.previous, vma.hits = fault.key, 0
        if vma.window == 1:
            return (fault.key,)
        return range(*address_window(previous, fault.key, vma.window, fault.first, fault.end))

    def _around(self, fault: SwapFault) -> Sequence[int]:
        """do_sync_mmap_readahead."""
        self._misses[fault.vm] = misses = min(self._misses[fault.vm] + 1, 10 * LOTS_OF_MISSES)
        if misses > LOTS_OF_MISSES:
            return (fault.key,)
        start = max(fault.key - FILE_PAGES // 2, fault.first)
        return range(start, min(start + FILE_PAGES, fault.end))

    def found(self, fault: SwapFault, first_hit: bool) -> None:
        """swap_update_readahead; do_async_mmap_readahead."""
        way = self.settings.ways[fault.vm]
        if way is _SLOT:
            self._area.hits += first_hit
            return
        if way is _FILE:
            self._misses[fault.vm] = max(0, self._misses[fault.vm] - 1)
            return
        vma = self._vmas[fault.vm]
        vma.previous = fault.key
        vma.hits = min(vma.hits + first_hit, HITS_MAX)

    def forget(self, vm: int) -> None:
        """See ``Readahead``."""
        self._vmas[vm] = _Vma()
        self._misses[vm] = 0


class Trust(IntEnum):
    """How far a stride is trusted."""

    INITIAL = 0
    TRANSIENT = 1
    STEADY = 2
    NO_PREDICTION = 3


TRUST: dict[tuple[Trust, bool], tuple[Trust, bool]] = {
    # (trust, the stride was right) -> (trust, take the new stride); Chen and Baer 1995, figure 3.
    (Trust.INITIAL, True): (Trust.STEADY, False),
    (Trust.INITIAL, False): (Trust.TRANSIENT, True),
    (Trust.TRANSIENT, True): (Trust.STEADY, False),
    (Trust.TRANSIENT, False): (Trust.NO_PREDICTION, True),
    (Trust.STEADY, True): (Trust.STEADY, False),
    (Trust.STEADY, False): (Trust.INITIAL, False),
    (Trust.NO_PREDICTION, True): (Trust.TRANSIENT, False),
    (Trust.NO_PREDICTION, False): (Trust.NO_PREDICTION, True),
}


@dataclass(slots=True)
class _Entry:
    """A vCPU's row of the table."""

    last: int
    stride: int = 0
    trust: Trust = Trust.INITIAL


class StrideReadahead(Readahead):
    """A stride prefetcher."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._ahead = (1 << settings.page_cluster) - 1
        self._table: dict[tuple[int, int], _Entry] = {}

    def window(self, fault: SwapFault) -> Sequence[int]:
        """See ``Readahead``."""
        stride = self._learn(fault)
        if not stride:
            return (fault.key,)
        keys = (fault.key + step * stride for step in range(self._ahead + 1))
        return [key for key in keys if fault.first <= key < fault.end]

    def found(self, fault: SwapFault, first_hit: bool) -> None:
        """See ``Readahead``."""
        self._learn(fault)

    def forget(self, vm: int) -> None:
        """See ``Readahead``."""
        self._table = {owner: entry for owner, entry in self._table.items() if owner[0] != vm}

    def _learn(self, fault: SwapFault) -> int:
        """Note the access; the stride to follow, 0 if none has held."""
        entry = self._table.get((fault.vm, fault.vcpu))
        if entry is None:
            self._table[fault.vm, fault.vcpu] = _Entry(fault.key)
            return 0
        stride = fault.key - entry.last
        if stride:  # else the same access again
            entry.trust, takes = TRUST[entry.trust, stride == entry.stride]
            entry.last = fault.key
            if takes:
                entry.stride = stride
        return entry.stride if entry.trust is Trust.STEADY else 0
