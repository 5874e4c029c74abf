"""The twin: a whole run in this process. The same cores and rules, no gRPC, no other process, the same digest.

Within a window every vCPU is run ahead until it needs a server or the next window; then the earliest request of all is
answered, and only that vCPU goes on. That is the order the servers of the processes follow, found without waiting.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from apf.clockpage import next_border_ns
from apf.hostmem import Geometry, HostMemory
from apf.journal import Journal
from apf.messages import FaultRaised, PrefaultRaised, TrapRaised
from apf.scenario import Scenario
from deploy.result import RunResult, Snapshot
from guestsched.build import guest_image
from guestsched.shell import GuestShell, guest_report
from hostd.build import host_core, window_ns
from hostd.report import host_report
from hostd.shell import HostShell
from hostd.swapfile import SwapFile
from vcpud.build import vcpu_machine, vcpu_report
from vcpud.core.account import Cause
from vcpud.machine import Machine, Need, NeedKind

Progress = Callable[[int, "Twin"], None]


class Twin:
    """One VM on one host, stepped by hand: ``load``, then ``run_window`` until it returns False."""

    def __init__(self, scenario: Scenario, swap_path: Path, journals: Path | None = None) -> None:
        self.scenario = scenario
        self.window_ns = window_ns(scenario)
        self.memory = HostMemory.anonymous(Geometry.of(scenario))
        self._sinks: list[TextIO] = []
        self._journals = journals
        self.host_journal = self._journal("host")
        self.guest_journal = self._journal("guest-0")
        self.swap = SwapFile(swap_path)
        self.host = HostShell(host_core(scenario, 1, self.host_journal), self.memory, self.swap)
        image = guest_image(scenario)
        self.guest = GuestShell(scenario, image, self.guest_journal)
        self.host.load(0, tuple(image.segments))
        self.machines = [
            vcpu_machine(scenario, 0, vcpu, self.memory, self._journal(f"vcpu-0-{vcpu}"), None, vcpu)
            for vcpu in range(scenario.vm.vcpus)
        ]
        self.border_ns = 0
        self.windows = 0
        self._needs: list[Need] = []

    def start(self) -> None:
        """Boot every vCPU."""
        for machine in self.machines:
            machine.start()
        self._needs = [machine.proceed(self.border_ns) for machine in self.machines]

    def run_window(self) -> bool:
        """Open the next window and run it to its border; False if all vCPUs have finished."""
        waiting = [need.time_ns for need in self._needs if need.kind is NeedKind.WINDOW]
        if not waiting:
            return False
        due_ns = self.host.core.border_due_ns()
        if due_ns is not None and due_ns <= self.border_ns:
            self.host.border(self.border_ns)
        self.border_ns = next_border_ns(min(waiting), self.window_ns)
        self.windows += 1
        needs, machines, border_ns = self._needs, self.machines, self.border_ns
        for vcpu, need in enumerate(needs):
            if need.kind is NeedKind.WINDOW and need.time_ns < border_ns:
                needs[vcpu] = machines[vcpu].proceed(border_ns)
        while (asking := self._earliest_request()) is not None:
            self._answer(asking, needs[asking], machines[asking])
            needs[asking] = machines[asking].proceed(border_ns)
        return True

    def _earliest_request(self) -> int | None:
        best: int | None = None
        for vcpu, need in enumerate(self._needs):
            asks = need.kind is NeedKind.HOST or need.kind is NeedKind.GUEST
            if asks and (best is None or need.time_ns < self._needs[best].time_ns):
                best = vcpu
        return best

    def _answer(self, vcpu: int, need: Need, machine: Machine) -> None:
        request = need.request
        if isinstance(request, TrapRaised):
            machine.guest_replied(self.guest.take(vcpu, request, need.time_ns))
        else:
            assert isinstance(request, FaultRaised | PrefaultRaised)
            machine.host_replied(self.host.take(0, vcpu, request, need.time_ns))

    def snapshot(self, now_ns: int) -> Snapshot:
        """How far the run is."""
        cores = [machine.core for machine in self.machines]
        return Snapshot(
            min(now_ns, self.scenario.duration_ns),
            sum(core.account.spent_ns[Cause.COUNTING] for core in cores),
            sum(core.counters.faults for core in cores),
            0,
        )

    def check(self) -> None:
        """Assert every invariant of every core."""
        self.host.core.check()
        self.guest.core.check()
        for machine in self.machines:
            machine.core.check()

    def result(self, wall_seconds: float) -> RunResult:
        """Finish all cores and say what it came to."""
        end_ns = self.scenario.duration_ns
        vcpus = []
        for machine in self.machines:
            machine.core.finish()
            vcpus.append({"digest": machine.core.journal.digest(), **vcpu_report(machine)})
        guest = {**guest_report(self.guest, end_ns), "digest": self.guest_journal.digest()}
        self.host.core.finish(end_ns)
        host = {**host_report(self.host), "digest": self.host_journal.digest()}
        return RunResult.of(self.scenario, self.window_ns, self.windows, host, guest, vcpus, wall_seconds)

    def close(self) -> None:
        """Free engines, files and memory."""
        for machine in self.machines:
            machine.engine.close()
        self.swap.close()
        for sink in self._sinks:
            sink.close()

    def _journal(self, name: str) -> Journal:
        if self._journals is None:
            return Journal()
        self._sinks.append((self._journals / f"{name}.journal").open("w"))
        return Journal(self._sinks[-1])


def run(scenario: Scenario, *, journals: Path | None = None, progress: Progress | None = None) -> RunResult:
    """Run ``scenario`` (of one mode) to its end in this process.

    ``journals``: a directory to leave the cores' journals in. ``progress(now_ns, twin)`` is called at every window.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        twin = Twin(scenario, Path(scratch) / "swap", journals)
        try:
            twin.start()
            while twin.run_window():
                if progress is not None:
                    progress(twin.border_ns, twin)
            return twin.result(time.monotonic() - began_s)
        finally:
            twin.close()
