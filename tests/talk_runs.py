"""Runs that the tests of the talk's rows look at, and a host core to put into a given state."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apf.hostmem import Geometry, HostMemory
from apf.journal import Journal
from apf.messages import Access, FaultMode, FaultRaised, GupVariant, HostReply, InProgress, Mapped
from apf.scenario import Scenario, load
from deploy import twin
from deploy.journals import KINDS_OF_VCPU, Record
from deploy.local import LocalCluster
from deploy.story import Journals
from deploy.walk import small
from guestsched.build import guest_core, memory_gfn
from guestsched.core.process import ProcessPlan
from hostd import device_profiles
from hostd.core.config import HostConfig, VmConfig
from hostd.core.events import BorderReached, ReadSlot, Reply, RequestTaken
from hostd.core.host import HostCore

SEED = 7
FAULT_TASKS = (1, 2)
WORK_TASKS = (3, 4)
PAGES = ("host only", "swap cache", "under read", "swapped out")


@dataclass(frozen=True)
class Ran:
    """A finished run on real processes: its journals, and the EPT as it was left in shared memory."""

    journals: Journals
    ept: npt.NDArray[np.uint64]

    @property
    def scenario(self) -> Scenario:
        return self.journals.result.scenario

    @cached_property
    def first_gfn(self) -> int:
        """Of the buffer."""
        return memory_gfn(guest_core(self.scenario, Journal()))

    def host(self, *kinds: str) -> list[Record]:
        return [record for record in self.journals.host if record.kind in kinds]

    def faults(self, outcome: str | None = None) -> list[Record]:
        """Faults on pages of the buffer; fields: vm, vcpu, gfn, how, outcome, ..."""
        return [
            record
            for record in self.host("fault")
            if record.fields[2] >= self.first_gfn and outcome in (None, record.fields[4])
        ]

    def first_touches(self) -> dict[int, Record]:
        first: dict[int, Record] = {}
        for record in self.faults():
            first.setdefault(record.fields[2], record)
        return first

    def buffer_ept(self) -> npt.NDArray[np.uint64]:
        pages = self.scenario.bench.buffer >> 12
        return self.ept[self.first_gfn : self.first_gfn + pages]

    def guest_of(self, vcpu: int) -> list[Record]:
        """What the guest kernel did on one vCPU; ``leave`` and ``wake`` name tasks, and belong to the trap before."""
        own, mine = [], False
        for record in self.journals.guest:
            if record.kind not in ("leave", "wake"):
                mine = record.kind in KINDS_OF_VCPU and record.fields[0] == vcpu
            if mine:
                own.append(record)
        return own


def on_processes(scenario: Scenario) -> Ran:
    with LocalCluster(scenario, journals=True) as cluster:
        result = cluster.wait()
        memory = HostMemory.attach(Geometry.of(scenario), cluster.run.host_memory)
        return Ran(Journals.read(result, cluster.journals()), memory.epts[0].copy())


def on_twin(scenario: Scenario, directory: Path) -> Ran:
    """The same from the twin, which leaves no EPT."""
    result = twin.run(scenario, journals=directory)
    paths = {path.stem: path for path in directory.glob("*.journal")}
    return Ran(Journals.read(result, paths), np.zeros(0, np.uint64))


def reduced() -> Scenario:
    """The published benchmark in small: a second, a buffer of 64 MiB, a quarter of it in memory."""
    sizes = {"vm.guest_memory": "128MiB", "vm.group_memory": "16MiB", "bench.buffer": "64MiB"}
    return load(None, {"seed": SEED, "duration_s": 1, "host.reserve_frames": 256, **sizes})


def small_run(**changes: Any) -> Scenario:
    """``apf walk``'s run, with some fields of its sections changed."""
    data = small(SEED).model_dump()
    sections: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections[section][key] = value
    for section, values in sections.items():
        if "" in values:
            data[section] = values[""]
        else:
            data[section] |= values
    return Scenario.model_validate(data)


def two_processes(plans: tuple[ProcessPlan, ...]) -> tuple[ProcessPlan, ...]:
    """The benchmark with faulting task 2 in a process of its own: the same addresses, other guest pages behind them.

    The one that is alone comes first, so that every vCPU begins with a faulting task.
    """
    (bench,) = plans
    alone = tuple(task for task in bench.tasks if task.name == "fault_thread/1")
    others = tuple(task for task in bench.tasks if task not in alone)
    return replace(bench, name="alone", tasks=alone), replace(bench, tasks=others)


class SmallHost:
    """A host core with one VM of two vCPUs and a group of 64 pages, on nvme; page 0 is brought into a state."""

    LIMIT = 64

    def __init__(self, gup: GupVariant) -> None:
        scenario = small(SEED)
        profile = device_profiles.load("nvme")
        self.core = HostCore(
            HostConfig(1, gup, scenario.costs, 20_000, (VmConfig(256, self.LIMIT, 2),), profile, reserve_frames=64)
        )
        self.now_ns = 0
        self.read = False
        self._work = 0

    def fault(self, gfn: int, mode: FaultMode, vcpu: int = 0) -> HostReply:
        """Let ``vcpu`` fault on ``gfn`` now; ``read`` is whether that submitted a read."""
        self._work += 1
        work = self._work if mode is FaultMode.NOWAIT else 0
        effects = self.core.step(RequestTaken(0, vcpu, FaultRaised(gfn, Access.WRITE, mode, work)), self.now_ns)
        self.read = any(isinstance(effect, ReadSlot) for effect in effects)
        last = effects[-1]
        assert isinstance(last, Reply)
        self.core.check()
        return last.reply

    def border(self) -> None:
        self.now_ns = (self.now_ns // 20_000 + 1) * 20_000
        self.core.step(BorderReached((), ()), self.now_ns)

    def evict_page_0(self) -> None:
        """Touch page 0, then others until it is picked; up to the border at which its write begins."""
        for gfn in range(self.LIMIT + 1):
            reply = self.fault(gfn, FaultMode.BLOCKING)
            assert isinstance(reply, Mapped), "the group is not full yet, or page 0 goes"
            self.now_ns = reply.at_ns
        self.border()

    def swap_page_0_out(self) -> None:
        """Let its write end, which leaves it in the swap cache, and then touch others until a scan frees it."""
        self.now_ns += 10_000_000
        self.border()
        gfn = self.LIMIT + 1
        while self.core.locate(0, np.zeros(1, np.int64))[0][0] >= 0:
            self.now_ns = self.fault(gfn, FaultMode.BLOCKING).at_ns
            gfn += 1


def reply_in(gup: GupVariant, page: str) -> tuple[SmallHost, HostReply]:
    """The answer to a non-sleeping fault of vCPU 1 on page 0, which is in state ``page``."""
    host = SmallHost(gup)
    host.evict_page_0()
    if page != "swap cache":
        host.swap_page_0_out()
    if page in ("host only", "under read"):
        first = host.fault(0, FaultMode.NOWAIT)
        assert isinstance(first, InProgress) and host.read
        # When the worker's get_user_pages is over, the host maps the page; no EPT does yet.
        host.now_ns = first.ready_at_ns if page == "host only" else first.at_ns
    return host, host.fault(0, FaultMode.NOWAIT, vcpu=1)
