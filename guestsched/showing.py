"""What the API shows of a running guest: its processes and tasks, and its counters."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path

from apf.rundir import RunDir
from apf.scenario import Scenario
from apf.stats import FIELDS, VcpuStats
from apf.v1 import load_pb2
from guestsched.core.arrivals import AccessDone
from guestsched.core.core import GuestCore
from guestsched.core.process import Process
from guestsched.shell import GuestShell

_LATENCIES = 4096
_PERCENTILES = {"p50": 5000, "p90": 9000, "p99": 9900, "p99.9": 9990, "p99.99": 9999}


def process_out(core: GuestCore, process: Process) -> load_pb2.Process:
    """A process with its tasks, as of now."""
    tasks = core.tasks
    gva, pages = process.plan.memory
    return load_pb2.Process(
        process=process.asid,
        name=process.name,
        address=gva,
        pages=pages,
        queued=len(process.accesses.waiting),
        tasks=[
            load_pb2.Task(
                task=task.id,
                name=task.spec.name,
                program=task.spec.program,
                state=task.state.name,
                vcpu=task.cpu,
                nice=task.spec.nice,
                sum_exec_ns=task.entity.sum_exec_ns,
                nvcsw=task.nvcsw,
                nivcsw=task.nivcsw,
                min_flt=task.min_flt,
                maj_flt=task.maj_flt,
                counted=task.value("count") or task.counted,
                killed=task.killed,
                status=task.status,
            )
            for task in (tasks[task_id] for task_id in process.tasks)
        ],
    )


class Counters:
    """What all of VM ``vm`` count, and how long the newest accesses from outside took."""

    def __init__(self, scenario: Scenario, run: RunDir, vm: int) -> None:
        self._scenario = scenario
        self._run = run
        self._vm = vm
        self._latencies: deque[int] = deque(maxlen=_LATENCIES)
        self._counts: Counter[str] = Counter()
        self._stats: VcpuStats | None = None

    def access_done(self, done: AccessDone) -> None:
        """An access from outside has been performed."""
        self._latencies.append(done.done_ns - done.arrived_ns)
        self._counts["accesses"] += 1

    def response(self, shell: GuestShell) -> load_pb2.WatchCountersResponse:
        """All of it, as of now."""
        core = shell.core
        counters = {**shell.counters(), **self._counts, **self._vcpu_counters()}
        counters["queued"] = sum(len(process.accesses.waiting) for process in core.processes.values())
        vcpus = []
        for vcpu in range(self._scenario.vm.vcpus):
            cpu = core.cpu(vcpu)
            running = 0 if cpu.rq.curr is None else cpu.rq.curr.id
            vcpus.append(
                load_pb2.Vcpu(
                    vcpu=vcpu,
                    task=running,
                    nr_running=cpu.rq.nr_running,
                    nr_switches=cpu.nr_switches,
                    idle_ns=cpu.rq.idle_ns,
                )
            )
        latencies = sorted(self._latencies)
        percentiles = {
            name: latencies[min(len(latencies) - 1, len(latencies) * share // 10_000)]
            for name, share in _PERCENTILES.items()
            if latencies
        }
        return load_pb2.WatchCountersResponse(
            now_ns=core.now_ns,
            counters=counters,
            vcpus=vcpus,
            tasks=Counter(task.state.name for task in core.tasks.values()),
            latency_ns=percentiles,
        )

    def _vcpu_counters(self) -> dict[str, int]:
        """What the vCPU workers count in shared memory."""
        if self._stats is None:
            path: Path = self._run.vcpu_stats(self._vm)
            if not path.exists():
                return {}
            self._stats = VcpuStats.attach(path, self._scenario.vm.vcpus)
        return {name: self._stats.total(name) for name in FIELDS}
