"""A run as a Perfetto trace, made of its journals: the tracepoints a host and a guest would have, on a track each.

Tracks: below the run, a group for each VM with its vCPUs and its tasks, and one for the host with the fault-in workers
and the swap device. A vCPU's slices are what it runs; inside are its page faults, what the guest kernel does about a
trap, and the way from a finished work item to page ready. A task's slices are its states. Workers and the I/Os a device
has at a time are put on the first track that is free: which kworker or server it was, no journal says.

| event                           | fields                    | from the record                                   |
|---------------------------------|---------------------------|---------------------------------------------------|
| ``kvm_exit``                    | exit_reason, rip          | vcpu ``exit``                                     |
| ``kvm_page_fault``              | address, access, mode     | vcpu ``page_fault``                               |
| ``kvm_try_async_get_page``      | gva, gfn                  | host ``fault`` that starts work; with the next    |
| ``kvm_async_pf_repeated_fault`` | gva, gfn                  | vcpu ``async_pf_repeated_fault``                  |
| ``kvm_async_pf_not_present``    | token, gva                | vcpu, the same name; begins the flow              |
| ``kvm_async_pf_completed``      | address, gva, token       | host ``completed``                                |
| ``kvm_async_pf_ready``          | token, gva                | vcpu, the same name; ends the flow                |
| ``kvm_inj_exception``           | exception, error_code     | with not-present; guest ``page_ready`` before 5.8 |
| ``kvm_inj_virq``                | vec                       | guest ``page_ready`` since 5.8                    |
| ``kvm_msr``                     | write, ecx, data, outcome | vcpu ``wrmsr``                                    |
| ``sched_switch``                | the kernel's              | guest ``dispatch``                                |
| ``sched_wakeup``                | the kernel's              | guest ``wake``                                    |
| ``sched_wakeup_new``            | the kernel's              | guest ``start``                                   |
| ``sched_migrate_task``          | the kernel's              | guest ``pull``                                    |
| ``block_rq_issue``              | sector, nr_sector, rwbs   | host ``read`` and ``write``                       |
| ``block_rq_complete``           | the same                  | the same                                          |

A flow leads from each not-present to the ready of the same token on the same vCPU, whatever came in between (E58).

What a scenario injects is an instant, ``injected: ...``. A ready that wakes all (token ~0) ends no flow.

Departures: ``gva`` is the guest-physical address of the page's start, as it is for KVM with two-dimensional paging
(fault->addr) but for the offset, which no journal has; ``address`` of completed, an hva, is the offset in the VM's
memory, as if its memslot began at 0. ``completed`` has the token too. A fault that is handled synchronously because 64
are under way traces no ``kvm_try_async_get_page``: it is not attempted here. No ``kvm_exit`` tells of a tick that the
vCPU handles by itself, nor of HLT; ``SYSCALL`` is an exit of the emulator only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apf.messages import MSR_KVM_ASYNC_PF_INT, PAGE_SHIFT, PAGE_SIZE
from deploy.faults import RESTORES, WAKE_ALL
from deploy.journals import KINDS_OF_VCPU, Event, Record, events
from deploy.tracefile import TraceFile

LONGEST = """
SELECT ready.ts - not_present.ts AS ns, EXTRACT_ARG(not_present.arg_set_id, 'debug.token') AS token, not_present.ts AS ts
FROM flow
JOIN slice AS not_present ON flow.slice_out = not_present.id
JOIN slice AS ready ON flow.slice_in = ready.id
WHERE not_present.name = 'kvm_async_pf_not_present' AND ready.name = 'kvm_async_pf_ready'
ORDER BY ns DESC LIMIT 1
"""
"""For trace_processor: the longest way from not-present to ready, ns; its token, and when it began."""

_SECTOR = 512
_PF_VECTOR = "#PF (14)"
_SLEEPS = {
    "NOT_PRESENT": ("asynchronous page fault (D)", "D"),
    "SLEPT": ("sleeping (S)", "S"),
    "WAITED": ("waiting (S)", "S"),
    "EXITED": ("", "X"),
    "KILLED": ("", "X"),
}
"""What a task is after it has left the CPU, by the event of ``leave``: its slice and the kernel's letter."""


@dataclass(slots=True)
class _Vcpu:
    track: int
    task: int | None = None
    fault: tuple[int, int] | None = None  # time and gfn of a user fault that hostd has yet to answer
    trap: str = "trap"
    completing: bool = False
    vector: int = 0  # of page ready's interrupt, 0: it is an exception
    halted: bool = False


@dataclass(slots=True)
class _Task:
    track: int
    name: str
    prio: int
    state: str = "new"  # R+ runs, R waits to run; else as sched_switch has it
    token: int = 0  # of its last not-present


@dataclass(slots=True)
class _Vm:
    number: int
    group: int
    vcpus: dict[int, _Vcpu] = field(default_factory=dict)
    tasks: dict[int, _Task] = field(default_factory=dict)


class _Lanes:
    """Tracks for things that overlap: each goes on the first that is free."""

    def __init__(self, out: TraceFile, group: int, name: str, rank: int) -> None:
        self._out, self._group, self._name, self._rank = out, group, name, rank
        self._lanes: list[tuple[int, int]] = []  # track, and until when it is taken

    def take(self, from_ns: int, until_ns: int) -> int:
        """The track for what happens in that time."""
        for place, (track, free_ns) in enumerate(self._lanes):
            if free_ns <= from_ns:
                self._lanes[place] = (track, until_ns)
                return track
        number = len(self._lanes)
        track = self._out.track(f"{self._name} {number}", self._group, self._rank + number)
        self._lanes.append((track, until_ns))
        return track


def write(out: TraceFile, run: str, number: int, journals: Mapping[str, Path], device: str) -> None:
    """Append the run called ``run`` to ``out``; ``number`` keeps its flows apart from other runs' in the same file."""
    tracer = _Tracer(out, run, number, device)
    end_ns = 0
    for event in events(journals):
        end_ns = event.record.time_ns
        out.advance(end_ns)
        tracer.take(event)
    out.finish(end_ns)


class _Tracer:
    """Turns one event after the other into what Perfetto shows."""

    def __init__(self, out: TraceFile, run: str, number: int, device: str) -> None:
        self._out = out
        self._number = number
        self._root = out.track(run, rank=number)
        host = out.track("host", self._root, 1 << 16)
        self._workers = _Lanes(out, host, "fault-in worker", 0)
        self._device = _Lanes(out, host, f"{device}, I/O", 1 << 16)
        self._vms: dict[int, _Vm] = {}
        self._works: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        """By VM and gfn: when the work is done, its token, its track."""

    def take(self, event: Event) -> None:
        """One more event, in their order."""
        core, record = event.core, event.record
        match core.kind:
            case "vcpu":
                self._of_vcpu(self._vm(core.vm), core.vcpu, record)
            case "guest":
                self._of_guest(self._vm(core.vm), record)
            case _:
                self._of_host(record)

    def _vm(self, number: int) -> _Vm:
        if number not in self._vms:
            self._vms[number] = _Vm(number, self._out.track(f"VM {number}", self._root, number))
        return self._vms[number]

    def _vcpu(self, vm: _Vm, number: int) -> _Vcpu:
        if number not in vm.vcpus:
            vm.vcpus[number] = _Vcpu(self._out.track(f"vCPU {number}", vm.group, number))
        return vm.vcpus[number]

    # vCPUs ----------------------------------------------------------------------------------------------------------

    def _of_vcpu(self, vm: _Vm, number: int, record: Record) -> None:
        now_ns, out, vcpu = record.time_ns, self._out, self._vcpu(vm, number)
        match record.kind, record.fields:
            case "exit", (reason, rip):
                self._end_halt(vcpu, now_ns)
                out.instant(now_ns, vcpu.track, "kvm_exit", "kvm", exit_reason=reason, rip=rip)
            case "page_fault", (gfn, access, mode, *_):
                vcpu.fault = (now_ns, gfn)
                gpa = gfn << PAGE_SHIFT
                out.instant(now_ns, vcpu.track, "kvm_page_fault", "kvm", address=gpa, access=access, mode=mode)
            case "async_pf_repeated_fault", (gfn, *_):
                self._end_halt(vcpu, now_ns)
                place = {"gva": gfn << PAGE_SHIFT, "gfn": gfn}
                out.instant(now_ns, vcpu.track, "kvm_try_async_get_page", "kvm", **place)
                out.instant(now_ns, vcpu.track, "kvm_async_pf_repeated_fault", "kvm", **place)
                out.begin(now_ns, vcpu.track, "APF halt", "kvm", gfn=gfn)
                vcpu.halted = True
            case "async_pf_halt", (token, gfn):
                self._announce(vm, vcpu, now_ns, "kvm_async_pf_not_present", token, gfn, ends=False)
                out.begin(now_ns, vcpu.track, "APF halt", "kvm", gfn=gfn)
                vcpu.halted = True
            case "async_pf_not_present", (token, gfn):
                self._announce(vm, vcpu, now_ns, "kvm_async_pf_not_present", token, gfn, ends=False)
                self._inject_pf(vcpu, now_ns)
            case "wrmsr", (msr, value, outcome):
                out.instant(now_ns, vcpu.track, "kvm_msr", "kvm", write=1, ecx=msr, data=value, outcome=outcome)
                if int(msr, 0) == MSR_KVM_ASYNC_PF_INT:
                    vcpu.vector = int(value, 0)
            case "injected", (what,):
                out.instant(now_ns, vcpu.track, f"injected: {what}", "injected")
                if what in RESTORES:
                    vcpu.vector = 0
            case "async_pf_cleared", (items,):
                name = "kvm_clear_async_pf_completion_queue"
                out.instant(now_ns, vcpu.track, name, "kvm", items=items)
            case "async_pf_ready", (token, gfn):
                self._end_halt(vcpu, now_ns)
                if token == WAKE_ALL:
                    out.instant(now_ns, vcpu.track, "kvm_async_pf_ready", "kvm", token=token, gva=0)
                else:
                    self._announce(vm, vcpu, now_ns, "kvm_async_pf_ready", token, gfn, ends=True)
                if vcpu.completing:
                    vcpu.completing = False
                    out.end(now_ns, vcpu.track)

    def _announce(self, vm: _Vm, vcpu: _Vcpu, now_ns: int, name: str, token: int, gfn: int, ends: bool) -> None:
        flow = (self._number + 1) << 48 | vm.number << 32 | token
        self._out.flow(now_ns, vcpu.track, name, "kvm", flow, ends, token=token, gva=gfn << PAGE_SHIFT)

    def _end_halt(self, vcpu: _Vcpu, now_ns: int) -> None:
        if vcpu.halted:
            vcpu.halted = False
            self._out.end(now_ns, vcpu.track)

    # The host -------------------------------------------------------------------------------------------------------

    def _of_host(self, record: Record) -> None:
        now_ns, out = record.time_ns, self._out
        match record.kind, record.fields:
            case "fault", (vm, vcpu, gfn, how, kind, at_ns, *rest):
                self._fault(self._vm(vm), vcpu, now_ns, gfn, how, kind, at_ns, rest)
            case "prefault", (vm, number, gfn, token, kind, at_ns, *_):
                vcpu = self._vcpu(self._vm(vm), number)
                self._end_halt(vcpu, now_ns)
                if not vcpu.completing:
                    vcpu.completing = True
                    out.begin(now_ns, vcpu.track, "kvm_check_async_pf_completion", "kvm", token=token)
                out.begin(now_ns, vcpu.track, f"prefault: {kind}", "kvm", gfn=gfn)
                out.end(at_ns, vcpu.track)
            case "completed", (vm, gfn):
                self._completed(vm, gfn, now_ns)
            case "read" | "readahead", (vm, gfn, slot, _pfn, _arrival_ns, start_ns, done_ns):
                self._io("R", vm, gfn, slot, start_ns, done_ns)
            case "write", (vm, gfn, slot, _pfn, start_ns, done_ns):
                self._io("W", vm, gfn, slot, start_ns, done_ns)

    def _fault(
        self, vm: _Vm, number: int, now_ns: int, gfn: int, how: str, kind: str, at_ns: int, rest: list[Any]
    ) -> None:
        out, vcpu = self._out, self._vcpu(vm, number)
        whose = "page fault" if vcpu.fault == (now_ns, gfn) else "kernel page fault"
        vcpu.fault = None
        out.begin(now_ns, vcpu.track, f"{whose}: {kind}", "kvm", gfn=gfn, how=how)
        out.end(at_ns, vcpu.track)
        if kind == "async":
            token, ready_ns = rest
            gva = gfn << PAGE_SHIFT
            out.instant(now_ns, vcpu.track, "kvm_try_async_get_page", "kvm", gva=gva, gfn=gfn)
            track = self._workers.take(at_ns, ready_ns)
            out.begin(at_ns, track, "async_pf_execute", "kvm", token=token, gfn=gfn, vm=vm.number, vcpu=number)
            self._works.setdefault((vm.number, gfn), []).append((ready_ns, token, track))

    def _completed(self, vm: int, gfn: int, now_ns: int) -> None:
        """The work is the first of the page's that was to be done now: the host carries them out in that order."""
        works = self._works[vm, gfn]
        work = next(work for work in works if work[0] == now_ns)
        works.remove(work)
        if not works:
            del self._works[vm, gfn]
        _, token, track = work
        gpa = gfn << PAGE_SHIFT
        self._out.instant(now_ns, track, "kvm_async_pf_completed", "kvm", address=gpa, gva=gpa, token=token)
        self._out.end(now_ns, track)

    def _io(self, rwbs: str, vm: int, gfn: int, slot: int, start_ns: int, done_ns: int) -> None:
        out, track = self._out, self._device.take(start_ns, done_ns)
        request: dict[str, int | str] = {
            "sector": slot * (PAGE_SIZE // _SECTOR),
            "nr_sector": PAGE_SIZE // _SECTOR,
            "rwbs": rwbs,
        }
        out.begin(start_ns, track, "read" if rwbs == "R" else "write", "block", vm=vm, gfn=gfn, slot=slot)
        out.instant(start_ns, track, "block_rq_issue", "block", **request)
        out.instant(done_ns, track, "block_rq_complete", "block", **request)
        out.end(done_ns, track)

    # The guest kernel -----------------------------------------------------------------------------------------------

    def _of_guest(self, vm: _Vm, record: Record) -> None:
        now_ns, out = record.time_ns, self._out
        match record.kind, record.fields:
            case "task_new", (task, name, _asid, nice):
                group = vm.group
                track = out.track(f"{name} {task}", group, (1 << 16) + task)
                vm.tasks[task] = _Task(track, name, 120 + nice)
            case "start", (task, cpu):
                self._runnable(vm.tasks[task], "runnable", now_ns)
                self._sched(vm.tasks[task], task, "sched_wakeup_new", now_ns, target_cpu=cpu)
            case "wake", (task, cpu):
                out.end(now_ns, vm.tasks[task].track)
                self._runnable(vm.tasks[task], "runnable", now_ns)
                self._sched(vm.tasks[task], task, "sched_wakeup", now_ns, target_cpu=cpu)
            case "pull", (task, orig_cpu, dest_cpu):
                cpus = {"orig_cpu": orig_cpu, "dest_cpu": dest_cpu}
                self._sched(vm.tasks[task], task, "sched_migrate_task", now_ns, **cpus)
            case "leave", (task, event):
                self._leave(vm.tasks[task], event, now_ns)
            case "dispatch", (cpu, task, resume_ns, *_):
                self._dispatch(vm, cpu, task, now_ns, resume_ns)
            case kind, (cpu, *rest) if kind in KINDS_OF_VCPU:
                vcpu = self._vcpu(vm, cpu)
                self._end_halt(vcpu, now_ns)
                vcpu.trap = kind
                if kind == "not_present" and vcpu.task:
                    vm.tasks[vcpu.task].token = rest[0]
                elif kind == "page_ready":
                    self._ready_taken(vcpu, now_ns)

    def _ready_taken(self, vcpu: _Vcpu, now_ns: int) -> None:
        """The guest has heard of page ready: by an interrupt, or before 5.8 by an exception."""
        if vcpu.vector:
            self._out.instant(now_ns, vcpu.track, "kvm_inj_virq", "kvm", vec=vcpu.vector)
        else:
            self._inject_pf(vcpu, now_ns)

    def _inject_pf(self, vcpu: _Vcpu, now_ns: int) -> None:
        self._out.instant(now_ns, vcpu.track, "kvm_inj_exception", "kvm", exception=_PF_VECTOR, error_code=0)

    def _sched(self, task: _Task, number: int, name: str, now_ns: int, **cpus: int) -> None:
        self._out.instant(now_ns, task.track, name, "sched", comm=task.name, pid=number, prio=task.prio, **cpus)

    def _runnable(self, task: _Task, why: str, now_ns: int) -> None:
        task.state = "R"
        self._out.begin(now_ns, task.track, why, "sched")

    def _leave(self, task: _Task, event: str, now_ns: int) -> None:
        """A task stops to run, or (killed) to wait or sleep."""
        if task.state != "new":
            self._out.end(now_ns, task.track)
        name, task.state = _SLEEPS[event]
        if event == "NOT_PRESENT":
            self._out.begin(now_ns, task.track, name, "sched", token=task.token)
        elif name:
            self._out.begin(now_ns, task.track, name, "sched")

    def _dispatch(self, vm: _Vm, cpu: int, task: int, now_ns: int, resume_ns: int) -> None:
        """The guest kernel has had the vCPU from ``now_ns``; from ``resume_ns`` on it runs ``task``, 0: none."""
        out, vcpu = self._out, self._vcpu(vm, cpu)
        trap, vcpu.trap = vcpu.trap, "trap"
        before = vm.tasks.get(vcpu.task or 0)
        if task == vcpu.task and (before is None or before.state == "R+"):
            out.begin(now_ns, vcpu.track, f"kernel: {trap}", "guest")
            out.end(resume_ns, vcpu.track)
            return
        if vcpu.task is not None:
            out.end(now_ns, vcpu.track)
        if before is not None and before.state == "R+":
            out.end(now_ns, before.track)
            self._runnable(before, "runnable (preempted)", now_ns)
        after = vm.tasks.get(task)
        if vcpu.task is not None and task != vcpu.task:
            self._switch(vcpu, cpu, before, task, after, now_ns)
        out.begin(now_ns, vcpu.track, f"kernel: {trap}", "guest")
        out.end(resume_ns, vcpu.track)
        vcpu.task = task
        if after is None:
            out.begin(resume_ns, vcpu.track, "idle", "sched")
            return
        after.state = "R+"
        out.begin(resume_ns, vcpu.track, f"{after.name} {task}", "sched", pid=task)
        out.end(resume_ns, after.track)
        out.begin(resume_ns, after.track, "running", "sched", cpu=cpu)

    def _switch(
        self, vcpu: _Vcpu, cpu: int, before: _Task | None, number: int, after: _Task | None, now_ns: int
    ) -> None:
        idle = f"swapper/{cpu}"
        self._out.instant(
            now_ns,
            vcpu.track,
            "sched_switch",
            "sched",
            prev_comm=idle if before is None else before.name,
            prev_pid=vcpu.task or 0,
            prev_prio=120 if before is None else before.prio,
            prev_state="R" if before is None else before.state,
            next_comm=idle if after is None else after.name,
            next_pid=number,
            next_prio=120 if after is None else after.prio,
        )
