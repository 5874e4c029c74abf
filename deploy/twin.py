"""The twin: a whole run in this process. The same cores and rules, no gRPC, no other process, the same digest.

Within a window every vCPU is run ahead until it needs a server or the next window; then the earliest request of all is
answered, and only that vCPU goes on. That is the order the servers of the processes follow, found without waiting.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import TextIO

from apf.clockpage import next_border_ns
from apf.hostmem import Geometry, HostMemory
from apf.journal import Journal
from apf.messages import FOREVER_NS, NEVER_NS, TrapRaised
from apf.process import COLLECT_AFTER, Failure
from apf.scenario import Scenario
from deploy.result import RunResult, Snapshot
from guestsched.core.arrivals import Answer, Arrival
from guestsched.shell import GuestShell, guest_report
from hostd.build import Measured, host_shell, window_ns
from hostd.io_fault_log import Asked
from hostd.report import host_report
from vcpud.build import vcpu_machine, vcpu_report
from vcpud.core.account import Cause
from vcpud.machine import Machine, Need, NeedKind

_SERVERS = (NeedKind.HOST, NeedKind.GUEST)

Progress = Callable[[int, "Twin"], None]


class _Posts:
    """Interrupts posted to one vCPU, as on the clock page."""

    def __init__(self) -> None:
        self._posts: list[int] = []

    @property
    def earliest_ns(self) -> int:
        return self._posts[0] if self._posts else NEVER_NS

    def post(self, at_ns: int) -> None:
        if at_ns and at_ns not in self._posts:
            self._posts.append(at_ns)

    def take(self, border_ns: int) -> int:
        """The newest post before the border; older ones are taken with it."""
        if not self._posts:
            return 0
        taken = [at_ns for at_ns in self._posts if at_ns < border_ns]
        del self._posts[: len(taken)]
        return taken[-1] if taken else 0


class Twin:
    """A host with its VMs, stepped by hand: ``start``, then ``run_window`` until it returns False.

    Participants are numbered as on the clock page: vCPU v of VM m is m * vcpus + v. ``guest`` is the first VM's.
    ``joins``: when VMs join that are not there from the start, and which; a VM is there once at most. ``measured``: of
    device "file", what the I/Os of the run that is repeated took.
    """

    def __init__(
        self,
        scenario: Scenario,
        swap_path: Path,
        journals: Path | None = None,
        joins: Mapping[int, int] | None = None,
        measured: Measured | None = None,
    ) -> None:
        self.scenario = scenario
        self.window_ns = window_ns(scenario)
        self.memory = HostMemory.anonymous(Geometry.of(scenario))
        self._sinks: list[TextIO] = []
        self._journals = journals
        self.host_journal = self._journal("host")
        self._vcpus = scenario.vm.vcpus
        self.host, self.swap = host_shell(scenario, self.host_journal, self.memory, swap_path, measured)
        self.border_ns = 0
        places = range(scenario.host.places)
        self.arrivals: list[deque[tuple[int, tuple[Arrival, ...]]]] = [deque() for _ in places]
        """What is to arrive at each VM from outside, and when, in order (see ``deploy.replay``)."""
        self._joins = deque(sorted((at_ns, vm) for vm, at_ns in (joins or {}).items()))
        self._joined = 0
        self.io_faults: deque[Asked] = deque()
        """What operators want the swap device to do, in order."""
        self._posts = [_Posts() for _ in range(len(places) * self._vcpus)]
        self._places = [(vm, vcpu) for vm in places for vcpu in range(self._vcpus)]
        """VM and vCPU of each participant."""
        self.answers: list[Answer] = []
        self._guest_journals: dict[int, Journal] = {}
        self._guests: dict[int, GuestShell] = {}
        self._machines: dict[int, Machine] = {}  # by participant
        self._present: set[int] = set()
        self._needs: dict[int, Need] = {}
        self._bounds: dict[int, int] = {}
        """When each participant goes on: its slot on the clock page. An interruptible one's post may be earlier."""
        self._interruptible: set[int] = set()
        self._asking: list[tuple[int, int]] = []
        """Heap of (time, participant): who needs a server."""
        self._ended = 0
        """Participants that have finished, and whose VMs may still be there."""
        for vm in range(scenario.host.vms):
            self._make(vm, 0)
        self.windows = 0
        self._end_ns = scenario.end_ns

    def _make(self, vm: int, start_ns: int) -> None:
        """VM ``vm`` joins the host at a border, or is there from the start."""
        journal = self._guest_journals[vm] = self._journal(f"guest-{vm}")
        post = partial(self._post, vm)
        guest = GuestShell(self.scenario, journal, post, self.answers.append, vm, start_ns)
        self._guests[vm] = guest
        self.host.load(vm, guest.core.segments(), start_ns)
        for participant in self._participants(vm):
            vcpu = participant - vm * self._vcpus
            machine = vcpu_machine(
                self.scenario,
                vm,
                vcpu,
                self.memory,
                self._journal(f"vcpu-{vm}-{vcpu}"),
                None,
                participant,
                self._posts[participant].take,
                start_ns,
            )
            self._machines[participant] = machine
        self._present.add(vm)

    def _participants(self, vm: int) -> range:
        return range(vm * self._vcpus, (vm + 1) * self._vcpus)

    @property
    def guests(self) -> list[GuestShell]:
        """The guest kernels, in the order of their VMs."""
        return [self._guests[vm] for vm in sorted(self._guests)]

    def guest_of(self, vm: int) -> GuestShell:
        """The guest kernel of a VM that has joined."""
        return self._guests[vm]

    @property
    def machines(self) -> list[Machine]:
        """The vCPUs, in the order of their participants."""
        return [self._machines[participant] for participant in sorted(self._machines)]

    @property
    def guest(self) -> GuestShell:
        """The guest kernel of the first VM."""
        return self._guests[0]

    @property
    def guest_journal(self) -> Journal:
        """Its journal."""
        return self._guest_journals[0]

    def start(self) -> None:
        """Boot every vCPU."""
        for participant in sorted(self._machines):
            self._begin(participant)

    def _begin(self, participant: int) -> None:
        self._machines[participant].start()
        self._proceed(participant)

    def _proceed(self, participant: int) -> None:
        """Let a vCPU go on in the open window, until it needs a server or the next one."""
        need = self._needs[participant] = self._machines[participant].proceed(self.border_ns)
        self._bounds[participant] = need.time_ns
        if self._interruptible:
            self._interruptible.discard(participant)
        if need.kind in _SERVERS:
            heappush(self._asking, (need.time_ns, participant))
        elif need.interruptible:
            self._interruptible.add(participant)
        elif need.kind is NeedKind.NOTHING:
            self._bounds[participant] = NEVER_NS
            self._ended += 1

    def run_window(self) -> bool:
        """Open the next window and run it to its border; False if all vCPUs have finished."""
        if self._ended == len(self._needs):
            return False
        self._border_work()
        if self._joins or self.io_faults or any(self.arrivals):
            self._take_arrivals()
        earliest_ns = self._earliest_ns()
        if earliest_ns >= FOREVER_NS:
            raise Failure("all vCPUs wait for an interrupt, and no arrival is left that could lead to one")
        border_ns = self.border_ns = next_border_ns(earliest_ns, self.window_ns)
        self.windows += 1
        interruptible = self._interruptible
        for participant, bound_ns in self._bounds.items():
            if bound_ns < border_ns or (
                participant in interruptible and self._posts[participant].earliest_ns < border_ns
            ):
                self._proceed(participant)
        asking = self._asking
        while asking:
            _, participant = heappop(asking)
            goes_on_ns = self._answer(participant)
            if goes_on_ns < border_ns:
                self._proceed(participant)
            else:
                self._bounds[participant] = goes_on_ns
        return True

    def _border_work(self) -> None:
        """The host's work at the border that was reached: its own, and VMs that leave."""
        leaving: list[int] = []
        if self._ended and self.border_ns < self._end_ns:
            leaving = [vm for vm in sorted(self._present) if self._has_ended(vm)]
        due_ns = self.host.core.border_due_ns()
        if leaving or (due_ns is not None and due_ns <= self.border_ns):
            self.host.border(self.border_ns)
        for vm in leaving:
            if (why := self._guests[vm].core.failed) and self.scenario.host.on_vm_loss == "end":
                self._end_all(vm, why)
            self.host.leave(vm, self.border_ns)
            self._present.remove(vm)

    def _end_all(self, vm: int, why: str) -> None:
        """VM ``vm`` has failed, and the host ends with it: alone that is a run like any other."""
        if self.scenario.host.vms > 1:
            raise Failure(f"VM {vm}: {why}")

    def _has_ended(self, vm: int) -> bool:
        return all(self._needs[participant].kind is NeedKind.NOTHING for participant in self._participants(vm))

    def _earliest_ns(self) -> int:
        """The earliest bound of all participants."""
        earliest_ns = min(self._bounds.values())
        for participant in self._interruptible:
            earliest_ns = min(earliest_ns, self._posts[participant].earliest_ns)
        return earliest_ns

    def _take_arrivals(self) -> None:
        """At the border, let arrive what did before the next window, which begins with the earliest bound."""
        while True:
            earliest_ns = self._earliest_ns()
            latest_ns = earliest_ns // self.window_ns * self.window_ns if earliest_ns < FOREVER_NS else NEVER_NS
            behind = not self.io_faults or self._joined < self.io_faults[0].joins
            if behind and self._joins and self._joins[0][0] <= latest_ns:
                at_ns, vm = self._joins.popleft()
                self._joined += 1
                self._make(vm, at_ns)
                for participant in self._participants(vm):
                    self._begin(participant)
                continue
            waiting = [vm for vm in self._present if self.arrivals[vm]]
            next_ns = min((self.arrivals[vm][0][0] for vm in waiting), default=latest_ns)
            if self.io_faults and self.io_faults[0].at_ns <= min(latest_ns, next_ns):
                asked = self.io_faults.popleft()
                self.host.fail_ios(asked.wish, asked.at_ns)
                continue
            if not waiting:
                return
            vm = min(waiting, key=lambda vm: (self.arrivals[vm][0][0], vm))
            at_ns, arrivals = self.arrivals[vm][0]
            if at_ns > latest_ns:
                return
            self.arrivals[vm].popleft()
            self._guests[vm].arrive(arrivals, at_ns)

    def _post(self, vm: int, vcpu: int, at_ns: int | None) -> None:
        self._posts[vm * self._vcpus + vcpu].post(self.border_ns if at_ns is None else at_ns)

    def _answer(self, participant: int) -> int:
        """Let a server answer; returns when the vCPU goes on."""
        need, machine = self._needs[participant], self._machines[participant]
        request = need.request
        vm, vcpu = self._places[participant]
        if type(request) is TrapRaised:
            dispatch = self._guests[vm].take(vcpu, request, need.time_ns)
            machine.guest_replied(dispatch)
            return dispatch.at_ns
        assert request is not None
        reply = self.host.take(vm, vcpu, request, need.time_ns)
        machine.host_replied(reply)
        return reply.at_ns

    def snapshot(self, now_ns: int) -> Snapshot:
        """How far the run is."""
        cores = [machine.core for machine in self.machines]
        return Snapshot(
            min(now_ns, self.scenario.end_ns),
            sum(core.account.spent_ns[Cause.COUNTING] for core in cores),
            sum(core.counters.faults for core in cores),
            0,
        )

    def check(self) -> None:
        """Assert every invariant of every core."""
        self.host.core.check()
        for guest in self.guests:
            guest.core.check()
        for machine in self.machines:
            machine.core.check()

    def result(self, wall_seconds: float) -> RunResult:
        """Finish all cores and say what it came to."""
        vcpus = {}
        for participant, machine in sorted(self._machines.items()):
            machine.core.finish()
            report = {"digest": machine.core.journal.digest(), **vcpu_report(machine)}
            vcpus[divmod(participant, self._vcpus)] = report
        guests = {
            vm: {**guest_report(guest), "digest": self._guest_journals[vm].digest()}
            for vm, guest in sorted(self._guests.items())
        }
        self.host.core.finish(self.scenario.duration_ns or self.border_ns)
        host = {**host_report(self.host), "digest": self.host_journal.digest()}
        return RunResult.of(self.scenario, self.window_ns, self.windows, host, guests, vcpus, wall_seconds)

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


@contextmanager
def few_collections() -> Iterator[None]:
    """A run makes many small objects and no cycles."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def run(
    scenario: Scenario,
    *,
    journals: Path | None = None,
    progress: Progress | None = None,
    joins: Mapping[int, int] | None = None,
    measured: Measured | None = None,
) -> RunResult:
    """Run ``scenario`` (of one mode) to its end in this process.

    ``journals``: a directory to leave the cores' journals in. ``progress(now_ns, twin)`` is called at every window.
    ``joins``: when which VMs join that are not there from the start. ``measured``: see ``Twin``.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="apf-") as scratch:
        twin = Twin(scenario, Path(scratch) / "swap", journals, joins, measured)
        try:
            twin.start()
            with few_collections():
                while twin.run_window():
                    if progress is not None:
                        progress(twin.border_ns, twin)
            return twin.result(time.monotonic() - began_s)
        finally:
            twin.close()
