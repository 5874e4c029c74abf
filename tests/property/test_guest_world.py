"""The guest kernel in any world: traps, timers, system calls and arrivals as they come, on 1 to 4 vCPUs, each policy.

The vCPUs here keep the contract (``cpu.py``), and time goes on for all of them together, as on the clock page. Beside
the core's own invariants, after every step: nobody is forgotten (whatever concerns a vCPU that has not heard of it is
posted), every task runs with its own registers, every ticket is with somebody or answered once, and at the end every
nanosecond of every vCPU is somebody's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from apf import registers as register_file
from apf.journal import Journal
from apf.messages import (
    NEVER_NS,
    PAGE_SIZE,
    Account,
    Booted,
    Dispatch,
    ExceptionRaised,
    FaultKind,
    FaultMet,
    Fetched,
    InterruptArrived,
    KernelPath,
    NotPresentArrived,
    PageReadyArrived,
    ProtocolFault,
    Sample,
    Stopped,
    SyscallRaised,
    TickArrived,
    TimerArrived,
    Trap,
    TrapRaised,
)
from apf.scenario import load
from guestsched.core.arrivals import (
    AccessArrived,
    AccessCancelled,
    Answer,
    Arrival,
    InjectArrived,
    KillArrived,
    ProcessEnded,
    ReplayArrived,
    SpawnArrived,
    Spawned,
)
from guestsched.core.core import ArrivalsTaken, Effect, GuestCore, Log, Post, Reply, TrapTaken
from guestsched.core.process import ProcessPlan, Region
from guestsched.core.syscall import Syscall
from guestsched.core.task import AccessList, TaskSpec, TaskState, TraceAccess
from guestsched.schedulers import load as load_policy

CODE = Region(0x40_0000, 1, b"\x90" * 64, writable=False, executable=True)
DATA = Region(0x5000_0000, 2, demand_zero=True)
RING = Region(0x6000_0000, 1, demand_zero=True)
MEMORY = Region(0x1_0000_0000, 4, demand_zero=True)
PAGES = (0, 1, 2, 3)
GAPS_NS = st.one_of(st.integers(0, 5_000), st.integers(0, 20_000_000))
TASKS_MOST = 24


@dataclass(frozen=True)
class Kind:
    """What a task is to be: whether an access thread, one with a list of its own, its affinity and times."""

    access: bool
    trace: AccessList | None
    vcpus: tuple[int, ...]
    nice: int
    start_ns: int
    lifetime_ns: int


def listed(items: list[tuple[int, bool, int]]) -> AccessList:
    return AccessList(tuple(TraceAccess(page * PAGE_SIZE, 1, write, at_ns=at_ns) for page, write, at_ns in items))


items_of = st.lists(
    st.tuples(st.sampled_from(PAGES), st.booleans(), st.sampled_from([0, 10_000_000])), min_size=1, max_size=4
)
kinds = st.builds(
    Kind,
    access=st.booleans(),
    trace=st.one_of(st.none(), st.none(), items_of.map(listed)),
    vcpus=st.sampled_from([(), (), (0,), (1,), (0, 2)]),
    nice=st.sampled_from([0, 0, -20, -3, 5, 19]),
    start_ns=st.sampled_from([0, 0, 3_000_000, 60_000_000]),
    lifetime_ns=st.sampled_from([0, 0, 0, 5_000_000, 40_000_000]),
)


@dataclass
class Vcpu:
    """What a vCPU knows; ``waiting`` are its tokens and whom they put to sleep."""

    told: Dispatch | None = None
    registers: bytes | None = None
    posted: bool = False
    stopped: bool = False
    waiting: dict[int, int] = field(default_factory=dict)

    @property
    def resume_ns(self) -> int:
        return self.told.at_ns if self.told is not None else 0


class GuestWorld(RuleBasedStateMachine):
    """``asked`` are the tickets without a final answer."""

    @initialize(
        policy=st.sampled_from(["cfs", "eevdf", "rr"]),
        vcpus=st.integers(1, 4),
        processes=st.lists(st.lists(kinds, min_size=1, max_size=4), min_size=1, max_size=2),
    )
    def boot(self, policy: str, vcpus: int, processes: list[list[Kind]]) -> None:
        self.vcpus = [Vcpu() for _ in range(vcpus)]
        self.now_ns = 0
        self.asked: set[int] = set()
        self.tickets = 0
        self.tokens = 0
        self.ended: set[int] = set()
        self.spawned: set[int] = set()
        self.tasks_planned = 0
        made = tuple(self.plan(tasks) for tasks in processes)
        scenario = load(None, {"apf": ["pv2010"], "vm.vcpus": vcpus})
        self.core = GuestCore(scenario, made, load_policy(policy), Journal())
        for vcpu in range(vcpus):
            self.trap(vcpu, Booted(), 0)

    # The world -------------------------------------------------------------------------------------------------------

    def plan(self, tasks: list[Kind]) -> ProcessPlan:
        specs, regions = [], [CODE, DATA, MEMORY]
        for place, kind in enumerate(tasks):
            self.tasks_planned += 1
            ring = RING.gva + place * PAGE_SIZE if kind.access else 0
            if ring:
                regions.append(Region(ring, 1, demand_zero=True))
            specs.append(
                TaskSpec(
                    f"toy/{self.tasks_planned}",
                    "toy",
                    Account.OTHER,
                    register_file.new(rip=CODE.gva, rbx=self.tasks_planned),
                    nice=kind.nice,
                    vcpus=tuple(vcpu for vcpu in kind.vcpus if vcpu < len(self.vcpus)),
                    start_ns=kind.start_ns,
                    lifetime_ns=kind.lifetime_ns,
                    ring=ring,
                    trace=kind.trace if ring else None,
                )
            )
        return ProcessPlan(f"p{self.tasks_planned}", tuple(regions), tuple(specs), memory=(MEMORY.gva, MEMORY.pages))

    def trap(self, vcpu: int, trap: Trap, now_ns: int, faults: tuple[FaultMet, ...] = ()) -> None:
        cpu = self.vcpus[vcpu]
        assert now_ns >= max(self.now_ns, cpu.resume_ns)
        self.now_ns = now_ns
        running = cpu.told.task if cpu.told is not None else 0
        samples = (Sample(running, CODE.gva, KernelPath.USER, 1),) if running else ()
        *others, reply = self.core.step(
            TrapTaken(vcpu, TrapRaised(trap, cpu.registers, faults=faults, samples=samples)), now_ns
        )
        assert isinstance(reply, Reply) and reply.vcpu == vcpu
        self.collect(others, vcpu)
        told = reply.dispatch
        assert told.at_ns > now_ns
        cpu.registers = (told.registers or (cpu.registers if told.task == running else None)) if told.task else None
        cpu.told = told
        if told.task:
            assert cpu.registers is not None, f"task {told.task} runs without registers"
            assert register_file.get(cpu.registers, "rbx") == told.task, "registers of another task"
            assert self.core.tasks[told.task].allowed_on(vcpu)

    def collect(self, effects: list[Effect], trapping: int | None) -> None:
        for effect, times in Counter(effects).items():
            assert times == 1 or isinstance(effect, Log), f"{effect} twice"
            match effect:
                case Post(vcpu=vcpu):
                    assert vcpu != trapping, "a vCPU interrupts itself"
                    assert not self.vcpus[vcpu].stopped
                    self.vcpus[vcpu].posted = True
                case Log():
                    pass
                case Reply():
                    raise AssertionError("a second reply")
                case _:
                    self.answered(effect)

    def answered(self, answer: Answer) -> None:
        if isinstance(answer, ProcessEnded):
            assert answer.process not in self.ended, "a process ends once"
            self.ended.add(answer.process)
            return
        assert answer.ticket in self.asked, f"{answer}: nobody asked, or it was answered already"
        self.asked.remove(answer.ticket)
        if isinstance(answer, Spawned):
            self.spawned.add(answer.process)

    def arrive(self, gap_ns: int, *arrivals: Arrival) -> None:
        self.now_ns += gap_ns
        self.collect(self.core.step(ArrivalsTaken(arrivals), self.now_ns), None)

    def ticket(self) -> int:
        self.tickets += 1
        self.asked.add(self.tickets)
        return self.tickets

    def up(self) -> list[int]:
        return [index for index, vcpu in enumerate(self.vcpus) if not vcpu.stopped]

    def pick(self, data: st.DataObject, running: bool = False) -> int | None:
        """A vCPU that may trap for what its guest does; one that reads memory does that first."""
        vcpu = data.draw(st.sampled_from(self.up()))
        told = self.vcpus[vcpu].told
        assert told is not None
        if told.fetch:
            self.fetched(vcpu)
            told = self.vcpus[vcpu].told
            assert told is not None
        return None if told.fetch or (running and not told.task) else vcpu

    def fetched(self, vcpu: int, gap_ns: int = 0) -> None:
        cpu = self.vcpus[vcpu]
        assert cpu.told is not None
        self.trap(vcpu, Fetched(bytes(sum(length for _, length in cpu.told.fetch))), self.when(vcpu, gap_ns))

    def call_of(self, vcpu: int) -> SyscallRaised:
        """A system call, with the memory that was to be read with it."""
        told = self.vcpus[vcpu].told
        assert told is not None
        return SyscallRaised(bytes(sum(length for _, length in told.syscall_fetch)))

    def when(self, vcpu: int, gap_ns: int) -> int:
        return max(self.now_ns, self.vcpus[vcpu].resume_ns) + gap_ns

    # Traps -----------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), gap_ns=GAPS_NS)
    def memory(self, data: st.DataObject, gap_ns: int) -> None:
        vcpu = data.draw(st.sampled_from(self.up()))
        told = self.vcpus[vcpu].told
        if told is not None and told.fetch:
            self.fetched(vcpu, gap_ns)

    @rule(data=st.data(), gap_ns=GAPS_NS)
    def due(self, data: st.DataObject, gap_ns: int) -> None:
        """A tick, a timer or an interrupt, if one is to come."""
        vcpu = self.pick(data)
        if vcpu is None:
            return
        cpu = self.vcpus[vcpu]
        assert cpu.told is not None
        told, now_ns = cpu.told, self.when(vcpu, gap_ns)
        choices: list[tuple[Trap, int]] = []
        if told.task and told.run_until_ns < NEVER_NS:
            choices.append((TickArrived(), told.run_until_ns))
        if told.timer_ns < NEVER_NS:
            choices.append((TimerArrived(), told.timer_ns))
        if cpu.posted:
            choices += [(InterruptArrived(), 0)] * 2
        if choices:
            trap, due_ns = data.draw(st.sampled_from(choices))
            if isinstance(trap, InterruptArrived):
                cpu.posted = False
            self.trap(vcpu, trap, max(now_ns, due_ns))

    @rule(data=st.data(), gap_ns=GAPS_NS, early=st.booleans())
    def not_present(self, data: st.DataObject, gap_ns: int, early: bool) -> None:
        vcpu = self.pick(data, running=True)
        if vcpu is None:
            return
        cpu = self.vcpus[vcpu]
        assert cpu.told is not None
        task = cpu.told.task
        self.tokens += 1
        token = self.tokens << 12 | vcpu
        if early:
            self.trap(vcpu, PageReadyArrived(token), self.when(vcpu, 0))
            if cpu.told.fetch or cpu.told.task == 0:
                return
            task = cpu.told.task
        self.trap(vcpu, NotPresentArrived(token), self.when(vcpu, gap_ns))
        if not early:
            cpu.waiting[token] = task

    @precondition(lambda self: any(vcpu.waiting for vcpu in self.vcpus if not vcpu.stopped))
    @rule(data=st.data(), gap_ns=GAPS_NS, wake_all=st.sampled_from([False] * 9 + [True]))
    def page_ready(self, data: st.DataObject, gap_ns: int, wake_all: bool) -> None:
        vcpu = data.draw(st.sampled_from([i for i in self.up() if self.vcpus[i].waiting]))
        cpu = self.vcpus[vcpu]
        assert cpu.told is not None
        if cpu.told.fetch:
            return
        if wake_all:
            cpu.waiting.clear()
            self.trap(vcpu, PageReadyArrived(0xFFFF_FFFF), self.when(vcpu, gap_ns))
            return
        token = data.draw(st.sampled_from(sorted(cpu.waiting)))
        del cpu.waiting[token]
        self.trap(vcpu, PageReadyArrived(token), self.when(vcpu, gap_ns))

    @rule(data=st.data(), gap_ns=GAPS_NS, semaphore=st.integers(0, 2), size=st.integers(0, 9000))
    def system_call(self, data: st.DataObject, gap_ns: int, semaphore: int, size: int) -> None:
        vcpu = self.pick(data, running=True)
        if vcpu is None:
            return
        cpu = self.vcpus[vcpu]
        assert cpu.told is not None and cpu.registers is not None
        spec = self.core.tasks[cpu.told.task].spec
        calls = [Syscall.TAKE] * (5 if spec.ring else 1)
        calls += [call for call in Syscall if call is not Syscall.EXIT]
        number = data.draw(st.sampled_from([*calls, Syscall.WAIT, Syscall.WAKE, 999]))
        first = {Syscall.NANOSLEEP: size * 1000, Syscall.MMAP: size}.get(number, semaphore)
        second = DATA.gva if number == Syscall.WRITE else min(size, 3)
        cpu.registers = register_file.replace(cpu.registers, rax=int(number), rdi=first, rsi=second, rdx=size)
        page = data.draw(st.sampled_from(PAGES))
        extent = self.core.processes[cpu.told.asid].extent_of(MEMORY.gva)
        assert extent is not None
        faults = (FaultMet(extent.gfn + page, data.draw(st.sampled_from(FaultKind))),) if cpu.told.log_faults else ()
        self.trap(vcpu, self.call_of(vcpu), self.when(vcpu, gap_ns), faults)

    @rule(data=st.data(), gap_ns=GAPS_NS, vector=st.sampled_from([0, 6, 14]), seldom=st.integers(0, 3))
    def death(self, data: st.DataObject, gap_ns: int, vector: int, seldom: int) -> None:
        vcpu = self.pick(data, running=True)
        if vcpu is None or seldom:
            return
        cpu = self.vcpus[vcpu]
        assert cpu.registers is not None
        if vector:
            self.trap(vcpu, ExceptionRaised(vector, 0x10, CODE.gva), self.when(vcpu, gap_ns))
        else:
            cpu.registers = register_file.replace(cpu.registers, rax=int(Syscall.EXIT), rdi=3)
            self.trap(vcpu, self.call_of(vcpu), self.when(vcpu, gap_ns))

    # Arrivals --------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), gap_ns=GAPS_NS, count=st.integers(1, 5), offset=st.integers(0, 5 * 512))
    def accesses(self, data: st.DataObject, gap_ns: int, count: int, offset: int) -> None:
        process = data.draw(st.integers(1, len(self.core.processes) + 1))
        arrivals: list[Arrival] = [
            AccessArrived(self.ticket(), process, 8 * (offset + i), data.draw(st.integers(0, 600)), i % 2 == 0)
            for i in range(count)
        ]
        self.arrive(gap_ns, *arrivals)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A replay, or what a thread has taken, is not taken back."""
        ticket = data.draw(st.sampled_from(sorted(self.asked)))
        self.arrive(0, AccessCancelled(ticket, data.draw(st.integers(1, len(self.core.processes)))))

    @rule(data=st.data(), gap_ns=GAPS_NS, items=items_of)
    def replay(self, data: st.DataObject, gap_ns: int, items: list[tuple[int, bool, int]]) -> None:
        process = data.draw(st.integers(1, len(self.core.processes) + 1))
        accesses = listed([(page, write, 0) for page, write, _ in items])
        self.arrive(gap_ns, ReplayArrived(self.ticket(), process, accesses))

    @precondition(lambda self: self.tasks_planned < TASKS_MOST)
    @rule(gap_ns=GAPS_NS, tasks=st.lists(kinds, min_size=1, max_size=3))
    def spawn(self, gap_ns: int, tasks: list[Kind]) -> None:
        self.arrive(gap_ns, SpawnArrived(self.ticket(), self.plan(tasks)))

    @rule(data=st.data(), gap_ns=GAPS_NS)
    def kill(self, data: st.DataObject, gap_ns: int) -> None:
        process = data.draw(st.integers(1, len(self.core.processes) + 1))
        there = self.core.processes.get(process)
        task = data.draw(st.sampled_from([0, 99, *(there.tasks * 3 if there else [])]))
        self.arrive(gap_ns, KillArrived(self.ticket(), process, task))

    @rule(gap_ns=GAPS_NS, vcpu=st.integers(0, 4))
    def inject(self, gap_ns: int, vcpu: int) -> None:
        self.arrive(gap_ns, InjectArrived(self.ticket(), vcpu, ProtocolFault("lost_ready")))

    @precondition(lambda self: len(self.up()) > 1)
    @rule(data=st.data(), gap_ns=GAPS_NS, seldom=st.integers(0, 9))
    def stop(self, data: st.DataObject, gap_ns: int, seldom: int) -> None:
        """vCPUs reach the end one after the other."""
        vcpu = self.pick(data)
        if vcpu is not None and not seldom:
            self.end(vcpu, gap_ns)

    def end(self, vcpu: int, gap_ns: int) -> None:
        cpu = self.vcpus[vcpu]
        while cpu.told is not None and cpu.told.fetch:
            self.fetched(vcpu)
        self.trap(vcpu, Stopped(), self.when(vcpu, gap_ns))
        cpu.stopped = True

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def invariants_of_the_core(self) -> None:
        if hasattr(self, "core"):
            self.core.check()

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if not hasattr(self, "core"):
            return
        for index in self.up():
            vcpu, cpu = self.vcpus[index], self.core.cpu(index)
            assert vcpu.told is not None
            if vcpu.posted or vcpu.told.fetch:
                continue
            assert not cpu.injections, f"vCPU {index} is to be spoiled and nobody tells it"
            assert not cpu.need_resched, f"vCPU {index} is to switch and nobody tells it"
            assert cpu.next_timer_ns >= vcpu.told.timer_ns, f"vCPU {index} has a timer it does not know of"
            if cpu.rq.curr is not None and cpu.rq.waiting_ids():
                assert vcpu.told.run_until_ns < NEVER_NS, (
                    f"vCPU {index} takes no ticks, but {cpu.rq.waiting_ids()} wait"
                )
            assert vcpu.told.task or not cpu.rq.waiting_ids()

    @invariant()
    def who_waits_for_a_page_is_who_was_told_so(self) -> None:
        if hasattr(self, "core"):
            waiting = {task for vcpu in self.vcpus for task in vcpu.waiting.values()}
            rows = self.core.results()
            assert waiting == {row.id for row in rows if row.state == "APF_WAIT"}
            running = {vcpu.told.task for vcpu in self.vcpus if vcpu.told is not None} - {0}
            assert running == {row.id for row in rows if row.state == "RUNNING"}

    @invariant()
    def every_ticket_is_with_somebody(self) -> None:
        if not hasattr(self, "core"):
            return
        held = [ticket for cpu in self.core.cpus for ticket, _ in cpu.injections]
        for process in self.core.processes.values():
            held += [access.ticket for access in process.accesses.waiting]
            held += [replay.ticket for replay in process.accesses.replays]
        for task, work in self.core._kernel.works.items():
            if self.core.tasks[task].state is not TaskState.DEAD:
                held += (
                    [access.ticket for access in work.batch] if work.outside else [work.ticket] * (work.ticket > 0)
                )
        assert sorted(held) == sorted(self.asked)

    @invariant()
    def processes_have_ended_when_all_their_tasks_have(self) -> None:
        if hasattr(self, "core"):
            rows = {row.id: row.state for row in self.core.results()}
            over = {
                asid
                for asid, process in self.core.processes.items()
                if all(rows[task] == "DEAD" for task in process.tasks)
            }
            assert over == self.ended

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for vcpu in self.up():
            self.end(vcpu, 1)
        rows = self.core.finish(self.now_ns)
        cpus = [self.core.cpu(vcpu) for vcpu in range(len(self.vcpus))]
        assert sum(row.sum_exec_ns for row in rows) == sum(cpu.rq.busy_ns for cpu in cpus)
        assert len(rows) == self.tasks_planned or not self.spawned


TestGuestWorld = GuestWorld.TestCase
TestGuestWorld.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
