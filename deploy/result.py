"""What a run came to, and the documents made of it. Twin and processes fill the same form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from apf.journal import run_digest
from apf.scenario import Scenario

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
    messages: dict[str, dict[str, int]] = field(default_factory=dict)
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
        guest: dict[str, Any],
        vcpus: list[dict[str, Any]],
        wall_seconds: float,
        messages: dict[str, dict[str, int]] | None = None,
    ) -> RunResult:
        """From the reports of one host, one guest and its vCPUs."""
        digests = {"host": host["digest"], "guest-0": guest["digest"]}
        digests |= {f"vcpu-0-{index}": vcpu["digest"] for index, vcpu in enumerate(vcpus)}
        counting = [task["values"]["count"] for task in guest["tasks"] if "count" in task["values"]]
        return cls(
            scenario=scenario,
            digest=run_digest(digests),
            window_ns=window_ns,
            windows=windows,
            workers=tuple(counting),
            vcpus=tuple(vcpus),
            tasks=tuple(guest["tasks"]),
            told=tuple(guest["told"]),
            host_counters=host["counters"],
            guest_counters=guest["counters"],
            audit=host["audit"],
            messages=messages or {},
            wall_seconds=wall_seconds,
            run_seconds=float(host.get("run_seconds", 0.0)),
        )

    @property
    def mode(self) -> str:
        """Off or pv2010."""
        return self.scenario.apf[0]

    @property
    def total(self) -> int:
        """All workers' counts together."""
        return sum(self.workers)

    @property
    def virtual_seconds(self) -> float:
        """Length of the run in guest time."""
        return self.scenario.duration_ns / NS_PER_S

    def time_ns(self, cause: str) -> int:
        """VCPU time that went to ``cause``, all vCPUs together."""
        return sum(int(vcpu["time_ns"][cause]) for vcpu in self.vcpus)

    def counter(self, name: str) -> int:
        """A counter of the vCPUs, all together."""
        return sum(int(vcpu["counters"][name]) for vcpu in self.vcpus)

    @property
    def corrupt_pages(self) -> int:
        """Pages found wrong: by the guest when it used them, and by the audit at the end.

        An update lost without a trace in its page counts too: the audit's sum of writes must be the guest's.
        """
        found = sum(task["values"].get("corrupt", 0) for task in self.tasks) + int(self.audit["corrupt"])
        return found or int(self.lost_writes != 0)

    @property
    def lost_writes(self) -> int:
        """Writes the guest made that are in no page."""
        accesses = sum(task["values"].get("accesses", 0) for task in self.tasks)
        return int(accesses - self.audit["writes"])

    def document(self) -> dict[str, Any]:
        """One entry of ``runs`` in the JSON."""
        return {
            "apf": self.mode,
            "digest": self.digest,
            "seed": self.scenario.seed,
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
            "host": self.host_counters,
            "guest": self.guest_counters,
            "tasks": list(self.tasks),
            "told": list(self.told),
        }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is: guest ns, and counters of all vCPUs together."""

    now_ns: int
    counting_ns: int
    faults: int
    messages: int
