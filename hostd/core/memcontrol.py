"""Charging pages to groups: what that costs whoever charges, and what happens when nothing can be had.

Follows mm/memcontrol.c. At its limit (memory.max) a group has no kswapd: whoever charges reclaims a cluster of its
pages first (try_charge_memcg). Above ``high`` (memory.high) a task reclaims and then sleeps when it goes back to user
mode or into the guest (__mem_cgroup_handle_over_high), which a kworker never does. A page has its frame and its charge
together, so a frame is taken here too, with what that costs if the host is short of memory (``vmscan``).

If nothing could be reclaimed, or no frame is free, the vCPU asks again at the next border: where the kernel tries again
it waits a little too (mm/vmscan.c:reclaim_throttle). When MAX_RECLAIM_RETRIES borders in a row have brought nothing, and
nothing under way could help, the group's only process is killed, the VMM (mem_cgroup_out_of_memory).

Departures: above ``high`` the kernel tries MAX_RECLAIM_RETRIES times more where reclaim frees nothing, before the task
sleeps, and counts ``high`` in memory.events each time; here it sleeps at once, since what was picked stays in its frames
until the border, and counts once. What was charged above ``high`` is noted for the group (memcg_nr_pages_over_high is a
task's), so if the vCPU that charged gets no page, the next one of the VM that does is held back for it.
"""

from __future__ import annotations

from hostd.core import workingset
from hostd.core.group import MEMCG_CHARGE_BATCH
from hostd.core.lru import SWAP_CLUSTER_MAX
from hostd.core.page import CACHED, DIRTY, EVICTING, WRITEBACK
from hostd.core.state import MmState
from hostd.core.vmscan import Vmscan

MAX_RECLAIM_RETRIES = 16
REFUSED = -1
KILLED = -1
_HZ = 250
_JIFFY_NS = 1_000_000_000 // _HZ
_MAX_HIGH_DELAY_JIFFIES = 2 * _HZ
_PRECISION_SHIFT = 20
_SCALING_SHIFT = 14


class Memcontrol:
    """Charges of all groups of one host."""

    __slots__ = ("_mm", "_vmscan")

    def __init__(self, mm: MmState, vmscan: Vmscan) -> None:
        self._mm = mm
        self._vmscan = vmscan

    def allocate(self, vm: int, key: int, now_ns: int, by_vcpu: bool) -> int:
        """Charge and take a frame for a page that has none; the ns that took, or REFUSED."""
        mm = self._mm
        free = mm.frames.free
        spared_ns = 0 if len(free) >= mm.watermarks.low else self._vmscan.spare(now_ns)
        if not free:
            return REFUSED
        cost_ns = self.charge(vm, now_ns, by_vcpu)
        if cost_ns == REFUSED:
            return REFUSED
        pages = mm.pages
        pages.pfn[key] = mm.frames.take(key)
        if pages.shadow[key] != workingset.NONE:
            workingset.refault(pages, mm.groups[vm], key)
        return spared_ns + cost_ns

    def take_back(self, vm: int, key: int, now_ns: int, by_vcpu: bool) -> int:
        """Charge a page that was picked or is being written again; the ns that took, or REFUSED."""
        mm, pages = self._mm, self._mm.pages
        if pages.state[key] == CACHED:
            return 0
        cost_ns = self.charge(vm, now_ns, by_vcpu)
        if cost_ns != REFUSED and pages.state[key] == EVICTING:
            del mm.evicting[key]
            if pages.flags[key] & DIRTY and pages.slot[key] >= 0:
                mm.free_slot(key, vm)
            mm.groups[vm].stat["eviction_cancelled"] += 1
        return cost_ns

    def charge(self, vm: int, now_ns: int, task: bool) -> int:
        """Charge a page to the group of ``vm``; returns the ns that took, REFUSED if nothing could be reclaimed.

        ``task``: a vCPU thread charges, which can be throttled, not a kworker.
        """
        group = self._mm.groups[vm]
        cost_ns = 0
        if group.usage >= group.limit:
            group.events["max"] += 1
            group.stat["allocstall"] += 1
            cost_ns = self._vmscan.reclaim(vm, SWAP_CLUSTER_MAX, now_ns)[0]
            if group.usage >= group.limit:
                return REFUSED
        group.usage += 1
        group.fruitless = 0
        if task and group.high:
            group.note_charge()
        return cost_ns

    def throttle_ns(self, vm: int, at_ns: int, now_ns: int) -> int:
        """For how long a task of ``vm`` reclaims and sleeps from ``at_ns`` on, before it enters the guest; mostly 0.

        As the kernel does, it reclaims again for as long as that frees pages and the sleep would be worth while.
        """
        mm = self._mm
        group = mm.groups[vm]
        charged, group.over_high = group.over_high, 0
        if not charged or group.usage + self._in_transit(vm) <= group.high:  # reclaim_high
            return 0
        cost_ns, want = 0, charged
        group.events["high"] += 1
        while True:
            took_ns, freed = self._vmscan.reclaim(vm, want, now_ns)
            cost_ns += took_ns
            delay_ns = high_delay_ns(group.usage + self._in_transit(vm), group.high, charged)
            if not delay_ns or not freed:
                break
            want = SWAP_CLUSTER_MAX
        mm.journal.record((now_ns, "high", vm, charged, cost_ns, delay_ns))
        mm.pressure[vm].waits(at_ns, at_ns + cost_ns + delay_ns)
        return cost_ns + delay_ns

    def _in_transit(self, vm: int) -> int:
        """Pages of ``vm`` that are in frames and uncharged: on their way out."""
        mm = self._mm
        first, end = mm.pages.bounds[vm]
        state = mm.pages.state
        return state.count(EVICTING, first, end) + state.count(WRITEBACK, first, end)

    def retry_ns(self, vm: int, now_ns: int) -> int:
        """When VM ``vm`` may try again to get a page; KILLED if that has become hopeless.

        Hopeless: MAX_RECLAIM_RETRIES borders in a row the group got nothing, and nothing under way could help.
        """
        mm, window_ns = self._mm, self._mm.config.window_ns
        group = mm.groups[vm]
        at_ns = (now_ns // window_ns + 1) * window_ns
        if at_ns != group.retry_ns:
            group.retry_ns = at_ns
            hopes = group.pinned or (not mm.frames.free and mm.agenda)
            # Writes that fail one after the other are under way all the time, and will not help.
            hopes = bool(hopes or mm.evicting) and group.unwritten < MAX_RECLAIM_RETRIES * SWAP_CLUSTER_MAX
            group.fruitless = 0 if hopes else group.fruitless + 1
            if group.fruitless > MAX_RECLAIM_RETRIES:
                self._kill(vm, now_ns)
                return KILLED
        group.stat["retry"] += 1
        return at_ns

    def _kill(self, vm: int, now_ns: int) -> None:
        mm = self._mm
        group, swap = mm.groups[vm], mm.swap
        group.killed = True
        group.events["oom"] += 1
        group.events["oom_kill"] += 1
        mm.journal.record((now_ns, "oom_kill", vm, group.usage))
        mm.log.alert(
            "oom-kill",
            f"Memory cgroup out of memory: killed the VMM of VM {vm}: limit {group.limit} pages, {group.usage} charged, "
            f"none reclaimable in {MAX_RECLAIM_RETRIES} windows, {swap.total - swap.in_use} of {swap.total} swap slots "
            f"free",
            now_ns,
        )


def high_delay_ns(usage: int, high: int, charged: int) -> int:
    """How long to sleep for ``charged`` pages at ``usage`` above ``high`` (calculate_high_delay, calculate_overage).

    Grows with the square of the overage's share; nothing up to a hundredth of a second, and 2 s at most.
    """
    if usage <= high:
        return 0
    overage = ((usage - high) << _PRECISION_SHIFT) // max(high, 1)
    jiffies = overage * overage * _HZ >> _PRECISION_SHIFT >> _SCALING_SHIFT
    jiffies = min(jiffies * charged // MEMCG_CHARGE_BATCH, _MAX_HIGH_DELAY_JIFFIES)
    return jiffies * _JIFFY_NS if jiffies > _HZ // 100 else 0
