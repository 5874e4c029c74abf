"""A vCPU's core with nobody around it: what its unit tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from apf import messages as m
from apf import registers as register_file
from apf.costs import Costs
from apf.journal import Journal
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
    ReadGuest,
    ReasonRead,
    TimeReached,
    WaitUntil,
    WriteGuest,
)
from vcpud.core.vcpu import State, VcpuConfig, VcpuCore

REASON_GPA = 0x1000
TOKEN_GPA = REASON_GPA + m.APF_TOKEN_OFFSET
VECTOR = 0xF3
ENABLE = {
    m.ApfMode.PV2010: (m.MsrWrite(m.MSR_KVM_ASYNC_PF_EN, REASON_GPA | 1),),
    m.ApfMode.PV: (
        m.MsrWrite(m.MSR_KVM_ASYNC_PF_INT, VECTOR),
        m.MsrWrite(m.MSR_KVM_ASYNC_PF_EN, REASON_GPA | m.ASYNC_PF_ENABLED | m.ASYNC_PF_DELIVERY_AS_INT),
    ),
}
"""What a guest writes at boot, by mode."""
READY_HANDLER = (m.Store(TOKEN_GPA, bytes(4)), m.MsrWrite(m.MSR_KVM_ASYNC_PF_ACK, 1))
"""What the handler of the interrupt for page ready does before it ends."""
REGISTERS = register_file.new(rip=0x40_0000)
MIPS = 1000


def core(mode: m.ApfMode = m.ApfMode.PV2010, end_ns: int = 1_000_000_000, **changes: Any) -> VcpuCore:
    """A vCPU of 1000 MIPS (an instruction a nanosecond) at HZ 250."""
    config = {"vcpu": 3, "mode": mode, "cpu_mips": MIPS, "hz": 250, "end_ns": end_ns, "costs": Costs()}
    return VcpuCore(VcpuConfig(**{**config, **changes}), Journal())


@dataclass
class Vcpu:
    """A core and the effect that says how it goes on; each method does what a shell would.

    The per-CPU words that KVM and the handlers use are in ``words``, by address; one in ``out`` is not mapped.
    """

    core: VcpuCore
    last: list[Effect] = field(default_factory=list)
    words: dict[int, bytes] = field(default_factory=dict)
    out: set[int] = field(default_factory=set)

    @property
    def next(self) -> Effect:
        return self.last[-1]

    def step(self, event: Any, now_ns: int | None = None) -> Effect:
        self.last = self.core.step(event, self.core.now_ns if now_ns is None else now_ns)
        self.core.check()
        return self.use_words()

    def use_words(self) -> Effect:
        """Do what KVM and the guest's handlers read and write in the per-CPU words."""
        while self.core.state in (State.SLOT, State.PRESENT, State.READY, State.STEPS):
            access = self.next
            if isinstance(access, ReadGuest):
                data = None if access.gpa in self.out else self.words.get(access.gpa, bytes(access.length))
                event: Any = GuestMemoryRead(data)
            elif isinstance(access, WriteGuest):
                if access.gpa not in self.out:
                    self.words[access.gpa] = access.data
                event = GuestMemoryWritten(access.gpa not in self.out)
            else:
                break
            self.last = [*self.last[:-1], *self.core.step(event, self.core.now_ns)]
            self.core.check()
        return self.next

    @property
    def token(self) -> int:
        """The token word."""
        return int.from_bytes(self.words.get(TOKEN_GPA, bytes(4)), "little")

    def boot(self, task: int = 1, **changes: Any) -> Effect:
        """Attach, boot and be told to run ``task``, with APF on if the mode allows it."""
        self.step(Attached())
        assert isinstance(self.next, AskGuest) and isinstance(self.next.trap, m.Booted)
        steps = ENABLE.get(self.core.msrs._mode, ())
        self.dispatch(task, registers=REGISTERS if task else None, **{"steps": steps, **changes})
        if self.core.msrs._mode is m.ApfMode.PV and "steps" not in changes:
            assert self.trap() == m.PageReadyArrived(0xFFFF_FFFF), "enabling wakes all"
            self.dispatch(task, steps=READY_HANDLER, **{"cost_ns": 100, **changes})
        return self.next

    def dispatch(self, task: int = 1, cost_ns: int = 100, **changes: Any) -> Effect:
        """guestsched's reply."""
        account = m.Account.FAULTING if task else m.Account.IDLE
        values = {"registers": None, "run_until_ns": m.NEVER_NS, **changes}
        return self.step(GuestReplied(m.Dispatch(self.core.now_ns + cost_ns, task, int(task > 0), account, **values)))

    def run(self, ns: int, cause: ExitCause, **values: Any) -> Effect:
        """The guest runs for ``ns`` and exits."""
        enter = self.next
        assert isinstance(enter, EnterGuest), enter
        retired = self.core.retired + ns
        return self.step(GuestExited(cause, retired, **values), enter.base_ns + retired * 1000 // MIPS)

    def run_out(self, rip: int = 0) -> Effect:
        """The guest runs until its budget is used up."""
        assert isinstance(self.next, EnterGuest)
        return self.run(self.next.until_ns - self.core.now_ns, ExitCause.BUDGET, rip=rip)

    def interrupt(self, after_ns: int = 0, rip: int | None = None) -> Effect:
        """A posted interrupt is found ``after_ns`` from the core's time on; in most states nothing comes of it yet."""
        retired, now_ns = self.core.retired, self.core.now_ns
        if self.core.state in (State.RUNNING, State.IDLE, State.HALTED):
            now_ns += after_ns
            if self.core.state is State.RUNNING:
                retired += after_ns
        effects = self.core.step(InterruptPosted(retired, rip), now_ns)
        self.core.check()
        self.last = effects or self.last
        return self.use_words()

    def copied(self, data: bytes = b"") -> Effect:
        """The guest kernel's access that is under way succeeds; ``data`` is what it reads."""
        if isinstance(self.next, WriteGuest):
            return self.step(GuestMemoryWritten(True))
        assert isinstance(self.next, ReadGuest) and len(data) == self.next.length, self.next
        return self.step(GuestMemoryRead(data))

    def not_mapped(self) -> Effect:
        """The guest kernel's access that is under way meets a page that is not there."""
        assert isinstance(self.next, ReadGuest | WriteGuest), self.next
        return self.step(GuestMemoryRead(None) if isinstance(self.next, ReadGuest) else GuestMemoryWritten(False))

    def asked(self) -> AskGuest:
        """What the guest kernel is told."""
        assert isinstance(self.next, AskGuest), self.next
        return self.next

    def fault(self, gfn: int, access: m.Access = m.Access.WRITE) -> Effect:
        return self.run(10, ExitCause.EPT_VIOLATION, gfn=gfn, access=access)

    def request(self) -> m.HostRequest:
        assert isinstance(self.next, AskHost), self.next
        return self.next.request

    def trap(self) -> m.Trap:
        assert isinstance(self.next, AskGuest), self.next
        return self.next.trap

    def mapped(self, cost_ns: int = 2000, stall_ns: int = 0, pfn: int = 77) -> Effect:
        kind = m.FaultKind.MAJOR if stall_ns else m.FaultKind.MINOR
        gfn = self.request().gfn
        return self.step(HostReplied(m.Mapped(self.core.now_ns + cost_ns + stall_ns, gfn, pfn, True, kind, stall_ns)))

    def retry(self, after_ns: int) -> Effect:
        self.step(HostReplied(m.Retry(self.core.now_ns + after_ns)))
        return self.wait()

    def wait(self) -> Effect:
        """The time of the last WaitUntil comes."""
        assert isinstance(self.next, WaitUntil), self.next
        return self.step(TimeReached(), self.next.at_ns)

    def in_progress(self, wait_ns: int) -> Effect:
        request = self.request()
        assert isinstance(request, m.FaultRaised)
        at_ns = self.core.now_ns + 1500
        return self.step(HostReplied(m.InProgress(at_ns, request.work, self.core.now_ns + wait_ns)))

    def reason(self) -> Effect:
        """The #PF is delivered, its word's page being there."""
        assert isinstance(self.next, InjectReason), self.next
        return self.step(ReasonRead(self.next.reason))

    def async_fault(self, gfn: int, wait_ns: int, then: Callable[[Vcpu], Effect] | None = None) -> int:
        """A whole not-present; the guest goes on with another task. Returns the token."""
        self.fault(gfn)
        self.in_progress(wait_ns)
        self.reason()
        trap = self.trap()
        assert isinstance(trap, m.NotPresentArrived)
        if then is None:
            self.dispatch(2, registers=REGISTERS, apf_ns=100)
        else:
            then(self)
        return trap.token
