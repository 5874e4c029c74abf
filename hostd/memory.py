"""The host's memory as Linux shows it: a group's files of cgroup v2, and /proc/vmstat. Read only.

Names are the kernel's; a group's sizes are in bytes where the kernel has bytes (mm/memcontrol.c:memory_stat_format),
the host's in pages (mm/vmstat.c). Whoever asks may do so beside a step of the core: see ``hostd.metrics``.

What a page counts as: in memory.stat ``anon`` and ``shmem`` are mapped pages, ``swapcached`` are those in the swap
cache, mapped or not: pages in memory that have a slot. ``file`` is the page cache, of which shared memory is part.

Departures: a page on its way out is uncharged when it is picked (``hostd.core.page``), so it is in the host's figures
only; what a group's own limit makes it reclaim is in the host's pgscan_direct and pgsteal_direct too, and in allocstall,
which stands for all its zones' counters; memory.swap.max is not limited for a group; page tables take no memory
(sec_pagetables); memory.events has no oom_group_kill.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apf.messages import PAGE_SIZE
from hostd.core import averages
from hostd.core.mm import Mm
from hostd.core.page import CHARGED, DIRTY, FRAMED, WRITING, PageState
from hostd.core.pressure import Totals

NO_LIMIT = "max"
STAT_SIZES = (
    *("anon", "file", "shmem", "file_mapped", "file_dirty", "swapcached"),
    *("inactive_anon", "active_anon", "inactive_file", "active_file"),
)
"""What of memory.stat is in bytes; the rest are counters."""

GROUP_COUNTERS = (
    *("pgfault", "pgmajfault", "pswpin", "pswpout", "swpin_zero", "swpout_zero"),
    *("pgscan_direct", "pgscan_kswapd", "pgsteal_direct", "pgsteal_kswapd"),
    *("pgrefill", "pgactivate", "pgdeactivate"),
    *(f"workingset_{what}_{kind}" for what in ("refault", "activate", "restore") for kind in ("anon", "file")),
)
"""Counters of ``hostd.core.group.STAT`` that memory.stat has too."""
VMSTAT_COUNTERS = (*GROUP_COUNTERS, "pgrotated", "allocstall", "nr_vmscan_write", "swap_ra", "swap_ra_hit")
"""Those of /proc/vmstat that are summed over the groups."""
VMSTAT_HOST_COUNTERS = ("pageoutrun", "kswapd_low_wmark_hit_quickly")

_MAPPED = (PageState.RESIDENT, PageState.EVICTING)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pages of one VM in memory, by what they count as, and swap slots of it."""

    anon: int
    file: int
    shmem: int
    file_mapped: int
    file_dirty: int
    swapcached: int
    writeback: int
    slots: int


def _sizes(mm: Mm, vm: int, states: tuple[int, ...]) -> Sizes:
    """Of the pages of ``vm`` that are in one of ``states``; ``slots`` are all."""
    pages, backing = mm.pages, mm.backings[vm]
    own = slice(*pages.bounds[vm])
    state, slot = pages.view_u8(pages.state)[own], pages.view_i64(pages.slot)[own]
    flags = pages.view_u8(pages.flags)[own]
    there = np.isin(state, states)
    mapped = np.isin(state, [one for one in states if one in _MAPPED])
    swapped = (slot >= 0) & (slot < mm.swap.total)
    dirty = _count(there & ((flags & DIRTY) != 0))
    # What is in the swap cache, unmapped, is neither anonymous nor shared yet; without a slot it is nowhere else.
    own_kind = _count(mapped | (there & ~swapped))
    cache, shared = not backing.swaps, backing.is_shared
    return Sizes(
        anon=0 if cache or shared else own_kind,
        file=_count(there) if cache else own_kind if shared else 0,
        shmem=own_kind if shared else 0,
        file_mapped=_count(mapped) if cache or shared else 0,
        file_dirty=dirty if cache else 0,
        swapcached=_count(there & swapped),
        writeback=_count((flags & WRITING) != 0),
        slots=_count(swapped),
    )


def _count(which: npt.NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(which))


def group_files(mm: Mm, vm: int, now_ns: int) -> dict[str, Any]:
    """Files of the memory group of ``vm``, by their names; those of several lines are tables."""
    group, sizes = mm.groups[vm], _sizes(mm, vm, CHARGED)
    return {
        "memory.current": group.usage * PAGE_SIZE,
        "memory.high": group.high * PAGE_SIZE if group.high else NO_LIMIT,
        "memory.max": group.limit * PAGE_SIZE,
        "memory.swap.current": sizes.slots * PAGE_SIZE,
        "memory.swap.max": NO_LIMIT,
        "memory.stat": _memory_stat(mm, vm, sizes),
        "memory.events": dict(group.events),
        "memory.pressure": pressure_file(mm.pressure[vm].totals(now_ns)),
    }


def _memory_stat(mm: Mm, vm: int, sizes: Sizes) -> dict[str, int]:
    group, stat = mm.groups[vm], mm.groups[vm].stat
    inactive, active = group.lists.sizes()
    kind = mm.backings[vm].kind
    in_pages = dict.fromkeys(STAT_SIZES, 0) | {
        "anon": sizes.anon,
        "file": sizes.file,
        "shmem": sizes.shmem,
        "file_mapped": sizes.file_mapped,
        "file_dirty": sizes.file_dirty,
        "swapcached": sizes.swapcached,
        f"inactive_{kind}": inactive,
        f"active_{kind}": active,
    }
    scans = {
        "pgscan": stat["pgscan_direct"] + stat["pgscan_kswapd"],
        "pgsteal": stat["pgsteal_direct"] + stat["pgsteal_kswapd"],
    }
    counted = {name: stat[name] for name in GROUP_COUNTERS}
    return {name: pages * PAGE_SIZE for name, pages in in_pages.items()} | scans | counted


def pressure_file(totals: Totals) -> dict[str, dict[str, Any]]:
    """memory.pressure: averages in per cents, totals in microseconds."""
    found = totals.averages
    return {
        "some": _pressure_line(found.some, totals.some_ns),
        "full": _pressure_line(found.full, totals.full_ns),
    }


def _pressure_line(loads: averages.Loads, total_ns: int) -> dict[str, Any]:
    shown = {f"avg{seconds}": averages.text(load) for seconds, load in zip(averages.SECONDS, loads, strict=True)}
    return shown | {"total": total_ns // 1000}


def vmstat(mm: Mm) -> dict[str, int]:
    """/proc/vmstat of the host, as far as there is something to count."""
    counted = {name: sum(group.stat[name] for group in mm.groups) for name in VMSTAT_COUNTERS}
    host = {name: mm.host_stat[name] for name in VMSTAT_HOST_COUNTERS}
    return vmstat_sizes(mm) | counted | host | {"oom_kill": sum(group.events["oom_kill"] for group in mm.groups)}


def vmstat_sizes(mm: Mm) -> dict[str, int]:
    """Its part that goes up and down, in pages."""
    per_vm = [_sizes(mm, vm, FRAMED) for vm in range(len(mm.groups))]
    lists = dict.fromkeys(("nr_inactive_anon", "nr_active_anon", "nr_inactive_file", "nr_active_file"), 0)
    for group, backing in zip(mm.groups, mm.backings, strict=True):
        inactive, active = group.lists.sizes()
        lists[f"nr_inactive_{backing.kind}"] += inactive
        lists[f"nr_active_{backing.kind}"] += active
    return {
        "nr_free_pages": len(mm.frames.free),
        **lists,
        "nr_anon_pages": sum(one.anon for one in per_vm),
        "nr_file_pages": sum(one.file + one.swapcached for one in per_vm),
        "nr_mapped": sum(one.file_mapped for one in per_vm),
        "nr_dirty": sum(one.file_dirty for one in per_vm),
        "nr_shmem": sum(one.shmem for one in per_vm),
        "nr_writeback": sum(one.writeback for one in per_vm),
        "nr_swapcached": sum(one.swapcached for one in per_vm),
    }
