"""Shadow page tables: filled at faults, one per address space, emptied when the host unmaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apf.hostmem import ept_entry
from apf.messages import Access, AddressSpace
from vcpud.cpu.engine import ExitCause
from vcpud.cpu.shadow import Shadow

TOUCH = "start: mov rax, [rdi]; mov [rdi + 4096], rax; jmp start"


@pytest.fixture
def rig(new_rig: Callable[..., Any]) -> Any:
    return new_rig(shadow=True)


def faults(rig: Any, until: int = 50) -> list[tuple[int, Access]]:
    """Run, and fill what is asked for; the faults."""
    seen = []
    while (exit_ := rig.engine.run(until, 0)).cause is ExitCause.EPT_VIOLATION:
        seen.append((exit_.gfn, exit_.access))
        assert rig.engine.fill_shadow(exit_.gfn, exit_.access)
    assert exit_.cause is ExitCause.BUDGET
    return seen


ALL = [(0, Access.EXEC), (32, Access.READ), (33, Access.WRITE)]


def test_what_the_host_maps_faults_once_in_every_address_space(rig: Any) -> None:
    rig.start(TOUCH)
    assert faults(rig) == ALL and faults(rig) == []
    rig.engine.open_window()
    assert faults(rig) == [], "a table outlives the window"
    rig.engine.set_space(AddressSpace(2, rig.space.extents))
    rig.engine.use_space(2)
    assert faults(rig) == ALL, "another table, empty"
    rig.engine.use_space(1)
    assert faults(rig) == []


def test_what_the_host_unmaps_moves_or_protects_faults_again(rig: Any) -> None:
    rig.start(TOUCH)
    faults(rig)
    ept = rig.memory.epts[0]
    ept[32] = ept_entry(60, writable=True)
    ept[33] = ept_entry(rig.pfn_of(33), writable=False)
    rig.engine.open_window()
    exit_ = rig.engine.run(50, 0)
    assert (exit_.cause, exit_.gfn) == (ExitCause.EPT_VIOLATION, 32)
    assert rig.engine.fill_shadow(32, Access.READ)
    exit_ = rig.engine.run(50, 0)
    assert (exit_.gfn, exit_.access) == (33, Access.WRITE)
    assert not rig.engine.fill_shadow(33, Access.WRITE), "the host maps it read-only"
    rig.engine.map_overlay(33, rig.pfn_of(33), True)
    assert faults(rig) == [] and rig.get("rax") == 0
    ept[32] = 0
    rig.engine.open_window()
    exit_ = rig.engine.run(50, 0)
    assert exit_.gfn == 32 and not rig.engine.fill_shadow(32, Access.READ)


def test_a_mapping_made_in_a_window_lasts_if_the_host_publishes_it(rig: Any) -> None:
    rig.memory.epts[0][33] = 0
    rig.start(TOUCH)
    for gfn, access in ALL[:2]:
        assert rig.engine.run(50, 0).gfn == gfn and rig.engine.fill_shadow(gfn, access)
    assert rig.engine.run(50, 0).gfn == 33
    rig.engine.map_overlay(33, 50, True)
    assert faults(rig) == []
    rig.memory.epts[0][33] = ept_entry(50, writable=True)
    rig.engine.open_window()
    assert faults(rig) == []
    rig.memory.epts[0][33] = 0
    rig.engine.open_window()
    assert rig.engine.run(50, 0).gfn == 33


def test_use_is_noted_in_the_hosts_bytes_as_with_ept(rig: Any, new_rig: Callable[..., Any]) -> None:
    nested = new_rig()
    for one in (rig, nested):
        one.start(TOUCH)
    faults(rig)
    nested.engine.run(50, 0)
    assert (rig.memory.accessed == nested.memory.accessed).all() and (rig.memory.dirty == nested.memory.dirty).all()
    assert rig.memory.dirty.any()


def test_the_reverse_map_finds_every_table_that_has_a_page() -> None:
    shadow, host = Shadow(8), np.zeros(8, np.uint64)
    host[3], host[4] = ept_entry(7, True), ept_entry(9, False)
    for asid in (1, 2):
        assert shadow.install(asid, 3, int(host[3])) == 0
    shadow.install(2, 4, int(host[4]))
    shadow.zap(host)
    assert shadow.zapped == 0
    host[3] = 0
    shadow.zap(host)
    assert shadow.zapped == 2 and not shadow.table(1).any() and shadow.table(2).nonzero()[0].tolist() == [4]
    assert not shadow.table(0).any()
