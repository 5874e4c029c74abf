"""The guest kernel's step: one trap of one vCPU in, one Dispatch for that vCPU out; or what has arrived from outside.

Theory. A vCPU runs a task until it traps. The kernel first charges the time since the last trap to whom it belongs
(``update_curr``), then handles the trap, perhaps picks another task, and lets the vCPU go on after what that cost:
``apf_handler_ns`` for either APF event, ``syscall_ns`` for a system call, ``interrupt_ns`` for a timer or an interrupt
that had something to do, ``context_switch_ns`` if another task runs than before (the idle task included); a tick's own
cost is the vCPU's. These costs are spent after the trap, so they are charged to the task that runs next. A Dispatch is
always later than its trap, by 1 ns if nothing cost anything.

Protocols: pv2010, as in Linux 4.19, and pv, as since 5.8 (arch/x86/kernel/kvm.c: do_async_page_fault or
__kvm_handle_async_pf and sysvec_kvm_asyncpf_interrupt; kvm_async_pf_task_wait(_schedule) and _wake; kvm_guest_cpu_init
enables it when a CPU boots: the interrupt's vector first). Not-present puts current to sleep uninterruptibly; ready puts
the task that waits back on a queue, where it may preempt at once; the interrupt's handler then stores 0 to the token
word and acknowledges. It is plain schedule(), not io_schedule(): the task counts in the load average, and not as waiting
for I/O (E48). A not-present that interrupts the kernel itself is the end: it panics (E46).

A trap may interrupt the kernel (``TrapRaised.kernel``) where it accesses guest memory for a task. It is not preemptible
there (CONFIG_PREEMPT_VOLUNTARY): interrupts are handled, and current goes on until it is on its way to user mode.

Departures: interrupts a guest kernel would take while it runs are taken by the vCPU when it goes on; the guest
kernel's code is not executed but paid for. The idle task cannot fault, so there is no waiter that halts instead of
sleeping. The kernel's own accesses to guest memory are made by the vCPU (``fetch``, ``copies``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from apf.core import CoreError
from apf.journal import Journal
from apf.messages import (
    APF_TOKEN_OFFSET,
    ASYNC_PF_DELIVERY_AS_INT,
    ASYNC_PF_ENABLED,
    ASYNC_PF_SEND_ALWAYS,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    NEVER_NS,
    PAGE_SHIFT,
    Account,
    AddressSpace,
    ApfMode,
    Booted,
    Dispatch,
    ExceptionRaised,
    Fetched,
    InterruptArrived,
    KernelPath,
    KernelStep,
    MsrWrite,
    NotPresentArrived,
    PageError,
    PageReadyArrived,
    ProtocolFault,
    RunFailed,
    Sample,
    Segment,
    Stopped,
    Store,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    TrapRaised,
)
from apf.scenario import Scenario
from guestsched.core import killing
from guestsched.core.apf_wait import DUMMY, TOKEN_MAX, WAKE_ALL, Node
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
from guestsched.core.cpu import MACHINE_CHECK, Cpu, Phase, TimerKind
from guestsched.core.feed import Feed
from guestsched.core.kernel import TASKS_MAX, Effect, Kernel, Log, Post, Reply
from guestsched.core.process import PER_CPU_GFN, Memory, OutOfMemory, Process, ProcessPlan
from guestsched.core.profile import UNKNOWN, Profile
from guestsched.core.sched import Entity, RunQueue
from guestsched.core.syscall import Syscalls
from guestsched.core.task import Task, TaskEvent, TaskResult, TaskState

__all__ = ("ArrivalsTaken", "Effect", "GuestCore", "Log", "Post", "Reply", "TrapTaken")

HYPERVISOR_CALLBACK_VECTOR = 0xF3
_PAGE_FAULT = 14
HUNG_NS = 120_000_000_000
"""sysctl_hung_task_timeout_secs."""
INJECTIONS_MAX = 1024
"""Faults of the protocol injected into one vCPU while the guest runs."""


def reason_gpa(vcpu: int) -> int:
    """Guest-physical address of ``vcpu``'s struct kvm_vcpu_pv_apf_data: 64-byte aligned, as the MSR wants it.

    Its first u32 is the flags word, the reason word of 2010; its second the token word.
    """
    return (PER_CPU_GFN + vcpu) << PAGE_SHIFT


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
        self._mode = scenario.mode
        self._apf = scenario.mode in (ApfMode.PV2010, ApfMode.PV)
        self._send_always = scenario.kvm.send_always
        self._reports = scenario.swap.errors == "report"
        self._end_ns = scenario.end_ns
        self._journal = journal
        self._hung_check_ns = boot_ns + HUNG_NS
        self._kernel = Kernel(scenario.costs, vcpus, scenario.vm.hz, policy, Memory(vcpus, pages), journal)
        self._feed = Feed(self._kernel)
        self._syscalls = Syscalls(self._kernel, self._feed)
        self._now_ns = self._boot_ns = boot_ns
        self._shutdown = False
        self.failed = ""
        """Why the VM has ended before its run did: a page that cannot be had. Empty: it has not."""
        self._finished = False
        for plan in plans:
            self._kernel.make(plan, boot_ns)
        for task in self._kernel.tasks.values():
            self._start(task, boot_ns, None)
        self._kernel.effects.clear()

    # What there is, to be read only ----------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """Time of the last step."""
        return self._now_ns

    @property
    def boot_ns(self) -> int:
        """When the VM joined its host."""
        return self._boot_ns

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
        return [node for node in self._kernel.waiters.nodes() if node.task != DUMMY]

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
            for arrival in event.arrivals:
                self._arrive(arrival, now_ns)
            self._feed.distribute(now_ns)
        else:
            self._trap(event, now_ns)
        return effects

    def _trap(self, event: TrapTaken, now_ns: int) -> None:
        kernel = self._kernel
        if not 0 <= event.vcpu < len(kernel.cpus):
            raise CoreError(f"no vCPU {event.vcpu}: this VM has {len(kernel.cpus)}")
        cpu, raised = kernel.cpus[event.vcpu], event.raised
        if now_ns >= self._hung_check_ns:
            self._tell_of_hung_tasks(now_ns)
        self._refuse_foreign(cpu, raised)
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
        kernel.effects.append(Reply(cpu.index, self._dispatch(cpu, raised, now_ns, max(1, cost_ns), before)))

    def _tell_of_hung_tasks(self, now_ns: int) -> None:
        """check_hung_uninterruptible_tasks, from the first trap on that comes when it is due."""
        self._hung_check_ns = now_ns + HUNG_NS
        for node in self.waiting():
            task = self._kernel.tasks[node.task]
            if now_ns - task.since_ns > HUNG_NS:
                text = (
                    f"INFO: task {task.spec.name}:{task.id} blocked for more than 120 seconds: kvm_async_pf_task_wait"
                )
                self._kernel.effects.append(Log(now_ns, text))

    def _refuse_foreign(self, cpu: Cpu, raised: TrapRaised) -> None:
        """CoreError for an APF event that cannot be this vCPU's."""
        trap = raised.trap
        if not isinstance(trap, NotPresentArrived | PageReadyArrived):
            return
        if not self._apf:
            raise CoreError(f"vCPU {cpu.index}: {trap}, but this guest has not enabled APF")
        if not 0 <= trap.token <= TOKEN_MAX:
            raise CoreError(f"vCPU {cpu.index}: {trap}: a token has 32 bits")
        if trap.token == WAKE_ALL and isinstance(trap, NotPresentArrived):
            raise CoreError(f"vCPU {cpu.index}: {trap}: ~0 wakes all, nobody can wait for it")
        node = self._kernel.waiters.find(trap.token)
        if node is not None and node.cpu != cpu.index and trap.token:  # 0: an interrupt too many, of any vCPU
            raise CoreError(f"vCPU {cpu.index}: {trap}, but the token is vCPU {node.cpu}'s")

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
                record(now_ns, "boot", cpu.index)
                self._kernel.schedule(cpu, now_ns)
                return 0
            case TickArrived():
                record(now_ns, "tick", cpu.index)
                cpu.ticks += 1
                cpu.need_resched |= cpu.rq.tick_preempts()
                return 0
            case TimerArrived():
                record(now_ns, "timer", cpu.index)
                self._timers(cpu, now_ns)
                return costs.interrupt_ns
            case InterruptArrived():
                record(now_ns, "interrupt", cpu.index)
                cpu.interrupts += 1
                return costs.interrupt_ns if cpu.need_resched else 0
            case NotPresentArrived(token):
                record(now_ns, "not_present", cpu.index, token)
                if raised.kernel:
                    self._panic(cpu, "Host injected async #PF in kernel mode", now_ns)
                else:
                    self._not_present(cpu, token, now_ns)
                return costs.apf_handler_ns
            case PageReadyArrived(token, failed):
                record(now_ns, "page_ready", cpu.index, token, *(("failed",) if failed else ()))
                self._page_ready(cpu, token, failed, now_ns)
                return costs.apf_handler_ns
            case SyscallRaised(data):
                self._syscalls.enter(cpu, data, now_ns)
                return costs.syscall_ns
            case Fetched(data):
                self._fetched(cpu, data, now_ns)
                return 0
            case ExceptionRaised(vector, address, rip):
                record(now_ns, "exception", cpu.index, vector, address, rip)
                self._exception(cpu, vector, address, rip, now_ns)
                return 0
            case RunFailed(gfn, error):
                record(now_ns, "run_failed", cpu.index, gfn, error.name)
                self._run_failed(cpu, trap, now_ns)
                return 0
            case Stopped():
                record(now_ns, "stop", cpu.index)
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

    def _not_present(self, cpu: Cpu, token: int, now_ns: int) -> None:
        task = self._kernel.current(cpu, f"not-present {token:#x}")
        cpu.not_present += 1
        if self._kernel.waiters.wait(token, cpu.index, task.id):
            self._kernel.leave(cpu, task, TaskEvent.NOT_PRESENT, now_ns)

    def _page_ready(self, cpu: Cpu, token: int, failed: bool, now_ns: int) -> None:
        cpu.page_ready += 1
        waiters = self._kernel.waiters
        if token == WAKE_ALL:
            woken = waiters.wake_all(cpu.index)
        else:
            task_id = waiters.wake(token, cpu.index)
            woken = [] if task_id == DUMMY else [task_id]
        for task_id in woken:
            if failed:
                self._doom(cpu, self._kernel.tasks[task_id], killing.page_error(token), now_ns)
            self._kernel.wake(self._kernel.tasks[task_id], TaskEvent.PAGE_READY, now_ns, cpu)

    def _panic(self, cpu: Cpu, why: str, now_ns: int) -> None:
        """The guest is dead: every vCPU stops."""
        assert self._send_always, f"vCPU {cpu.index}: {why}, and it had not asked for that"
        self._journal.record(now_ns, "panic", cpu.index)
        self._end(cpu, f"vCPU {cpu.index}: Kernel panic - not syncing: {why}", now_ns)

    def _run_failed(self, cpu: Cpu, failed: RunFailed, now_ns: int) -> None:
        """A vCPU's KVM_RUN has returned to a VMM that ends, of -EFAULT or killed: so do all, as they leave the host."""
        curr = cpu.rq.curr
        task = None if curr is None else self._kernel.tasks[curr.id]
        whose = "the guest kernel" if task is None else f"task {task.id} {task.spec.name}"
        cpu.fetching, cpu.fetch = "", ()
        if self._shutdown:
            return
        why = "Interrupted" if failed.error is PageError.OUT_OF_MEMORY else "Bad address"
        text = (
            f"vCPU {cpu.index}: KVM_RUN: {why}: gfn {failed.gfn:#x}, which {whose} needs, cannot be had: "
            f"{failed.error.words}; the VM ends"
        )
        self.failed = f"at {now_ns} ns: {text}"
        self._end(cpu, text, now_ns)

    def _end(self, cpu: Cpu, text: str, now_ns: int) -> None:
        """The VM ends: every vCPU stops."""
        self._kernel.effects.append(Log(now_ns, text))
        self._shutdown = True
        for other in self._kernel.cpus:
            if other is not cpu:
                self._kernel.post(other)

    def _enable_steps(self, vcpu: int) -> tuple[KernelStep, ...]:
        """kvm_guest_cpu_init: the vector before EN, or a ready could come with none."""
        value = reason_gpa(vcpu) | ASYNC_PF_ENABLED
        if self._mode is ApfMode.PV2010:
            return (MsrWrite(MSR_KVM_ASYNC_PF_EN, value),)
        value |= ASYNC_PF_DELIVERY_AS_INT | (ASYNC_PF_SEND_ALWAYS if self._send_always else 0)
        return (
            MsrWrite(MSR_KVM_ASYNC_PF_INT, HYPERVISOR_CALLBACK_VECTOR),
            MsrWrite(MSR_KVM_ASYNC_PF_EN, value),
        )

    def _steps(self, cpu: Cpu, raised: TrapRaised) -> tuple[KernelStep, ...]:
        """What the handler does with interrupts off before it returns."""
        if isinstance(raised.trap, Booted) and self._apf:
            return self._enable_steps(cpu.index)
        if isinstance(raised.trap, PageReadyArrived) and self._mode is ApfMode.PV:
            cleared = Store(reason_gpa(cpu.index) + APF_TOKEN_OFFSET, bytes(8 if self._reports else 4))
            return (cleared, MsrWrite(MSR_KVM_ASYNC_PF_ACK, 1))
        return ()

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
                    self._start(task, now_ns, cpu)
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
        self._doom(cpu, task, killing.describe(vector, address, rip), now_ns)

    def _doom(self, cpu: Cpu, task: Task, reason: str, now_ns: int) -> None:
        """``task`` dies before it runs user code again."""
        task.doomed = reason
        text = f"task {task.id} {task.spec.name} (program {task.spec.program}, vCPU {cpu.index}) killed: {reason}"
        self._kernel.effects.append(Log(now_ns, text))

    def _start(self, task: Task, now_ns: int, here: Cpu | None) -> None:
        """Start a task, or set the timer that does."""
        start_ns = self._boot_ns + task.spec.start_ns
        if start_ns > now_ns:
            self._kernel.arm(self._kernel.cpus[task.cpu], start_ns, TimerKind.START, task, here)
        else:
            self._kernel.start(task, now_ns, here)

    # Arrivals ----------------------------------------------------------------------------------------------------------

    def _arrive(self, arrival: Arrival, now_ns: int) -> None:
        kernel, record = self._kernel, self._journal.record
        match arrival:
            case AccessArrived():
                write = "w" if arrival.write else "r"
                place = (arrival.ticket, arrival.process, arrival.offset, arrival.words, write)
                record(now_ns, "arrive_access", *place)
                self._feed.access_arrived(arrival, now_ns)
            case AccessCancelled():
                record(now_ns, "arrive_cancel", arrival.ticket)
                self._feed.cancelled(arrival)
            case ReplayArrived():
                record(now_ns, "arrive_replay", arrival.ticket, arrival.process, len(arrival.accesses))
                self._feed.replay_arrived(arrival, now_ns)
            case SpawnArrived():
                record(now_ns, "arrive_spawn", arrival.ticket, arrival.plan.name, arrival.plan.digest)
                self._spawn(arrival, now_ns)
            case KillArrived():
                record(now_ns, "arrive_kill", arrival.ticket, arrival.process, arrival.task)
                self._kill(arrival, now_ns)
            case InjectArrived():
                fault = arrival.fault
                numbers = (fault.nth, fault.count, fault.for_ns)
                record(now_ns, "arrive_inject", arrival.ticket, arrival.vcpu, fault.what, *numbers)
                self._inject(arrival)
            case ShutdownArrived():
                record(now_ns, "arrive_shutdown")
                self._shutdown = True
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
        self._start(kernel.tasks[process.tasks[0]], now_ns, None)
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

    def _injections(self, cpu: Cpu, raised: TrapRaised, now_ns: int) -> tuple[ProtocolFault, ...]:
        """What ``cpu`` is told with this Dispatch. One that only stops takes none: they are refused when it has."""
        if isinstance(raised.trap, Stopped):
            self._kernel.effects.extend(_stopped(ticket, cpu.index) for ticket, _ in cpu.injections)
            cpu.injections.clear()
        if self._shutdown or cpu.resume_ns >= self._end_ns:
            return ()
        told, cpu.injections = cpu.injections, []
        for ticket, fault in told:
            self._journal.record(now_ns, "inject", cpu.index, ticket, fault.what, cpu.resume_ns)
            self._kernel.effects.append(InjectTaken(ticket, cpu.resume_ns))
        return tuple(fault for _, fault in told)

    # The reply -----------------------------------------------------------------------------------------------------

    def _dispatch(self, cpu: Cpu, raised: TrapRaised, now_ns: int, cost_ns: int, before: Entity | None) -> Dispatch:
        trap, curr = raised.trap, cpu.rq.curr
        if raised.kernel:
            return self._dispatch_kernel(cpu, raised, now_ns, cost_ns)
        task_id, asid, account, registers = 0, 0, Account.IDLE, None
        spaces: tuple[AddressSpace, ...] = ()
        copies: tuple[tuple[int, bytes], ...] = ()
        syscall_fetch: tuple[tuple[int, int], ...] = ()
        if curr is not None:
            task = self._kernel.tasks[curr.id]
            process = self._kernel.processes[task.asid]
            task_id, asid, account = task.id, task.asid, task.spec.account
            if curr is not before or task.registers is not raised.registers:
                registers = task.registers
            if cpu.known.get(asid) != process.version:
                cpu.known[asid] = process.version
                spaces = (process.space(),)
            copying = not cpu.fetching and not self._shutdown
            if copying and process.execing:
                copies = tuple(process.copies())
                cpu.fetching, cpu.fetch = "exec", ((copies[0][0], 1),)
            elif copying and task.copies:
                copies = tuple(task.copies)
                task.copies.clear()
            if task_id in self._kernel.works:
                syscall_fetch = self._feed.ring_pieces(task)
        cpu.resume_ns = now_ns + cost_ns
        cpu.run_until_ns = cpu.rq.run_until_ns()
        cpu.timer_ns = cpu.next_timer_ns
        stopping = self._shutdown and not isinstance(trap, Stopped)
        timer_ns = -1 if cpu.timer_ns == NEVER_NS else cpu.timer_ns
        self._journal.record(now_ns, "dispatch", cpu.index, task_id, cpu.resume_ns, cpu.run_until_ns, timer_ns)
        return Dispatch(
            at_ns=cpu.resume_ns,
            task=task_id,
            asid=asid,
            account=account,
            registers=registers,
            run_until_ns=cpu.run_until_ns,
            apf_ns=cost_ns if isinstance(trap, NotPresentArrived | PageReadyArrived) else 0,
            spaces=spaces,
            steps=self._steps(cpu, raised),
            timer_ns=cpu.timer_ns,
            copies=copies,
            fetch=cpu.fetch if cpu.fetching and not self._shutdown else (),
            log_faults=task_id in self._kernel.works,
            shutdown=stopping,
            syscall_fetch=syscall_fetch,
            injections=self._injections(cpu, raised, now_ns),
        )

    def _dispatch_kernel(self, cpu: Cpu, raised: TrapRaised, now_ns: int, cost_ns: int) -> Dispatch:
        """Back to where the kernel was interrupted."""
        cpu.resume_ns = now_ns + cost_ns
        cpu.run_until_ns = cpu.rq.run_until_ns()
        cpu.timer_ns = cpu.next_timer_ns
        curr = cpu.rq.curr
        task_id = 0 if curr is None else curr.id
        timer_ns = -1 if cpu.timer_ns == NEVER_NS else cpu.timer_ns
        self._journal.record(now_ns, "dispatch", cpu.index, task_id, cpu.resume_ns, cpu.run_until_ns, timer_ns)
        return Dispatch(
            at_ns=cpu.resume_ns,
            task=task_id,
            asid=self._kernel.tasks[task_id].asid if task_id else 0,
            account=self._kernel.tasks[task_id].spec.account if task_id else Account.IDLE,
            registers=None,
            run_until_ns=cpu.run_until_ns,
            apf_ns=cost_ns if isinstance(raised.trap, NotPresentArrived | PageReadyArrived) else 0,
            timer_ns=cpu.timer_ns,
            shutdown=self._shutdown and not isinstance(raised.trap, Stopped),
            steps=self._steps(cpu, raised),
            injections=self._injections(cpu, raised, now_ns),
        )

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
            self._journal.record(now_ns, "task", row.id, row.name, row.state, *times, *values)
        for line in self.profile.rows():
            self._journal.record(now_ns, "profile", line.program or "[kernel]", line.symbol, line.samples)
        return results

    def results(self) -> tuple[TaskResult, ...]:
        """Every task's row, in order of ids. Exact once the vCPUs have stopped, else as of their last traps."""
        return tuple(task.result() for task in self._kernel.tasks.values())

    def check(self) -> None:
        """Assert every invariant."""
        self._kernel.check()


def _stopped(ticket: int, vcpu: int) -> Refused:
    return Refused(ticket, Refusal.FAILED_PRECONDITION, f"vcpu = {vcpu}: it has stopped")
