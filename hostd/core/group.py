"""A memory group (memcg): its limits, what is charged to it, what happened to it, and the pages reclaim may take.

Follows mm/memcontrol.c: at ``limit`` (memory.max) whoever charges reclaims at least SWAP_CLUSTER_MAX pages itself
(try_charge_memcg); above ``high`` (memory.high) a task reclaims and then sleeps when it goes back to user mode or into
the guest (__mem_cgroup_handle_over_high), which a kworker never does. Refaults by mm/workingset.c, see ``workingset``.

Departures: a charge is checked against ``high`` once every MEMCG_CHARGE_BATCH charges of the group, where the kernel
keeps a stock of so many for each CPU.
"""

from __future__ import annotations

from hostd.core.lru import Policy

MEMCG_CHARGE_BATCH = 64
MAX_RECLAIM_RETRIES = 16
_HZ = 250
_JIFFY_NS = 1_000_000_000 // _HZ
_MAX_HIGH_DELAY_JIFFIES = 2 * _HZ
_PRECISION_SHIFT = 20
_SCALING_SHIFT = 14

STAT = (
    *("pf_taken", "pf_fixed", "pgfault", "pgmajfault", "pswpin", "pswpout", "swpin_zero", "swpout_zero"),
    *("pgscan_direct", "pgscan_kswapd", "pgsteal_direct", "pgsteal_kswapd"),
    *("pgrefill", "pgdeactivate", "pgactivate", "pgrotated", "allocstall", "nr_vmscan_write"),
    *("workingset_refault_anon", "workingset_activate_anon", "workingset_restore_anon"),
    *("workingset_refault_file", "workingset_activate_file", "workingset_restore_file"),
    *("swap_ra", "swap_ra_hit", "userfault_event"),
    *("swap_cache_hit", "zero_fill", "wp_fault", "read_wait", "eviction_cancelled", "swap_dropped_clean"),
    *("kvm_try_async_get_page", "kvm_async_pf_completed", "prefault", "prefault_sync", "retry"),
    *("swap_read_error", "swap_write_error", "swap_torn_write", "swap_lost_write", "swap_checksum_error"),
    *("swap_full", "page_error", "page_error_again"),
)
"""What is counted for each group, by the kernel's names where it has one."""
EVENTS = ("low", "high", "max", "oom", "oom_kill")
"""memory.events."""


class MemoryGroup:
    """One group. ``usage`` (memory.current), ``limit`` and ``high`` in pages; ``high`` 0: none."""

    __slots__ = (
        *(
            "age",
            "events",
            "fruitless",
            "high",
            "killed",
            "limit",
            "lists",
            "over_high",
            "pinned",
            "retry_ns",
            "stat",
        ),
        *("_stock", "refaults", "unwritten", "usage"),
    )

    def __init__(self, limit: int, high: int, lists: Policy, kind: str = "anon") -> None:
        self.limit = limit
        self.high = high
        self.usage = 0
        self.lists = lists
        self.stat = dict.fromkeys(STAT, 0)
        self.refaults = tuple(f"workingset_{what}_{kind}" for what in ("refault", "activate", "restore"))
        """Counters of refaults, for pages of this ``kind``: anon or file."""
        self.events = dict.fromkeys(EVENTS, 0)
        self.pinned = 0
        """Pins held on the group's pages: while there are any, something will become reclaimable by itself."""
        self.age = 0
        """nonresident_age (workingset.c): evictions and activations so far."""
        self.killed = False
        """Whether its VMM has been killed for lack of memory."""
        self.retry_ns = -1
        self.fruitless = 0
        self.unwritten = 0
        """Writes that have failed since one was done."""
        self.over_high = 0
        """Pages charged above ``high`` for which nobody has been throttled yet (memcg_nr_pages_over_high)."""
        self._stock = 0

    def note_charge(self) -> None:
        """A task that can be throttled has charged a page: look at ``high`` once a batch."""
        if self._stock:
            self._stock -= 1
            return
        self._stock = MEMCG_CHARGE_BATCH - 1
        if self.usage > self.high:
            self.over_high += MEMCG_CHARGE_BATCH


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
