"""The guest kernel's step: one trap of one vCPU in, one Dispatch for that vCPU out; or what has arrived from outside.

Theory. A vCPU runs a task until it traps. The kernel first charges the time since the last trap to whom it belongs
(``update_curr``), then handles the trap, perhaps picks another task, and lets the vCPU go on after what that cost:
``apf_handler_ns`` for either APF event, ``syscall_ns`` for a system call, ``interrupt_ns`` for a timer or an interrupt
that had something to do, ``context_switch_ns`` if another task runs than before (the idle task included); a tick's own
cost is the vCPU's. These costs are spent after the trap, so they are charged to the task that runs next. A Dispatch is
always later than its trap, by 1 ns if nothing cost anything.

A trap may interrupt the kernel (``TrapRaised.kernel``) where it accesses guest memory for a task. It is not preemptible
there (CONFIG_PREEMPT_VOLUNTARY): interrupts are handled, and current goes on until it is on its way to user mode.

Departures: interrupts a guest kernel would take while it runs are taken by the vCPU when it goes on; the guest
kernel's code is not executed but paid for. The kernel's own accesses to guest memory are made by the vCPU (``fetch``,
``copies``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from apf.core import CoreError
from apf.journal import Journal
from apf.messages import (
    PAGE_SHIFT,
    Booted,
    ExceptionRaised,
    Fetched,
    InterruptArrived,
    KernelPath,
    NotPresentArrived,
    PageError,
    PageReadyArrived,
    RunFailed,
    Sample,
    Segment,
    Stopped,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    TrapRaised,
)
from apf.scenario import Scenario
from guestsched.core import killing
from guestsched.core.apf_wait import Node
from guestsched.core.arrivals import Arrival
from guestsched.core.cpu import MACHINE_CHECK, Cpu, Phase, TimerKind
from guestsched.core.dispatch import Dispatcher
from guestsched.core.feed import Feed
from guestsched.core.kernel import Effect, Kernel, Log, Post, Reply
from guestsched.core.kvm import KvmGuest
from guestsched.core.outside import Outside
from guestsched.core.process import PER_CPU_GFN, Memory, Process, ProcessPlan
from guestsched.core.profile import UNKNOWN, Profile
from guestsched.core.sched import RunQueue
from guestsched.core.syscall import Syscalls
from guestsched.core.task import Task, TaskEvent, TaskResult, TaskState

__all__ = ("ArrivalsTaken", "Effect", "GuestCore", "Log", "Post", "Reply", "TrapTaken")

_PAGE_FAULT = 14


@dataclass(frozen=True, slots=True)
class TrapTaken:
    """vCPU ``vcpu`` trapped."""

    vcpu: int
    raised: TrapRaised


@dataclass(frozen=True, slots=True)
class ArrivalsTaken:
    """These have arrived from outside; no vCPU runs."""

    arrivals: tuple[Arrival, ...]


class GuestCore:
    """The guest kernel of one VM: a ``Core[TrapTaken | ArrivalsTaken, Effect]``.

    ``plans``: the processes there are at boot. ``policy``: the class of the run queues. Raises OutOfMemory if the plans
    do not fit into the guest's memory. ``boot_ns``: when the VM joined its host; tasks' start times count from there.
    """

    def __init__(
        self,
        scenario: Scenario,
        plans: tuple[ProcessPlan, ...],
        policy: type[RunQueue],
        journal: Journal,
        boot_ns: int = 0,
    ) -> None:
        vcpus, pages = scenario.vm.vcpus, scenario.vm.guest_memory >> PAGE_SHIFT
        self._costs = scenario.costs
        self._journal = journal
        memory = Memory(vcpus, pages)
        kernel = self._kernel = Kernel(scenario.costs, vcpus, scenario.vm.hz, policy, memory, journal, boot_ns)
        self._feed = Feed(kernel)
        self._syscalls = Syscalls(kernel, self._feed)
        self._kvm = KvmGuest(scenario, kernel)
        self._outside = Outside(kernel, self._feed, scenario.end_ns)
        self._dispatcher = Dispatcher(kernel, self._feed, self._kvm, self._outside)
        self._now_ns = boot_ns
        self.failed = ""
        """Why the VM has ended before its run did: a page that cannot be had. Empty: it has not."""
        self._finished = False
        for plan in plans:
            kernel.make(plan, boot_ns)
        for task in kernel.tasks.values():
            kernel.start_in_time(task, boot_ns, None)
        kernel.effects.clear()

    # What there is, to be read only ----------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """Time of the last step."""
        return self._now_ns

    @property
    def boot_ns(self) -> int:
        """When the VM joined its host."""
        return self._kernel.boot_ns

    @property
    def processes(self) -> dict[int, Process]:
        """All processes by asid."""
        return self._kernel.processes

    @property
    def tasks(self) -> dict[int, Task]:
        """All tasks by id."""
        return self._kernel.tasks

    @property
    def profile(self) -> Profile:
        """The samples so far."""
        return self._kernel.profile

    @property
    def cpus(self) -> list[Cpu]:
        """The kernel's view of all vCPUs."""
        return self._kernel.cpus

    def cpu(self, vcpu: int) -> Cpu:
        """The kernel's view of a vCPU."""
        return self._kernel.cpus[vcpu]

    def waiting(self) -> list[Node]:
        """Who waits for a page, and since when on which vCPU."""
        return self._kvm.waiting()

    def segments(self) -> tuple[Segment, ...]:
        """The VM's memory at boot, for hostd.

        What is written all over comes first, so that what is used all the time (programs, per-CPU pages) is resident
        when the run starts, as it is in the steady state.
        """
        cpus = len(self._kernel.cpus)
        rest = [segment for process in self.processes.values() for segment in process.segments()]
        rest.sort(key=lambda segment: not segment.stamps)
        return (*(s for s in rest if s.stamps), Segment(PER_CPU_GFN, cpus), *(s for s in rest if not s.stamps))

    def deadline_ns(self) -> None:
        """Never: the guest kernel acts on traps only."""

    # Steps -----------------------------------------------------------------------------------------------------------

    def step(self, event: TrapTaken | ArrivalsTaken, now_ns: int) -> list[Effect]:
        """Take a trap that was raised at ``now_ns``, or what arrived then. A trap's last effect is its Reply.

        Raises CoreError if the vCPU broke the contract (nothing has changed then), AssertionError if it did what no
        vCPU can do to a guest, such as a not-present in its idle task.
        """
        self._now_ns = now_ns
        effects = self._kernel.effects = []
        if isinstance(event, ArrivalsTaken):
            self._outside.take(event.arrivals, now_ns)
        else:
            self._trap(event, now_ns)
        self._journal.settle()
        return effects

    def _trap(self, event: TrapTaken, now_ns: int) -> None:
        kernel = self._kernel
        if not 0 <= event.vcpu < len(kernel.cpus):
            raise CoreError(f"no vCPU {event.vcpu}: this VM has {len(kernel.cpus)}")
        cpu, raised = kernel.cpus[event.vcpu], event.raised
        self._kvm.tell_of_hung_tasks(now_ns)
        self._kvm.refuse_foreign(cpu, raised)
        cpu.accept(raised, now_ns)
        cpu.rq.update_curr(now_ns)
        before = cpu.rq.curr
        if before is not None and raised.registers is not None:
            task = kernel.tasks[before.id]
            task.registers = raised.registers
            task.min_flt += raised.min_flt
            task.maj_flt += raised.maj_flt
            if raised.faults and task.id in kernel.works:
                kernel.works[task.id].faults.extend(raised.faults)
        for sample in raised.samples:
            self._book(sample)
        cost_ns = self._handle(cpu, raised, now_ns)
        # In the midst of a system call, or of an access of its own, the kernel is not preempted.
        if not isinstance(raised.trap, Stopped) and not cpu.fetching and not raised.kernel:
            kernel.reap(cpu, now_ns)
            if cpu.need_resched:
                kernel.schedule(cpu, now_ns)
        if cpu.rq.curr is not before:
            cost_ns += self._costs.context_switch_ns
            cpu.nr_switches += 1
        dispatch = self._dispatcher.dispatch(cpu, raised, now_ns, max(1, cost_ns), before)
        kernel.effects.append(Reply(cpu.index, dispatch))

    def _book(self, sample: Sample) -> None:
        """A sample of the profile has come in."""
        profile = self._kernel.profile
        if sample.path is not KernelPath.USER:
            profile.add_kernel(sample)
            return
        task = self._kernel.tasks.get(sample.task)
        if task is None:
            raise CoreError(f"a sample of task {sample.task}: there is none")
        symbol = self._kernel.processes[task.asid].symbol(sample.rip)
        if symbol is None:
            profile.add(sample, UNKNOWN, task.spec.program)
        else:
            profile.add(sample, symbol.name, symbol.program)

    # Traps: each handler returns what it cost, without the switch --------------------------------------------------

    def _handle(self, cpu: Cpu, raised: TrapRaised, now_ns: int) -> int:
        record, trap, costs = self._journal.record, raised.trap, self._costs
        match trap:
            case Booted():
                record((now_ns, "boot", cpu.index))
                self._kernel.schedule(cpu, now_ns)
                return 0
            case TickArrived():
                record((now_ns, "tick", cpu.index))
                cpu.ticks += 1
                cpu.need_resched |= cpu.rq.tick_preempts()
                return 0
            case TimerArrived():
                record((now_ns, "timer", cpu.index))
                self._timers(cpu, now_ns)
                return costs.interrupt_ns
            case InterruptArrived():
                record((now_ns, "interrupt", cpu.index))
                cpu.interrupts += 1
                return costs.interrupt_ns if cpu.need_resched else 0
            case NotPresentArrived(token):
                record((now_ns, "not_present", cpu.index, token))
                self._kvm.not_present(cpu, token, raised.kernel, now_ns)
                return costs.apf_handler_ns
            case PageReadyArrived(token, failed):
                record((now_ns, "page_ready", cpu.index, token, *(("failed",) if failed else ())))
                self._kvm.page_ready(cpu, token, failed, now_ns)
                return costs.apf_handler_ns
            case SyscallRaised(data):
                self._syscalls.enter(cpu, data, now_ns)
                return costs.syscall_ns
            case Fetched(data):
                self._fetched(cpu, data, now_ns)
                return 0
            case ExceptionRaised(vector, address, rip):
                record((now_ns, "exception", cpu.index, vector, address, rip))
                self._exception(cpu, vector, address, rip, now_ns)
                return 0
            case RunFailed(gfn, error):
                record((now_ns, "run_failed", cpu.index, gfn, error.name))
                self._run_failed(cpu, trap, now_ns)
                return 0
            case Stopped():
                record((now_ns, "stop", cpu.index))
                return 0
            case _:
                assert_never(trap)

    def _timers(self, cpu: Cpu, now_ns: int) -> None:
        """hrtimer_interrupt: everything that is due, in order."""
        kernel = self._kernel
        for kind, task_id, wakes in cpu.expired(now_ns):
            task = kernel.tasks[task_id]
            match kind:
                case TimerKind.START:
                    if task.state is TaskState.NEW:
                        kernel.start(task, now_ns, cpu)
                case TimerKind.KILL:
                    kernel.kill(task, "its lifetime is over", now_ns, cpu)
                case TimerKind.WAKE:
                    if task.state is TaskState.SLEEP and task.wakes == wakes:
                        if task.id in kernel.works:
                            self._feed.feed(task, now_ns)
                        kernel.wake(task, TaskEvent.TIMER, now_ns, cpu)

    def _run_failed(self, cpu: Cpu, failed: RunFailed, now_ns: int) -> None:
        """A vCPU's KVM_RUN has returned to a VMM that ends, of -EFAULT or killed: so do all, as they leave the host."""
        curr = cpu.rq.curr
        task = None if curr is None else self._kernel.tasks[curr.id]
        whose = "the guest kernel" if task is None else f"task {task.id} {task.spec.name}"
        cpu.fetching, cpu.fetch = "", ()
        if self._kernel.ending:
            return
        why = "Interrupted" if failed.error is PageError.OUT_OF_MEMORY else "Bad address"
        text = (
            f"vCPU {cpu.index}: KVM_RUN: {why}: gfn {failed.gfn:#x}, which {whose} needs, cannot be had: "
            f"{failed.error.words}; the VM ends"
        )
        self.failed = f"at {now_ns} ns: {text}"
        self._kernel.end(cpu, text, now_ns)

    def _fetched(self, cpu: Cpu, data: bytes, now_ns: int) -> None:
        wanted = sum(length for _, length in cpu.fetch)
        if len(data) != wanted:
            raise CoreError(f"vCPU {cpu.index}: {len(data)} bytes fetched, {wanted} were asked for")
        cpu.fetch = ()
        if cpu.fetching == "exec":
            cpu.fetching = ""
            process = self._kernel.processes[self._kernel.current(cpu, "exec").asid]
            process.execing = False
            for task in (self._kernel.tasks[task_id] for task_id in process.tasks[1:]):
                if task.state is TaskState.NEW:  # not killed meanwhile
                    self._kernel.start_in_time(task, now_ns, cpu)
        else:
            self._syscalls.fetched(cpu, data, now_ns)

    def _exception(self, cpu: Cpu, vector: int, address: int, rip: int, now_ns: int) -> None:
        task = self._kernel.current(cpu, f"exception {vector}")
        process = self._kernel.processes[task.asid]
        # Another vCPU's mmap: this one has not been told yet, and is now (a spurious fault, as of a lazy TLB).
        if vector == _PAGE_FAULT and cpu.known.get(task.asid) != process.version and process.extent_of(address):
            return
        if vector == MACHINE_CHECK:  # perhaps in an access of the kernel's for it
            cpu.fetching, cpu.fetch = "", ()
        self._kernel.doom(cpu, task, killing.describe(vector, address, rip), now_ns)

    # The end ---------------------------------------------------------------------------------------------------------

    def finish(self, now_ns: int) -> tuple[TaskResult, ...]:
        """After every vCPU stopped: journal each task's counters and the profile, once; returns the tasks' rows."""
        assert not self._finished, "finished already"
        running = [cpu.index for cpu in self._kernel.cpus if cpu.phase is not Phase.STOPPED]
        assert not running, f"vCPUs {running} have not stopped"
        self._finished = True
        self.check()
        results = self.results()
        for row in results:
            values = (f"{name}={value}" for name, value in row.values)
            times = (row.sum_exec_ns, row.nvcsw, row.nivcsw, row.min_flt, row.maj_flt, row.counted, row.status)
            self._journal.record((now_ns, "task", row.id, row.name, row.state, *times, *values))
        for line in self.profile.rows():
            self._journal.record((now_ns, "profile", line.program or "[kernel]", line.symbol, line.samples))
        return results

    def results(self) -> tuple[TaskResult, ...]:
        """Every task's row, in order of ids. Exact once the vCPUs have stopped, else as of their last traps."""
        return tuple(task.result() for task in self._kernel.tasks.values())

    def check(self) -> None:
        """Assert every invariant."""
        self._kernel.check()
