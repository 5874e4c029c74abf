"""The vCPU's core against servers that answer anything they may: time, tokens and events stay in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from vcpu_fakes import REGISTERS, Vcpu, core

from apf import messages as m
from vcpud.core.async_pf import ASYNC_PF_PER_VCPU
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    EnterGuest,
    ExitCause,
    Finish,
    GuestReplied,
    HostReplied,
    InjectReason,
    ReadGuest,
    ReasonRead,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.vcpu import State

END_NS = 10_000_000
STEPS_MAX = 600


class World:
    """Draws every answer; remembers which tokens were announced."""

    def __init__(self, data: st.DataObject, mode: m.ApfMode) -> None:
        self.draw = data.draw
        self.vcpu = Vcpu(core(mode, end_ns=END_NS, sample_period_ns=700_000, sample_phase_ns=5))
        self.posts = 0
        self.samples = 0
        self.waiting: set[int] = set()
        self.delivered: list[int] = []
        self.clock_ns = 0

    def run(self) -> bool:
        """To the end of the run; False if it takes too many steps to wait for."""
        self.vcpu.boot()
        for _ in range(STEPS_MAX):
            core_ = self.vcpu.core
            assert core_.now_ns >= self.clock_ns
            self.clock_ns = core_.now_ns
            assert len(core_.async_pf) <= ASYNC_PF_PER_VCPU
            if isinstance(self.vcpu.next, Finish):
                return True
            self.answer()
        if isinstance(self.vcpu.next, AskGuest):  # what has been counted is told too
            self.kernel(self.vcpu.next.trap)
        return False

    def answer(self) -> None:
        if self.draw(st.integers(0, 19)) == 19:
            self.post()
        match self.vcpu.next:
            case EnterGuest() as enter:
                self.guest(enter)
            case WaitUntil():
                self.vcpu.wait()
            case AskHost(request=request):
                self.host(request)
            case InjectReason(reason=reason):
                lost = self.draw(st.integers(0, 9)) == 0
                self.vcpu.step(ReasonRead(None if lost else reason))
            case ReadGuest() | WriteGuest() as copy:
                if self.draw(st.integers(0, 4)) == 4:
                    self.vcpu.not_mapped()
                else:
                    self.vcpu.copied(bytes(copy.length) if isinstance(copy, ReadGuest) else b"")
            case AskGuest(trap=trap):
                self.samples += sum(sample.count for sample in self.vcpu.asked().samples)
                self.kernel(trap)
            case other:
                raise AssertionError(other)

    def post(self) -> None:
        """An interrupt is posted; a vCPU that runs, idles or is halted hears of it before what it waits for."""
        machine, after_ns = self.vcpu, 0
        if isinstance(machine.next, EnterGuest):
            after_ns = min(self.draw(st.integers(0, 5000)), machine.next.until_ns - machine.core.now_ns)
        elif machine.core.state in (State.IDLE, State.HALTED):
            assert isinstance(machine.next, WaitUntil) and machine.next.interruptible
            after_ns = self.draw(st.integers(0, machine.next.at_ns - machine.core.now_ns))
        machine.interrupt(after_ns)
        self.posts += 1

    def guest(self, enter: EnterGuest) -> None:
        """Run out the budget, or exit on the way."""
        left_ns = enter.until_ns - self.vcpu.core.now_ns
        assert left_ns > 0
        cause = self.draw(st.sampled_from([ExitCause.BUDGET, *[ExitCause.EPT_VIOLATION] * 4, ExitCause.SYSCALL]))
        if cause is ExitCause.BUDGET:
            self.vcpu.run(left_ns + self.draw(st.integers(0, 300)), cause)  # the last block's overshoot
            return
        ns = self.draw(st.integers(0, min(left_ns, 200_000)))
        self.vcpu.run(ns, cause, gfn=self.draw(st.integers(10, 200)), access=m.Access.WRITE)

    def host(self, request: m.HostRequest) -> None:
        now_ns, draw = self.vcpu.core.now_ns, self.draw
        at_ns = now_ns + draw(st.integers(1, 5000))
        outcomes = ["mapped", "major", "retry"]
        if isinstance(request, m.FaultRaised) and request.mode is m.FaultMode.NOWAIT:
            outcomes += ["progress"] * 5
            assert request.work and request.work not in self.waiting
        outcome = draw(st.sampled_from(outcomes))
        if outcome == "progress":
            assert isinstance(request, m.FaultRaised)
            ready_ns = at_ns + draw(st.integers(0, 3_000_000))
            self.vcpu.step(HostReplied(m.InProgress(at_ns, request.work, ready_ns)))
        elif outcome == "retry":
            self.vcpu.step(HostReplied(m.Retry(at_ns)))
        else:
            stall_ns = draw(st.integers(1, 500_000)) if outcome == "major" else 0
            kind = m.FaultKind.MAJOR if stall_ns else m.FaultKind.MINOR
            self.vcpu.step(HostReplied(m.Mapped(at_ns + stall_ns, request.gfn, 7, True, kind, stall_ns)))

    def kernel(self, trap: m.Trap) -> None:
        now_ns, idle_now = self.vcpu.core.now_ns, self.vcpu.core._dispatch.task == 0
        if isinstance(trap, m.NotPresentArrived):
            assert not idle_now and trap.token not in self.waiting
            self.waiting.add(trap.token)
        elif isinstance(trap, m.PageReadyArrived):
            self.waiting.remove(trap.token)  # KeyError: a ready without, or twice for, one not-present
            self.delivered.append(trap.token)
        elif isinstance(trap, m.InterruptArrived):
            assert self.vcpu.core.counters.interrupts <= self.posts, "an interrupt that nobody posted"
        elif isinstance(trap, m.TimerArrived):
            assert now_ns >= self.vcpu.core._dispatch.timer_ns
        elif isinstance(trap, m.Fetched | m.SyscallRaised):
            told = self.vcpu.core._dispatch
            pieces = told.fetch if isinstance(trap, m.Fetched) else told.syscall_fetch
            assert len(trap.data) == sum(length for _, length in pieces)
        stopped = isinstance(trap, m.Stopped)
        task = 0 if stopped else self.draw(st.sampled_from([1, 2, 2, 1, 0] if self.waiting else [1, 2]))
        cost_ns = self.draw(st.integers(1, 3000))
        apf_ns = cost_ns if isinstance(trap, m.NotPresentArrived | m.PageReadyArrived) else 0
        until_ns = self.draw(st.sampled_from([m.NEVER_NS, now_ns + 1, now_ns + 5_000_000]))
        account = (m.Account.IDLE, m.Account.FAULTING, m.Account.COUNTING)[task]
        registers = REGISTERS if task else None
        extras = self.draw(st.integers(0, 255))  # two bits each
        copies, fetch, syscall_fetch = (bool(task) and extras >> shift & 3 == 3 for shift in (0, 2, 4))
        timer_ns = (m.NEVER_NS, m.NEVER_NS, now_ns + 1_000_000, now_ns + 20_000)[extras >> 6]
        dispatch = m.Dispatch(
            *(now_ns + cost_ns, task, int(task > 0), account, registers, until_ns, apf_ns),
            timer_ns=timer_ns,
            copies=((0x5000, b"ab"), (0x6000, b"c")) if copies else (),
            fetch=((0x7000, 3),) if fetch and not isinstance(trap, m.Fetched) else (),
            syscall_fetch=((0x9000, 2), (0xA000, 1)) if syscall_fetch else (),
        )
        self.vcpu.step(GuestReplied(dispatch))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_not_present_gets_its_ready(data: st.DataObject) -> None:
    world = World(data, m.ApfMode.PV2010)
    ended = world.run()
    core_ = world.vcpu.core
    counters = core_.counters
    assert counters.ready == len(world.delivered) == len(set(world.delivered))
    assert counters.not_present - counters.ready == len(world.waiting)
    announced = {item.token for item in core_.async_pf.queue if item.injected}
    assert world.waiting <= announced, "a page ready got lost"
    spent_ns = sum(core_.account.spent_ns.values())
    assert spent_ns == min(core_.now_ns, END_NS)
    assert not ended or core_.now_ns >= END_NS


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_off_is_invisible(data: st.DataObject) -> None:
    world = World(data, m.ApfMode.OFF)
    world.run()
    counters = world.vcpu.core.counters
    assert (counters.not_present, counters.ready, counters.faults_async, counters.repeated) == (0, 0, 0, 0)
    assert not world.waiting and not world.delivered
