"""A guest kernel with made-up tasks, and traps to give it: what the tests of the guest kernel's core share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from apf import registers as register_file
from apf.journal import Journal
from apf.messages import (
    PAGE_SIZE,
    Account,
    AddressSpace,
    Booted,
    Dispatch,
    Extent,
    Fetched,
    InterruptArrived,
    NotPresentArrived,
    Stopped,
    SyscallRaised,
    TimerArrived,
    Trap,
    TrapRaised,
)
from apf.scenario import Scenario, load
from guestsched import schedulers
from guestsched.core.arrivals import Answer, Arrival
from guestsched.core.cfs import CfsEntity
from guestsched.core.core import ArrivalsTaken, Effect, GuestCore, Log, Post, Reply, TrapTaken
from guestsched.core.process import ProcessPlan, Region
from guestsched.core.syscall import Syscall
from guestsched.core.task import Task, TaskResult, TaskSpec

CODE_GVA = 0x40_0000
CODE = Region(CODE_GVA, 1, b"\x90" * 16, writable=False, executable=True)
RING_GVA = 0x1000_0000
MEMORY_GVA = 0x1_0000_0000
MEMORY_PAGES = 16
MS = 1_000_000
SWITCH, HANDLER, SYSCALL, INTERRUPT = 1_500, 1_000, 100, 1_000
"""Default costs of a context switch, an APF handler, a system call, an interrupt."""


def scenario(**overrides: Any) -> Scenario:
    """A scenario of one mode; ``vm__vcpus=2`` sets ``vm.vcpus``."""
    chosen: dict[str, Any] = {"apf": ["pv2010"], "vm.vcpus": 1}
    chosen |= {name.replace("__", "."): value for name, value in overrides.items()}
    return load(None, chosen)


def spec(
    number: int, vcpu: int | None = 0, nice: int = 0, account: Account = Account.COUNTING, **more: Any
) -> TaskSpec:
    """Task ``number``, for ``vcpu`` only (None: any), with ``number`` in RBX, which it reports as ``count``."""
    chosen: dict[str, Any] = {
        "name": f"toy/{number}",
        "program": "toy",
        "account": account,
        "registers": register_file.new(rip=CODE_GVA, rbx=number),
        "results": (("count", "rbx"),),
        "nice": nice,
        "vcpus": () if vcpu is None else (vcpu,),
    }
    return TaskSpec(**(chosen | more))


def plan(*tasks: TaskSpec, name: str = "toys", **more: Any) -> ProcessPlan:
    """A process of these tasks with a page of code, and what ``more`` says."""
    return ProcessPlan(**{"name": name, "regions": (CODE,), "tasks": tasks, **more})


def access_plan(*tasks: TaskSpec, name: str = "served") -> ProcessPlan:
    """A process with memory for accesses, and a ring for each of its tasks."""
    rings = [Region(RING_GVA + i * PAGE_SIZE, 1, demand_zero=True) for i in range(len(tasks))]
    memory = Region(MEMORY_GVA, MEMORY_PAGES, demand_zero=True)
    return ProcessPlan(name, (CODE, *rings, memory), tasks, memory=(MEMORY_GVA, MEMORY_PAGES))


def access_spec(number: int, place: int = 0, vcpu: int | None = 0, **more: Any) -> TaskSpec:
    """Access thread ``number``, the ``place``-th of its process."""
    return spec(number, vcpu, Account.OTHER, **{"ring": RING_GVA + place * PAGE_SIZE, **more})


def space(vcpus: int = 1, asid: int = 1) -> AddressSpace:
    """The address space of ``plan``'s first process."""
    return AddressSpace(asid, (Extent(CODE_GVA, 1 + vcpus, 1, writable=False, executable=True),))


def task(number: int) -> Task:
    """A task of no kernel, ready."""
    made = spec(number)
    return Task(number, made, 1, "toys", CfsEntity(number), made.registers, cpu=0)


@dataclass
class Guest:
    """A GuestCore, what each vCPU was last told, and the guest memory that the kernel itself wrote.

    ``posts``, ``answers`` and ``logs`` collect effects; ``now_ns`` is the last trap's time.
    """

    core: GuestCore
    journal: Journal
    told: dict[int, Dispatch] = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)
    posts: list[int] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    held: dict[int, bytes | None] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    sink: io.StringIO = field(default_factory=io.StringIO)

    def trap(self, trap: Trap, now_ns: int, vcpu: int = 0, registers: bytes | None = None, **more: Any) -> Dispatch:
        """Raise ``trap`` with the registers the vCPU holds (or ``registers``); its Dispatch."""
        given = registers if registers is not None else self.held.get(vcpu)
        effects = self.core.step(TrapTaken(vcpu, TrapRaised(trap, given, **more)), now_ns)
        self.core.check()
        return self._take(effects, now_ns, vcpu, given)

    def _take(self, effects: Sequence[Effect], now_ns: int, vcpu: int, given: bytes | None) -> Dispatch:
        *others, reply = effects
        assert isinstance(reply, Reply) and reply.vcpu == vcpu
        self._collect(others)
        dispatch = reply.dispatch
        assert dispatch.at_ns > now_ns
        assert 0 <= dispatch.apf_ns <= dispatch.at_ns - now_ns
        for gpa, data in dispatch.copies:
            self.write(gpa, data)
        self.held[vcpu] = (dispatch.registers or given) if dispatch.task else None
        self.told[vcpu] = dispatch
        return dispatch

    def _collect(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Post(vcpu=vcpu):
                    assert effects.count(effect) == 1 and vcpu in self.told, "posted twice, or to a vCPU that is off"
                    if vcpu not in self.posts:
                        self.posts.append(vcpu)
                case Log():
                    self.logs.append(effect)
                case Reply():
                    raise AssertionError("two replies")
                case _:
                    self.answers.append(effect)

    def arrive(self, *arrivals: Arrival, now_ns: int) -> list[Answer]:
        """Let these arrive; the answers."""
        before = len(self.answers)
        self._collect(self.core.step(ArrivalsTaken(arrivals), now_ns))
        self.core.check()
        return self.answers[before:]

    def boot(self, vcpu: int = 0) -> Dispatch:
        """The vCPU's first trap."""
        return self.trap(Booted(), 0, vcpu)

    def boot_all(self) -> Guest:
        """Boot every vCPU, and forget what was posted on the way."""
        for vcpu in range(len(self.core._kernel.cpus)):
            self.boot(vcpu)
        self.posts.clear()
        return self

    def stop(self, now_ns: int, vcpu: int = 0) -> Dispatch:
        """The vCPU's last trap."""
        return self.trap(Stopped(), now_ns, vcpu)

    def syscall(self, number: Syscall | int, *arguments: int, now_ns: int, vcpu: int = 0, **more: Any) -> Dispatch:
        """The task that ``vcpu`` runs makes a system call, at ``now_ns`` or as soon as it runs."""
        now_ns = max(now_ns, self.told[vcpu].at_ns)
        names = ("rdi", "rsi", "rdx")[: len(arguments)]
        values = dict(zip(names, arguments, strict=True))
        before = self.held[vcpu]
        assert before is not None, f"vCPU {vcpu} idles"
        data = b"".join(self.read(*piece) for piece in self.told[vcpu].syscall_fetch)
        registers = register_file.replace(before, rax=int(number), **values)
        return self.trap(SyscallRaised(data), now_ns, vcpu, registers, **more)

    def fetched(self, now_ns: int, vcpu: int = 0, **more: Any) -> Dispatch:
        """The vCPU has read what it was asked to."""
        pieces = self.told[vcpu].fetch
        assert pieces, "nothing was to be fetched"
        return self.trap(Fetched(b"".join(self.read(*piece) for piece in pieces)), now_ns, vcpu, **more)

    def interrupt(self, now_ns: int, vcpu: int = 0) -> Dispatch:
        """A posted interrupt arrives."""
        assert vcpu in self.posts, f"nothing was posted to vCPU {vcpu}"
        self.posts.remove(vcpu)
        return self.trap(InterruptArrived(), now_ns, vcpu)

    def timer(self, vcpu: int = 0, late_ns: int = 0) -> Dispatch:
        """The vCPU's timer expires."""
        return self.trap(TimerArrived(), self.told[vcpu].timer_ns + late_ns, vcpu)

    def not_present(self, token: int, now_ns: int, vcpu: int = 0) -> Dispatch:
        """The task that ``vcpu`` runs waits for a page."""
        return self.trap(NotPresentArrived(token), now_ns, vcpu)

    def result(self, vcpu: int = 0) -> int:
        """RAX of the task that ``vcpu`` runs, signed."""
        held = self.held[vcpu]
        assert held is not None
        value = register_file.get(held, "rax")
        return value - (1 << 64) if value >> 63 else value

    def write(self, gpa: int, data: bytes) -> None:
        """Guest memory."""
        self.memory |= {gpa + i: byte for i, byte in enumerate(data)}

    def read(self, gpa: int, length: int) -> bytes:
        """Guest memory; what nobody wrote is zero."""
        return bytes(self.memory.get(gpa + i, 0) for i in range(length))

    def row(self, number: int) -> TaskResult:
        """A task's row of the result."""
        return self.core.results()[number - 1]

    def records(self, kind: str) -> list[tuple[str, ...]]:
        """What the journal says of ``kind``."""
        self.journal.flush()
        lines = [line.split() for line in self.sink.getvalue().splitlines()]
        return [tuple(words) for _, name, *words in lines if name == kind]

    def states(self) -> list[str]:
        """Of all tasks, by id."""
        return [row.state for row in self.core.results()]


def guest(*tasks: TaskSpec, **overrides: Any) -> Guest:
    """A guest with these tasks in one process, not booted."""
    return guest_of(*([plan(*tasks)] if tasks else []), **overrides)


def guest_of(*plans: ProcessPlan, **overrides: Any) -> Guest:
    """A guest with these processes, not booted."""
    sink = io.StringIO()
    journal = Journal(sink)
    chosen = scenario(**overrides)
    return Guest(GuestCore(chosen, plans, schedulers.load(chosen.sched.policy), journal), journal, sink=sink)
