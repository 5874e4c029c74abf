"""What has come from outside takes effect: accesses, processes that begin and end, faults of the protocol, the end.

See ``arrivals`` for what there is and how it is answered.
"""

from __future__ import annotations

from typing import assert_never

from apf.messages import ProtocolFault, Stopped, TrapRaised
from guestsched.core.arrivals import (
    AccessArrived,
    AccessCancelled,
    Arrival,
    InjectArrived,
    InjectTaken,
    KillArrived,
    KillTaken,
    Refusal,
    Refused,
    ReplayArrived,
    ShutdownArrived,
    SpawnArrived,
    Spawned,
)
from guestsched.core.cpu import Cpu, Phase
from guestsched.core.feed import Feed
from guestsched.core.kernel import TASKS_MAX, Kernel
from guestsched.core.process import OutOfMemory
from guestsched.core.task import TaskState

INJECTIONS_MAX = 1024
"""Faults of the protocol injected into one vCPU while the guest runs."""


class Outside:
    """Takes arrivals; tells the vCPUs which faults are injected. ``end_ns``: when the run ends."""

    def __init__(self, kernel: Kernel, feed: Feed, end_ns: int) -> None:
        self._kernel = kernel
        self._feed = feed
        self._end_ns = end_ns

    def take(self, arrivals: tuple[Arrival, ...], now_ns: int) -> None:
        """These have arrived together at ``now_ns``, while no vCPU runs."""
        for arrival in arrivals:
            self._arrive(arrival, now_ns)
        self._feed.distribute(now_ns)

    def _arrive(self, arrival: Arrival, now_ns: int) -> None:
        kernel, record = self._kernel, self._kernel.journal.record
        match arrival:
            case AccessArrived():
                write = "w" if arrival.write else "r"
                place = (arrival.ticket, arrival.process, arrival.offset, arrival.words, write)
                record((now_ns, "arrive_access", *place))
                self._feed.access_arrived(arrival, now_ns)
            case AccessCancelled():
                record((now_ns, "arrive_cancel", arrival.ticket))
                self._feed.cancelled(arrival)
            case ReplayArrived():
                record((now_ns, "arrive_replay", arrival.ticket, arrival.process, len(arrival.accesses)))
                self._feed.replay_arrived(arrival, now_ns)
            case SpawnArrived():
                record((now_ns, "arrive_spawn", arrival.ticket, arrival.plan.name, arrival.plan.digest))
                self._spawn(arrival, now_ns)
            case KillArrived():
                record((now_ns, "arrive_kill", arrival.ticket, arrival.process, arrival.task))
                self._kill(arrival, now_ns)
            case InjectArrived():
                fault = arrival.fault
                numbers = (fault.nth, fault.count, fault.for_ns)
                record((now_ns, "arrive_inject", arrival.ticket, arrival.vcpu, fault.what, *numbers))
                self._inject(arrival)
            case ShutdownArrived():
                record((now_ns, "arrive_shutdown"))
                kernel.ending = True
                for cpu in kernel.cpus:
                    kernel.post(cpu)
            case _:
                assert_never(arrival)

    def _spawn(self, arrival: SpawnArrived, now_ns: int) -> None:
        kernel, plan = self._kernel, arrival.plan
        if len(kernel.tasks) + len(plan.tasks) > TASKS_MAX:
            text = f"{len(kernel.tasks)} tasks there are, {len(plan.tasks)} more: at most {TASKS_MAX}"
            kernel.effects.append(Refused(arrival.ticket, Refusal.RESOURCE_EXHAUSTED, text))
            return
        try:
            process = kernel.make(plan, now_ns)
        except OutOfMemory as error:
            kernel.effects.append(Refused(arrival.ticket, Refusal.RESOURCE_EXHAUSTED, str(error)))
            return
        process.execing = True
        kernel.start_in_time(kernel.tasks[process.tasks[0]], now_ns, None)
        kernel.effects.append(Spawned(arrival.ticket, process.asid, tuple(process.tasks), now_ns))

    def _kill(self, arrival: KillArrived, now_ns: int) -> None:
        kernel = self._kernel
        process = kernel.processes.get(arrival.process)
        if process is None or (arrival.task and arrival.task not in process.tasks):
            what = (
                f"process {arrival.process}" if process is None else f"task {arrival.task} of process {process.asid}"
            )
            kernel.effects.append(Refused(arrival.ticket, Refusal.NOT_FOUND, f"{what}: there is none"))
            return
        meant = [arrival.task] if arrival.task else process.tasks
        alive = [task_id for task_id in meant if kernel.tasks[task_id].state is not TaskState.DEAD]
        for task_id in alive:
            kernel.kill(kernel.tasks[task_id], "killed from outside", now_ns, None)
        kernel.effects.append(KillTaken(arrival.ticket, tuple(alive)))

    def _inject(self, arrival: InjectArrived) -> None:
        """The vCPU is told with its next Dispatch, for which it is interrupted if it is up."""
        kernel, vcpu = self._kernel, arrival.vcpu
        if not 0 <= vcpu < len(kernel.cpus):
            text = f"vcpu = {vcpu}: this VM has 0 to {len(kernel.cpus) - 1}"
            kernel.effects.append(Refused(arrival.ticket, Refusal.INVALID_ARGUMENT, text))
            return
        cpu = kernel.cpus[vcpu]
        if cpu.phase is Phase.STOPPED:
            kernel.effects.append(_stopped(arrival.ticket, vcpu))
            return
        if cpu.injected >= INJECTIONS_MAX:
            text = f"vcpu = {vcpu}: {cpu.injected} have come for it; at most {INJECTIONS_MAX}"
            kernel.effects.append(Refused(arrival.ticket, Refusal.RESOURCE_EXHAUSTED, text))
            return
        cpu.injected += 1
        cpu.injections.append((arrival.ticket, arrival.fault))
        kernel.post(cpu)

    def injections(self, cpu: Cpu, raised: TrapRaised, now_ns: int) -> tuple[ProtocolFault, ...]:
        """What ``cpu`` is told with this Dispatch. One that only stops takes none: they are refused when it has."""
        if isinstance(raised.trap, Stopped):
            self._kernel.effects.extend(_stopped(ticket, cpu.index) for ticket, _ in cpu.injections)
            cpu.injections.clear()
        if self._kernel.ending or cpu.resume_ns >= self._end_ns:
            return ()
        told, cpu.injections = cpu.injections, []
        for ticket, fault in told:
            self._kernel.journal.record((now_ns, "inject", cpu.index, ticket, fault.what, cpu.resume_ns))
            self._kernel.effects.append(InjectTaken(ticket, cpu.resume_ns))
        return tuple(fault for _, fault in told)


def _stopped(ticket: int, vcpu: int) -> Refused:
    return Refused(ticket, Refusal.FAILED_PRECONDITION, f"vcpu = {vcpu}: it has stopped")
