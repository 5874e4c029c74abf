"""The guest's half of APF: arch/x86/kernel/kvm.c.

Protocols: pv2010, as in Linux 4.19, and pv, as since 5.8 (do_async_page_fault or __kvm_handle_async_pf and
sysvec_kvm_asyncpf_interrupt; kvm_async_pf_task_wait(_schedule) and _wake; kvm_guest_cpu_init enables it when a CPU
boots: the interrupt's vector first). Not-present puts current to sleep uninterruptibly; ready puts the task that waits
back on a queue, where it may preempt at once; the interrupt's handler then stores 0 to the token word and acknowledges.
It is plain schedule(), not io_schedule(): the task counts in the load average, and not as waiting for I/O (E48). A
not-present that interrupts the kernel itself is the end: it panics (E46).

Departure: the idle task cannot fault, so there is no waiter that halts instead of sleeping.
"""

from __future__ import annotations

from apf.core import CoreError
from apf.messages import (
    APF_TOKEN_OFFSET,
    ASYNC_PF_DELIVERY_AS_INT,
    ASYNC_PF_ENABLED,
    ASYNC_PF_SEND_ALWAYS,
    MSR_KVM_ASYNC_PF_ACK,
    MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_ASYNC_PF_INT,
    PAGE_SHIFT,
    ApfMode,
    Booted,
    KernelStep,
    MsrWrite,
    NotPresentArrived,
    PageReadyArrived,
    Store,
    TrapRaised,
)
from apf.scenario import Scenario
from guestsched.core import killing
from guestsched.core.apf_wait import DUMMY, TOKEN_MAX, WAKE_ALL, Node
from guestsched.core.cpu import Cpu
from guestsched.core.kernel import Kernel, Log
from guestsched.core.process import PER_CPU_GFN
from guestsched.core.task import TaskEvent

HYPERVISOR_CALLBACK_VECTOR = 0xF3
HUNG_NS = 120_000_000_000
"""sysctl_hung_task_timeout_secs."""


def reason_gpa(vcpu: int) -> int:
    """Guest-physical address of ``vcpu``'s struct kvm_vcpu_pv_apf_data: 64-byte aligned, as the MSR wants it.

    Its first u32 is the flags word, the reason word of 2010; its second the token word.
    """
    return (PER_CPU_GFN + vcpu) << PAGE_SHIFT


class KvmGuest:
    """Enables APF, and puts tasks to sleep and wakes them as its events say."""

    def __init__(self, scenario: Scenario, kernel: Kernel) -> None:
        self._kernel = kernel
        self._mode = scenario.mode
        self._enabled = scenario.mode in (ApfMode.PV2010, ApfMode.PV)
        self._send_always = scenario.kvm.send_always
        self._reports = scenario.swap.errors == "report"
        self._hung_check_ns = kernel.boot_ns + HUNG_NS

    def waiting(self) -> list[Node]:
        """Who waits for a page, and since when on which vCPU."""
        return [node for node in self._kernel.waiters.nodes() if node.task != DUMMY]

    def refuse_foreign(self, cpu: Cpu, raised: TrapRaised) -> None:
        """CoreError for an APF event that cannot be this vCPU's."""
        trap = raised.trap
        if not isinstance(trap, NotPresentArrived | PageReadyArrived):
            return
        if not self._enabled:
            raise CoreError(f"vCPU {cpu.index}: {trap}, but this guest has not enabled APF")
        if not 0 <= trap.token <= TOKEN_MAX:
            raise CoreError(f"vCPU {cpu.index}: {trap}: a token has 32 bits")
        if trap.token == WAKE_ALL and isinstance(trap, NotPresentArrived):
            raise CoreError(f"vCPU {cpu.index}: {trap}: ~0 wakes all, nobody can wait for it")
        node = self._kernel.waiters.find(trap.token)
        if node is not None and node.cpu != cpu.index and trap.token:  # 0: an interrupt too many, of any vCPU
            raise CoreError(f"vCPU {cpu.index}: {trap}, but the token is vCPU {node.cpu}'s")

    def not_present(self, cpu: Cpu, token: int, in_kernel: bool, now_ns: int) -> None:
        """kvm_async_pf_task_wait_schedule, unless the token's ready was here before; in the kernel: a panic."""
        if in_kernel:
            self._panic(cpu, "Host injected async #PF in kernel mode", now_ns)
            return
        task = self._kernel.current(cpu, f"not-present {token:#x}")
        cpu.not_present += 1
        if self._kernel.waiters.wait(token, cpu.index, task.id):
            self._kernel.leave(cpu, task, TaskEvent.NOT_PRESENT, now_ns)

    def page_ready(self, cpu: Cpu, token: int, failed: bool, now_ns: int) -> None:
        """kvm_async_pf_task_wake, apf_task_wake_all. ``failed``: there is no page, and the task dies of it."""
        cpu.page_ready += 1
        waiters = self._kernel.waiters
        if token == WAKE_ALL:
            woken = waiters.wake_all(cpu.index)
        else:
            task_id = waiters.wake(token, cpu.index)
            woken = [] if task_id == DUMMY else [task_id]
        for task_id in woken:
            if failed:
                self._kernel.doom(cpu, self._kernel.tasks[task_id], killing.page_error(token), now_ns)
            self._kernel.wake(self._kernel.tasks[task_id], TaskEvent.PAGE_READY, now_ns, cpu)

    def _panic(self, cpu: Cpu, why: str, now_ns: int) -> None:
        """The guest is dead: every vCPU stops."""
        assert self._send_always, f"vCPU {cpu.index}: {why}, and it had not asked for that"
        self._kernel.journal.record((now_ns, "panic", cpu.index))
        self._kernel.end(cpu, f"vCPU {cpu.index}: Kernel panic - not syncing: {why}", now_ns)

    def steps(self, cpu: Cpu, raised: TrapRaised) -> tuple[KernelStep, ...]:
        """What the handler does with interrupts off before it returns."""
        if isinstance(raised.trap, Booted) and self._enabled:
            return self._enable_steps(cpu.index)
        if isinstance(raised.trap, PageReadyArrived) and self._mode is ApfMode.PV:
            cleared = Store(reason_gpa(cpu.index) + APF_TOKEN_OFFSET, bytes(8 if self._reports else 4))
            return (cleared, MsrWrite(MSR_KVM_ASYNC_PF_ACK, 1))
        return ()

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

    def tell_of_hung_tasks(self, now_ns: int) -> None:
        """check_hung_uninterruptible_tasks, from the first trap on that comes when it is due."""
        if now_ns < self._hung_check_ns:
            return
        self._hung_check_ns = now_ns + HUNG_NS
        for node in self.waiting():
            task = self._kernel.tasks[node.task]
            if now_ns - task.since_ns > HUNG_NS:
                text = (
                    f"INFO: task {task.spec.name}:{task.id} blocked for more than 120 seconds: kvm_async_pf_task_wait"
                )
                self._kernel.effects.append(Log(now_ns, text))
