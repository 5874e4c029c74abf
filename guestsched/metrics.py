"""What guestsched exports (see ``apf.metrics``): read from the guest kernel's tables when somebody asks.

A scrape runs in a thread of its own beside the event loop. It copies each table in one go and reads plain integers, so
every figure is one that was true at some moment of the scrape; two may be a trap apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from apf.clockpage import ClockPage
from apf.metrics import add_histogram, seconds
from guestsched.core.cpu import Cpu
from guestsched.core.task import TaskState
from guestsched.shell import GuestShell

_COUNTERS: tuple[tuple[str, str, Callable[[Cpu], int]], ...] = (
    ("apf_context_switches", "Context switches, of the idle task too.", attrgetter("nr_switches")),
    ("apf_interrupts", "Posted interrupts taken.", attrgetter("interrupts")),
    ("apf_ticks", "Ticks that trapped.", attrgetter("ticks")),
    ("apf_pulled_tasks", "Tasks taken from other vCPUs' queues.", attrgetter("pulled")),
)


class GuestMetrics:
    """Collects for the guest kernel of VM ``vm``."""

    def __init__(self, shell: GuestShell, vm: int, clock: ClockPage) -> None:
        self._shell = shell
        self._vm = str(vm)
        self._clock = clock

    def __call__(self) -> Iterator[Metric]:
        """All families."""
        vm, core = self._vm, self._shell.core
        tasks, cpus = list(core.tasks.values()), core.cpus
        for name, text, count in _COUNTERS:
            family = CounterMetricFamily(name, text, labels=["vm", "vcpu"])
            for cpu in cpus:
                family.add_metric([vm, str(cpu.index)], count(cpu))
            yield family
        queues = GaugeMetricFamily("apf_run_queue_length", "Tasks that run or are ready.", labels=["vm", "vcpu"])
        for cpu in cpus:
            queues.add_metric([vm, str(cpu.index)], cpu.rq.nr_running)
        states = GaugeMetricFamily("apf_tasks", "Tasks by state.", labels=["vm", "state"])
        found = Counter(task.state for task in tasks)
        for state in TaskState:
            states.add_metric([vm, state.name.lower()], found[state])
        counted = CounterMetricFamily("apf_task_counts", "What counting tasks counted.", labels=["vm"])
        counted.add_metric([vm], sum(task.value("count") or 0 for task in tasks))
        oldest = GaugeMetricFamily("apf_oldest_wait_seconds", "Age of the oldest APF wait.", labels=["vm"])
        now_ns = self._clock.now_ns()
        waits_ns = (now_ns - task.since_ns for task in tasks if task.state is TaskState.APF_WAIT)
        oldest.add_metric([vm], seconds(max(0, *waits_ns, 0)))
        yield from (queues, states, counted, oldest)
        yield from self._accesses()

    def _accesses(self) -> Iterator[Metric]:
        accesses = CounterMetricFamily("apf_accesses", "Accesses by what they met.", labels=["vm", "kind"])
        for kind, count in list(self._shell.accesses.items()):
            accesses.add_metric([self._vm, "hit" if kind is None else kind.name.lower()], count)
        latency = HistogramMetricFamily("apf_access_latency_seconds", "From arrival to done.", labels=["vm"])
        add_histogram(latency, [self._vm], self._shell.access_latency)
        yield from (accesses, latency)
