"""Facts of the reference's edge-case list that the host decides, by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from apf.core import CoreError
from apf.messages import FaultKind, GupVariant, Mapped, Retry
from hostd import device_profiles
from hostd.core.events import ReadSlot, ZeroFrame
from hostd.core.page import PageState
from tests.unit.hostd.rig import COSTS, PROFILE, WINDOW_NS, WRITE, WRITE_NS, Rig

NewRig = Callable[..., Rig]
LATE_NS = 100 * WINDOW_NS


@pytest.mark.parametrize("gup", GupVariant)
def test_e09_two_vcpus_on_one_page_are_two_works_and_one_read(new_rig: NewRig, gup: GupVariant) -> None:
    rig = new_rig(gup=gup)
    rig.load(256)
    first = rig.in_progress(0, 0, vcpu=0, work=1)
    assert rig.seen(ReadSlot)
    second = rig.in_progress(0, 100, vcpu=1, work=2)
    assert not rig.seen(ReadSlot)
    assert (first.work, second.work) == (1, 2)
    assert second.ready_at_ns == first.ready_at_ns
    assert rig.core.counters["pgmajfault"] == rig.core.counters["pswpin"] == 1
    assert rig.core.counters["kvm_try_async_get_page"] == 2


def test_e09_a_blocking_fault_waits_for_the_read_another_started(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    first = rig.mapped(0, 0, vcpu=0)
    second = rig.mapped(0, 50_000, vcpu=1)
    assert not rig.seen(ReadSlot)
    assert (second.at_ns, second.pfn, second.kind) == (first.at_ns, first.pfn, FaultKind.MAJOR)
    assert second.stall_ns == first.at_ns - COSTS.host_fault_ns - 50_000 - COSTS.ept_violation_ns
    assert rig.core.counters["pgmajfault"] == 1


@pytest.mark.parametrize("gup", [GupVariant.NOIO, GupVariant.NOWAIT])
def test_e11_a_swap_cache_hit_is_a_minor_fault_even_during_its_writeback(new_rig: NewRig, gup: GupVariant) -> None:
    rig = new_rig(gup=gup)
    rig.load(64)
    rig.mapped(100, 0)
    rig.border(WINDOW_NS)
    assert rig.state(3) is PageState.WRITEBACK
    pfn = rig.core._mm.pages.pfn[3]
    reply = rig.mapped(3, WINDOW_NS + 5, work=9)
    assert (reply.kind, reply.pfn, reply.stall_ns) == (FaultKind.MINOR, pfn, 0)
    assert reply.at_ns == WINDOW_NS + 5 + COSTS.ept_violation_ns + COSTS.host_fault_ns
    assert rig.core.counters["swap_cache_hit"] == 1 and rig.core.counters["pgmajfault"] == 0


@pytest.mark.parametrize("gup", [GupVariant.NOIO, GupVariant.NOWAIT])
def test_e12_first_touch_is_never_asynchronous(new_rig: NewRig, gup: GupVariant) -> None:
    rig = new_rig(gup=gup)
    assert rig.mapped(0, 0, work=1).kind is FaultKind.MINOR
    assert rig.seen(ZeroFrame)


@pytest.mark.parametrize("gup", [GupVariant.NOIO, GupVariant.NOWAIT])
def test_e13_a_synchronous_device_finishes_on_the_vcpu_unless_another_holds_the_page(
    new_rig: NewRig, gup: GupVariant
) -> None:
    rig = new_rig(gup=gup, profile=replace(PROFILE, background=False))
    rig.load(256)
    assert rig.mapped(0, 0, work=1).kind is FaultKind.MAJOR
    rig.in_progress(0, 1, vcpu=1, work=2)


@pytest.mark.parametrize("gup", [GupVariant.NOIO, GupVariant.NOWAIT])
@pytest.mark.parametrize("name", ["zram", "zswap"])
def test_e13_no_page_on_compressed_memory_is_asynchronous_while_nobody_holds_it(
    new_rig: NewRig, name: str, gup: GupVariant
) -> None:
    profile = device_profiles.load(name).for_cpus(2)
    rig = new_rig(gup=gup, profile=profile)
    rig.load(256)
    at_ns = 0
    for gfn in range(32):
        reply = rig.mapped(gfn, at_ns, work=gfn + 1)
        assert reply.kind is FaultKind.MAJOR and profile.read_ns[0] <= reply.stall_ns <= profile.read_ns[-1]
        at_ns = reply.at_ns
    held = rig.mapped(32, at_ns, vcpu=0, work=100)
    waits = rig.in_progress(32, at_ns + 1, vcpu=1, work=101)
    assert waits.ready_at_ns >= held.at_ns - COSTS.host_fault_ns
    assert rig.core.counters["kvm_try_async_get_page"] == 1 and rig.core.counters["pgmajfault"] == 33


def test_e37_a_prefault_sleeps_if_the_page_was_evicted_again(new_rig: NewRig) -> None:
    rig = new_rig(limit=1)
    rig.load(8)
    ready = rig.in_progress(0, 0)
    other = rig.mapped(1, ready.ready_at_ns + 1, vcpu=1)
    border_ns = (other.at_ns // WINDOW_NS + 1) * WINDOW_NS
    rig.border(border_ns)
    late_ns = border_ns + 10 * WRITE_NS
    rig.border(late_ns)
    assert rig.state(0) is PageState.SWAPPED
    reply = rig.prefault(0, late_ns)
    assert isinstance(reply, Mapped) and reply.kind is FaultKind.MAJOR and reply.stall_ns > 0
    assert rig.seen(ReadSlot)
    assert rig.core.counters["prefault_sync"] == 1


def test_e44_a_prefault_maps_a_page_that_is_still_there_without_an_ept_exit(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.load(256)
    ready = rig.in_progress(0, 0)
    assert rig.border(ready.ready_at_ns // WINDOW_NS * WINDOW_NS) != [] and rig.core.border_due_ns() is None
    reply = rig.prefault(0, ready.ready_at_ns)
    assert isinstance(reply, Mapped)
    assert (reply.at_ns, reply.kind) == (ready.ready_at_ns + COSTS.host_fault_ns, FaultKind.MINOR)


def test_e38_a_page_evicted_after_its_prefault_faults_anew(new_rig: NewRig) -> None:
    rig = new_rig(limit=1)
    rig.load(8)
    ready = rig.in_progress(0, 0, work=1)
    mapped = rig.prefault(0, ready.ready_at_ns)
    assert isinstance(mapped, Mapped)
    rig.mapped(1, mapped.at_ns + 1, vcpu=1)
    rig.border(LATE_NS)
    rig.border(2 * LATE_NS)
    assert rig.state(0) is PageState.SWAPPED
    rig.in_progress(0, 2 * LATE_NS + 1, work=2)


def test_e41_a_read_served_by_the_worker_leaves_the_page_dirty_and_its_next_eviction_writes(new_rig: NewRig) -> None:
    rig = new_rig(limit=1)
    rig.load(8)
    ready = rig.in_progress(0, 0)
    rig.border(ready.ready_at_ns + 1)
    assert rig.slot(0) == -1
    rig.mapped(1, LATE_NS)
    rig.border(2 * LATE_NS)
    assert len(rig.written()) == 1
    assert rig.state(0) is PageState.WRITEBACK


def test_a_read_served_synchronously_is_dropped_without_a_write(new_rig: NewRig) -> None:
    """The other side of E41."""
    rig = new_rig(limit=1)
    rig.load(8)
    rig.mapped(0, 0)
    rig.border(LATE_NS)
    rig.mapped(1, LATE_NS + 1)
    rig.border(2 * LATE_NS)
    assert not rig.written()
    assert rig.state(0) is PageState.SWAPPED and rig.core.counters["swap_dropped_clean"] == 1


@pytest.mark.parametrize("gup", GupVariant)
def test_e42_a_retried_fault_maps_nothing_and_leaks_no_item(new_rig: NewRig, gup: GupVariant) -> None:
    """The kernel's reason is an invalidation meanwhile (is_page_fault_stale), here there is no frame or no charge."""
    rig = new_rig(limit=1, gup=gup)
    rig.load(8)
    rig.core._mm.frames.young[0] = 0
    first = rig.in_progress(0, 0, work=1)
    counters = rig.core.counters
    assert rig.fault(1, 1, vcpu=1, work=2) == Retry(WINDOW_NS)
    assert rig.state(1) is PageState.SWAPPED and len(rig.effects) == 1
    after = rig.core.counters
    for name in ("pf_fixed", "kvm_try_async_get_page", "pgfault", "pgmajfault", "pswpin"):
        assert after[name] == counters[name], name
    with pytest.raises(CoreError, match="known: None"):
        rig.prefault(1, first.ready_at_ns, vcpu=1, work=2)


def test_e42_a_page_picked_while_it_is_used_loses_its_mapping_at_the_border_only(new_rig: NewRig) -> None:
    """Until then a fault on it maps the same frame again, and what was promised for it is published after all."""
    rig = new_rig()
    rig.load(64)
    pfn = rig.core._mm.pages.pfn[0]
    rig.mapped(100, 0)
    assert rig.state(0) is PageState.EVICTING
    again = rig.mapped(0, 10, WRITE, vcpu=1)
    assert again.pfn == pfn and rig.core._mm.pages.ept[0]
    rig.border(WINDOW_NS)
    assert rig.state(0) is PageState.RESIDENT and 0 not in rig.entries() and rig.entries()[1] == 0
