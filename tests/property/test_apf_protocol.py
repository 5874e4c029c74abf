"""The APF protocol as a state machine: vCPU cores and a guest kernel's core around a host that may answer anything.

Every not-present gets exactly one ready, or a wake-all; no more than 64 items; no live token twice; nothing is told
where it must not be; and when nobody faults any more, nobody waits any more: no lasting disagreement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apf import messages as m
from apf import registers as register_file
from apf.costs import Costs
from apf.journal import Journal
from apf.scenario import load
from guestsched import schedulers
from guestsched.core.core import GuestCore, Post, Reply, TrapTaken
from guestsched.core.process import ProcessPlan, Region
from guestsched.core.syscall import Syscall
from guestsched.core.task import TaskSpec
from vcpud.core.async_pf import ASYNC_PF_PER_VCPU, WAKE_ALL
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    Attached,
    Effect,
    EnterGuest,
    ExitCause,
    GuestExited,
    GuestMemoryRead,
    GuestMemoryWritten,
    GuestReplied,
    HostReplied,
    InjectReason,
    InterruptPosted,
    LoadTask,
    ReadGuest,
    ReasonRead,
    TimeReached,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.injected import Injected, Injection
from vcpud.core.vcpu import State, VcpuConfig, VcpuCore

CODE_GVA = 0x40_0000
HARMLESS = (
    *(Injected.RESTORE, Injected.ALLOC_FAILURE, Injected.LAPIC_OFF, Injected.PAGING_OFF),
    Injected.DUPLICATE_READY,
)
"""Injected faults after which everybody must get on all the same.

A dropped ACK is none of them: what is done by then is looked at again by nobody, for only the first item on an empty
list of done ones asks for it (E22).
"""
QUIET_STEPS = 4000


def task(number: int) -> TaskSpec:
    return TaskSpec(f"t{number}", "toy", m.Account.OTHER, register_file.new(rip=CODE_GVA, rbx=number))


@dataclass
class Cpu:
    """A vCPU's core, what it does next, and who it has told what."""

    index: int
    core: VcpuCore
    todo: list[Effect] = field(default_factory=list)
    registers: bytes | None = None
    posted_ns: int | None = None
    open: set[int] = field(default_factory=set)
    ready: set[int] = field(default_factory=set)
    woken: set[int] = field(default_factory=set)
    """By a wake-all: their own ready may follow, and leaves a dummy."""

    @property
    def next(self) -> Effect:
        return self.todo[-1]

    @property
    def time_ns(self) -> int:
        at_ns = self.next.at_ns if isinstance(self.next, WaitUntil) else self.core.now_ns
        if self.posted_ns is not None and self.core.state in (State.IDLE, State.HALTED):
            at_ns = min(at_ns, max(self.core.now_ns, self.posted_ns))
        return at_ns


class Protocol(RuleBasedStateMachine):
    """One guest on one or two vCPUs, and a host."""

    @initialize(
        mode=st.sampled_from(["halt", "pv2010", "pv", "pv"]),
        vcpus=st.integers(1, 2),
        tasks=st.sampled_from([1, 3, 3, 70]),
        policy=st.sampled_from(["cfs", "eevdf", "rr"]),
        injected=st.lists(
            st.tuples(st.sampled_from(HARMLESS), st.integers(0, 300_000), st.integers(1, 3)), max_size=2
        ),
    )
    def start(self, mode: str, vcpus: int, tasks: int, policy: str, injected: list[Any]) -> None:
        scenario = load(None, {"apf": [mode], "vm.vcpus": vcpus, "sched.policy": policy, "vm.hz": 1000})
        plan = ProcessPlan(
            "toys", (Region(CODE_GVA, 4, b"x" * 64, executable=True, writable=False),), tuple(map(task, range(tasks)))
        )
        self.guest = GuestCore(scenario, (plan,), schedulers.load(policy), Journal())
        self.words: dict[int, bytes] = {}
        self.resident: set[int] = set()
        self.mode = m.ApfMode[mode.upper()]
        self.duplicates = any(what is Injected.DUPLICATE_READY for what, _, _ in injected)
        self.cpus = []
        for index in range(vcpus):
            injections = tuple(
                Injection(what, at_ns, nth if "_ready" in what.value else 1, 1, 50_000 if "_off" in what.value else 0)
                for what, at_ns, nth in injected
            )
            config = VcpuConfig(
                *(index, self.mode, 1000, 1000, m.NEVER_NS, Costs()),
                injections=injections,
                guest_bytes=scenario.vm.guest_memory,
            )
            cpu = Cpu(index, VcpuCore(config, Journal()))
            cpu.todo = cpu.core.step(Attached(), 0)
            self.cpus.append(cpu)

    # the earliest goes on, as servers take requests

    def earliest(self) -> Cpu:
        return min(self.cpus, key=lambda cpu: (cpu.time_ns, cpu.index))

    @rule(data=st.data(), steps=st.integers(1, 12))
    def proceed(self, data: st.DataObject, steps: int) -> None:
        """Some steps of whoever is earliest."""
        for _ in range(steps):
            self.go_on(self.earliest(), data.draw)

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        """The host takes pages away."""
        if self.resident:
            self.resident.discard(data.draw(st.sampled_from(sorted(self.resident))))

    @precondition(lambda self: len(self.resident) > 3)
    @rule()
    def evict_all(self) -> None:
        self.resident.clear()

    def go_on(self, cpu: Cpu, draw: Any) -> None:
        """Carry out the effect of ``cpu``; without ``draw`` nothing new happens."""
        if cpu.posted_ns is not None and cpu.core.state in (State.RUNNING, State.IDLE, State.HALTED):
            now_ns = max(cpu.core.now_ns, cpu.posted_ns)
            if cpu.core.state is not State.RUNNING or now_ns == cpu.core.now_ns:
                cpu.posted_ns = None
                self.step(cpu, InterruptPosted(cpu.core.retired, None), now_ns)
                return
        match cpu.next:
            case EnterGuest() as enter:
                self.run(cpu, enter, draw)
            case WaitUntil(at_ns=at_ns):
                self.step(cpu, TimeReached(), at_ns)
            case AskHost(request=request):
                self.step(cpu, HostReplied(self.host(cpu, request, draw)))
            case AskGuest() as asked:
                self.trap(cpu, asked)
            case InjectReason(reason=reason):
                out = draw is not None and draw(st.integers(0, 9)) == 9
                self.step(cpu, ReasonRead(None if out else reason))
            case ReadGuest(gpa=gpa, length=length):
                out = draw is not None and draw(st.integers(0, 5)) == 5
                self.step(cpu, GuestMemoryRead(None if out else self.words.get(gpa, bytes(length))))
            case WriteGuest(gpa=gpa, data=data):
                out = draw is not None and draw(st.integers(0, 5)) == 5
                if not out:
                    self.words[gpa] = data
                self.step(cpu, GuestMemoryWritten(not out))
            case other:
                raise AssertionError(other)

    def step(self, cpu: Cpu, event: Any, now_ns: int | None = None) -> None:
        effects = cpu.core.step(event, cpu.core.now_ns if now_ns is None else now_ns)
        cpu.core.check()
        cpu.todo = effects or cpu.todo
        for effect in effects:
            if isinstance(effect, LoadTask):
                cpu.registers = effect.registers

    def run(self, cpu: Cpu, enter: EnterGuest, draw: Any) -> None:
        """User code: it runs out its time, faults, or makes a system call."""
        left_ns = max(1, min(enter.until_ns - cpu.core.now_ns, 2_000_000))
        cause = ExitCause.BUDGET
        if draw is not None:
            cause = draw(st.sampled_from([ExitCause.BUDGET, *[ExitCause.EPT_VIOLATION] * 5, ExitCause.SYSCALL]))
        ns = left_ns if cause is ExitCause.BUDGET else draw(st.integers(0, min(left_ns, 30_000)))
        gfn = draw(st.integers(100, 200)) if cause is ExitCause.EPT_VIOLATION else 0
        if cause is ExitCause.SYSCALL:
            assert cpu.registers is not None
            number = draw(st.sampled_from([Syscall.SCHED_YIELD, Syscall.WRITE, Syscall.NANOSLEEP]))
            arguments = {"rdi": 20_000, "rsi": CODE_GVA + 8, "rdx": 6}
            cpu.registers = register_file.replace(cpu.registers, rax=int(number), **arguments)
        retired = cpu.core.retired + ns
        self.step(cpu, GuestExited(cause, retired, gfn=gfn), enter.base_ns + retired)

    def host(self, cpu: Cpu, request: m.HostRequest, draw: Any) -> m.HostReply:
        """Any answer the host may give; at once and without I/O when nothing new is to happen."""
        now_ns, gfn = cpu.core.now_ns, request.gfn
        at_ns = now_ns + 1500
        if draw is not None and draw(st.integers(0, 11)) == 11:
            return m.Retry(at_ns + 5000)
        nowait = isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT
        if gfn in self.resident or draw is None:
            self.resident.add(gfn)
            return m.Mapped(at_ns, gfn, 7, True, m.FaultKind.MINOR, 0)
        self.resident.add(gfn)
        if nowait:
            assert isinstance(request, m.FaultRaised)
            live = {item.token for item in cpu.core.async_pf.queue}
            assert request.work not in live | {0, WAKE_ALL} and request.work & 0xFFF == cpu.index
            return m.InProgress(at_ns, request.work, at_ns + draw(st.integers(0, 400_000)))
        stall_ns = draw(st.integers(1, 200_000))
        return m.Mapped(at_ns + stall_ns, gfn, 7, True, m.FaultKind.MAJOR, stall_ns)

    def trap(self, cpu: Cpu, asked: AskGuest) -> None:
        trap = asked.trap
        if isinstance(trap, m.NotPresentArrived):
            assert not asked.kernel and cpu.core._at is State.RUNNING, "told where it must not be"
            assert trap.token not in cpu.open and trap.token not in (0, WAKE_ALL)
            assert len(cpu.core.async_pf) <= ASYNC_PF_PER_VCPU + 1
            cpu.open.add(trap.token)
            cpu.ready.discard(trap.token)
        elif isinstance(trap, m.PageReadyArrived):
            self.told_ready(cpu, trap.token)
        raised = m.TrapRaised(
            *(trap, cpu.registers if asked.with_registers else None, asked.min_flt, asked.maj_flt),
            *(asked.faults, asked.samples, asked.kernel),
        )
        *others, reply = self.guest.step(TrapTaken(cpu.index, raised), cpu.core.now_ns)
        self.guest.check()
        for other in others:
            if isinstance(other, Post):
                self.cpus[other.vcpu].posted_ns = cpu.core.now_ns
        assert isinstance(reply, Reply)
        if not reply.dispatch.task:
            cpu.registers = None
        self.step(cpu, GuestReplied(reply.dispatch))

    def told_ready(self, cpu: Cpu, token: int) -> None:
        if token == WAKE_ALL:
            cpu.woken |= cpu.open
            cpu.open.clear()
        elif token in cpu.open or token in cpu.woken:
            cpu.open.discard(token)
            cpu.woken.discard(token)
            cpu.ready.add(token)
        else:
            assert self.duplicates and (token == 0 or token in cpu.ready), f"{token:#x}: nobody was told of it before"

    # what must hold

    @invariant()
    def agree(self) -> None:
        """Whoever waits in the guest is waited for by his vCPU, or woken by what is on its way."""
        for node in self.guest.waiting():
            core = self.cpus[node.cpu].core
            live = {item.token for item in core.async_pf.queue if item.injected or item.wakeup_all}
            assert node.token in live or WAKE_ALL in live or core.telling, f"{node}\n{core.story()}"
            assert node.token in self.cpus[node.cpu].open
        for cpu in self.cpus:
            assert len(cpu.core.async_pf) <= ASYNC_PF_PER_VCPU + 1
            if self.mode is m.ApfMode.HALT:
                assert not cpu.open and cpu.core.counters.ready == 0

    def teardown(self) -> None:
        """Nobody faults any more: before long nobody waits any more, and every slot is free."""
        if not hasattr(self, "cpus"):
            return
        for _ in range(QUIET_STEPS):
            if self.quiet():
                break
            self.go_on(self.earliest(), None)
        assert self.quiet(), [cpu.core.story() for cpu in self.cpus]
        for cpu in self.cpus:
            token = self.words.get(cpu.core.msrs.token_gpa, bytes(4))
            assert self.mode is not m.ApfMode.PV or token == bytes(4), "the slot is free again"

    def quiet(self) -> bool:
        waits = any(
            len(cpu.core.async_pf) or cpu.core.telling or cpu.core._announcing() is State.STEPS for cpu in self.cpus
        )
        return not waits and not self.guest.waiting()


Protocol.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestProtocol = Protocol.TestCase
