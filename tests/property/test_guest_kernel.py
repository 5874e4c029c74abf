"""The guest kernel against a naive model: who waits, who is dead, who is charged, whatever order traps come in."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apf import registers as register_file
from apf.journal import Journal
from apf.messages import (
    NEVER_NS,
    Account,
    Booted,
    ExceptionRaised,
    NotPresentArrived,
    PageReadyArrived,
    Stopped,
    SyscallRaised,
    TickArrived,
    Trap,
    TrapRaised,
)
from apf.scenario import load
from guestsched.core.core import GuestCore, Post, Reply, TrapTaken
from guestsched.core.process import ProcessPlan
from guestsched.core.task import TaskSpec
from guestsched.schedulers import load as load_policy

VCPUS = 2
WAKE_ALL = 0xFFFF_FFFF
GAPS_NS = st.integers(0, 20_000_000)
CPUS = st.integers(0, VCPUS - 1)


@dataclass
class ModelCpu:
    """What the vCPU knows: its time, the task it runs, until when; and the tasks that live there."""

    home: set[int] = field(default_factory=set)
    running: int = 0
    registers: bytes | None = None
    now_ns: int = 0
    charged_to_ns: int = 0
    run_until_ns: int = NEVER_NS


class GuestKernel(RuleBasedStateMachine):
    """``waiting`` and ``dummies`` map tokens to tasks and vCPUs; ``charged_ns`` is time by task, 0 being idle."""

    @initialize(nices=st.lists(st.tuples(CPUS, st.integers(-20, 19)), max_size=7))
    def boot(self, nices: list[tuple[int, int]]) -> None:
        tasks = tuple(
            TaskSpec(f"toy/{number}", "toy", Account.OTHER, register_file.new(rbx=number), nice=nice, vcpus=(vcpu,))
            for number, (vcpu, nice) in enumerate(nices, start=1)
        )
        scenario = load(None, {"apf": ["pv2010"], "vm.vcpus": VCPUS})
        self.core = GuestCore(scenario, (ProcessPlan("toys", (), tasks),), load_policy("cfs"), Journal())
        self.cpus = [ModelCpu() for _ in range(VCPUS)]
        for number, task in enumerate(tasks, start=1):
            self.cpus[task.vcpus[0]].home.add(number)
        self.waiting: dict[int, int] = {}
        self.dummies: dict[int, int] = {}
        self.dead: set[int] = set()
        self.charged_ns = [0] * (len(tasks) + 1)
        self.idle_ns = [0] * VCPUS
        self.next_id = 1
        for vcpu in range(VCPUS):
            self.trap(vcpu, Booted(), 0)

    def trap(self, vcpu: int, trap: Trap, gap_ns: int) -> int:
        """Raise ``trap`` ``gap_ns`` after the vCPU went on; the task that runs then, with its own registers."""
        cpu = self.cpus[vcpu]
        now_ns = cpu.now_ns + gap_ns
        *others, reply = self.core.step(TrapTaken(vcpu, TrapRaised(trap, cpu.registers)), now_ns)
        assert isinstance(reply, Reply) and reply.vcpu == vcpu
        assert not any(isinstance(other, Post) for other in others), "nothing here concerns the other vCPU"
        told, before = reply.dispatch, cpu.running
        assert told.at_ns > now_ns
        if before:
            self.charged_ns[before] += now_ns - cpu.charged_to_ns
        else:
            self.idle_ns[vcpu] += now_ns - cpu.charged_to_ns
        cpu.charged_to_ns, cpu.now_ns = now_ns, told.at_ns
        cpu.running, cpu.run_until_ns = told.task, told.run_until_ns
        cpu.registers = (told.registers or (cpu.registers if told.task == before else None)) if told.task else None
        if told.task:
            assert cpu.registers is not None, f"task {told.task} runs without registers"
            assert register_file.get(cpu.registers, "rbx") == told.task, "registers of another task"
        return told.task

    def token(self, vcpu: int) -> int:
        self.next_id += 1
        return self.next_id << 12 | vcpu

    def runnable(self, vcpu: int) -> set[int]:
        return self.cpus[vcpu].home - self.dead - set(self.waiting.values())

    @precondition(lambda self: any(cpu.running for cpu in self.cpus))
    @rule(data=st.data(), gap_ns=GAPS_NS, early=st.booleans())
    def not_present(self, data: st.DataObject, gap_ns: int, early: bool) -> None:
        vcpu = data.draw(st.sampled_from([i for i, cpu in enumerate(self.cpus) if cpu.running]))
        before = self.cpus[vcpu].running
        stored = sorted(token for token, cpu in self.dummies.items() if cpu == vcpu)
        if early and stored:
            token = data.draw(st.sampled_from(stored))
            del self.dummies[token]
            assert self.trap(vcpu, NotPresentArrived(token), gap_ns) == before, "slept although ready had come"
        else:
            token = self.token(vcpu)
            self.waiting[token] = before
            assert self.trap(vcpu, NotPresentArrived(token), gap_ns) != before

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), gap_ns=GAPS_NS)
    def ready(self, data: st.DataObject, gap_ns: int) -> None:
        token = data.draw(st.sampled_from(sorted(self.waiting)))
        task = self.waiting.pop(token)
        self.trap(token & 0xFFF, PageReadyArrived(token), gap_ns)
        assert self.core.results()[task - 1].state in ("READY", "RUNNING")

    @rule(vcpu=CPUS, gap_ns=GAPS_NS)
    def ready_first(self, vcpu: int, gap_ns: int) -> None:
        token, before = self.token(vcpu), self.cpus[vcpu].running
        self.dummies[token] = vcpu
        assert self.trap(vcpu, PageReadyArrived(token), gap_ns) == before

    @rule(vcpu=CPUS, gap_ns=GAPS_NS)
    def wake_all(self, vcpu: int, gap_ns: int) -> None:
        self.waiting = {token: task for token, task in self.waiting.items() if token & 0xFFF != vcpu}
        self.dummies = {token: cpu for token, cpu in self.dummies.items() if cpu != vcpu}
        self.trap(vcpu, PageReadyArrived(WAKE_ALL), gap_ns)

    @precondition(lambda self: any(cpu.run_until_ns < NEVER_NS for cpu in self.cpus))
    @rule(data=st.data(), late_ns=GAPS_NS)
    def tick(self, data: st.DataObject, late_ns: int) -> None:
        vcpu = data.draw(st.sampled_from([i for i, cpu in enumerate(self.cpus) if cpu.run_until_ns < NEVER_NS]))
        cpu = self.cpus[vcpu]
        before = cpu.running
        gap_ns = max(0, cpu.run_until_ns - cpu.now_ns) + late_ns
        assert self.trap(vcpu, TickArrived(), gap_ns) not in (0, before), "the tick changed nothing"

    @precondition(lambda self: any(cpu.running for cpu in self.cpus))
    @rule(data=st.data(), gap_ns=GAPS_NS, number=st.sampled_from([24, 228, 999]))
    def system_call(self, data: st.DataObject, gap_ns: int, number: int) -> None:
        vcpu = data.draw(st.sampled_from([i for i, cpu in enumerate(self.cpus) if cpu.running]))
        cpu = self.cpus[vcpu]
        assert cpu.registers is not None
        cpu.registers = register_file.replace(cpu.registers, rax=number)
        before = cpu.running
        after = self.trap(vcpu, SyscallRaised(), gap_ns)
        assert after == before or number == 24

    @precondition(lambda self: any(cpu.running for cpu in self.cpus))
    @rule(data=st.data(), gap_ns=GAPS_NS, exits=st.booleans())
    def death(self, data: st.DataObject, gap_ns: int, exits: bool) -> None:
        vcpu = data.draw(st.sampled_from([i for i, cpu in enumerate(self.cpus) if cpu.running]))
        cpu = self.cpus[vcpu]
        assert cpu.registers is not None
        cpu.registers = register_file.replace(cpu.registers, rax=60)
        before = cpu.running
        self.dead.add(before)
        assert self.trap(vcpu, SyscallRaised() if exits else ExceptionRaised(6, 0, 0), gap_ns) != before

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.check()
        rows = self.core.results()
        asleep = set(self.waiting.values())
        for row in rows:
            assert (row.state == "APF_WAIT") == (row.id in asleep), row
            assert (row.state == "DEAD") == (row.id in self.dead), row
            assert (row.state == "RUNNING") == any(cpu.running == row.id for cpu in self.cpus), row
            assert row.sum_exec_ns == self.charged_ns[row.id], row
        for vcpu, cpu in enumerate(self.cpus):
            runnable = self.runnable(vcpu)
            assert cpu.running in runnable or (cpu.running == 0 and not runnable)
            assert (cpu.run_until_ns == NEVER_NS) == (len(runnable) < 2)
            assert self.core.cpu(vcpu).rq.idle_ns == self.idle_ns[vcpu]

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for vcpu in range(VCPUS):
            self.trap(vcpu, Stopped(), 1)
        rows = self.core.finish(max(cpu.now_ns for cpu in self.cpus))
        assert [row.id for row in rows] == list(range(1, len(self.charged_ns))), "tasks are conserved"


TestGuestKernel = GuestKernel.TestCase
TestGuestKernel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
