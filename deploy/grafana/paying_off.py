"""Is APF paying off? Work done with it against work done without, and what became of the vCPUs' time in each mode.

The comparison needs both: two runs of one scenario, or two VMs of one, in different modes, on one Prometheus. Modes come
from ``apf_mode_info``, by which everything a VM does gets the label ``mode``. Figures "since the start" are quotients of
totals, so they are those that ``apf bench`` prints, and have no noise; graphs show the last moments.

Work is counted a second of vCPU time, that of all states together: this is virtual time by another name, but from the
daemon that counts the work, thus from one scrape. A ratio of two runs would show it if scrapes were some ms apart.
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

MODES = variable(
    "mode",
    "Mode",
    "APF modes; 'off' is what the others are compared with.",
    'label_values(apf_mode_info{cluster=~"$cluster",vm=~"$vm"}, mode)',
)

_OFF = 'mode="off"'
_ON = 'mode!="off",mode=~"$mode"'
_CHOSEN = 'mode=~"$mode"'
_BY = "cluster, vm"
_VM = "{{cluster}} vm {{vm}} {{mode}}"
_COUNTED = "apf_work_counted_total"
_TIME = "apf_vcpu_seconds_total"
_TOTAL = q.share(f"sum by ({_BY}) ({_COUNTED}{{{q.VM}}})", f"sum by ({_BY}) ({_TIME}{{{q.VM}}})", _BY)
_WORK = q.share(q.rate(_COUNTED, _BY), q.rate(_TIME, _BY), _BY)
_USEFUL = 'state=~"counting|faulting|other"'


def _ratio(vector: str) -> str:
    """Mean of ``vector`` over the VMs in each mode with APF, divided by its mean over those without."""
    return f"avg by (mode) ({q.with_mode(vector, _ON)}) / on () group_left () (avg ({q.with_mode(vector, _OFF)}) > 0)"


def _share_of_time(states: str) -> str:
    """Share of a VM's vCPU time in ``states``, a matcher; since the start."""
    part = f"sum by ({_BY}) ({_TIME}{{{q.VM},{states}}})"
    whole = f"sum by ({_BY}) ({_TIME}{{{q.VM}}})"
    return q.with_mode(q.share(part, whole, _BY), _CHOSEN)


def _states() -> str:
    """Shares of vCPU time by state, of all VMs in a mode together."""
    part = f"sum by (mode, state) ({q.with_mode(q.rate(_TIME, f'{_BY}, state'), _CHOSEN)})"
    whole = f"sum by (mode) ({q.with_mode(q.rate(_TIME, _BY), _CHOSEN)})"
    return q.share(part, whole, "mode")


def page() -> Page:
    """The dashboard."""
    needs_off = "needs a run with and one without APF"
    return (
        Page(
            "apf-paying-off",
            "APF: is it paying off?",
            "Work with asynchronous page faults against work without, and where the vCPUs' time goes in each mode.",
            CLUSTERS,
            VMS,
            MODES,
        )
        .row(
            "The answer, since the start of the runs",
            single(
                Look(
                    "Work with APF / without",
                    "Work a vCPU second of VMs with APF, divided by that of VMs in mode off: 2 means that the "
                    "same host, memory and swap device do twice as much. Only meaningful between runs of one "
                    "scenario. 1 means nothing waits for swap (APF is not needed) or nothing else is there to run (it "
                    "cannot help).",
                    "suffix: x",
                    falling(1.0, 1.1),
                    decimals=2,
                    empty=needs_off,
                ),
                [Query(_ratio(_TOTAL), "{{mode}}")],
                6,
            ),
            single(
                Look(
                    "vCPU time standing still",
                    "Share of vCPU time in which a vCPU slept in the host until a page was back. This is what APF "
                    "can win back: without APF compare it with the ratio on the left; with APF what remains are "
                    "faults that could not be asynchronous.",
                    "percentunit",
                    rising(0.05, 0.2),
                    maximum=1.0,
                    decimals=1,
                ),
                [Query(_share_of_time('state="stall"'), _VM)],
                6,
            ),
            single(
                Look(
                    "vCPU time in tasks",
                    "Share of vCPU time in which tasks of the guest ran. The rest was lost to waiting, to APF "
                    "itself, to the guest's kernel, or there was nothing to run.",
                    "percentunit",
                    falling(0.5, 0.8),
                    maximum=1.0,
                    decimals=1,
                ),
                [Query(_share_of_time(_USEFUL), _VM)],
                6,
            ),
            single(
                Look(
                    "vCPU time APF costs",
                    "Share of vCPU time spent on APF itself: injecting 'not present' and 'ready', the guest's "
                    "handlers. APF pays off as long as this is small against what stands still without it; above "
                    "some per cent the device is so fast that waiting would be cheaper.",
                    "percentunit",
                    rising(0.05, 0.2),
                    maximum=1.0,
                    decimals=2,
                ),
                [Query(_share_of_time('state="apf"'), _VM)],
                6,
            ),
        )
        .row(
            "Work and latency",
            graph(
                Look(
                    "Work a vCPU second",
                    "Instructions retired in counting tasks in one second of a vCPU's virtual time, asleep or not, so "
                    "a slow machine under the emulator does not show. Compare lines of different modes. A run without "
                    "counting tasks stays at zero: look at accesses instead.",
                    "locale",
                ),
                [Query(q.with_mode(_WORK, _CHOSEN), _VM)],
                12,
            ),
            graph(
                Look(
                    "Work with APF / without, lately",
                    "The same ratio as in the first figure, for the last moments: it shows when APF pays off, for "
                    "example only while memory is short. The line at 1 is 'no gain'.",
                    "suffix: x",
                    falling(1.0, 1.1),
                    decimals=2,
                    empty=needs_off,
                ),
                [Query(_ratio(_WORK), "{{mode}}")],
                12,
            ),
            graph(
                Look(
                    "Accesses a virtual second",
                    "Memory accesses that load generators had performed (apf load, or any client of the API), by "
                    "what they met: a page that was there (hit), or a fault. Throughput of a closed loop rises with "
                    "APF because tasks wait, not vCPUs.",
                    "ops",
                ),
                [
                    Query(
                        q.with_mode(q.virtual_rate("apf_accesses_total", f"{_BY}, kind"), _CHOSEN),
                        "{{cluster}} vm {{vm}} {{mode}}: {{kind}}",
                    )
                ],
                12,
            ),
            graph(
                Look(
                    "Latency of accesses",
                    "Guest time from an access's arrival to its end, as the guest's users feel it. APF does not make a "
                    "page come sooner: it lets others go on meanwhile. So accesses no longer wait behind each "
                    "other's faults, and the 99th percentile stays near the device's; one far above it is queueing.",
                    "s",
                    rising(0.01, 0.1),
                ),
                [
                    Query(
                        q.with_mode(q.quantile(quantile, "apf_access_latency_seconds", _BY), _CHOSEN),
                        f"{_VM}: {name}",
                    )
                    for quantile, name in ((0.5, "p50"), (0.99, "p99"))
                ],
                12,
                log=True,
            ),
        )
        .row(
            "Where the vCPUs' time goes, by mode",
            graph(
                Look(
                    "vCPU time by state: $mode",
                    "Of all vCPUs in this mode together. counting, faulting, other: tasks. stall: asleep in the host "
                    "until a page is back. idle: nothing to run, also because all tasks wait for pages. apf: the "
                    "protocol. kernel: the guest's scheduler, ticks, system calls. With APF stall should turn into "
                    "counting; if it turns into idle, the guest has too few tasks that can run.",
                    "percentunit",
                    maximum=1.0,
                ),
                [Query(_states(), "{{state}}")],
                24,
                stacked=True,
            )
            .repeat("mode")
            .repeat_direction("h")
            .max_per_row(2),
        )
        .row(
            "Why not all faults are asynchronous",
            graph(
                Look(
                    "Faults taken synchronously, by reason",
                    "Faults a virtual second that were not allowed to be asynchronous. disabled: the guest has not "
                    "enabled APF, as always in mode off. limit: 64 pages of the vCPU are under way already; a guest "
                    "with more waiting tasks than that gains nothing from them. kernel: the guest's kernel itself "
                    "faulted, which cannot sleep.",
                    "ops",
                ),
                [
                    Query(
                        q.with_mode(q.virtual_rate("apf_sync_fallbacks_total", f"{_BY}, reason"), _CHOSEN),
                        "{{cluster}} vm {{vm}} {{mode}}: {{reason}}",
                    )
                ],
                12,
            ),
            graph(
                Look(
                    "Share of waiting faults that are asynchronous",
                    "Of the faults that need the swap device, those that did not stop their vCPU. Near 100 % with "
                    "APF; what is missing is in the panel on the left. Always 0 in mode off.",
                    "percentunit",
                    ((None, "blue"), (0.9, "green")),
                    maximum=1.0,
                ),
                [
                    Query(
                        q.with_mode(
                            q.share(
                                q.rate("apf_faults_total", _BY, f'{q.VM},kind="async"'),
                                q.rate("apf_faults_total", _BY, f'{q.VM},kind=~"async|major"'),
                                _BY,
                            ),
                            _CHOSEN,
                        ),
                        _VM,
                    )
                ],
                12,
            ),
        )
    )
