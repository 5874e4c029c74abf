"""Is the emulator healthy? Its daemons, the pace of virtual time, windows, gRPC, and the guest's scheduler.

The one dashboard in wall time: it is about the program, not about what it emulates.
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
    rows,
    single,
)

_CALLS = "apf_grpc_calls_total"
_MESSAGES = "apf_grpc_messages_total"


def page() -> Page:
    """The dashboard."""
    return (
        Page(
            "apf-health",
            "APF: is the emulator healthy?",
            "Daemons and their versions, virtual against wall time, windows, gRPC and the guest's scheduler.",
            CLUSTERS,
            VMS,
        )
        .row(
            "The answer",
            single(
                Look(
                    "Virtual seconds a wall second",
                    "How fast the emulation runs, over the last five seconds. With --pace 1 it should be 1; without, 1 "
                    "and more where the guest counts or waits for a slow device, some hundredths where it faults ten "
                    "thousand times a virtual second. Near 0: it waits for a client, or the machine is overloaded.",
                    "suffix: x",
                    falling(0.001, 0.01),
                    decimals=2,
                ),
                [Query(f"max by (cluster) (apf_virtual_wall_ratio{{{q.CLUSTER}}})", "{{cluster}}")],
                6,
            ),
            single(
                Look(
                    "Daemons that answer",
                    "Daemons that told their version at the last scrape: hostd, and guestsched and vcpud of each VM, "
                    "so three of a run with one VM. One less is a daemon that has died; the whole run ends soon "
                    "then.",
                    "none",
                    falling(2, 3),
                    decimals=0,
                ),
                [Query(f"count by (cluster) (apf_build_info{{{q.CLUSTER}}})", "{{cluster}}")],
                6,
            ),
            single(
                Look(
                    "Windows a wall second",
                    "All vCPUs meet at every border, so this is the emulator's heartbeat: some hundreds where every "
                    "window has requests, thousands where none has. 0 while virtual time advances is a jump over "
                    "time in which all idle.",
                    "ops",
                    ((None, "yellow"), (1, "green")),
                    decimals=0,
                ),
                [Query(q.rate("apf_windows_total", "cluster", q.CLUSTER), "{{cluster}}")],
                6,
            ),
            single(
                Look(
                    "Calls that failed",
                    "gRPC calls a wall second that ended with a code other than OK or CANCELLED (the end of a stream "
                    "its client leaves). Clients that ask for what there is not are counted too: see the codes "
                    "below.",
                    "reqps",
                    rising(0.1, 1.0),
                    decimals=2,
                ),
                [
                    Query(
                        f'sum by (cluster) (rate({_CALLS}{{{q.CLUSTER},code!~"OK|CANCELLED"}}{q.RANGE})) '
                        f"or 0 * sum by (cluster) (apf_build_info{{{q.CLUSTER}}})",
                        "{{cluster}}",
                    )
                ],
                6,
            ),
        )
        .row(
            "Time",
            graph(
                Look(
                    "Pace of virtual time",
                    "Virtual seconds a wall second. A sudden fall at unchanged load is the machine below (other work "
                    "on its cores); a slow one is a guest that faults more, since faults cost messages and counting "
                    "does not.",
                    "suffix: x",
                ),
                [Query(f"max by (cluster) (apf_virtual_wall_ratio{{{q.CLUSTER}}})", "{{cluster}}")],
                6,
            ),
            graph(
                Look(
                    "Windows and borders",
                    "Windows opened a wall second, and those at whose border the host had work (mappings, evictions, "
                    "completions). If nearly all have, the window is as long as the device is fast: a larger "
                    "window_ns runs faster and is coarser.",
                    "ops",
                ),
                [
                    Query(q.rate("apf_windows_total", "cluster", q.CLUSTER), "{{cluster}} windows"),
                    Query(q.rate("apf_borders_total", "cluster", q.CLUSTER), "{{cluster}} borders"),
                ],
                6,
            ),
            graph(
                Look(
                    "VMs on the host",
                    "VMs join and leave at borders. A rise of those lost is a VM one of whose processes died; "
                    "the others go on, with one group less on the device.",
                    "short",
                ),
                [
                    Query(f"max by (cluster) (apf_host_vms{{{q.CLUSTER}}})", "{{cluster}} here"),
                    Query(
                        f'sum by (cluster) (apf_host_vm_events_total{{{q.CLUSTER}, kind="lost"}})', "{{cluster}} lost"
                    ),
                ],
                6,
            ),
            graph(
                Look(
                    "Guest instructions a wall second",
                    "What Unicorn and its hooks get done, for all vCPUs of a VM: up to some 2,500 MIPS a core in a "
                    "counting loop, a few hundred in loops that touch memory. Far below: vCPUs wait for each other "
                    "at borders.",
                    "ops",
                ),
                [Query(q.rate("apf_guest_instructions_total", "cluster, vm"), "{{cluster}} vm {{vm}}")],
                6,
            ),
        )
        .row(
            "gRPC",
            graph(
                Look(
                    "Messages by method",
                    "Messages a wall second, in and out, also of streams that last. The emulator's own streams carry "
                    "a few thousand a second on two cores; at that rate messages are what limits the pace.",
                    "mps",
                ),
                [
                    Query(
                        # Not those that were called once, long ago.
                        f"{q.rate(_MESSAGES, 'cluster, method, kind', q.CLUSTER)} > 0",
                        "{{cluster}} {{method}} {{kind}}",
                    )
                ],
                12,
            ),
            graph(
                Look(
                    "Calls by method and code",
                    "Calls that ended, a wall second, from outside and between daemons. Streams count when they end, "
                    "so a healthy run has few. UNAVAILABLE: the run is ending. RESOURCE_EXHAUSTED: a load generator "
                    "outruns the guest. INVALID_ARGUMENT, NOT_FOUND: the client's mistake.",
                    "reqps",
                    empty="no calls ended lately",
                ),
                [Query(q.rate(_CALLS, "cluster, method, code", q.CLUSTER), "{{cluster}} {{method}} {{code}}")],
                12,
            ),
        )
        .row(
            "The guest's scheduler",
            graph(
                Look(
                    "Run queues",
                    "Tasks that run or are ready to, by vCPU. Above 1 there is more work than vCPUs; 0 beside others "
                    "at 3 and more for long is a balance the scheduler does not find.",
                    "short",
                    ((None, "green"), (8, "yellow")),
                ),
                [
                    Query(
                        f"max by (cluster, vm, vcpu) (apf_run_queue_length{{{q.VM}}})",
                        "{{cluster}} vm {{vm}} vcpu {{vcpu}}",
                    )
                ],
                8,
            ),
            graph(
                Look(
                    "Switches and interrupts",
                    "A virtual second, of all vCPUs. With APF each waiting fault costs two switches; interrupts are "
                    "wakeups from other vCPUs and ticks that could change something.",
                    "ops",
                ),
                [
                    Query(
                        q.virtual_rate("apf_context_switches_total", "cluster, vm"), "{{cluster}} vm {{vm}} switches"
                    ),
                    Query(q.virtual_rate("apf_interrupts_total", "cluster, vm"), "{{cluster}} vm {{vm}} interrupts"),
                ],
                8,
            ),
            graph(
                Look(
                    "Tasks by state",
                    "apf_wait: asleep for a page. ready: would run if there were a vCPU. sleep, wait: of their own "
                    "will. Nearly all in apf_wait is a guest that lives from swap; dead that grows is processes that "
                    "come and go.",
                    "short",
                ),
                [Query(f"sum by (cluster, vm, state) (apf_tasks{{{q.VM}}})", "{{cluster}} vm {{vm}} {{state}}")],
                8,
                stacked=True,
            ),
        )
        .row(
            "Who it is",
            rows(
                Look(
                    "Daemons and versions",
                    "What runs, where it is scraped, and in which version; all of one run should have the same. A "
                    "daemon that is missing here did not answer the last scrape.",
                    "none",
                ),
                Query(f"max by (cluster, daemon, instance, version, python) (apf_build_info{{{q.CLUSTER}}})"),
                ("cluster", "daemon", "instance", "version", "python"),
                16,
            ),
            rows(
                Look(
                    "Modes",
                    "The APF mode of each VM: what 'is it paying off?' compares. Two runs of one scenario, one of "
                    "them in mode off, make that dashboard complete.",
                    "none",
                ),
                Query(f"max by (cluster, vm, mode) (apf_mode_info{{{q.VM}}})"),
                ("cluster", "vm", "mode"),
                8,
            ),
        )
    )
