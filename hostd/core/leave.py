"""The end of a VM on its host: everything that is its own goes back (mm/mmap.c:exit_mmap, kvm_destroy_vm).

At a border, when none of its vCPUs will ask again. What is in no one's hands is free at once. A page that is being read
or written, or that the fault-in worker has, goes when that is over, as in the kernel a page goes with its last
reference, and VM destruction waits for the workers (E54); until then no VM can take the place (``gone_ns``).

Departure: nothing of this takes virtual time of the others; the kernel does it on a CPU that they may have wanted.
"""

from __future__ import annotations

import numpy as np

from apf.core import CoreError
from hostd.core.events import ClearVm, HostEffect
from hostd.core.mm import Mm
from hostd.core.page import LRU, PageState


def leave(mm: Mm, vm: int, now_ns: int) -> list[HostEffect]:
    """Take VM ``vm`` off the host. CoreError if there is no such VM."""
    if not 0 <= vm < len(mm.groups) or vm in mm.left:
        raise CoreError(f"VM {vm} leaves: there is no such VM")
    assert not mm.evicting and not mm.publish, "a VM leaves behind a border's own work"
    mm.left.add(vm)
    pages, group = mm.pages, mm.groups[vm]
    group.lists.clear()
    mm.readahead.forget(vm)
    group.fruitless = group.over_high = 0
    group.killed = False
    first = pages.first_key[vm]
    own = slice(first, first + mm.config.vms[vm].guest_pages)
    pages.view_u64(pages.ept)[own] = 0
    mm.read_only[own] = bytes(mm.config.vms[vm].guest_pages)
    pages.view_u8(pages.flags)[own] &= 0xFF ^ LRU
    freed = held = 0
    for key in (np.flatnonzero(pages.view_u8(pages.state)[own]) + first).tolist():
        if pages.pins[key] or pages.state[key] == PageState.READING:
            held += 1
        else:
            mm.free_page(key, vm, now_ns)
            freed += 1
    mm.journal.record((now_ns, "left", vm, freed, held))
    return [ClearVm(vm)]


def gone_ns(mm: Mm, vm: int, now_ns: int) -> int:
    """When the last page of a VM that has left will be free; ``now_ns`` if it is."""
    return max((at_ns for at_ns, _, _, _, whose, _ in mm.agenda if whose == vm), default=now_ns)
