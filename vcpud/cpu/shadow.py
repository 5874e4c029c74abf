"""Shadow page tables: what the CPU translates with where there is no EPT (arch/x86/kvm/mmu, "shadow" paging).

A table per address space maps its pages straight to host frames. It starts empty and is filled at faults, from what the
host has mapped (``install``). When the host unmaps or moves a page, or takes its write permission, the reverse map
finds every table that has it, and the entry goes (``zap``: kvm_unmap_gfn_range, rmap_walk); the next access faults.

Entries are EPT entries, by guest frame: an address space maps each of its frames at one address only.

Departures: a vCPU has tables of its own, where vCPUs share them in KVM, so that no vCPU sees another's fill within a
window. The host's unmapping is found at the start of a window, when it takes effect, by comparing with the host's table.
Guest page tables are not in guest memory, so they are not write-protected, and loading CR3 does not exit. The guest
kernel's own accesses do not go through a shadow table.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Entries = npt.NDArray[np.uint64]


class Shadow:
    """The tables of one vCPU, whose VM has ``guest_pages``."""

    def __init__(self, guest_pages: int) -> None:
        self._pages = guest_pages
        self._tables: dict[int, Entries] = {}
        self._rmap: dict[int, set[int]] = {}
        self.zapped = 0

    def table(self, asid: int) -> Entries:
        """The table of address space ``asid`` (0: of none, always empty): an entry per gfn, 0 if not present."""
        if asid not in self._tables:
            self._tables[asid] = np.zeros(self._pages, np.uint64)
        return self._tables[asid]

    def install(self, asid: int, gfn: int, entry: int) -> int:
        """Map ``gfn``; returns what was there."""
        table = self.table(asid)
        before = int(table[gfn])
        table[gfn] = entry
        self._rmap.setdefault(gfn, set()).add(asid)
        return before

    def zap(self, host: Entries) -> None:
        """Drop, through the reverse map, every entry that is not what the ``host`` maps now."""
        if not self._rmap:
            return
        gfns = np.fromiter(self._rmap, np.int64, len(self._rmap))
        for asid, table in self._tables.items():
            if asid:
                held = table[gfns]
                for gfn in gfns[(held != 0) & (held != host[gfns])].tolist():
                    table[gfn] = 0
                    self.zapped += 1
                    owners = self._rmap[gfn]
                    owners.discard(asid)
                    if not owners:
                        del self._rmap[gfn]
