"""Where does a fault's time go? Latencies by kind, the stages they consist of, and the device below.

The stages are ``vcpud.core.observed``'s, one behind the other, so their sums are the latencies' sums. Buckets of all
histograms are 1-2-5 steps from 1 us to 1 s of guest time: a percentile is right within its bucket, no better.
"""

from __future__ import annotations

from deploy.grafana import queries as q
from deploy.grafana.panels import (
    CLUSTERS,
    PLAIN,
    VMS,
    Look,
    Page,
    Query,
    bars,
    graph,
    heat,
    rising,
    single,
)

_BY = "cluster, vm"
_LATENCY = "apf_fault_latency_seconds"
_STAGES = "apf_fault_stage_seconds"
_IO = "apf_swap_io_seconds"
_STAGE_WORDS = (
    "retry: hostd sent the access back, to be done again. host: get_user_pages, reclaim and mapping on the vCPU's "
    "time. wait: for the device. inject: until 'not present' was delivered. exit: until the vCPU noticed that the "
    "page is there. prefault: mapping it. ready: until 'page ready' was delivered."
)


def _kind(kind: str) -> str:
    return f'{q.VM},kind="{kind}"'


def page() -> Page:
    """The dashboard."""
    return (
        Page(
            "apf-fault-time",
            "APF: where does a fault's time go?",
            "Latency of page faults by kind, the stages it consists of, and the swap device's share of it.",
            CLUSTERS,
            VMS,
        )
        .row(
            "How long faults take, in guest time",
            single(
                Look(
                    "Faults a virtual second",
                    "Faults that needed the swap device. Times the mean latency this is how many tasks wait at any "
                    "moment (Little's law): if that is more than the guest has tasks to spare, vCPUs idle even with "
                    "APF.",
                    "ops",
                ),
                [
                    Query(
                        q.virtual_rate("apf_faults_total", _BY, f'{q.VM},kind=~"major|async"'),
                        "{{cluster}} vm {{vm}}",
                    )
                ],
                6,
            ),
            single(
                Look(
                    "Synchronous fault, mean",
                    "From the EPT violation until the instruction goes on, for major faults: the vCPU stood still "
                    "all that time. This is the price of a fault without APF; 10 ms is a disk, 100 us a fast SSD.",
                    "s",
                    rising(0.001, 0.01),
                    empty="no major faults lately",
                ),
                [Query(q.mean(_LATENCY, _BY, _kind("major")), "{{cluster}} vm {{vm}}")],
                6,
            ),
            single(
                Look(
                    "Asynchronous fault, mean",
                    "From the EPT violation until 'page ready' was delivered. Longer than a synchronous one, and it "
                    "may be: only the task waits. What the vCPU pays is in the stages, all but wait.",
                    "s",
                    rising(0.01, 0.1),
                    empty="no asynchronous faults lately",
                ),
                [Query(q.mean(_LATENCY, _BY, _kind("async")), "{{cluster}} vm {{vm}}")],
                6,
            ),
            single(
                Look(
                    "Longest waiter",
                    "Guest time for which the oldest waiting task has waited for its page; 0: none waits. It should "
                    "stay near the 99th percentile of asynchronous faults. One that only grows has been forgotten: a "
                    "bug.",
                    "s",
                    rising(1.0, 10.0),
                ),
                [Query(f"max by ({_BY}) (apf_oldest_wait_seconds{{{q.VM}}})", "{{cluster}} vm {{vm}}")],
                6,
            ),
            graph(
                Look(
                    "Latency by kind",
                    "Percentiles of whole faults. minor: no device was needed. major: the vCPU waited. async: the "
                    "task waited. Plan with p99: a request of ten faults meets it once in ten. A gap between p50 and "
                    "p99 that opens under load is queueing at the device.",
                    "s",
                    rising(0.01, 0.1),
                ),
                [
                    Query(
                        q.quantile(quantile, _LATENCY, "cluster, vm, kind"),
                        f"{{{{cluster}}}} vm {{{{vm}}}} {{{{kind}}}} {name}",
                    )
                    for quantile, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
                ],
                12,
                log=True,
            ),
            graph(
                Look(
                    "Faults by kind",
                    "Faults a virtual second. Many minor faults beside few others are mappings that reclaim took "
                    "away and the swap cache gave back: memory is just short. Major where async is expected: see "
                    "'Why not all faults are asynchronous' on 'is it paying off?'.",
                    "ops",
                ),
                [Query(q.virtual_rate("apf_faults_total", "cluster, vm, kind"), "{{cluster}} vm {{vm}} {{kind}}")],
                12,
            ),
        )
        .row(
            "The stages",
            bars(
                Look(
                    "Mean of each stage",
                    f"Guest time of one fault in each stage, where the stage occurs. {_STAGE_WORDS} wait is the "
                    "device's; the others are what software costs, some microseconds each.",
                    "s",
                    rising(0.001, 0.01),
                ),
                [Query(q.mean(_STAGES, "cluster, vm, stage"), "{{cluster}} vm {{vm}} {{stage}}")],
                8,
            ),
            graph(
                Look(
                    "Share of each stage",
                    f"Of all time faults took lately. {_STAGE_WORDS} If wait is not nearly all of it, a faster "
                    "device buys nothing.",
                    "percentunit",
                    maximum=1.0,
                ),
                [
                    Query(
                        q.share(
                            q.rate(f"{_STAGES}_sum", "cluster, vm, stage"),
                            q.rate(f"{_STAGES}_sum", _BY),
                            _BY,
                        ),
                        "{{cluster}} vm {{vm}} {{stage}}",
                    )
                ],
                8,
                stacked=True,
            ),
            graph(
                Look(
                    "p99 of each stage",
                    "Which stage makes slow faults slow. wait: the device or its queue. inject or exit: vCPUs that "
                    "do not leave the guest soon. host: reclaim, so memory is not just short but gone.",
                    "s",
                    rising(0.01, 0.1),
                ),
                [Query(q.quantile(0.99, _STAGES, "cluster, vm, stage"), "{{cluster}} vm {{vm}} {{stage}}")],
                8,
                log=True,
            ),
        )
        .row(
            "Distributions",
            heat(
                Look(
                    "Synchronous faults",
                    "A column is the distribution of major faults' latency at that time, the darker the more faults. "
                    "Two bands are two kinds of device work, as cached and uncached reads; a band that moves up is a "
                    "queue that grows.",
                    "s",
                    PLAIN,
                ),
                f"sum by (le) (rate({_LATENCY}_bucket{{{_kind('major')}}}{q.RANGE}))",
                12,
            ),
            heat(
                Look(
                    "Asynchronous faults",
                    "The same for asynchronous faults. It should look like the device's heat map, shifted by some "
                    "microseconds; what stands out above is time in which a page was there and its task did not "
                    "know.",
                    "s",
                    PLAIN,
                ),
                f"sum by (le) (rate({_LATENCY}_bucket{{{_kind('async')}}}{q.RANGE}))",
                12,
            ),
        )
        .row(
            "Below and beside",
            heat(
                Look(
                    "Reads of the swap device",
                    "Queue and service of reads, as the device sees them. The floor of every fault above: only a "
                    "faster device or fewer reads lower it.",
                    "s",
                    PLAIN,
                ),
                f'sum by (le) (rate({_IO}_bucket{{{q.CLUSTER},kind="read"}}{q.RANGE}))',
                8,
            ),
            graph(
                Look(
                    "Pages under way",
                    "Asynchronous faults from their set-up until 'page ready', by vCPU: how deep the guest drives "
                    "the device. From 64 on a vCPU's further faults are synchronous (the line).",
                    "short",
                    ((None, "green"), (64, "red")),
                ),
                [
                    Query(
                        f"sum by (cluster, vm, vcpu) (apf_in_flight{{{q.VM}}})",
                        "{{cluster}} vm {{vm}} vcpu {{vcpu}}",
                    )
                ],
                8,
            ),
            graph(
                Look(
                    "Events to the guest",
                    "'not present' and 'ready' delivered a virtual second; the two keep level, or waiters pile up. "
                    "repeated: a task touched a page again that was under way already, so its vCPU halted: a guest "
                    "that does not put its tasks to sleep.",
                    "ops",
                ),
                [
                    Query(
                        q.virtual_rate("apf_events_total", "cluster, vm, kind"),
                        "{{cluster}} vm {{vm}} {{kind}}",
                    ),
                    Query(q.virtual_rate("apf_repeated_faults_total", _BY), "{{cluster}} vm {{vm}} repeated"),
                ],
                8,
            ),
        )
    )
