"""The host's mm, put together: its state, the parts that work on it, and the core's own events as they fall due.

``vmscan`` reclaims, ``memcontrol`` charges, ``page_io`` reads and writes: each goes by the file of mm/ that it follows,
and works on the state (``state``). ``run_until`` carries out what waits in the agenda. None of these events has an
effect for the shell: everything that others wait for was settled when the event was scheduled.
"""

from __future__ import annotations

from heapq import heappop

from apf.journal import Journal
from hostd.core.config import HostConfig
from hostd.core.device import Carry
from hostd.core.group import STAT
from hostd.core.memcontrol import Memcontrol
from hostd.core.page import DIRTY, LRU, MAPPED, READ_DONE, READ_FAILED, READ_SUBMITTED, RESIDENT
from hostd.core.page_io import PageIo
from hostd.core.state import HOST_COUNTERS, MmState, Own
from hostd.core.vmscan import Vmscan

COUNTERS = (*STAT, *HOST_COUNTERS)

# Bound once, as in ``page``.
_ON_READ, _ON_WRITE, _ON_MAPPING, _ON_WORKER, _ON_KSWAPD, _ON_REFUSAL = Own


class Mm(MmState):
    """The mm of one host."""

    __slots__ = ("memcontrol", "page_io", "vmscan")

    def __init__(self, config: HostConfig, journal: Journal, carry: Carry | None = None) -> None:
        super().__init__(config, journal)
        self.vmscan = Vmscan(self)
        self.memcontrol = Memcontrol(self, self.vmscan)
        self.page_io = PageIo(self, carry)

    def counters(self) -> dict[str, int]:
        """All counters of all groups together, and the host's own."""
        return {name: sum(group.stat[name] for group in self.groups) for name in STAT} | self.host_stat

    def settle_figures(self, now_ns: int) -> None:
        """Bring what is for whoever watches up to date, at a border: not at each, for many cost hardly more than one."""
        for pressure in (*self.pressure, self.root_pressure):
            pressure.fold(now_ns)
        self.page_io.settle_figures()

    def run_until(self, now_ns: int) -> None:
        """Carry out the own events up to and including ``now_ns``."""
        agenda = self.agenda
        if not agenda or agenda[0][0] > now_ns:
            return
        pages, left, failed = self.pages, self.left, self.damage.pages
        pins, state, flags = pages.pins, pages.state, pages.flags
        while agenda and agenda[0][0] <= now_ns:
            at_ns, _order, what, key, vm, write = heappop(agenda)
            if what is _ON_READ:
                del self.reads[key]
                pages.move(key, READ_FAILED if failed and key in failed else READ_DONE, at_ns)
                if self.starts_missing[vm] and self.is_place(pages.slot[key]):
                    self._fetched(key, vm, at_ns)
                if not pins[key]:
                    self.settle(key, vm, at_ns)
                continue
            if what is _ON_WRITE:
                self.page_io.write_done(key, vm, at_ns)
            elif what is _ON_MAPPING:
                heappop(self.mapping_times)
                if vm not in left:
                    # Mostly it is mapped already, as it is to be, by whoever was promised the mapping.
                    if state[key] != RESIDENT or (write and not flags[key] & DIRTY):
                        self.map_page(key, vm, write, at_ns)
                    self.publish[key] = vm
            elif what is _ON_KSWAPD:
                self.vmscan.kswapd(at_ns)
                continue
            else:
                self._worker_done(key, vm, at_ns, what is _ON_REFUSAL)
            self.groups[vm].pinned -= 1
            pins[key] = still = pins[key] - 1
            # Mostly reclaim has it already.
            if not still and (left or not flags[key] & LRU):
                self.settle(key, vm, at_ns)

    def _worker_done(self, key: int, vm: int, at_ns: int, refused: bool) -> None:
        """The worker's get_user_pages, a write fault, is over: the host maps the page, the EPT does not yet (E44).

        Of a VM that has left it finds no mm, and completes its item without a page (E55); also if it was ``refused``,
        because the VMM may not write the page (E40).
        """
        stat = self.groups[vm].stat
        if vm not in self.left and not refused:
            stat["pgfault"] += self.pages.state[key] != RESIDENT
            if key not in self.damage.pages:  # else its error is nobody's
                self.map_page(key, vm, True, at_ns)
        stat["kvm_async_pf_completed"] += 1
        self.journal.record((at_ns, "completed", vm, key - self.pages.first_key[vm]))

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
        self.journal.record((now_ns, "userfault", vm, gfn, pages.slot[key], pages.pfn[key], event_ns, done_ns))
        return done_ns

    def _fetched(self, key: int, vm: int, at_ns: int) -> None:
        """A handler has put page ``key`` in place: the host maps it, dirty (mfill_atomic_install_pte)."""
        pages = self.pages
        self.free_slot(key, vm)
        pages.flags[key] |= DIRTY
        pages.move(key, MAPPED, at_ns)
