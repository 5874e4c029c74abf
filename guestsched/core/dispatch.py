"""The Dispatch that a vCPU goes on with: whom it runs, until when, and what the kernel does before."""

from __future__ import annotations

from apf.messages import (
    NEVER_NS,
    Account,
    AddressSpace,
    Dispatch,
    NotPresentArrived,
    PageReadyArrived,
    Stopped,
    TrapRaised,
)
from guestsched.core.cpu import Cpu
from guestsched.core.feed import Feed
from guestsched.core.kernel import Kernel
from guestsched.core.kvm import KvmGuest
from guestsched.core.outside import Outside
from guestsched.core.sched import Entity


class Dispatcher:
    """Makes every Dispatch."""

    def __init__(self, kernel: Kernel, feed: Feed, kvm: KvmGuest, outside: Outside) -> None:
        self._kernel = kernel
        self._feed = feed
        self._kvm = kvm
        self._outside = outside

    def dispatch(self, cpu: Cpu, raised: TrapRaised, now_ns: int, cost_ns: int, before: Entity | None) -> Dispatch:
        """The answer to what ``cpu`` raised at ``now_ns`` while ``before`` ran, ``cost_ns`` later."""
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
            copying = not cpu.fetching and not self._kernel.ending
            if copying and process.execing:
                copies = tuple(process.copies())
                cpu.fetching, cpu.fetch = "exec", ((copies[0][0], 1),)
            elif copying and task.copies:
                copies = tuple(task.copies)
                task.copies.clear()
            if task_id in self._kernel.works:
                syscall_fetch = self._feed.ring_pieces(task)
        self._resume(cpu, task_id, now_ns, cost_ns)
        return Dispatch(
            at_ns=cpu.resume_ns,
            task=task_id,
            asid=asid,
            account=account,
            registers=registers,
            run_until_ns=cpu.run_until_ns,
            apf_ns=cost_ns if isinstance(trap, NotPresentArrived | PageReadyArrived) else 0,
            spaces=spaces,
            steps=self._kvm.steps(cpu, raised),
            timer_ns=cpu.timer_ns,
            copies=copies,
            fetch=cpu.fetch if cpu.fetching and not self._kernel.ending else (),
            log_faults=task_id in self._kernel.works,
            shutdown=self._kernel.ending and not isinstance(trap, Stopped),
            syscall_fetch=syscall_fetch,
            injections=self._outside.injections(cpu, raised, now_ns),
        )

    def _dispatch_kernel(self, cpu: Cpu, raised: TrapRaised, now_ns: int, cost_ns: int) -> Dispatch:
        """Back to where the kernel was interrupted."""
        curr = cpu.rq.curr
        task_id = 0 if curr is None else curr.id
        self._resume(cpu, task_id, now_ns, cost_ns)
        return Dispatch(
            at_ns=cpu.resume_ns,
            task=task_id,
            asid=self._kernel.tasks[task_id].asid if task_id else 0,
            account=self._kernel.tasks[task_id].spec.account if task_id else Account.IDLE,
            registers=None,
            run_until_ns=cpu.run_until_ns,
            apf_ns=cost_ns if isinstance(raised.trap, NotPresentArrived | PageReadyArrived) else 0,
            timer_ns=cpu.timer_ns,
            shutdown=self._kernel.ending and not isinstance(raised.trap, Stopped),
            steps=self._kvm.steps(cpu, raised),
            injections=self._outside.injections(cpu, raised, now_ns),
        )

    def _resume(self, cpu: Cpu, task_id: int, now_ns: int, cost_ns: int) -> None:
        cpu.resume_ns = now_ns + cost_ns
        cpu.run_until_ns = cpu.rq.run_until_ns()
        cpu.timer_ns = cpu.next_timer_ns
        timer_ns = -1 if cpu.timer_ns == NEVER_NS else cpu.timer_ns
        times = (cpu.resume_ns, cpu.run_until_ns, timer_ns)
        self._kernel.journal.record((now_ns, "dispatch", cpu.index, task_id, *times))
