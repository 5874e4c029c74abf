"""The faults of a run, put together from its journals: who faulted on what, and when each stage of it was over.

Theory. A fault begins with an EPT violation of user code. Hostd settles it at once (``minor``), after I/O (``major``),
with a ``retry`` (the access is executed again), or leaves it to the fault-in worker (``async``); then the records of
the vCPU, the host and the guest kernel with the same token of the same vCPU tell the rest, in whatever order they come
(E58). A violation goes on from one that hostd could not settle if it is the same task's at the same instruction;
otherwise the earlier one is ``abandoned``.

An asynchronous fault is over when the guest hears of page ready (``delivered_ns``): at once where ready is a #PF; where
it is an interrupt, when that is taken. One for which the vCPU halts, for the guest cannot be told, is over when its page
is mapped; so is one of the guest kernel's own accesses (``user`` is False), which no histogram counts.

``Faults.take`` wants the events in their order (``journals.events``) and returns the faults that they end: of those
handled asynchronously, when their task runs again. What has not ended then is in ``open``: no more than a fault a task
and 64 a vCPU. ``latencies`` counts the faults' stages as the vCPUs do while they run (``vcpud.core.observed``), from the
journals alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from apf.histogram import Histogram
from apf.messages import MSR_KVM_ASYNC_PF_INT
from apf.stats import HISTOGRAMS
from deploy.fault import Attempt, Fault, Read, Vain
from deploy.journals import Event, Record

WAKE_ALL = 0xFFFF_FFFF
"""The token that wakes every waiter of a vCPU (kvm_async_pf_wakeup_all)."""
LEFT = -1
"""Stands for a token that is in the token word and nobody's here: a snapshot has left it."""
RESTORES = ("msr_lost", "restore", "restore_without_int", "restore_int_late")
"""Injected faults after which KVM knows nothing of the vCPU's work items, nor of interrupts that were pending."""


@dataclass(slots=True)
class Slot:
    """What is known of a vCPU's way to tell the guest of page ready, as of now.

    ``token`` is in the token word since ``since_ns`` (0: the word is free, as far as KVM and the guest have told).
    """

    token: int = 0
    since_ns: int = 0
    unacknowledged_ns: int | None = None
    """When an ACK was dropped, and none came since."""
    vector: int = 0
    raised: int = 0
    """The vector when ``token`` was written: that of its interrupt."""
    injected: list[tuple[int, str]] = field(default_factory=list)
    """Faults of the protocol that were injected into the vCPU, with their times."""


@dataclass(slots=True)
class _Vcpu:
    fault: Fault | None = None  # raised, not settled
    place: tuple[int, int, int] = (0, 0, 0)  # of it: gfn, task, instructions retired
    rip: int = 0
    task: int = 0
    tokens: dict[int, Fault] = field(default_factory=dict)  # KVM has yet to send ready
    announcing: Fault | None = None  # not-present or ready is on its way into the guest
    asleep: Fault | None = None  # the guest has just heard of its not-present
    presented: Fault | None = None  # its ready was the last to be sent
    slot: Slot = field(default_factory=Slot)


class Faults:
    """Puts faults together. ``names`` are the tasks' by VM and id."""

    def __init__(self) -> None:
        self.serial = 0
        self.names: dict[tuple[int, int], str] = {}
        self.end_ns = 0
        self.vain: dict[tuple[int, int, int], Vain] = {}
        """By VM, gfn and task."""
        self._vcpus: dict[tuple[int, int], _Vcpu] = {}
        self._works: dict[tuple[int, int], list[Fault]] = {}  # by VM and page, the worker is not done
        self._reads: dict[tuple[int, int], Read] = {}  # the last of each page
        self._sent: dict[tuple[int, int, int], Fault] = {}  # by VM, vCPU and token: the guest has yet to hear
        self._waiting: dict[tuple[int, int], Fault] = {}  # by VM and task: until it runs again
        self._woke_all: tuple[int, int] | None = None  # VM and time of the last token ~0

    def open(self) -> Iterator[Fault]:
        """Faults that have not ended, in the order in which they began."""
        found: dict[int, Fault] = {}
        for vcpu in self._vcpus.values():
            for fault in (*vcpu.tokens.values(), vcpu.fault):
                if fault is not None:
                    found[fault.serial] = fault
        for fault in (*self._sent.values(), *self._waiting.values()):
            found[fault.serial] = fault
        return (found[serial] for serial in sorted(found))

    def slot(self, vm: int, vcpu: int) -> Slot:
        """How a vCPU's page ready is doing."""
        return self._vcpu(vm, vcpu).slot

    def take(self, event: Event) -> list[Fault]:
        """One more event; the faults that it ends."""
        core, record = event.core, event.record
        self.end_ns = record.time_ns
        match core.kind:
            case "vcpu":
                return self._of_vcpu(core.vm, core.vcpu, record)
            case "guest":
                return self._of_guest(core.vm, record)
            case _:
                return self._of_host(record)

    def _vcpu(self, vm: int, vcpu: int) -> _Vcpu:
        return self._vcpus.setdefault((vm, vcpu), _Vcpu())

    # vCPUs ----------------------------------------------------------------------------------------------------------

    def _of_vcpu(self, vm: int, number: int, record: Record) -> list[Fault]:
        vcpu, now_ns = self._vcpu(vm, number), record.time_ns
        match record.kind, record.fields:
            case "exit", (_reason, rip):
                vcpu.rip = rip
            case "page_fault", (gfn, access, mode, _work, task, retired):
                return self._raised(vm, number, now_ns, (gfn, task, retired), access, mode)
            case "async_pf_repeated_fault", (gfn, *_):
                for fault in vcpu.tokens.values():
                    if fault.gfn == gfn:
                        fault.repeated.append(now_ns)
            case "async_pf_halt", (token, *_):
                vcpu.tokens[token].halted_ns = now_ns
                vcpu.announcing = None
            case "async_pf_not_present", (token, *_):
                vcpu.tokens[token].injected_ns = now_ns
                vcpu.announcing = None
            case "async_pf_prefault_skipped", (token,):
                fault = vcpu.tokens[token]
                fault.exited_ns = fault.mapped_ns = now_ns
                fault.prefaults.append(Attempt(now_ns, "skipped", now_ns))
                vcpu.announcing = fault
            case "async_pf_ready", (token, *_):
                return self._ready_sent(vm, number, token, now_ns)
            case "async_pf_cleared", _:
                return self._cleared(vcpu, now_ns)
            case "injected", (what,):
                self._injected(vm, number, what, now_ns)
            case "wrmsr", (msr, value, outcome):
                if int(msr, 0) == MSR_KVM_ASYNC_PF_INT:
                    vcpu.slot.vector = int(value, 0)
                if outcome == "acknowledged":
                    vcpu.slot.unacknowledged_ns = None
        return []

    def _ready_sent(self, vm: int, number: int, token: int, now_ns: int) -> list[Fault]:
        vcpu = self._vcpu(vm, number)
        vcpu.announcing = None
        fault = vcpu.presented = vcpu.tokens.pop(token, None)
        told = token == WAKE_ALL or (fault is not None and fault.injected_ns is not None)
        if told:
            slot = vcpu.slot
            slot.token, slot.since_ns, slot.raised = token, now_ns, slot.vector
        if fault is None:
            return []
        fault.sent_ns = now_ns
        if fault.injected_ns is not None:
            fault.lost = vcpu.slot.injected[-1:] == [(now_ns, "lost_ready")]
            self._sent[vm, number, token] = fault
            return []
        fault.delivered_ns = now_ns
        return [fault]

    def _cleared(self, vcpu: _Vcpu, now_ns: int) -> list[Fault]:
        """The items are gone; who waits for one still waits."""
        dropped = list(vcpu.tokens.values())
        vcpu.tokens.clear()
        vcpu.announcing = None
        for fault in dropped:
            fault.dropped_ns = now_ns
        return [fault for fault in dropped if (fault.vm, fault.task) not in self._waiting]

    def _injected(self, vm: int, number: int, what: str, now_ns: int) -> None:
        slot = self._vcpu(vm, number).slot
        slot.injected.append((now_ns, what))
        match what:
            case "dropped_ack":
                slot.unacknowledged_ns = now_ns
            case "token_left":
                if (sent := self._sent.get((vm, number, slot.token))) is not None:
                    sent.overwritten_ns = now_ns
                slot.token, slot.since_ns = LEFT, now_ns
            case _ if what in RESTORES:
                slot.unacknowledged_ns, slot.vector = None, 0

    def _raised(
        self, vm: int, number: int, now_ns: int, place: tuple[int, int, int], access: str, mode: str
    ) -> list[Fault]:
        vcpu = self._vcpu(vm, number)
        before = vcpu.fault
        if before is not None and vcpu.place == place:
            before.raised_ns, before.mode = now_ns, mode
            return []
        self.serial += 1
        gfn, task, _ = place
        vcpu.place = place
        vcpu.fault = Fault(self.serial, vm, number, gfn, task, access, mode, vcpu.rip, now_ns, now_ns)
        if before is None:
            return []
        before.kind = "abandoned"
        return [before]

    # The host -------------------------------------------------------------------------------------------------------

    def _of_host(self, record: Record) -> list[Fault]:
        now_ns = record.time_ns
        match record.kind, record.fields:
            case "read" | "readahead", (vm, gfn, slot, pfn, _arrival_ns, start_ns, done_ns):
                self._reads[vm, gfn] = Read(slot, pfn, now_ns, start_ns, done_ns)
            case "userfault", (vm, gfn, place, pfn, event_ns, done_ns):
                self._reads[vm, gfn] = Read(place, pfn, now_ns, event_ns, done_ns, fetched=True)
            case "fault", (vm, number, gfn, how, kind, at_ns, *rest):
                vcpu = self._vcpu(vm, number)
                fault = vcpu.fault
                if fault is not None and (fault.raised_ns, fault.gfn) == (now_ns, gfn):
                    return self._settled(vcpu, fault, kind, at_ns, rest)
                if kind == "async":
                    return self._settled(vcpu, self._of_kernel(vm, number, now_ns, gfn, how), kind, at_ns, rest)
                if vcpu.announcing is not None:
                    vcpu.announcing.kernel_faults.append(Attempt(now_ns, kind, at_ns))
            case "prefault", (vm, number, _gfn, token, kind, at_ns, *rest):
                vcpu = self._vcpu(vm, number)
                fault = vcpu.tokens[token]
                fault.exited_ns = fault.exited_ns or now_ns
                fault.prefaults.append(Attempt(now_ns, kind, at_ns))
                if kind == "failed":
                    self._in_vain(fault, rest[0])
                    fault.mapped_ns, vcpu.announcing = at_ns, fault
                elif kind != "retry":
                    fault.mapped_ns, fault.pfn = at_ns, rest[0]
                    vcpu.announcing = fault
                    self._had(vm, fault.gfn)
            case "completed", (vm, gfn):
                self._completed(vm, gfn, now_ns)
        return []

    def _of_kernel(self, vm: int, number: int, now_ns: int, gfn: int, how: str) -> Fault:
        """A fault of the guest kernel's own access, which no vCPU's journal tells of."""
        self.serial += 1
        access, mode = how.split("/")
        vcpu = self._vcpu(vm, number)
        return Fault(self.serial, vm, number, gfn, vcpu.task, access, mode, 0, now_ns, now_ns, user=False)

    def _in_vain(self, fault: Fault, error: str) -> None:
        fault.error = error
        vain = self.vain.setdefault((fault.vm, fault.gfn, fault.task), Vain(fault.raised_ns, error))
        vain.faults += 1

    def _had(self, vm: int, gfn: int) -> None:
        """The page is there after all."""
        for key in [key for key in self.vain if key[:2] == (vm, gfn)]:
            del self.vain[key]

    def _settled(self, vcpu: _Vcpu, fault: Fault, kind: str, at_ns: int, rest: list[Any]) -> list[Fault]:
        if kind == "retry":
            fault.retries.append(Attempt(fault.raised_ns, kind, at_ns))
            return []
        if fault.user:
            vcpu.fault = None
        fault.kind, fault.replied_ns = kind, at_ns
        if kind != "minor":
            self._reading(fault)
        if kind == "async":
            fault.token, fault.ready_ns = rest
            vcpu.tokens[fault.token] = vcpu.announcing = fault
            self._works.setdefault((fault.vm, fault.gfn), []).append(fault)
            return []
        if kind == "failed":
            error, stall_ns = rest
            self._in_vain(fault, error)
        else:
            fault.pfn, _writable, stall_ns = rest
            self._had(fault.vm, fault.gfn)
        fault.stall_ns = min(stall_ns, at_ns - fault.raised_ns)
        return [fault]

    def _reading(self, fault: Fault) -> None:
        """Find the read that the fault waits for, its own or one that was under way already."""
        read = self._reads.get((fault.vm, fault.gfn))
        if read is not None and read.done_ns > fault.raised_ns:
            fault.read, fault.own_read = read, read.submitted_ns == fault.raised_ns

    def _completed(self, vm: int, gfn: int, now_ns: int) -> None:
        """The host carries out what is due at one time in the order in which it was settled."""
        works = self._works[vm, gfn]
        fault = next(work for work in works if work.ready_ns == now_ns)
        fault.completed_ns = now_ns
        works.remove(fault)
        if not works:
            del self._works[vm, gfn]
            self._reads.pop((vm, gfn), None)

    # The guest kernel -----------------------------------------------------------------------------------------------

    def _of_guest(self, vm: int, record: Record) -> list[Fault]:
        now_ns = record.time_ns
        match record.kind, record.fields:
            case "task_new", (task, name, *_):
                self.names[vm, task] = name
            case "not_present", (cpu, token):
                vcpu = self._vcpu(vm, cpu)
                vcpu.asleep = vcpu.tokens.get(token)
                if vcpu.asleep is not None:
                    vcpu.asleep.not_present_ns = now_ns
            case "leave", (task, "NOT_PRESENT"):
                self._slept(vm, task, now_ns)
            case "page_ready", (cpu, token, *_):
                return self._page_ready(vm, cpu, token, now_ns)
            case "wake", (task, cpu) if (vm, task) in self._waiting:
                fault = self._waiting[vm, task]
                if fault.delivered_ns == now_ns or self._woke_all == (vm, now_ns):
                    fault.woken_ns, fault.woken_cpu = now_ns, cpu
                    fault.wake_all = fault.delivered_ns != now_ns
            case "dispatch", (cpu, task, resume_ns, *_):
                return self._dispatched(vm, cpu, task, resume_ns)
        return []

    def _slept(self, vm: int, task: int, now_ns: int) -> None:
        for (of, _), vcpu in self._vcpus.items():
            fault = vcpu.asleep
            if of == vm and fault is not None and fault.task == task and fault.not_present_ns == now_ns:
                fault.slept_ns = now_ns
                self._waiting[vm, task] = fault

    def _page_ready(self, vm: int, cpu: int, token: int, now_ns: int) -> list[Fault]:
        slot = self._vcpu(vm, cpu).slot
        if slot.token == token:  # the handler stores 0 before it does anything else that is told
            slot.token = 0
        if token == WAKE_ALL:
            self._woke_all = (vm, now_ns)
        fault = self._sent.pop((vm, cpu, token), None)
        if fault is None:
            return []
        fault.delivered_ns = now_ns
        return [] if fault.slept_ns is not None else [fault]

    def _dispatched(self, vm: int, cpu: int, task: int, resume_ns: int) -> list[Fault]:
        vcpu = self._vcpu(vm, cpu)
        vcpu.task = task
        if vcpu.asleep is not None:
            vcpu.asleep.other, vcpu.asleep.other_ns = task, resume_ns
            vcpu.asleep = None
        fault = self._waiting.get((vm, task))
        if fault is None or fault.woken_ns is None:
            return []
        fault.back_ns, fault.back_cpu = resume_ns, cpu
        del self._waiting[vm, task]
        return [fault]


def faults(events: Iterable[Event]) -> Iterator[Fault]:
    """All faults of a run, each when it ends, and at last those that do not."""
    found = Faults()
    for event in events:
        yield from found.take(event)
    yield from found.open()


def latencies(found: Iterable[Fault]) -> dict[str, Histogram]:
    """Latencies by kind and stage, under the names of ``apf.stats.HISTOGRAMS``, of the faults that were over."""
    counted = {name: Histogram() for name in HISTOGRAMS}
    for fault in found:
        if fault.user and fault.latency_ns is not None:
            counted[f"latency_{fault.kind}"].observe(fault.latency_ns)
            for name, took_ns in _counted(fault):
                counted[f"stage_{name}"].observe(took_ns)
    return counted


def _counted(fault: Fault) -> Iterator[tuple[str, int]]:
    """The stages that count: those that a fault of its kind goes through, and the others if they took any time."""
    always: Mapping[str, tuple[str, ...]] = {"async": ("host", "inject", "wait", "exit", "prefault", "ready")}
    own = always.get(fault.kind, ("host",))
    return ((name, took_ns) for name, took_ns in fault.stages().items() if took_ns or name in own)
