"""The guest kernel's step: one trap of one vCPU in, one Dispatch for that vCPU out.

Theory. A vCPU runs a task until it traps. The kernel first charges the time since the last trap to whom it belongs
(``update_curr``), then handles the trap, perhaps picks another task, and lets the vCPU go on after what that cost:
``apf_handler_ns`` for either APF event, ``syscall_ns`` for a system call, ``context_switch_ns`` if another task runs
than before (the idle task included); a tick's own cost is the vCPU's. These costs are spent after the trap, so they
are charged to the task that runs next. A Dispatch is always later than its trap, by 1 ns if nothing cost anything.

Protocol: pv2010, as in Linux 4.19 (arch/x86/kernel/kvm.c: do_async_page_fault, kvm_async_pf_task_wait and _wake;
kvm_guest_cpu_init enables it when a CPU boots). Not-present puts current to sleep uninterruptibly; ready puts the
task that waits back on its queue, where it may preempt at once.

Departures: interrupts a guest kernel would take while it runs are taken by the vCPU when it goes on; the guest
kernel's code is not executed but paid for; a page-ready comes to the vCPU that faulted, as the token says, and no
task migrates, so no wake-up ever concerns another vCPU (a peer that tries gets a CoreError). The idle task cannot
fault, so there is no waiter that halts instead of sleeping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from apf import registers as register_file
from apf.core import CoreError
from apf.journal import Journal
from apf.messages import (
    Account,
    AddressSpace,
    ApfMode,
    Booted,
    Dispatch,
    ExceptionRaised,
    NotPresentArrived,
    PageReadyArrived,
    Stopped,
    SyscallRaised,
    TickArrived,
    TrapRaised,
)
from apf.scenario import Scenario
from guestsched.core import killing
from guestsched.core.apf_wait import DUMMY, TOKEN_MAX, WAKE_ALL, WaitTable
from guestsched.core.cfs import CfsRunQueue
from guestsched.core.cpu import Cpu, Phase
from guestsched.core.image import Image, reason_gpa
from guestsched.core.sched import Entity
from guestsched.core.syscall import MINUS_ENOSYS, Syscall
from guestsched.core.task import Task, TaskEvent, TaskResult, TaskState

_MASK = (1 << 64) - 1
_ASYNC_PF_ENABLED = 1


@dataclass(frozen=True, slots=True)
class TrapTaken:
    """vCPU ``vcpu`` trapped."""

    vcpu: int
    raised: TrapRaised


@dataclass(frozen=True, slots=True)
class Reply:
    """Send ``dispatch`` to ``vcpu``."""

    vcpu: int
    dispatch: Dispatch


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the user ``text``, which happened at ``at_ns``."""

    at_ns: int
    text: str


Effect = Reply | Log


class GuestCore:
    """The guest kernel of one VM: a ``Core[TrapTaken, Effect]``."""

    def __init__(self, scenario: Scenario, image: Image, journal: Journal) -> None:
        vcpus = scenario.vm.vcpus
        self._costs = scenario.costs
        self._apf = scenario.mode is ApfMode.PV2010
        self._spaces = image.spaces
        self._journal = journal
        self._waiters = WaitTable()
        self._cpus = [Cpu(index, CfsRunQueue(vcpus, scenario.vm.hz)) for index in range(vcpus)]
        self._tasks = {number: Task.new(number, spec) for number, spec in enumerate(image.tasks, start=1)}
        self._finished = False
        for task in self._tasks.values():
            assert 0 <= task.spec.vcpu < vcpus, f"task {task.id} {task.spec.name}: no vCPU {task.spec.vcpu}"
            self._cpus[task.spec.vcpu].rq.enqueue_new(task.entity)

    def deadline_ns(self) -> None:
        """Never: the guest kernel acts on traps only."""

    def step(self, event: TrapTaken, now_ns: int) -> list[Effect]:
        """Take a trap that was raised at ``now_ns``. The last effect is the Reply; before it, what there is to tell.

        Raises CoreError if the vCPU broke the contract (nothing has changed then), AssertionError if it did what no
        vCPU can do to a guest, such as a not-present in its idle task.
        """
        if not 0 <= event.vcpu < len(self._cpus):
            raise CoreError(f"no vCPU {event.vcpu}: this VM has {len(self._cpus)}")
        cpu, raised = self._cpus[event.vcpu], event.raised
        self._refuse_foreign(cpu, raised)
        cpu.accept(raised, now_ns)
        cpu.rq.update_curr(now_ns)
        before = cpu.rq.curr
        if before is not None and raised.registers is not None:
            self._tasks[before.id].registers = raised.registers
        effects: list[Effect] = []
        cost_ns = self._handle(cpu, raised, now_ns, effects)
        if cpu.rq.curr is not before:
            cost_ns += self._costs.context_switch_ns
            cpu.nr_switches += 1
        effects.append(Reply(cpu.index, self._dispatch(cpu, raised, now_ns, max(1, cost_ns), before)))
        return effects

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
        node = self._waiters.find(trap.token)
        if node is not None and node.cpu != cpu.index:
            raise CoreError(f"vCPU {cpu.index}: {trap}, but the token is vCPU {node.cpu}'s")

    # Traps: each handler returns what it cost, without the switch --------------------------------------------------

    def _handle(self, cpu: Cpu, raised: TrapRaised, now_ns: int, effects: list[Effect]) -> int:
        record, trap = self._journal.record, raised.trap
        match trap:
            case Booted():
                record(now_ns, "boot", cpu.index)
                self._schedule(cpu, now_ns)
                return 0
            case TickArrived():
                record(now_ns, "tick", cpu.index)
                self._tick(cpu, now_ns)
                return 0
            case NotPresentArrived(token):
                record(now_ns, "not_present", cpu.index, token)
                self._not_present(cpu, token, now_ns)
                return self._costs.apf_handler_ns
            case PageReadyArrived(token):
                record(now_ns, "page_ready", cpu.index, token)
                self._page_ready(cpu, token, now_ns)
                return self._costs.apf_handler_ns
            case SyscallRaised():
                self._syscall(cpu, now_ns)
                return self._costs.syscall_ns
            case ExceptionRaised(vector, address, rip):
                record(now_ns, "exception", cpu.index, vector, address, rip)
                effects.append(self._kill(cpu, killing.describe(vector, address, rip), now_ns))
                return 0
            case Stopped():
                record(now_ns, "stop", cpu.index)
                return 0
            case _:
                assert_never(trap)

    def _current(self, cpu: Cpu, what: str) -> Task:
        """The task that trapped; the idle task runs no user code and never faults (E46)."""
        assert cpu.rq.curr is not None, f"{what} on vCPU {cpu.index} while it is idle"
        return self._tasks[cpu.rq.curr.id]

    def _tick(self, cpu: Cpu, now_ns: int) -> None:
        cpu.ticks += 1
        assert cpu.rq.tick_preempts(), f"tick on vCPU {cpu.index} at {now_ns} ns, after {cpu.run_until_ns}: no switch"
        self._schedule(cpu, now_ns)

    def _not_present(self, cpu: Cpu, token: int, now_ns: int) -> None:
        task = self._current(cpu, f"not-present {token:#x}")
        cpu.not_present += 1
        if self._waiters.wait(token, cpu.index, task.id):
            self._leave(cpu, task, TaskEvent.NOT_PRESENT, now_ns)

    def _page_ready(self, cpu: Cpu, token: int, now_ns: int) -> None:
        cpu.page_ready += 1
        if token == WAKE_ALL:
            woken = self._waiters.wake_all(cpu.index)
        else:
            task_id = self._waiters.wake(token, cpu.index)
            woken = [] if task_id == DUMMY else [task_id]
        rq, preferred, resched = cpu.rq, None, False
        for task_id in woken:
            task = self._tasks[task_id]
            task.move(TaskEvent.PAGE_READY, now_ns)
            rq.enqueue_woken(task.entity)
            self._journal.record(now_ns, "wake", task_id)
            # As in check_preempt_wakeup: the first that preempts is the one to run, the rest find need_resched set.
            if not resched and rq.wakeup_preempts(task.entity):
                resched, preferred = True, task.entity if rq.curr is not None else None
        if resched:
            self._schedule(cpu, now_ns, preferred)

    def _syscall(self, cpu: Cpu, now_ns: int) -> None:
        task = self._current(cpu, "system call")
        number = register_file.get(task.registers, "rax") & _MASK
        self._journal.record(now_ns, "syscall", cpu.index, task.id, number)
        match number:
            case Syscall.EXIT:
                self._leave(cpu, task, TaskEvent.EXITED, now_ns)
                return
            case Syscall.SCHED_YIELD:
                result = 0
            case Syscall.CLOCK_GETTIME:
                result = now_ns
            case _:
                result = MINUS_ENOSYS
        task.registers = register_file.replace(task.registers, rax=result)
        if number == Syscall.SCHED_YIELD:
            self._schedule(cpu, now_ns, skip=True)

    def _kill(self, cpu: Cpu, reason: str, now_ns: int) -> Log:
        task = self._current(cpu, reason)
        task.killed = reason
        self._leave(cpu, task, TaskEvent.KILLED, now_ns)
        spec = task.spec
        return Log(now_ns, f"task {task.id} {spec.name} (program {spec.program}, vCPU {cpu.index}) killed: {reason}")

    # Scheduling ------------------------------------------------------------------------------------------------

    def _leave(self, cpu: Cpu, task: Task, event: TaskEvent, now_ns: int) -> None:
        """Current goes to sleep or dies, and another runs."""
        task.move(event, now_ns)
        task.nvcsw += 1
        self._journal.record(now_ns, "leave", task.id, event.name)
        cpu.rq.dequeue_curr()
        self._schedule(cpu, now_ns)

    def _schedule(self, cpu: Cpu, now_ns: int, preferred: Entity | None = None, skip: bool = False) -> None:
        before = cpu.rq.curr
        after = cpu.rq.pick_next(preferred, skip)
        if after is before:
            return
        if before is not None:
            task = self._tasks[before.id]
            task.move(TaskEvent.PREEMPTED, now_ns)
            task.nivcsw += 1
        if after is not None:
            self._tasks[after.id].move(TaskEvent.PICKED, now_ns)

    def _dispatch(self, cpu: Cpu, raised: TrapRaised, now_ns: int, cost_ns: int, before: Entity | None) -> Dispatch:
        trap, curr = raised.trap, cpu.rq.curr
        booting = isinstance(trap, Booted)
        spaces: tuple[AddressSpace, ...] = self._spaces if booting else ()
        task_id, asid, account, registers = 0, 0, Account.IDLE, None
        if curr is not None:
            task = self._tasks[curr.id]
            task_id, asid, account = task.id, task.spec.asid, task.spec.account
            if curr is not before or task.registers is not raised.registers:
                registers = task.registers
        cpu.resume_ns = now_ns + cost_ns
        cpu.run_until_ns = cpu.rq.run_until_ns()
        self._journal.record(now_ns, "dispatch", cpu.index, task_id, cpu.resume_ns, cpu.run_until_ns)
        return Dispatch(
            at_ns=cpu.resume_ns,
            task=task_id,
            asid=asid,
            account=account,
            registers=registers,
            run_until_ns=cpu.run_until_ns,
            apf_ns=cost_ns if isinstance(trap, NotPresentArrived | PageReadyArrived) else 0,
            spaces=spaces,
            async_pf_en=reason_gpa(cpu.index) | _ASYNC_PF_ENABLED if booting and self._apf else None,
        )

    # The end ---------------------------------------------------------------------------------------------------

    def finish(self, now_ns: int) -> tuple[TaskResult, ...]:
        """After every vCPU stopped: journal each task's counters, once, and return them."""
        assert not self._finished, "finished already"
        running = [cpu.index for cpu in self._cpus if cpu.phase is not Phase.STOPPED]
        assert not running, f"vCPUs {running} have not stopped"
        self._finished = True
        self.check()
        results = self.results()
        for row in results:
            values = (f"{name}={value}" for name, value in row.values)
            self._journal.record(
                now_ns, "task", row.id, row.name, row.state, row.sum_exec_ns, row.nvcsw, row.nivcsw, *values
            )
        return results

    def results(self) -> tuple[TaskResult, ...]:
        """Every task's row, in order of ids. Exact once the vCPUs have stopped, else as of their last traps."""
        return tuple(task.result() for task in self._tasks.values())

    def cpu(self, vcpu: int) -> Cpu:
        """The kernel's view of a vCPU: counters and run queue, to be read only."""
        return self._cpus[vcpu]

    def check(self) -> None:
        """Assert that every task is in exactly one place, no vCPU idles beside work, and no time is lost."""
        self._waiters.check()
        where: dict[int, list[TaskState]] = {number: [] for number in self._tasks}
        for node in self._waiters.nodes():
            if node.task != DUMMY:
                where[node.task].append(TaskState.APF_WAIT)
                home = self._tasks[node.task].spec.vcpu
                assert node.cpu == home, f"{node}, but the task's vCPU is {home}"
        for cpu in self._cpus:
            self._check_cpu(cpu, where)
        for number, task in self._tasks.items():
            expected = [] if task.state is TaskState.DEAD else [task.state]
            assert where[number] == expected, f"found as {where[number]}\n{task.story()}"
            assert task.entity.on_rq == (task.state in (TaskState.READY, TaskState.RUNNING)), task.story()

    def _check_cpu(self, cpu: Cpu, where: dict[int, list[TaskState]]) -> None:
        rq = cpu.rq
        rq.check()
        waiting = rq.waiting_ids()
        for task_id in waiting:
            where[task_id].append(TaskState.READY)
        if rq.curr is not None:
            where[rq.curr.id].append(TaskState.RUNNING)
        elif cpu.phase is not Phase.OFF:
            assert not waiting, f"vCPU {cpu.index} idles, but {waiting} wait"
        spent_ns = rq.idle_ns + sum(
            task.entity.sum_exec_ns for task in self._tasks.values() if task.spec.vcpu == cpu.index
        )
        passed_ns = rq.clock_ns - rq.start_ns
        assert spent_ns == passed_ns, f"vCPU {cpu.index}: {passed_ns} ns passed, {spent_ns} ns charged"
