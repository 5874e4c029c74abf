"""A vCPU as both shells run it: its core, its engine, and the rule of windows between them.

The worker process and the twin call ``proceed(border_ns)``; it runs until the vCPU needs something that is not its
own and says what, and when (``Need``). Everything that touches the engine happens in the window that holds the vCPU's
time: at the first touch in a new window the engine's TLB is flushed and its overlay dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from apf.core import Kind, message
from apf.messages import Dispatch, HostReply, HostRequest, TrapRaised
from vcpud.core.effects import (
    AskGuest,
    AskHost,
    Attached,
    Effect,
    EnterGuest,
    ExitCause,
    FillShadow,
    Finish,
    GuestExited,
    GuestMemoryRead,
    GuestMemoryWritten,
    GuestReplied,
    HostReplied,
    InjectReason,
    InterruptPosted,
    LoadTask,
    MapPage,
    ReadGuest,
    ReasonRead,
    SetSpace,
    ShadowFilled,
    TimeReached,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.vcpu import State, VcpuCore
from vcpud.cpu.engine import Engine


class NeedKind(Kind):
    """What a vCPU cannot go on without."""

    WINDOW = "window"  # the window that holds ``time_ns``
    HOST = "host"  # hostd's reply to ``request``
    GUEST = "guest"  # guestsched's reply to ``request``
    NOTHING = "nothing"  # it has finished


@message
class Need:
    """``time_ns`` is a lower bound of the vCPU's next request: what belongs into its slot."""

    kind: NeedKind
    time_ns: int
    request: HostRequest | TrapRaised | None = None
    interruptible: bool = False
    """Of a WINDOW: a posted interrupt ends the wait for it."""


# Bound once: looked up on its class a member costs 0.06 us on Python 3.11.
_WINDOW, _HOST = NeedKind.WINDOW, NeedKind.HOST
_BUDGET = ExitCause.BUDGET


class Machine:
    """One vCPU. ``proceed`` and the two ``*_replied`` methods alternate.

    ``take_interrupt(border_ns)`` gives the time of an interrupt posted to this vCPU before the window that ends at
    ``border_ns``, 0 if there is none; asked once a window.
    """

    def __init__(self, core: VcpuCore, engine: Engine, cpu_mips: int, take_interrupt: Callable[[int], int]) -> None:
        self.core = core
        self.engine = engine
        self._mips = cpu_mips
        self._take_interrupt = take_interrupt
        self._entered_ns = 0  # border of the window that was last looked at for interrupts
        self._window_ns = 0  # border of the window the engine was last opened for
        self._retired = engine.retired
        self._todo: deque[Effect] = deque()
        # A server's answer, which the core hears of in the window that holds the time it goes on at. Not before: that
        # time is what the server has put into the slot, and windows open by slots. What the core makes of the answer may
        # be later at once (a late tick's cost), and the opener must not see now the one, now the other.
        self._answer: HostReplied | GuestReplied | None = None
        self._goes_on_ns = 0

    def start(self) -> None:
        """Both servers know the vCPU."""
        self._todo.extend(self.core.step(Attached(), self.core.now_ns))

    def host_replied(self, reply: HostReply) -> None:
        """Hostd has answered the last need."""
        self._answer, self._goes_on_ns = HostReplied(reply), reply.at_ns

    def guest_replied(self, dispatch: Dispatch) -> None:
        """Guestsched has answered the last need."""
        self._answer, self._goes_on_ns = GuestReplied(dispatch), dispatch.at_ns

    def proceed(self, border_ns: int) -> Need:
        """Carry out effects until one needs somebody else, in the window that ends at ``border_ns``."""
        todo, core, engine = self._todo, self.core, self.engine
        if border_ns != self._entered_ns:
            self._entered_ns = border_ns
            if posted_ns := self._take_interrupt(border_ns):
                self._interrupt(posted_ns)
        answer = self._answer
        if answer is not None:
            if self._goes_on_ns >= border_ns:
                return Need(_WINDOW, self._goes_on_ns)
            self._answer = None
            todo.extend(core.step(answer, core.now_ns))
        while True:
            effect = todo[0]
            time_ns = effect.at_ns if type(effect) is WaitUntil else core.now_ns
            if time_ns >= border_ns:
                return Need(_WINDOW, time_ns, None, type(effect) is WaitUntil and effect.interruptible)
            if border_ns != self._window_ns:
                self._window_ns = border_ns
                engine.open_window()
            # What a fault is made of first, and not by match: see ``apf.core.message``.
            if type(effect) is EnterGuest:
                need = self._enter_guest(effect, border_ns)
                if need is not None:
                    return need
            elif type(effect) is AskHost:
                todo.popleft()
                return Need(_HOST, time_ns, effect.request)
            elif type(effect) is MapPage:
                todo.popleft()
                engine.map_overlay(effect.gfn, effect.pfn, effect.writable)
            else:
                need = self._carry_out(effect)
                if need is not None:
                    return need

    def _interrupt(self, posted_ns: int) -> None:
        """Tell the core of a posted interrupt; where it kicks the vCPU, this ends what it was about to do."""
        todo, core, engine = self._todo, self.core, self.engine
        now_ns = core.now_ns
        rip = engine.rip if todo and type(todo[0]) is EnterGuest else None
        if core.state is State.RUNNING:
            enter = todo.pop()
            assert isinstance(enter, EnterGuest)
            now_ns = enter.base_ns + engine.retired * 1000 // self._mips
        elif core.state in (State.IDLE, State.HALTED):
            wait = todo.pop()
            assert isinstance(wait, WaitUntil)
            now_ns = max(now_ns, posted_ns)
        todo.extend(core.step(InterruptPosted(engine.retired, rip), now_ns))

    def _carry_out(self, effect: Effect) -> Need | None:
        """The other effects."""
        todo, core, engine = self._todo, self.core, self.engine
        match effect:
            case WaitUntil():
                todo.popleft()
                todo.extend(core.step(TimeReached(), effect.at_ns))
                return None
            case AskGuest():
                todo.popleft()
                return Need(NeedKind.GUEST, core.now_ns, self._trap(effect))
            case InjectReason(gpa=gpa, reason=reason):
                todo.popleft()
                todo.extend(core.step(ReasonRead(self._deliver_reason(gpa, reason)), core.now_ns))
                return None
            case LoadTask(asid=asid, registers=registers):
                engine.use_space(asid)
                engine.load_registers(registers)
            case ReadGuest(gpa=gpa, length=length):
                todo.popleft()
                todo.extend(core.step(GuestMemoryRead(engine.read_bytes(gpa, length)), core.now_ns))
                return None
            case WriteGuest(gpa=gpa, data=data):
                todo.popleft()
                todo.extend(core.step(GuestMemoryWritten(engine.write_bytes(gpa, data)), core.now_ns))
                return None
            case FillShadow(gfn=gfn, access=access):
                todo.popleft()
                todo.extend(core.step(ShadowFilled(engine.fill_shadow(gfn, access)), core.now_ns))
                return None
            case SetSpace(space=space):
                engine.set_space(space)
            case Finish():
                return Need(NeedKind.NOTHING, core.now_ns)
        todo.popleft()
        return None

    def _trap(self, asks: AskGuest) -> TrapRaised:
        registers = self.engine.save_registers() if asks.with_registers else None
        return TrapRaised(asks.trap, registers, asks.min_flt, asks.maj_flt, asks.faults, asks.samples, asks.kernel)

    def _deliver_reason(self, gpa: int, reason: int) -> int | None:
        """KVM's write of the reason word, then the guest entry code's read and clear of it."""
        if not self.engine.write_u32(gpa, reason):
            return None
        read = self.engine.read_u32(gpa)
        self.engine.write_u32(gpa, 0)
        return read

    def _enter_guest(self, enter: EnterGuest, border_ns: int) -> Need | None:
        """Run to the border at most; a stop at the border is no exit, the same entry goes on in the next window."""
        engine, mips, base_ns, until_ns = self.engine, self._mips, enter.base_ns, enter.until_ns
        retired = self._retired
        now_ns = base_ns + retired * 1000 // mips
        if now_ns >= border_ns:  # the last block went on past more than one border
            return Need(_WINDOW, now_ns)
        stop_ns = border_ns if border_ns < until_ns else until_ns
        exited = engine.run(-(-(stop_ns - base_ns) * mips // 1000) - retired, base_ns)
        self._retired = retired = retired + exited.retired
        now_ns = base_ns + retired * 1000 // mips
        cause = exited.cause
        if cause is _BUDGET and now_ns < until_ns:
            return Need(_WINDOW, now_ns)
        event = GuestExited(cause, retired, exited.gfn, exited.access, exited.vector, exited.address, exited.rip)
        todo = self._todo
        todo.popleft()
        todo.extend(self.core.step(event, now_ns))
        return None
