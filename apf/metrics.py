"""/metrics of a daemon: custom collectors, which read counters when they are scraped.

Nothing of prometheus-client is on a hot path. Cores and servers count in plain integers; vCPU workers in shared memory,
where the counts of one that died stay (``apf.stats``). A scrape reads them from a thread of its own, and nothing is
decided upon what it reads: a run has the same digest with and without scrapes. Times are virtual unless said otherwise;
base units; buckets of histograms are ``apf.histogram.BOUNDS_NS``. Labels are bounded: ``vm`` (a number), ``vcpu`` (a
number), and the words listed here. ``G`` gauge, ``C`` counter, ``H`` histogram.

| name                              | t | labels                               | meaning                                |
|-----------------------------------|---|--------------------------------------|----------------------------------------|
| every daemon                                                                                                          |
| apf_build_info                    | G | version, python, daemon (hostd,      | 1                                      |
|                                   |   | guestsched, vcpud)                   |                                        |
| daemons that serve gRPC                                                                                               |
| apf_grpc_calls_total              | C | method, code                         | calls served, when they end; method is |
|                                   |   |                                      | service/method                         |
| apf_grpc_messages_total           | C | method, kind (in, out)               | messages of those calls, also while    |
|                                   |   |                                      | they last                              |
| hostd                                                                                                                 |
| apf_virtual_time_seconds          | G |                                      | how far all vCPUs have come, at most   |
|                                   |   |                                      | the open border                        |
| apf_virtual_wall_ratio            | G |                                      | virtual seconds a wall second, over    |
|                                   |   |                                      | the last 5 wall s                      |
| apf_windows_total                 | C |                                      | windows opened                         |
| apf_host_vms                      | G |                                      | VMs on the host                        |
| apf_host_vm_events_total          | C | kind (joined, ended, lost)           | VMs that have come and gone            |
| apf_borders_total                 | C |                                      | borders at which the host had work     |
| apf_host_memory_pages             | G | vm, state (resident, swap_cache,     | guest pages                            |
|                                   |   | writeback, swapped, reading)         |                                        |
| apf_host_memory_limit_pages       | G | vm                                   | limit of the VM's memory group         |
| apf_memory_bytes                  | G | vm, kind (current, high, max,        | the group's files memory.KIND, and     |
|                                   |   | swap.current; ``hostd.memory``'s     | what of memory.stat is in bytes        |
|                                   |   | STAT_SIZES)                          |                                        |
| apf_memory_stat_total             | C | vm, kind (``hostd.memory``'s         | counters of the group's memory.stat    |
|                                   |   | GROUP_COUNTERS, pgscan, pgsteal)     |                                        |
| apf_memory_events_total           | C | vm, kind (low, high, max, oom,       | memory.events                          |
|                                   |   | oom_kill)                            |                                        |
| apf_vmstat_pages                  | G | kind (nr_free_pages ...:             | /proc/vmstat's sizes; its counters are |
|                                   |   | ``hostd.memory.vmstat_sizes``)       | apf_host_NAME_total                    |
| apf_host_frames                   | G | state (free, used)                   | frames of the host                     |
| apf_swap_slots                    | G | state (free, used)                   | slots of the swap area                 |
| apf_host_NAME_total               | C |                                      | NAME of ``hostd.core.mm.COUNTERS``,    |
|                                   |   |                                      | the kernel's where it has one          |
| apf_reclaim_scanned_pages_total   | C | vm                                   | the group's pgscan of memory.stat      |
| apf_reclaim_stolen_pages_total    | C | vm                                   | the group's pgsteal of memory.stat     |
| apf_swap_io_total                 | C | device, kind (read, write), result   | I/Os submitted; torn and lost writes   |
|                                   |   | (ok, error, and of reads checksum,   | seem done, and are found by a read's   |
|                                   |   | of writes torn, lost)                | checksum                               |
| apf_swap_io_seconds               | H | device, kind                         | queue and service, settled when        |
|                                   |   |                                      | submitted                              |
| apf_pressure_seconds_total        | C | vm (also root), kind (some, full)    | PSI memory: ``hostd.core.pressure``    |
| apf_pressure_ratio                | G | vm (also root), kind (some, full),   | its averages, as the kernel has them:  |
|                                   |   | window (avg10, avg60, avg300)        | ``hostd.core.averages``                |
| vcpud                                                                                                                 |
| apf_mode_info                     | G | vm, mode                             | 1                                      |
| apf_faults_total                  | C | vm, vcpu, kind (minor, major, async) | faults hostd has settled               |
| apf_events_total                  | C | vm, vcpu, kind (not_present, ready)  | APF events delivered                   |
| apf_sync_fallbacks_total          | C | vm, vcpu, reason                     | faults raised that were not allowed to |
|                                   |   |                                      | be asynchronous: disabled (the guest   |
|                                   |   |                                      | has not enabled APF: all in mode off), |
|                                   |   |                                      | limit (64 work items), ineligible (not |
|                                   |   |                                      | to be interrupted), alloc (no memory), |
|                                   |   |                                      | kernel (at CPL 0)                      |
| apf_repeated_faults_total         | C | vm, vcpu                             | faults on a page whose work item       |
|                                   |   |                                      | lives: the vCPU halts                  |
| apf_halts_total                   | C | vm, vcpu                             | faults for which the vCPU halted in    |
|                                   |   |                                      | KVM, repeated ones too                 |
| apf_in_flight                     | G | vm, vcpu                             | work items, from set-up to page ready  |
| apf_fault_latency_seconds         | H | vm, kind                             | EPT violation until the instruction    |
|                                   |   |                                      | can go on; async: until page ready is  |
|                                   |   |                                      | delivered                              |
| apf_fault_stage_seconds           | H | vm, stage (retry, host, wait,        | see ``vcpud.core.observed``; the       |
|                                   |   | inject, exit, prefault, ready)       | stages add up to the latencies         |
| apf_vcpu_seconds_total            | C | vm, vcpu, state (counting, faulting, | vCPU time                              |
|                                   |   | other, stall, idle, apf, kernel)     |                                        |
| apf_guest_instructions_total      | C | vm, vcpu                             | instructions retired                   |
| apf_work_counted_total            | C | vm, vcpu                             | instructions retired in counting tasks |
| apf_vcpu_exits_total              | C | vm, vcpu                             | exits from guest mode                  |
| apf_vcpu_messages_total           | C | vm, vcpu                             | messages exchanged with hostd and      |
|                                   |   |                                      | guestsched                             |
| guestsched                                                                                                            |
| apf_run_queue_length              | G | vm, vcpu                             | tasks that run or are ready to         |
| apf_context_switches_total        | C | vm, vcpu                             | switches, those to and from the idle   |
|                                   |   |                                      | task too                               |
| apf_interrupts_total              | C | vm, vcpu                             | interrupts posted by other vCPUs that  |
|                                   |   |                                      | were taken                             |
| apf_ticks_total                   | C | vm, vcpu                             | ticks that could change something, and |
|                                   |   |                                      | so trapped                             |
| apf_pulled_tasks_total            | C | vm, vcpu                             | tasks taken from other vCPUs' queues   |
| apf_tasks                         | G | vm, state                            | tasks                                  |
|                                   |   | (``guestsched.core.task.TaskState``  |                                        |
|                                   |   | in lower case)                       |                                        |
| apf_task_counts_total             | C | vm                                   | what counting tasks counted, as of     |
|                                   |   |                                      | their last traps                       |
| apf_accesses_total                | C | vm, kind (hit, minor, major, async)  | accesses of load generators, by what   |
|                                   |   |                                      | they met                               |
| apf_access_latency_seconds        | H | vm                                   | those, but for replays': from arrival  |
|                                   |   |                                      | to done                                |
| apf_oldest_wait_seconds           | G | vm                                   | how long the oldest APF waiter has     |
|                                   |   |                                      | waited, 0: none waits                  |
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from apf.histogram import BOUNDS_NS, Histogram
from apf.process import Failure
from apf.rundir import RunDir

NS_PER_S = 1_000_000_000
ANYWHERE = "127.0.0.1:0"
"""The default: any free port of the loopback."""
_BOUNDS = [*(str(bound_ns / NS_PER_S) for bound_ns in BOUNDS_NS), "+Inf"]

Collect = Callable[[], Iterable[Metric]]


class _Collector(Collector):
    """Lets prometheus-client call the daemons' functions; they are not called to be described."""

    def __init__(self, collects: tuple[Collect, ...]) -> None:
        self._collects = collects

    def collect(self) -> Iterator[Metric]:
        for collect in self._collects:
            yield from collect()

    def describe(self) -> Iterable[Metric]:
        return ()


def serve(run: RunDir, name: str, daemon: str, *collects: Collect, listen: str = ANYWHERE) -> int:
    """Serve what ``collects`` yield at ``listen`` (HOST:PORT, port 0: any); Failure if that cannot be.

    Returns the port; the address is left as report ``metrics-<name>``, so that supervisors find it.
    """
    host, _, port = listen.rpartition(":")
    registry = CollectorRegistry()
    registry.register(_Collector((lambda: [_build_info(daemon)], *collects)))
    try:
        server, _ = start_http_server(int(port), addr=host.strip("[]"), registry=registry)
    except (OSError, ValueError, OverflowError) as error:
        raise Failure(f"cannot serve /metrics at {listen}: {error}") from error
    bound = int(server.server_port)
    run.write_report(f"metrics-{name}", {"port": bound, "address": f"{host}:{bound}"})
    return bound


def _build_info(daemon: str) -> Metric:
    try:
        built = version("apf-emulator")
    except PackageNotFoundError:  # run from a tree that is not installed
        built = "unknown"
    family = GaugeMetricFamily("apf_build_info", "What runs here.", labels=["version", "python", "daemon"])
    family.add_metric([built, platform.python_version(), daemon], 1)
    return family


def seconds(ns: int) -> float:
    """Nanoseconds as the base unit."""
    return ns / NS_PER_S


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add what ``histogram`` has counted to ``family``, in seconds."""
    buckets = list(zip(_BOUNDS, accumulate(histogram.buckets()), strict=True))
    family.add_metric(labels, buckets=buckets, sum_value=seconds(histogram.sum_ns))
