"""A memory group (memcg): its limits, what is charged to it, what happened to it, and the pages reclaim may take.

What charging a page to it does: ``memcontrol``. Refaults: ``workingset``.

Departures: a charge is checked against ``high`` once every MEMCG_CHARGE_BATCH charges of the group, where the kernel
keeps a stock of so many for each CPU.
"""

from __future__ import annotations

from hostd.core.lru import Policy

MEMCG_CHARGE_BATCH = 64

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
        *("_stock", "age", "events", "fruitless", "high", "killed", "limit", "lists", "over_high", "pinned"),
        *("refaults", "retry_ns", "stat", "unwritten", "usage"),
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
