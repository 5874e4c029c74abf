"""A guest process: what it is to be made of (a plan), and its address space and state once it is there.

A plan is complete but for guest-physical memory: it fixes all addresses of the process, for an address space is empty
before. ``Memory`` then hands out frames, region after region, in order; they are not given back when a process ends.

At boot the contents of regions are loaded into the VM as segments. A process made later writes them itself: the
guest kernel copies them (execve) before its first task runs, which happens page by page through ordinary kernel
accesses of the vCPU, and all other pages are demand-zero.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

from apf.messages import PAGE_SHIFT, PAGE_SIZE, AddressSpace, Extent, Segment, Stamp
from guestsched.core.access import AccessQueue
from guestsched.core.task import TaskSpec

PER_CPU_GFN = 1
MAP_GVA = 0x2000_0000_0000
"""Where the map system call puts its pages: above all that a plan uses, below the stacks."""
MAP_END_GVA = 0x6000_0000_0000


class OutOfMemory(Exception):
    """The guest has no frames left; the message says how many were wanted and how many there are."""


class Memory:
    """The guest's frames: a bump allocator from the per-CPU pages upwards."""

    def __init__(self, vcpus: int, pages: int) -> None:
        self._next = PER_CPU_GFN + vcpus
        self._end = pages

    @property
    def free(self) -> int:
        """Frames nobody has."""
        return self._end - self._next

    def take(self, pages: int) -> int:
        """The first of ``pages`` consecutive frames. Raises OutOfMemory."""
        if pages > self.free:
            raise OutOfMemory(f"{pages} pages of guest memory wanted, {self.free} are left")
        first = self._next
        self._next += pages
        return first


@dataclass(frozen=True, slots=True)
class Region:
    """Pages of a process: at ``gva``, starting with ``data``; the rest is zero, or stamped as in ``Segment``."""

    gva: int
    pages: int
    data: bytes = b""
    stamps: tuple[Stamp, ...] = ()
    demand_zero: bool = False
    writable: bool = True
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function of a program, in a process's address space."""

    start: int
    end: int
    name: str
    program: str


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """A process to be. ``memory``: where the memory for accesses starts, and its pages. ``digest``: of all its bytes."""

    name: str
    regions: tuple[Region, ...]
    tasks: tuple[TaskSpec, ...]
    symbols: tuple[Symbol, ...] = ()
    memory: tuple[int, int] = (0, 0)
    digest: str = ""


@dataclass(slots=True)
class Semaphore:
    """Counts what is there; tasks wait for it in order."""

    count: int = 0
    waiting: deque[int] = field(default_factory=deque)


class Process:
    """A process that exists. ``version`` counts the changes of its address space."""

    def __init__(self, asid: int, plan: ProcessPlan, memory: Memory) -> None:
        self.asid = asid
        self.plan = plan
        self.name = plan.name
        self.version = 1
        self.execing = False
        """Its first task has yet to copy the program into memory; the others start after that."""
        self.tasks: list[int] = []
        self.semaphores: dict[int, Semaphore] = {}
        self.accesses = AccessQueue()
        self.extents: list[Extent] = []
        self._starts: list[int] = []
        self._map_gva = MAP_GVA
        symbols = sorted(plan.symbols, key=lambda symbol: symbol.start)
        self._symbols, self._symbol_starts = symbols, [symbol.start for symbol in symbols]
        wanted = sum(region.pages for region in plan.regions)
        if wanted > memory.free:
            raise OutOfMemory(f"process {plan.name}: {wanted} pages of guest memory wanted, {memory.free} are left")
        self._gfns = {region.gva: memory.take(region.pages) for region in plan.regions}
        for region in sorted(plan.regions, key=lambda region: region.gva):
            gfn = self._gfns[region.gva]
            self._add(Extent(region.gva, gfn, region.pages, region.writable, region.executable))

    def _add(self, extent: Extent) -> None:
        place = bisect_right(self._starts, extent.gva)
        self.extents.insert(place, extent)
        self._starts.insert(place, extent.gva)

    def segments(self) -> list[Segment]:
        """The regions as hostd loads them before the run."""
        return [
            Segment(
                self._gfns[region.gva],
                region.pages,
                region.data,
                region.stamps,
                region.demand_zero,
                not region.writable,
            )
            for region in self.plan.regions
        ]

    def copies(self) -> list[tuple[int, bytes]]:
        """The regions' data as (guest-physical address, bytes), a page at a time."""
        return [
            ((self._gfns[region.gva] << PAGE_SHIFT) + offset, region.data[offset : offset + PAGE_SIZE])
            for region in self.plan.regions
            for offset in range(0, len(region.data), PAGE_SIZE)
        ]

    def space(self) -> AddressSpace:
        """The page tables as vCPUs get them."""
        return AddressSpace(self.asid, tuple(self.extents))

    def map(self, size: int, memory: Memory) -> int:
        """Map ``size`` bytes of fresh pages; returns where. Raises OutOfMemory."""
        pages = -(-size >> PAGE_SHIFT)
        if self._map_gva + pages * PAGE_SIZE > MAP_END_GVA:
            raise OutOfMemory(f"{pages} pages of address space")
        gva = self._map_gva
        self._add(Extent(gva, memory.take(pages), pages, writable=True, executable=False))
        self._map_gva += (pages + 1) * PAGE_SIZE  # a hole behind each, for accesses that run over
        self.version += 1
        return gva

    def extent_of(self, gva: int) -> Extent | None:
        """The extent that holds ``gva``."""
        place = bisect_right(self._starts, gva) - 1
        if place < 0:
            return None
        extent = self.extents[place]
        return extent if gva < extent.gva + extent.pages * PAGE_SIZE else None

    def pieces(self, gva: int, length: int, write: bool) -> list[tuple[int, int]] | None:
        """``length`` bytes at ``gva`` as (guest-physical address, length) within pages; None: not all may be used."""
        pieces = []
        while length > 0:
            extent = self.extent_of(gva)
            if extent is None or (write and not extent.writable):
                return None
            size = min(length, PAGE_SIZE - gva % PAGE_SIZE)
            pieces.append(((extent.gfn << PAGE_SHIFT) + gva - extent.gva, size))
            gva += size
            length -= size
        return pieces

    def symbol(self, rip: int) -> Symbol | None:
        """The function that holds ``rip``."""
        place = bisect_right(self._symbol_starts, rip) - 1
        if place < 0 or rip >= self._symbols[place].end:
            return None
        return self._symbols[place]
