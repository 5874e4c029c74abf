"""Is the host thrashing? Where pages are, what reclaim finds, what the swap device bears, and who waits for memory.

Thrashing is memory taken away that is wanted back at once: reclaim that scans much and steals little, pages that come
and go at the same rate, and pressure that says that somebody waits for it.
"""

from __future__ import annotations

from deploy.grafana import queries as q
from deploy.grafana.panels import (
    CLUSTERS,
    VMS,
    Look,
    Page,
    Query,
    falling,
    graph,
    rising,
    single,
    variable,
)

DEVICES = variable(
    "device",
    "Device",
    "Profiles of swap devices.",
    'label_values(apf_swap_io_total{cluster=~"$cluster"}, device)',
)
_DEVICE = f'{q.CLUSTER},device=~"$device"'
_BY = "cluster, vm"
_VM = "{{cluster}} vm {{vm}}"
_PRESSURE = "apf_pressure_seconds_total"
_STAT = "apf_memory_stat_total"
_SCANNED = "apf_reclaim_scanned_pages_total"
_STOLEN = "apf_reclaim_stolen_pages_total"


def _host(*names: str) -> list[Query]:
    """Counters of the host's memory management, a virtual second."""
    return [
        Query(q.virtual_rate(f"apf_host_{name}_total", "cluster", q.CLUSTER), f"{{{{cluster}}}} {name}")
        for name in names
    ]


def page() -> Page:
    """The dashboard."""
    return (
        Page(
            "apf-thrashing",
            "APF: is the host thrashing?",
            "Memory by state, reclaim, swap I/O and pressure of the emulated host.",
            CLUSTERS,
            VMS,
            DEVICES,
        )
        .row(
            "The answer",
            single(
                Look(
                    "Pressure: some",
                    "Share of virtual time in which at least one vCPU waited for memory (PSI 'some' of the VM's "
                    "group). Asynchronous waits are not in it: they belong to the host's workers, group root. So APF "
                    "lowers a VM's pressure without moving a page less; do not let it fool an autoscaler.",
                    "percentunit",
                    rising(0.1, 0.4),
                    maximum=1.0,
                    decimals=1,
                ),
                [Query(q.virtual_rate(_PRESSURE, _BY, f'{q.VM},kind="some"'), _VM)],
                6,
            ),
            single(
                Look(
                    "Pressure: full",
                    "Share of virtual time in which all vCPUs of the VM waited at once (PSI 'full'): nothing useful "
                    "was done. More than some per cent is a VM that needs memory, whatever its mode.",
                    "percentunit",
                    rising(0.02, 0.1),
                    maximum=1.0,
                    decimals=1,
                ),
                [Query(q.virtual_rate(_PRESSURE, _BY, f'{q.VM},kind="full"'), _VM)],
                6,
            ),
            single(
                Look(
                    "Reclaim efficiency",
                    "Pages stolen of pages scanned. Near 100 %: there are cold pages to take. Below half: most pages "
                    "are wanted, and looking at them is itself work; the group is too small for its working set.",
                    "percentunit",
                    falling(0.3, 0.6),
                    maximum=1.0,
                    decimals=1,
                    empty="no reclaim lately",
                ),
                [Query(q.share(q.rate(_STOLEN, _BY), q.rate(_SCANNED, _BY), _BY), _VM)],
                6,
            ),
            single(
                Look(
                    "Guest memory in RAM",
                    "Resident pages of those the guest has ever used (in RAM, in swap, or between). Low is fine as "
                    "long as nobody waits: cold memory belongs into swap. Low and pressure high is thrashing.",
                    "percentunit",
                    falling(0.1, 0.3),
                    maximum=1.0,
                    decimals=1,
                ),
                [
                    Query(
                        q.share(
                            f'sum by ({_BY}) (apf_host_memory_pages{{{q.VM},state="resident"}})',
                            f"sum by ({_BY}) (apf_host_memory_pages{{{q.VM}}})",
                            _BY,
                        ),
                        _VM,
                    )
                ],
                6,
            ),
        )
        .row(
            "Memory",
            graph(
                Look(
                    "Guest memory by state",
                    "Where the pages a guest has used are. resident: mapped or mappable at once. swap_cache: in RAM "
                    "and in swap. writeback: on the way out. reading: on the way in. swapped: only in swap. reading "
                    "and writeback that stay large beside each other are pages that go round in circles.",
                    "bytes",
                ),
                [
                    Query(
                        f"sum by (cluster, vm, state) (apf_host_memory_pages{{{q.VM}}}) * {q.PAGE_BYTES}",
                        "{{cluster}} vm {{vm}} {{state}}",
                    )
                ],
                12,
                stacked=True,
            ),
            graph(
                Look(
                    "Memory group: use of its limit",
                    "Resident memory of the limit of the VM's group. At 100 % (the line is 95 %) every new page "
                    "costs another one: that alone is no trouble, it is how overcommitment works.",
                    "percentunit",
                    ((None, "green"), (0.95, "yellow")),
                ),
                [
                    Query(
                        q.share(
                            f'sum by ({_BY}) (apf_host_memory_pages{{{q.VM},state="resident"}})',
                            f"max by ({_BY}) (apf_host_memory_limit_pages{{{q.VM}}})",
                            _BY,
                        ),
                        _VM,
                    )
                ],
                6,
            ),
            graph(
                Look(
                    "Frames and swap slots in use",
                    "Share of the host's page frames, and of its swap area, that hold something. Frames at 100 % "
                    "hold up faults until a write is done (reserve_frames is too small); slots at 100 % is the end of "
                    "swapping.",
                    "percentunit",
                    rising(0.9, 0.99),
                    maximum=1.0,
                ),
                [
                    Query(
                        q.share(
                            f'sum by (cluster) (apf_{what}{{{q.CLUSTER},state="used"}})',
                            f"sum by (cluster) (apf_{what}{{{q.CLUSTER}}})",
                            "cluster",
                        ),
                        f"{{{{cluster}}}} {name}",
                    )
                    for what, name in (("host_frames", "frames"), ("swap_slots", "slots"))
                ],
                6,
            ),
        )
        .row(
            "Reclaim",
            graph(
                Look(
                    "Pages scanned and stolen",
                    "Direct reclaim of each VM's group, a virtual second. The distance between the two lines is work "
                    "for nothing: pages that were looked at and turned out to be in use.",
                    "ops",
                ),
                [
                    Query(q.virtual_rate(_SCANNED, _BY), f"{_VM} scanned"),
                    Query(q.virtual_rate(_STOLEN, _BY), f"{_VM} stolen"),
                ],
                12,
            ),
            graph(
                Look(
                    "Pages in and out",
                    "The kernel's own counters, a virtual second: pages read from swap (pswpin) and written to it "
                    "(pswpout), and faults that had to wait (pgmajfault). In and out at the same rate for long is "
                    "thrashing; out alone is a working set that shrinks, in alone one that comes back.",
                    "ops",
                ),
                _host("pswpin", "pswpout", "pgmajfault"),
                12,
            ),
            graph(
                Look(
                    "Second chances",
                    "Pages that were saved at the last moment, a virtual second: found in the swap cache before their "
                    "frame was given away, wanted while they were being evicted, or seen in use by reclaim "
                    "(pgactivate). Many are the mildest sign of a group that is too small: reads just avoided.",
                    "ops",
                ),
                _host("swap_cache_hit", "eviction_cancelled", "pgactivate"),
                12,
            ),
            graph(
                Look(
                    "Stalled allocations and clean drops",
                    "allocstall: reclaim done by the one who faulted, so faults get longer. swap_dropped_clean: "
                    "pages dropped without a write, since their copy in swap was still good; the more, the cheaper "
                    "eviction is.",
                    "ops",
                ),
                _host("allocstall", "swap_dropped_clean"),
                12,
            ),
        )
        .row(
            "Memory groups, as cgroup v2 counts",
            graph(
                Look(
                    "Refaults",
                    "Pages that were thrown out and came back, a virtual second. refault: all of them; activate: soon "
                    "enough that a group as large as its working set would have kept them; restore: they had been "
                    "part of the working set before. restore is thrashing by definition.",
                    "ops",
                ),
                [
                    Query(
                        q.virtual_rate(_STAT, "cluster, vm, kind", f'{q.VM},kind=~"workingset_.*"') + " > 0",
                        f"{_VM} {{{{kind}}}}",
                    )
                ],
                8,
            ),
            graph(
                Look(
                    "Swap cache and working set",
                    "Of each group's memory: pages in the swap cache (their slot still holds their bytes, or a write "
                    "is just over), and on the active list. A large swap cache makes eviction cheap; an active list "
                    "that empties while refaults go up is a group that cannot hold its working set.",
                    "bytes",
                ),
                [
                    Query(
                        "sum by (cluster, vm, kind) "
                        f'(apf_memory_bytes{{{q.VM},kind=~"swapcached|active_anon|active_file"}})',
                        f"{_VM} {{{{kind}}}}",
                    )
                ],
                8,
            ),
            graph(
                Look(
                    "memory.events",
                    "A virtual second: high: a task was throttled, because the group is above memory.high; max: a "
                    "charge met memory.max and reclaimed; oom_kill: nothing could be reclaimed, and the VM is dead.",
                    "ops",
                ),
                [
                    Query(
                        q.virtual_rate("apf_memory_events_total", "cluster, vm, kind") + " > 0",
                        f"{_VM} {{{{kind}}}}",
                    )
                ],
                8,
            ),
            graph(
                Look(
                    "kswapd",
                    "For hosts with less memory than their groups may have (host.memory), a virtual second: how often "
                    "kswapd was woken (pageoutrun), how often within a tenth of a second of having gone to sleep "
                    "(kswapd_low_wmark_hit_quickly), and what it scanned. Runs without scans: nothing to take.",
                    "ops",
                ),
                _host("pageoutrun", "kswapd_low_wmark_hit_quickly", "pgscan_kswapd", "pgsteal_kswapd"),
                12,
            ),
            graph(
                Look(
                    "Readahead",
                    "Pages read ahead into the swap cache, and those of them that somebody then touched, a virtual "
                    "second. Far apart: the device reads for nothing, and frames are taken for nothing.",
                    "ops",
                ),
                _host("swap_ra", "swap_ra_hit"),
                12,
            ),
        )
        .row(
            "Swap device and who waits",
            graph(
                Look(
                    "Swap I/O",
                    "Reads and writes a virtual second, by how they ended. Compare with what the device can do: an "
                    "hdd some 100 a second, a SATA SSD some 10,000, NVMe some 100,000. Reads near that limit mean "
                    "that latency is queueing, and more memory is cheaper than more tasks.",
                    "iops",
                ),
                [
                    Query(
                        q.virtual_rate("apf_swap_io_total", "cluster, device, kind, result", _DEVICE),
                        "{{cluster}} {{device}} {{kind}} {{result}}",
                    )
                ],
                8,
            ),
            graph(
                Look(
                    "Latency of the device",
                    "Guest time in queue and service. p99 far above p50 under load is a queue; writes that get slow "
                    "make frames scarce, and then reads slow, too.",
                    "s",
                    rising(0.01, 0.1),
                ),
                [
                    Query(
                        q.quantile(quantile, "apf_swap_io_seconds", "cluster, device, kind", _DEVICE),
                        f"{{{{cluster}}}} {{{{device}}}} {{{{kind}}}} {name}",
                    )
                    for quantile, name in ((0.5, "p50"), (0.99, "p99"))
                ],
                8,
                log=True,
            ),
            graph(
                Look(
                    "Pressure",
                    "Share of virtual time in which some, or all, of a VM's vCPUs waited for memory; root is the "
                    "host's fault-in workers, who wait for asynchronous faults. With APF waiting moves from the VM "
                    "to root: the sum of both is what the workload misses in memory.",
                    "percentunit",
                    rising(0.1, 0.4),
                    maximum=1.0,
                ),
                [Query(q.virtual_rate(_PRESSURE, "cluster, vm, kind"), "{{cluster}} vm {{vm}} {{kind}}")],
                8,
            ),
        )
    )
