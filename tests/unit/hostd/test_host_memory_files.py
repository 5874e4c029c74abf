"""A group's files and /proc/vmstat, from a core in a known state and against counts page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from apf.messages import PAGE_SIZE, Access
from hostd import memory
from hostd.core.backing import ANON, BACKINGS, FILE, MEMFD, USERFAULT
from hostd.core.group import EVENTS
from hostd.core.mm import COUNTERS
from hostd.core.page import PageState
from tests.unit.hostd.rig import READ_NS, WINDOW_NS, WRITE_NS, Rig

NewRig = Callable[..., Rig]


def files(rig: Rig, vm: int = 0) -> dict[str, Any]:
    return memory.group_files(rig.core.watched(), vm, rig.core.now_ns)


def pages(table: dict[str, int], *names: str) -> list[int]:
    assert all(table[name] % PAGE_SIZE == 0 for name in names)
    return [table[name] // PAGE_SIZE for name in names]


def test_a_group_at_its_limit(new_rig: NewRig) -> None:
    rig = new_rig(high=60)
    rig.load(256)
    found = files(rig)
    assert found["memory.current"] == found["memory.max"] == 64 * PAGE_SIZE
    assert found["memory.high"] == 60 * PAGE_SIZE
    assert found["memory.swap.current"] == 192 * PAGE_SIZE and found["memory.swap.max"] == "max"
    assert pages(found["memory.stat"], "anon", "swapcached", "inactive_anon", "active_anon") == [64, 0, 64, 0]
    assert tuple(found["memory.events"]) == EVENTS and found["memory.events"]["max"] == 0
    assert files(new_rig())["memory.high"] == "max"


def test_what_a_fault_at_the_limit_does_to_it(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    reply = rig.mapped(0, 1_000)
    found = files(rig)
    assert found["memory.current"] == 33 * PAGE_SIZE, "32 are on their way out"
    assert found["memory.events"]["max"] == 1
    stat = found["memory.stat"]
    assert pages(stat, "anon", "swapcached") == [32, 1], "the page under read is in the swap cache"
    assert stat["pgscan"] == stat["pgscan_direct"] == 32 and stat["pgsteal"] == 0
    assert (stat["pswpin"], stat["pgmajfault"], stat["pgfault"]) == (1, 1, 1)
    assert memory.vmstat(rig.core.watched())["nr_swapcached"] == 33, "the host's has those that were picked too"
    rig.border(WINDOW_NS)
    host = memory.vmstat(rig.core.watched())
    assert (host["nr_writeback"], host["nr_swapcached"], host["nr_anon_pages"]) == (32, 33, 32)
    rig.border(reply.at_ns // WINDOW_NS * WINDOW_NS + 100 * WINDOW_NS)
    host, stat = memory.vmstat(rig.core.watched()), files(rig)["memory.stat"]
    assert host["nr_writeback"] == 0
    assert pages(stat, "anon", "swapcached") == [33, rig.core.resident_pages(0) - 32], "mapped, and with its slot"


def test_pages_count_as_rotated_when_their_write_is_done_not_when_a_scan_puts_them_back(new_rig: NewRig) -> None:
    """PGROTATED is mm/swap.c:folio_rotate_reclaimable's."""
    rig = new_rig(limit=256)
    rig.load(64)
    mm = rig.core.watched()
    rig.border(WINDOW_NS, accessed=list(range(16)))
    mm.vmscan.reclaim(0, 32, WINDOW_NS)
    assert (rig.core.counters["pgscan_direct"], memory.vmstat(mm)["pgrotated"]) == (48, 0)
    zeros = rig.core.writes_ahead()[:4]
    rig.border(2 * WINDOW_NS, zero=zeros)
    rig.border(2 * WINDOW_NS + 32 * WRITE_NS)
    assert memory.vmstat(mm)["pgrotated"] == 28, "a page of zeros is never under writeback"


def test_pressure_has_the_kernels_units(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    rig.thrashes(0)
    reply = rig.mapped(0, 1_000)
    rig.border(reply.at_ns // WINDOW_NS * WINDOW_NS + WINDOW_NS)
    some = files(rig)["memory.pressure"]["some"]
    assert some["total"] == rig.core.pressure()["0"].some_ns // 1000 > READ_NS // 1000
    assert [some[name] for name in ("avg10", "avg60", "avg300")] == ["0.00"] * 3, "no period is over"


@pytest.mark.parametrize("backing", BACKINGS.values(), ids=BACKINGS)
def test_every_page_in_memory_is_something(new_rig: NewRig, backing: Any) -> None:
    rig = new_rig(backing=backing)
    rig.load(256)
    for at, gfn in enumerate((1, 30, 200, 2, 255, 77)):
        at_ns = (1 + at) * 100 * READ_NS
        rig.fault(gfn, at_ns, Access.WRITE if at % 2 else Access.READ)
        rig.border(at_ns + WINDOW_NS)
        found, host = files(rig), memory.vmstat(rig.core.watched())
        stat = found["memory.stat"]
        anon, file, shmem, cached = pages(stat, "anon", "file", "shmem", "swapcached")
        current = found["memory.current"] // PAGE_SIZE
        assert (shmem > 0) == (backing is MEMFD) and (file > 0) == (backing in (FILE, MEMFD))
        # A page that is mapped and in the swap cache counts twice; there is none where slots go at once.
        assert current <= anon + file + cached
        if backing in (FILE, MEMFD):
            assert current == file + cached
        lists = pages(stat, "inactive_anon", "active_anon", "inactive_file", "active_file")
        assert sum(lists) <= current and not any(lists[:2] if backing is FILE else lists[2:])
        assert host["nr_anon_pages"] + host["nr_file_pages"] + host["nr_free_pages"] >= rig.core.config.frames
        slots = found["memory.swap.current"] // PAGE_SIZE
        assert slots == rig.core.swap_pages and (slots == 0) == (backing in (FILE, USERFAULT))
    assert backing is not ANON or stat["pgmajfault"] == stat["pswpin"] == 5, "one of the pages was there"


def test_the_hosts_figures_are_the_sum_of_the_groups(new_rig: NewRig) -> None:
    rig = new_rig(vms=2)
    for vm in (0, 1):
        rig.load(256, vm=vm)
    for vm in (0, 1):
        rig.mapped(vm, 1_000 + vm, vm=vm)
    rig.border(WINDOW_NS)
    host = memory.vmstat(rig.core.watched())
    stats = [files(rig, vm)["memory.stat"] for vm in (0, 1)]
    for name in memory.GROUP_COUNTERS:
        assert host[name] == sum(stat[name] for stat in stats), name
    assert host["pgscan_direct"] == 64 and host["pswpin"] == 2
    assert host["nr_inactive_anon"] * PAGE_SIZE == sum(stat["inactive_anon"] for stat in stats)
    assert set(memory.VMSTAT_COUNTERS) | set(memory.VMSTAT_HOST_COUNTERS) <= set(COUNTERS)


def test_kswapd_needed_again_while_it_naps(new_rig: NewRig) -> None:
    """Woken within a tenth of a second of having gone to sleep: the low watermark was hit quickly."""
    rig = new_rig(limit=2048, guest_pages=4096, managed_pages=1024, reserve=64)
    rig.load(4096)
    found = []
    for at_ns in (1_000_000, 20_000_000, 900_000_000):
        for gfn in range(200):
            rig.fault((at_ns // 1_000_000 * 200 + gfn) % 3000, at_ns + gfn * 1_000)
        rig.border(at_ns + 10_000_000)
        host = memory.vmstat(rig.core.watched())
        found.append((host["pageoutrun"], host["kswapd_low_wmark_hit_quickly"]))
    wakes = [now - before for (now, _), (before, _) in zip(found, [(0, 0), *found], strict=False)]
    quick = [now - before for (_, now), (_, before) in zip(found, [(0, 0), *found], strict=False)]
    assert min(wakes) > 0, "kswapd was woken each time"
    assert quick == [wakes[0] - 1, wakes[1], wakes[2] - 1], "the first waking is none, nor is one after a long sleep"


def test_kswapd_picks_nothing_whose_mapping_takes_effect_at_that_very_moment(new_rig: NewRig) -> None:
    """A page promised for a border belongs to the window that opens there; kswapd's round may be due at it too."""
    took_ns = new_rig(limit=64, managed_pages=64).mapped(0, 1_000).at_ns - 1_000
    rig = new_rig(limit=64, managed_pages=64)
    mm = rig.core.watched()
    reply = rig.mapped(0, WINDOW_NS - took_ns)
    assert reply.at_ns == WINDOW_NS
    mm.vmscan._kswapd_goes_on(WINDOW_NS)
    mm.groups[0].usage += 100  # as if so much were in use that kswapd takes what it can
    rig.border(WINDOW_NS)
    mm.groups[0].usage -= 100
    assert rig.state(0) is PageState.RESIDENT and not mm.evicting
    assert mm.vmscan.kswapd_ns is None, "it ran"
