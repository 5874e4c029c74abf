"""What a run came to, and the documents made of it. Twin and processes fill the same form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from apf.histogram import BOUNDS_NS
from apf.journal import run_digest
from apf.scenario import Scenario
from apf.stats import HISTOGRAMS
from guestsched.programs import BUILTINS

NS_PER_S = 1_000_000_000
CAUSES = ("counting", "faulting", "other", "stall", "idle", "apf", "kernel")


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run in one mode. Times of vCPUs are guest ns, by cause; ``workers`` are the counting tasks' counts."""

    scenario: Scenario
    digest: str
    window_ns: int
    windows: int
    workers: tuple[int, ...]
    vcpus: tuple[dict[str, Any], ...]
    tasks: tuple[dict[str, Any], ...]
    told: tuple[str, ...]
    host_counters: dict[str, int]
    guest_counters: dict[str, int]
    audit: dict[str, int]
    profile: tuple[dict[str, Any], ...] = ()
    """Rows of symbol, program (empty: the guest kernel's) and samples, most samples first."""
    folded: str = ""
    end_ns: int = 0
    lost: dict[int, str] = field(default_factory=dict)
    """VMs that were lost while the host went on, and why. What they did is not in the rest of the result."""
    failed: dict[int, str] = field(default_factory=dict)
    """VMs that ended before the run did because a page could not be had, and why."""
    page_errors: tuple[dict[str, Any], ...] = ()
    """Pages that could not be read: VM, gfn, slot, why, since when, and the faults that were in vain."""
    lost_pages: dict[str, int] = field(default_factory=dict)
    """Pages of the audit that cannot be had at the end of the run, by reason; they are not corrupt."""
    messages: dict[str, dict[str, int]] = field(default_factory=dict)
    pressure_ns: dict[str, dict[str, int]] = field(default_factory=dict)
    """Memory pressure (some, full) of each VM's group and of the root group."""
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Files of each VM's memory group, and of the root group, at the end of the run: ``hostd.memory``."""
    vmstat: dict[str, int] = field(default_factory=dict)
    """/proc/vmstat of the host at the end of the run."""
    wall_seconds: float = 0.0
    run_seconds: float = 0.0
    """Part of ``wall_seconds`` from window 0 to the last one: without start, loading and audit (of processes)."""

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        window_ns: int,
        windows: int,
        host: dict[str, Any],
        guests: dict[int, dict[str, Any]],
        vcpus: dict[tuple[int, int], dict[str, Any]],
        wall_seconds: float,
        *,
        messages: dict[str, dict[str, int]] | None = None,
        lost: dict[int, str] | None = None,
    ) -> RunResult:
        """From the reports of one host, its guests by VM, and their vCPUs by VM and number, both in order."""
        digests = {"host": host["digest"]}
        digests |= {f"guest-{vm}": guest["digest"] for vm, guest in guests.items()}
        digests |= {f"vcpu-{vm}-{vcpu}": report["digest"] for (vm, vcpu), report in vcpus.items()}
        several = scenario.host.places > 1
        tasks = [{**task, "vm": vm} if several else task for vm, guest in guests.items() for task in guest["tasks"]]
        told = [f"VM {vm}: {line}" if several else line for vm, guest in guests.items() for line in guest["told"]]
        told += [f"VM {vm} was lost: {why}" for vm, why in (lost or {}).items()]
        told += [f"host: {line}" for line in (*host["told"], *_in_vain(host["page_errors"], scenario.swap.errors))]
        counting = [task["values"]["count"] for task in tasks if "count" in task["values"]]
        profile: Counter[tuple[str, str]] = Counter()
        for guest in guests.values():
            profile.update({(row["symbol"], row["program"]): row["samples"] for row in guest["profile"]})
        names = next(iter(guests.values()))["counters"] if guests else ()
        rows = sorted(profile.items(), key=lambda item: (-item[1], item[0]))
        return cls(
            scenario=scenario,
            digest=run_digest(digests),
            window_ns=window_ns,
            windows=windows,
            workers=tuple(counting),
            vcpus=tuple(vcpus.values()),
            tasks=tuple(tasks),
            told=tuple(told),
            host_counters=host["counters"],
            guest_counters={name: sum(each["counters"][name] for each in guests.values()) for name in names},
            audit=host["audit"],
            profile=tuple({"symbol": s, "program": program, "samples": n} for (s, program), n in rows),
            folded="".join(guest["folded"] for guest in guests.values()),
            end_ns=max((int(guest["end_ns"]) for guest in guests.values()), default=0),
            lost=lost or {},
            failed={vm: guest["failed"] for vm, guest in guests.items() if guest["failed"]},
            page_errors=tuple(host["page_errors"]),
            lost_pages=host["lost_pages"],
            messages=messages or {},
            pressure_ns=host.get("pressure_ns", {}),
            memory=host.get("memory", {}),
            vmstat=host.get("vmstat", {}),
            wall_seconds=wall_seconds,
            run_seconds=float(host.get("run_seconds", 0.0)),
        )

    @property
    def mode(self) -> str:
        """Off, halt, pv2010 or pv."""
        return self.scenario.apf[0]

    @property
    def total(self) -> int:
        """All workers' counts together."""
        return sum(self.workers)

    @property
    def virtual_seconds(self) -> float:
        """Length of the run in guest time."""
        return (self.end_ns if self.failed else self.scenario.duration_ns or self.end_ns) / NS_PER_S

    def time_ns(self, cause: str) -> int:
        """VCPU time that went to ``cause``, all vCPUs together."""
        return sum(int(vcpu["time_ns"][cause]) for vcpu in self.vcpus)

    def counter(self, name: str) -> int:
        """A counter of the vCPUs, all together."""
        return sum(int(vcpu["counters"][name]) for vcpu in self.vcpus)

    def fault_times(self) -> dict[str, Any]:
        """How long faults took, by kind and by stage, all vCPUs together: number, sum and histogram, in guest ns.

        A histogram lists [upper bound of a bucket, None: none; count], buckets that are not empty.
        """
        times: dict[str, Any] = {}
        for name in HISTOGRAMS:
            found = [vcpu["observed"][name] for vcpu in self.vcpus if "observed" in vcpu]
            counts = [sum(column) for column in zip(*(one["buckets"] for one in found), strict=True)]
            buckets = [list(pair) for pair in zip((*BOUNDS_NS, None), counts, strict=False) if pair[1]]
            sum_ns = sum(one["sum_ns"] for one in found)
            times[name] = {"count": sum(counts), "sum_ns": sum_ns, "histogram": buckets}
        return times

    @property
    def corrupt_pages(self) -> int:
        """Pages found wrong: by the guest when it used them, and by the audit at the end.

        An update lost without a trace in its page counts too: the audit's sum of writes must be the guest's.
        """
        found = sum(task["values"].get("corrupt", 0) for task in self.tasks) + int(self.audit["corrupt"])
        return found or int(self.lost_writes != 0)

    @property
    def lost_writes(self) -> int:
        """Writes that programs with stamps made and that are in no page.

        0 where that cannot be known: some of their accesses only read, or some pages cannot be had.
        """
        if self.lost_pages:
            return 0
        counted = [task for task in self.tasks if self._always_writes(task)]
        if len(counted) < sum(self._is_stamped(task) for task in self.tasks):
            return 0
        return int(sum(task["values"]["accesses"] for task in counted) - self.audit["writes"])

    def _is_stamped(self, task: dict[str, Any]) -> bool:
        """Whether the audit at the end knows of what the task wrote: not of outside load, nor of later processes."""
        program = BUILTINS.get(task["program"])
        return program is not None and program.stamps and task["process"] in self._boot_processes()

    def _always_writes(self, task: dict[str, Any]) -> bool:
        name = task["process"].partition("/")[0]
        tables = [table for table in self.scenario.process if table.name == name]
        threads = [thread for table in tables for thread in table.thread if thread.program == task["program"]]
        return self._is_stamped(task) and all(thread.parameters.get("writes", 256) == 256 for thread in threads)

    def _boot_processes(self) -> set[str]:
        if not self.scenario.process:
            return {"bench"}
        return {
            table.name if table.count == 1 else f"{table.name}/{number}"
            for table in self.scenario.process
            for number in range(table.count)
        }

    def document(self) -> dict[str, Any]:
        """One entry of ``runs`` in the JSON."""
        return {
            "apf": self.mode,
            "digest": self.digest,
            "seed": self.scenario.seed,
            "reproducible": not self.scenario.swap.is_measured,
            "workers": list(self.workers),
            "total": self.total,
            "virtual_seconds": self.virtual_seconds,
            "wall_seconds": round(self.wall_seconds, 3),
            "run_seconds": round(self.run_seconds, 3),
            "window_ns": self.window_ns,
            "windows": self.windows,
            "faults": {kind: self.counter(f"faults_{kind}") for kind in ("minor", "major", "async")},
            "messages": self.messages,
            "corrupt_pages": self.corrupt_pages,
            "vcpu_time": {
                str(index): {cause: vcpu["time_ns"][cause] / NS_PER_S for cause in CAUSES}
                for index, vcpu in enumerate(self.vcpus)
            },
            "vcpu_counters": dict(sum((Counter(vcpu["counters"]) for vcpu in self.vcpus), Counter())),
            "fault_times": self.fault_times(),
            "host": self.host_counters,
            "pressure_ns": self.pressure_ns,
            "memory": self.memory,
            "vmstat": self.vmstat,
            "guest": self.guest_counters,
            "tasks": list(self.tasks),
            "profile": list(self.profile),
            "told": list(self.told),
            "lost_vms": {str(vm): why for vm, why in self.lost.items()},
            "failed_vms": {str(vm): why for vm, why in self.failed.items()},
            "page_errors": list(self.page_errors),
            "lost_pages": self.lost_pages,
        }


_IN_VAIN_MIN, _IN_VAIN_LINES = 3, 10


def _in_vain(errors: list[dict[str, Any]], mode: str) -> list[str]:
    """Lines about pages that were asked for again and again, most often first."""
    often = sorted(errors, key=lambda one: (-one["faults"], one["since_ns"], one["vm"], one["gfn"]))
    lines = [
        f"gfn {one['gfn']:#x} of VM {one['vm']} cannot be had since {one['since_ns']} ns ({one['why']}, slot "
        f"{one['slot']}): {one['faults']:,} faults on it were in vain"
        for one in often[:_IN_VAIN_LINES]
        if one["faults"] >= _IN_VAIN_MIN
    ]
    if lines and mode == "kernel":
        lines.append(
            "a task that is told to wait for such a page is woken, and faults again, for ever: that is what the kernel "
            'does; swap.errors = "report" kills the task'
        )
    return lines


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is: guest ns, and counters of all vCPUs together."""

    now_ns: int
    counting_ns: int
    faults: int
    messages: int
