"""Puts one fault into words: its steps in the order of time, each with its process and the kernel's functions.

``A`` is the task that faulted, ``B`` one that could run meanwhile. The functions are those of the protocol's time: names
of Linux 4.19 and before for ``off`` and ``pv2010`` (some of 2010: ``gfn_to_pfn``, ``kvm_async_pf_task_wait``;
``get_user_pages_noio`` was proposed then and never went in), of Linux 6.18 for ``halt`` and ``pv``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from apf.messages import APF_TOKEN_OFFSET, PageError
from deploy.fault import Fault
from deploy.steps import Step
from guestsched.core.kvm import reason_gpa

HEADLINES = {
    "off": "apf = off: without APF",
    "halt": "apf = halt: KVM's half of APF, the guest is not told",
    "pv2010": "apf = pv2010: with APF, the protocol of 2010",
    "pv": "apf = pv: with APF, the protocol since 5.8",
}
_VERBS = {"READ": "reads", "WRITE": "writes to", "EXEC": "executes"}

OF_2010 = {
    "violation": "kvm_mmu_page_fault gfn_to_pfn",
    "violation async": "kvm_mmu_page_fault try_async_pf gfn_to_pfn_async",
    "retry": "mmu_notifier_retry",
    "gup": "get_user_pages_{gup}",
    "gup fast": "get_user_pages_fast",
    "work": "kvm_setup_async_pf async_pf_execute get_user_pages do_swap_page",
    "fetch": "kvm_setup_async_pf async_pf_execute get_user_pages handle_userfault",
    "read": "get_user_pages_fast do_swap_page swap_readpage",
    "read by itself": "do_swap_page swap_readpage",
    "sleep": "do_swap_page io_schedule",
    "mapped": "__direct_map",
    "failed": "kvm_handle_bad_page",
    "kernel fault": "kvm_write_guest_cached get_user_pages_fast",
    "not present": "kvm_arch_async_page_not_present",
    "asleep": "do_async_page_fault kvm_async_pf_task_wait schedule",
    "dummy": "do_async_page_fault kvm_async_pf_task_wait",
    "repeated": "try_async_pf kvm_find_async_pf_gfn",
    "halted": "kvm_arch_async_page_not_present kvm_vcpu_block",
    "completed": "async_pf_execute",
    "prefault": "kvm_check_async_pf_completion kvm_arch_async_page_ready",
    "ready": "kvm_arch_async_page_present",
    "unhalted": "kvm_arch_async_page_present",
    "dropped": "kvm_clear_async_pf_completion_queue",
    "woken": "do_async_page_fault kvm_async_pf_task_wake try_to_wake_up",
    "all woken": "do_async_page_fault kvm_async_pf_task_wake apf_task_wake_all",
}
"""Kernel functions by step, Linux 4.19 and before."""

SINCE_58 = {
    "violation": "kvm_mmu_page_fault direct_page_fault __kvm_mmu_faultin_pfn",
    "violation async": "kvm_mmu_page_fault direct_page_fault __kvm_mmu_faultin_pfn",
    "retry": "is_page_fault_stale",
    "gup": "hva_to_pfn_slow get_user_pages_{gup}",
    "gup fast": "hva_to_pfn_fast get_user_pages_fast",
    "work": "kvm_setup_async_pf async_pf_execute get_user_pages_remote do_swap_page",
    "fetch": "kvm_setup_async_pf async_pf_execute get_user_pages_remote handle_userfault",
    "read": "hva_to_pfn_slow get_user_pages do_swap_page swap_read_folio",
    "read by itself": "do_swap_page swap_read_folio",
    "sleep": "do_swap_page folio_lock_or_retry io_schedule",
    "mapped": "direct_map make_spte",
    "failed": "kvm_handle_error_pfn",
    "kernel fault": "kvm_write_guest_cached get_user_pages_fast",
    "halted": "kvm_arch_async_page_not_present vcpu_block",
    "not present": "kvm_arch_async_page_not_present kvm_inject_page_fault",
    "asleep": "exc_page_fault __kvm_handle_async_pf kvm_async_pf_task_wait_schedule schedule",
    "dummy": "exc_page_fault __kvm_handle_async_pf kvm_async_pf_queue_task",
    "repeated": "__kvm_mmu_faultin_pfn kvm_find_async_pf_gfn vcpu_block",
    "completed": "async_pf_execute kvm_arch_async_page_present_queued",
    "prefault": "kvm_check_async_pf_completion kvm_arch_async_page_ready",
    "ready": "kvm_arch_async_page_present apf_put_user_ready kvm_apic_set_irq",
    "unhalted": "kvm_arch_async_page_present",
    "dropped": "kvm_clear_async_pf_completion_queue",
    "woken": "sysvec_kvm_asyncpf_interrupt kvm_async_pf_task_wake swake_up_one",
    "all woken": "sysvec_kvm_asyncpf_interrupt kvm_async_pf_task_wake apf_task_wake_all",
}
"""Kernel functions by step, Linux 6.18 (``halt`` and ``pv``)."""


class Teller:
    """Tells faults of one run. ``names``: of the tasks, by VM and id; ``end_ns``: when the run was over.

    ``reports``: the guest is told of pages that cannot be had. ``synchronous``: whoever faults reads the page itself.
    """

    def __init__(
        self,
        mode: str,
        gup: str,
        names: Mapping[tuple[int, int], str],
        end_ns: int,
        vms: int = 1,
        reports: bool = False,
        synchronous: bool = False,
    ) -> None:
        self._mode = mode
        self._is_synchronous = synchronous
        self._reports = reports
        self._functions = SINCE_58 if mode in ("halt", "pv") else OF_2010
        self._gup = gup
        self._names = names
        self._end_ns = end_ns
        self._vms = vms

    def tell(self, fault: Fault, others: Sequence[int] = ()) -> list[Step]:
        """The fault's steps. ``others``: tasks of which is known that they could have run while A could not."""
        steps = [*self._violations(fault)]
        match fault.kind:
            case "async":
                steps += [*self._work(fault), *self._not_present(fault), *self._ready(fault)]
            case "minor" | "major":
                steps += self._synchronous(fault, others)
            case "failed":
                steps += self._failed(fault)
        if fault.kind == "abandoned":
            steps.append(self._abandoned(fault))
        elif fault.over_ns is None and fault.back_ns is None:
            steps.append(self._step("The end", self._end_ns, self._worker(fault), "", "end", "The run ends here."))
        return sorted(steps, key=lambda step: step.time_ns)

    def _step(self, stage: str, time_ns: int, process: str, functions: str, what: str, text: str) -> Step:
        names = self._functions.get(functions, "").format(gup=self._gup).split()
        return Step(self._mode, stage, time_ns, process, tuple(names), (), text, what)

    def _worker(self, fault: Fault) -> str:
        return f"vcpud worker {fault.vcpu}" + self._of_vm(fault)

    def _of_vm(self, fault: Fault) -> str:
        return f" of VM {fault.vm}" if self._vms > 1 else ""

    def task(self, vm: int, task: int) -> str:
        """A task as users see it."""
        return self._names.get((vm, task), f"task {task}")

    def _violations(self, fault: Fault) -> Iterator[Step]:
        stage, process = "The access", self._worker(fault)
        how = "violation async" if fault.mode == "NOWAIT" else "violation"
        times = [*(attempt.asked_ns for attempt in fault.retries), fault.raised_ns]
        for number, time_ns in enumerate(dict.fromkeys(times)):
            text = (
                f"{self.task(fault.vm, fault.task)} (A) {_VERBS[fault.access]} gfn {fault.gfn:#x}, at rip "
                f"{fault.rip:#x}, and the nested page table does not allow it: VM exit."
                if not number
                else "A executes the access again: the same VM exit."
            )
            yield self._step(stage, time_ns, process, how, "violation", text)
            if number < len(fault.retries):
                text = (
                    f"Cannot get the page: no frame is free, or nothing of the memory group can be reclaimed before the "
                    f"next border. A is to try again at {fault.retries[number].at_ns:,} ns."
                )
                yield self._step(stage, time_ns, "hostd", "retry", "retry", text)

    def _abandoned(self, fault: Fault) -> Step:
        text = "Something else ran on the vCPU before A could try again; what A does next is another fault."
        at_ns = fault.retries[-1].at_ns if fault.retries else fault.raised_ns
        return self._step("The access", at_ns, self._worker(fault), "", "abandoned", text)

    # Handled while the vCPU waits -----------------------------------------------------------------------------------

    def _synchronous(self, fault: Fault, others: Sequence[int]) -> Iterator[Step]:
        stage, process = "The page", self._worker(fault)
        assert fault.replied_ns is not None
        if fault.kind == "minor":
            gup = self._gup if fault.mode == "NOWAIT" else "fast"
            text = f"The page needs no I/O: get_user_pages_{gup}() finds it, or makes it, in host frame {fault.pfn}."
            yield self._step(
                stage, fault.raised_ns, "hostd", "gup" if gup == self._gup else "gup fast", "minor", text
            )
        else:
            yield self._step(stage, fault.raised_ns, "hostd", "read", "read", self._read_text(fault))
            woken_ns = fault.read.done_ns if fault.read is not None else fault.replied_ns
            if self._reads_by_itself(fault):
                how, text = (
                    "read by itself",
                    f"The vCPU thread reads the page itself, in {fault.stall_ns:,} ns.",
                )
            else:
                how, text = "sleep", f"The vCPU thread sleeps for {fault.stall_ns:,} ns, until the read is done."
            yield self._step(stage, woken_ns - fault.stall_ns, process, how, how, text)
            named = ", ".join(self.task(fault.vm, other) for other in others)
            still = (
                f"{named} (B) is ready and could have run, but " if others else "Whoever else could run does not: "
            )
            text = (
                f"Has heard nothing of it. To the guest kernel A runs all the time, and is charged for it. {still}"
                f"vCPU {fault.vcpu}, and with it {'B' if others else 'all the rest'}, stood still."
            )
            yield self._step(stage, woken_ns, "guestsched" + self._of_vm(fault), "", "unheard", text)
        text = (
            f"The mapping is made: gfn {fault.gfn:#x} is host frame {fault.pfn}. A goes on "
            f"{fault.replied_ns - fault.began_ns:,} ns after its access."
        )
        yield self._step(stage, fault.replied_ns, process, "mapped", "mapped", text)

    def _failed(self, fault: Fault) -> Iterator[Step]:
        stage, process = "The page", self._worker(fault)
        assert fault.replied_ns is not None
        yield self._step(stage, fault.raised_ns, "hostd", "read", "read", self._read_text(fault))
        text = f"get_user_pages() returns -EFAULT: {PageError[fault.error].words}. "
        if self._reports:
            text += "The vCPU takes a machine check, of which the guest kernel kills A."
        else:
            text += "So does KVM_RUN; the VMM ends, and the VM with it."
        yield self._step(stage, fault.replied_ns, process, "failed", "failed", text)

    def _read_text(self, fault: Fault) -> str:
        read = fault.read
        if read is None:
            return "It has to wait for the page."
        if not fault.own_read:
            how = "being fetched" if read.fetched else "under read"
            return f"The page is {how} already, since {read.submitted_ns:,} ns, until {read.done_ns:,} ns."
        if read.fetched:
            return (
                f"The page is missing. A handler of the VM's userfaultfd is told of it at {read.start_ns:,} ns, and has "
                f"copied it into host frame {read.pfn} at {read.done_ns:,} ns."
            )
        return (
            f"There is a swap entry: the read of slot {read.slot} into host frame {read.pfn} starts. The device has it "
            f"from {read.start_ns:,} to {read.done_ns:,} ns."
        )

    # Handled asynchronously -----------------------------------------------------------------------------------------

    def _work(self, fault: Fault) -> Iterator[Step]:
        stage = "Page not present"
        gup = f"get_user_pages_{self._gup}()"
        if fault.read is None:
            text = f"{gup} does not succeed, though the page needs no read: the host has no mapping of it."
        elif not fault.own_read:
            text = f"{gup} does not succeed. {self._read_text(fault)}"
        elif fault.read.fetched:
            text = f"{gup} finds the page missing, tells nobody of it, and does not succeed."
        else:
            text = f"{gup} finds a swap entry, {self._why_in_vain(fault)} does not succeed."
        yield self._step(stage, fault.raised_ns, "hostd", "gup", "gup", text)
        text = f"The page is left to a dedicated thread, as work item {fault.token:#x}."
        if fault.read is not None and fault.own_read and fault.read.fetched:
            text += f" {self._read_text(fault)}"
        elif fault.read is not None and fault.own_read:
            text += (
                f" Slot {fault.read.slot} is read into host frame {fault.read.pfn}; the device has it from "
                f"{fault.read.start_ns:,} to {fault.read.done_ns:,} ns."
            )
        how = "fetch" if fault.read is not None and fault.read.fetched else "work"
        yield self._step(stage, fault.raised_ns, "hostd", how, "work", text)

    def _reads_by_itself(self, fault: Fault) -> bool:
        """Whether that is a page of the swap device that the vCPU thread reads before it goes on."""
        return self._is_synchronous and fault.own_read and fault.read is not None and not fault.read.fetched

    def _why_in_vain(self, fault: Fault) -> str:
        if self._gup == "fast":
            return "looks no further and"
        if self._reads_by_itself(fault):
            return "reads the page in vain and so"
        return "starts the read and" if self._gup == "nowait" else "needs I/O and so"

    def _not_present(self, fault: Fault) -> Iterator[Step]:
        stage = "Page not present"
        told_ns = fault.halted_ns if fault.injected_ns is None else fault.injected_ns
        yield from self._kernel_faults(fault, stage, before_ns=told_ns)
        if fault.halted_ns is not None:
            text = (
                "Does not sleep in mm/, but the guest cannot be told: the vCPU halts in KVM, where an interrupt would "
                "find it, and what it runs stands still."
            )
            yield self._step(stage, fault.halted_ns, self._worker(fault), "halted", "halted", text)
        if fault.injected_ns is not None:
            yield self._step(
                stage, fault.injected_ns, self._worker(fault), "not present", "not present", self._injected(fault)
            )
        yield from self._heard(fault, stage)
        for time_ns in fault.repeated:
            text = "The vCPU's tasks touch the same page again while it is under way: the vCPU halts (E08)."
            yield self._step(stage, time_ns, self._worker(fault), "repeated", "repeated", text)

    def _injected(self, fault: Fault) -> str:
        word = "flags word" if self._mode == "pv" else "reason word"
        return (
            f"Does not sleep. Injects page not present: exception 14, the vector of every #PF, with 1 in the {word} at "
            f"{reason_gpa(fault.vcpu):#x} of guest memory and token {fault.token:#x} in CR2."
        )

    def _heard(self, fault: Fault, stage: str) -> Iterator[Step]:
        guest = "guestsched" + self._of_vm(fault)
        if fault.slept_ns is not None:
            name = self.task(fault.vm, fault.other)
            runs = f"B runs on vCPU {fault.vcpu}, {name}," if fault.other else f"vCPU {fault.vcpu} idles,"
            word = "flags" if self._mode == "pv" else "reason"
            text = (
                f"The {word} word tells this #PF from an ordinary one. A sleeps, with the token in the table of "
                f"waiters; {runs} from {fault.other_ns:,} ns on."
            )
            yield self._step(stage, fault.slept_ns, guest, "asleep", "asleep", text)
        elif fault.not_present_ns is not None:
            text = "The token is in the table already, for ready came first: A does not sleep and tries again (E29)."
            yield self._step(stage, fault.not_present_ns, guest, "dummy", "dummy", text)

    def _kernel_faults(self, fault: Fault, stage: str, before_ns: int | None, after_ns: int = 0) -> Iterator[Step]:
        for attempt in fault.kernel_faults:
            if after_ns <= attempt.asked_ns and (before_ns is None or attempt.asked_ns < before_ns):
                text = f"The page of the reason word is not mapped: a synchronous fault, until {attempt.at_ns:,} ns."
                yield self._step(stage, attempt.asked_ns, self._worker(fault), "kernel fault", "kernel fault", text)

    def _ready(self, fault: Fault) -> Iterator[Step]:
        stage, process = "Page ready", self._worker(fault)
        if fault.completed_ns is not None:
            text = "The dedicated thread's get_user_pages() is over: the page is in."
            yield self._step(stage, fault.completed_ns, "hostd", "completed", "completed", text)
        for attempt in fault.prefaults:
            text = "Out of the guest, or its halt, for the page is to be mapped before the guest is told"
            match attempt.outcome:
                case "minor":
                    text += f": gfn {fault.gfn:#x} is host frame {fault.pfn} from {attempt.at_ns:,} ns on."
                case "skipped":
                    text = "Out of the guest; but another address space is loaded now: the page is not mapped (E43)."
                case "failed":
                    text += f". It cannot be had: {PageError[fault.error].words}."
                    if not self._reports:
                        text += " Nobody looks at that, and the guest is told that it is ready (E39)."
                case "major":
                    text += f". It is gone again: the vCPU thread sleeps until {attempt.at_ns:,} ns (E37)."
                case _:
                    text += f". No frame can be had for it now; again at {attempt.at_ns:,} ns."
            yield self._step(stage, attempt.asked_ns, process, "prefault", "prefault", text)
        yield from self._kernel_faults(fault, stage, fault.sent_ns, fault.mapped_ns or fault.raised_ns)
        if fault.dropped_ns is not None:
            text = f"KVM forgets its work item {fault.token:#x}: no page ready will come of it."
            yield self._step(stage, fault.dropped_ns, process, "dropped", "dropped", text)
        if fault.sent_ns is not None:
            how = "unhalted" if fault.injected_ns is None else "ready"
            yield self._step(stage, fault.sent_ns, process, how, how, self._sent(fault))
        yield from self._back(fault, stage)

    def _sent(self, fault: Fault) -> str:
        """How page ready goes out."""
        if fault.injected_ns is None:
            return "The guest was not told that it was not present, and is not told now: the vCPU goes on."
        if self._mode == "pv":
            text = (
                f"Puts token {fault.token:#x} in the token word at {reason_gpa(fault.vcpu) + APF_TOKEN_OFFSET:#x} of "
                f"guest memory and raises the interrupt for page ready."
            )
        else:
            word = f"2 in the reason word and token {fault.token:#x} in CR2"
            text = f"Injects page ready: again exception 14, with {word}."
        return f"{text} It is lost: the scenario injects that." if fault.lost else text

    def _back(self, fault: Fault, stage: str) -> Iterator[Step]:
        guest = "guestsched" + self._of_vm(fault)
        if fault.woken_ns is not None:
            if fault.wake_all:
                text = f"Token ~0 wakes all that wait on vCPU {fault.vcpu}: A too, for vCPU {fault.woken_cpu}."
            else:
                text = f"The token's waiter, A, is woken, for vCPU {fault.woken_cpu}."
                if self._mode == "pv":
                    text += " The handler stores 0 to the token word and acknowledges, so that the next can come."
            how = "all woken" if fault.wake_all else "woken"
            yield self._step(stage, fault.woken_ns, guest, how, how, text)
        if fault.back_ns is not None:
            text = (
                f"A runs on vCPU {fault.back_cpu} and executes the access again, {fault.back_ns - fault.began_ns:,} ns "
                f"after the first try."
            )
            process = f"vcpud worker {fault.back_cpu}" + self._of_vm(fault)
            yield self._step(stage, fault.back_ns, process, "", "back", text)
