"""Runs on the twin whose faults are put together from what was recorded of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apf.scenario import ApfName, load
from deploy import recording, twin
from deploy.fault import Fault
from deploy.faults import Faults
from deploy.journals import events
from deploy.recording import RecordedRun, Recorder
from deploy.result import RunResult
from deploy.steps import Step
from deploy.telling import Teller
from deploy.walk import small

SMALL = {"vm.guest_memory": "96MiB", "vm.group_memory": "4MiB", "bench.buffer": "32MiB", "host.reserve_frames": 64}
RUNS: dict[str, dict[str, Any]] = {
    "off": {"apf": ["off"], "duration_s": "0.02", "swap.device": "nvme"},
    "async": {"apf": ["pv2010"], "duration_s": "0.02", "swap.device": "nvme", "profile_hz": 1000},
    # First touches that go to the worker, repeated faults, reads of others, kernel faults, few frames: all at once.
    "thrash": {
        "apf": ["pv2010"],
        "duration_s": "0.03",
        "swap.device": "nvme",
        "gup": "fast",
        "vm.vcpus": 8,
        "bench.fault_threads": 64,
        "bench.populate": False,
    },
    # Writes take so long that frames run out: most faults are tried again, and many are given up for another task's.
    "retries": {
        "apf": ["pv2010"],
        "duration_s": 2,
        "swap.device": "hdd-7200",
        "gup": "nowait",
        "bench.fault_threads": 64,
    },
    "halt": {"apf": ["halt"], "duration_s": "0.02", "swap.device": "nvme"},
    "pv": {"apf": ["pv"], "duration_s": "0.02", "swap.device": "nvme"},
    # Two processes on a vCPU: what is done while the other one runs is not prefaulted (E43).
    "shadow": {
        "apf": ["pv"],
        "duration_s": "0.02",
        "swap.device": "nvme",
        "kvm.mmu": "shadow",
        "vm.vcpus": 1,
        "process": [
            {"name": n, "memory": "8MiB", "thread": [{"program": "zipfian", "count": 2}]} for n in ("a", "b")
        ],
    },
    # Every kind of fault of the protocol that leaves the guest running.
    "spoiled": {
        "apf": ["pv"],
        "duration_s": "0.02",
        "swap.device": "nvme",
        "bench.fault_threads": 8,
        "inject": [
            {"what": "duplicate_ready", "at_s": "0.004", "count": 5},
            {"what": "alloc_failure", "at_s": "0.006", "count": 5},
            {"what": "lapic_off", "at_s": "0.0085", "for_s": "0.001"},
            {"what": "paging_off", "at_s": "0.0102", "for_s": "0.001"},
            {"what": "restore", "at_s": "0.0123"},
            {"what": "dropped_ack", "at_s": "0.013"},
        ],
    },
    "two VMs": {"apf": ["pv2010"], "duration_s": "0.04", "swap.device": "nvme", "host.vms": 2},
}


def ran(directory: Path, mode: ApfName = "pv2010", **changes: object) -> tuple[RunResult, RecordedRun]:
    """One run on the twin, and the recording of it; without ``changes`` the one of ``apf walk``."""
    scenario = load(None, {**SMALL, **changes}) if changes else small(7).model_copy(update={"apf": (mode,)})
    scratch = directory / "scratch"
    scratch.mkdir(parents=True)
    result = twin.run(scenario, journals=scratch)
    recorder = Recorder(directory / "recording")
    recorder.keep(result, {path.stem: path for path in scratch.glob("*.journal")})
    recorder.finish()
    (run,) = recording.read(directory / "recording")
    assert run.digest == result.digest
    return result, run


def recorded(directory: Path, mode: ApfName = "pv2010", **changes: object) -> RecordedRun:
    """The recording of one run."""
    return ran(directory, mode, **changes)[1]


@dataclass
class Read:
    """A recording, and what was put together from it."""

    run: RecordedRun
    found: Faults
    faults: list[Fault]

    def tell(self, fault: Fault) -> list[Step]:
        scenario = self.run.scenario
        teller = Teller(self.run.mode, scenario.gup, self.found.names, self.found.end_ns, scenario.host.vms)
        return teller.tell(fault)


def all_of(run: RecordedRun) -> Read:
    found = Faults()
    faults = [fault for event in events(run.journals) for fault in found.take(event)]
    return Read(run, found, [*faults, *found.open()])
