"""The host core: takes requests in their order and borders in between, and answers with effects (see ``events``).

``step`` first carries out the core's own events up to its time, so that they take their place before requests of
the same time. They have no effects, so a shell need not wake the core for them; ``deadline_ns`` is when the next
one is due. A border needs a step only if ``border_work``; one that passes without a step changes nothing but the
moment at which the core learns what was used and written, so all shells must follow the same rule.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
import numpy.typing as npt

from apf.core import CoreError
from apf.journal import Journal
from apf.messages import FaultRaised
from hostd.core import audit
from hostd.core.border import Border
from hostd.core.config import HostConfig
from hostd.core.damage import Trouble
from hostd.core.device import Carry
from hostd.core.events import (
    BorderReached,
    HostEffect,
    HostEvent,
    IoFaultArrived,
    RequestTaken,
    SegmentsLoaded,
    VmLeft,
)
from hostd.core.fault import FaultPath
from hostd.core.leave import gone_ns, leave
from hostd.core.mm import Mm
from hostd.core.page import DIRTY
from hostd.core.population import populate
from hostd.core.pressure import Totals


class HostCore:
    """The mm of one host. ``counters`` go by the kernel's names where it has one (``mm.COUNTERS``)."""

    def __init__(self, config: HostConfig, journal: Journal | None = None, carry: Carry | None = None) -> None:
        """``carry``: who carries out the I/O of a real device (``hostd.core.device.MeasuredDevice``)."""
        self.config = config
        self.journal = journal if journal is not None else Journal()
        self._mm = Mm(config, self.journal, carry)
        self._fault_path = FaultPath(self._mm)
        self._border = Border(self._mm)
        self._now_ns = 0
        self._border_ns = 0  # the last one that was stepped
        self.every_border = config.reclaim.wants_use
        """Whether every border needs a step, for somebody wants to know what was used in which window."""

    @property
    def counters(self) -> dict[str, int]:
        """All VMs together, a copy."""
        return self._mm.counters()

    def step(self, event: HostEvent, now_ns: int) -> list[HostEffect]:
        """Take ``event`` at ``now_ns``, which never goes back. CoreError for what a peer may not ask."""
        if now_ns < self._now_ns:
            raise CoreError(f"{type(event).__name__} at {now_ns}, but the core is at {self._now_ns} already")
        self._now_ns = now_ns
        self._mm.run_until(now_ns)
        if type(event) is RequestTaken:  # not match: see ``apf.core.message``
            request = event.request
            if type(request) is FaultRaised:
                return self._fault_path.fault(event.vm, event.vcpu, request, now_ns)
            return self._fault_path.prefault(event.vm, event.vcpu, request, now_ns)
        if type(event) is BorderReached:
            self._border_ns = now_ns
            return self._border.step(event, now_ns)
        match event:
            case SegmentsLoaded():
                return populate(self._mm, event, now_ns)
            case IoFaultArrived(wish=wish):
                self._mm.page_io.fail_ios(wish, now_ns)
                return []
            case VmLeft(vm=vm):
                self._fault_path.forget(vm)
                return leave(self._mm, vm, now_ns)
            case _:
                assert_never(event)

    @property
    def now_ns(self) -> int:
        """The time of the last step."""
        return self._now_ns

    def deadline_ns(self) -> int | None:
        """When the next own event is due."""
        return self._mm.agenda[0][0] if self._mm.agenda else None

    @property
    def border_work(self) -> bool:
        """Whether there is, or will be once promised mappings take effect, work for a border.

        Simple and safe; with many long reads under way nearly every border has work by it. See ``border_due_ns``.
        """
        return self.border_due_ns() is not None

    def border_due_ns(self) -> int | None:
        """No border before this time needs a step; None: none does, as things stand. The exact ``border_work``."""
        mm = self._mm
        if mm.evicting or mm.publish:
            return self._now_ns
        if self.every_border:
            return self._border_ns + 1
        due_ns = mm.mapping_times[0] if mm.mapping_times else None
        kswapd_ns = mm.vmscan.kswapd_ns
        if kswapd_ns is not None and (due_ns is None or kswapd_ns < due_ns):
            return kswapd_ns
        return due_ns

    def writes_ahead(self) -> list[int]:
        """Frames that the next border is going to have written, as things stand, in that order."""
        mm, pages = self._mm, self._mm.pages
        return [pages.pfn[key] for key in mm.evicting if pages.flags[key] & DIRTY] if mm.evicting else []

    def gone_ns(self, vm: int) -> int:
        """When the place of ``vm``, which has left, is free for a VM to join; the core's time if it is already."""
        return gone_ns(self._mm, vm, self._now_ns)

    def resident_pages(self, vm: int) -> int:
        """Pages charged to the group of ``vm`` (memory.current)."""
        return self._mm.groups[vm].usage

    def locate(self, vm: int, gfns: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Frame and slot of each page, -1 where it has none. A page may have both; then the frame counts.

        A page being read has its frame already, and its bytes: the shell moves them when it is told to.
        """
        pages = self._mm.pages
        keys = gfns + pages.first_key[vm]
        return pages.view_i64(pages.pfn)[keys], pages.view_i64(pages.slot)[keys]

    def lost(self, vm: int, gfns: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        """Why each page cannot be had, as far as is known (PageError); 0: it can."""
        mm = self._mm
        why = np.zeros(len(gfns), np.int8)
        if not mm.damage.pages and not mm.damage.slots:
            return why
        for place, key in enumerate((gfns + mm.pages.first_key[vm]).tolist()):
            if mm.pages.pfn[key] >= 0:
                why[place] = mm.damage.pages.get(key, 0)
            else:
                why[place] = mm.damage.slots.get(mm.pages.slot[key], 0)
        return why

    @property
    def told(self) -> list[str]:
        """What the host's kernel has told its operator so far."""
        return self._mm.log.lines

    def troubles(self) -> list[tuple[int, int, Trouble]]:
        """VM and gfn of each page that could not be read, in the order in which that was found out."""
        return [(*self._place(key), trouble) for key, trouble in self._mm.damage.troubles.items()]

    def owner_of(self, pfn: int) -> tuple[int, int]:
        """VM and gfn of the page in frame ``pfn``, which somebody owns."""
        return self._place(self._mm.frames.owner[pfn])

    def _place(self, key: int) -> tuple[int, int]:
        vm = self._mm.vm_of(key)
        return vm, key - self._mm.pages.first_key[vm]

    def zero_slots(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of ``slots`` stand for a page of zeros, and have never been written as such."""
        return self._mm.swap.are_zero(slots)

    @property
    def swap_pages(self) -> int:
        """Slots in use."""
        return self._mm.swap.in_use

    @property
    def free_frames(self) -> int:
        """Frames nobody owns."""
        return len(self._mm.frames.free)

    def hanging(self, vm: int) -> list[tuple[int, int]]:
        """(gfn, since when, ns) of pages of ``vm`` that are waited for for ever."""
        mm, first = self._mm, self._mm.pages.first_key[vm]
        return [(key - first, since_ns) for key, since_ns in mm.hanging.items() if mm.vm_of(key) == vm]

    def pressure(self) -> dict[str, Totals]:
        """Memory pressure of each VM's group, by its number, and of the fault-in workers (``root``), as of now."""
        mm = self._mm
        totals = {str(vm): one.totals(self._now_ns) for vm, one in enumerate(mm.pressure)}
        return totals | {"root": mm.root_pressure.totals(self._now_ns)}

    def watched(self) -> Mm:
        """The state, for who exports figures of it: to be read only, at any moment, also while a step is under way."""
        return self._mm

    def check(self) -> None:
        """Assert every invariant."""
        audit.check(self._mm)

    def finish(self, now_ns: int) -> None:
        """Carry out what is due by ``now_ns``, the end of the run, and write the final records."""
        self._now_ns = max(self._now_ns, now_ns)
        self._mm.run_until(now_ns)
        self._mm.settle_figures(now_ns)
        for name, value in sorted(self.counters.items()):
            self.journal.record((now_ns, "counter", name, value))
        for vm, group in enumerate(self._mm.groups):
            self.journal.record((now_ns, "group", vm, group.usage, *group.lists.sizes(), group.pinned))
        self.journal.record((now_ns, "host", len(self._mm.frames.free), self._mm.swap.in_use))
        self.journal.flush()
