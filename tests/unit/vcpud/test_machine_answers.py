"""A server's answer reaches the core in the window of the time the server promised, and in no other."""

from __future__ import annotations

from typing import cast

from vcpu_fakes import REGISTERS, core

from apf import messages as m
from vcpud.core.account import Cause
from vcpud.core.effects import ExitCause
from vcpud.cpu.engine import Engine, Exit
from vcpud.machine import Machine, Need, NeedKind

WINDOW_NS = 20_000
TICK_NS = 4_000_000


class FakeEngine:
    """A guest that faults on page 5 after 10 instructions, for ever."""

    retired = 0
    windows = 0
    rip = 0x40_0000

    def run(self, budget: int, base_ns: int) -> Exit:
        if budget <= 10:
            self.retired += budget
            return Exit(ExitCause.BUDGET, budget, 0, m.Access.READ, 0, 0, 0)
        self.retired += 10
        return Exit(ExitCause.EPT_VIOLATION, 10, 5, m.Access.WRITE, 0, 0, 0)

    def open_window(self) -> None:
        self.windows += 1

    def map_overlay(self, gfn: int, pfn: int, writable: bool) -> None:
        pass

    def use_space(self, asid: int) -> None:
        pass

    def load_registers(self, registers: bytes) -> None:
        pass

    def save_registers(self) -> bytes:
        return REGISTERS


def booted(engine: FakeEngine) -> tuple[Machine, Need]:
    """A machine that waits for hostd's answer to its first fault, at 110 ns."""
    machine = Machine(core(m.ApfMode.OFF), cast(Engine, engine), 1000, lambda border_ns: 0)
    machine.start()
    assert machine.proceed(0).kind is NeedKind.WINDOW
    assert machine.proceed(WINDOW_NS).kind is NeedKind.GUEST
    machine.guest_replied(m.Dispatch(100, 1, 1, m.Account.FAULTING, REGISTERS, m.NEVER_NS))
    return machine, machine.proceed(WINDOW_NS)


def test_a_late_tick_is_not_paid_before_its_window() -> None:
    """The promise is just before a border and a tick is due behind it: the slot says what the server said."""
    engine = FakeEngine()
    machine, need = booted(engine)
    assert need.kind is NeedKind.HOST and need.time_ns == 110
    promised_ns = 2 * TICK_NS + WINDOW_NS - 1
    machine.host_replied(m.Mapped(promised_ns, 5, 7, True, m.FaultKind.MAJOR, promised_ns - 2000))
    assert machine.proceed(WINDOW_NS) == Need(NeedKind.WINDOW, promised_ns)
    assert machine.core.now_ns == 110 and machine.core.counters.ticks == 0
    border_ns = 2 * TICK_NS + WINDOW_NS
    after = machine.proceed(border_ns)
    assert machine.core.counters.ticks == 1 and machine.core.account.spent_ns[Cause.KERNEL] >= 1000
    assert after == Need(NeedKind.WINDOW, promised_ns + 1000)


def test_an_answer_within_the_window_is_taken_at_once() -> None:
    engine = FakeEngine()
    machine, _ = booted(engine)
    machine.host_replied(m.Mapped(5000, 5, 7, True, m.FaultKind.MINOR, 0))
    assert machine.proceed(WINDOW_NS).time_ns == 5010
    assert engine.windows == 1


def test_the_last_answer_waits_for_its_window_too() -> None:
    """Or the number of windows would depend on whether the opener saw the promise or the end first."""
    machine = Machine(core(m.ApfMode.OFF, end_ns=WINDOW_NS), cast(Engine, FakeEngine()), 1000, lambda border_ns: 0)
    machine.start()
    machine.proceed(WINDOW_NS)
    machine.guest_replied(m.Dispatch(100, 0, 0, m.Account.IDLE, None, m.NEVER_NS))
    assert machine.proceed(WINDOW_NS) == Need(NeedKind.WINDOW, WINDOW_NS, interruptible=True)
    assert machine.proceed(2 * WINDOW_NS).kind is NeedKind.GUEST
    machine.guest_replied(m.Dispatch(2 * WINDOW_NS + 7, 0, 0, m.Account.IDLE, None, m.NEVER_NS))
    assert machine.proceed(2 * WINDOW_NS) == Need(NeedKind.WINDOW, 2 * WINDOW_NS + 7)
    assert machine.proceed(3 * WINDOW_NS).kind is NeedKind.NOTHING


# Interrupts ----------------------------------------------------------------------------------------------------------


class Posts:
    """Interrupts by the border of the window that they are found in; remembers what was asked."""

    def __init__(self, **at: int) -> None:
        self.at = {int(border[1:]): posted_ns for border, posted_ns in at.items()}
        self.asked: list[int] = []

    def __call__(self, border_ns: int) -> int:
        self.asked.append(border_ns)
        return self.at.get(border_ns, 0)


def machine_with(posts: Posts, task: int = 1, mode: m.ApfMode = m.ApfMode.OFF) -> Machine:
    machine = Machine(core(mode), cast(Engine, FakeEngine()), 1000, posts)
    machine.start()
    assert machine.proceed(WINDOW_NS).kind is NeedKind.GUEST
    registers = REGISTERS if task else None
    machine.guest_replied(
        m.Dispatch(100, task, task, m.Account.FAULTING if task else m.Account.IDLE, registers, m.NEVER_NS)
    )
    return machine


def test_interrupts_are_looked_for_once_a_window() -> None:
    posts = Posts()
    machine = machine_with(posts)
    need = machine.proceed(WINDOW_NS)
    while need.kind is NeedKind.HOST and need.time_ns < 3 * WINDOW_NS:
        machine.host_replied(m.Mapped(need.time_ns + 3000, 5, 7, True, m.FaultKind.MINOR, 0))
        need = machine.proceed(max(posts.asked))
        if need.kind is NeedKind.WINDOW:
            need = machine.proceed((need.time_ns // WINDOW_NS + 1) * WINDOW_NS)
    assert posts.asked == [n * WINDOW_NS for n in range(1, 5)]


def test_idle_vcpu_is_woken_at_the_time_of_the_post() -> None:
    machine = machine_with(Posts(b100000=80_000), task=0)
    need = machine.proceed(WINDOW_NS)
    assert need.kind is NeedKind.WINDOW and need.interruptible
    need = machine.proceed(100_000)
    assert need.kind is NeedKind.GUEST and need.time_ns == 80_000
    assert isinstance(need.request, m.TrapRaised) and need.request.trap == m.InterruptArrived()
    assert machine.core.account.spent_ns[Cause.IDLE] == 80_000 - 100


def test_running_vcpu_is_interrupted_where_it_stands_at_the_border() -> None:
    machine = machine_with(Posts(b40000=20_000))
    assert machine.proceed(WINDOW_NS).kind is NeedKind.HOST
    machine.host_replied(m.Mapped(WINDOW_NS - 5, 5, 7, True, m.FaultKind.MINOR, 0))
    assert machine.proceed(WINDOW_NS) == Need(NeedKind.WINDOW, WINDOW_NS), "five instructions of ten"
    need = machine.proceed(2 * WINDOW_NS)
    assert need.kind is NeedKind.GUEST and need.time_ns == WINDOW_NS
    assert isinstance(need.request, m.TrapRaised) and need.request.trap == m.InterruptArrived()
    assert need.request.registers == REGISTERS


def test_stalled_vcpu_hears_of_it_when_it_goes_on() -> None:
    machine = machine_with(Posts(b100000=20_000))
    machine.proceed(WINDOW_NS)
    machine.host_replied(m.Mapped(90_000, 5, 7, True, m.FaultKind.MAJOR, 80_000))
    need = machine.proceed(WINDOW_NS)
    assert need == Need(NeedKind.WINDOW, 90_000), "a stall is not interruptible"
    need = machine.proceed(100_000)
    assert need.kind is NeedKind.GUEST and need.time_ns == 90_000
    assert isinstance(need.request, m.TrapRaised) and need.request.trap == m.InterruptArrived()
