"""What goes into the vCPU's core (facts) and what comes out of it (imperatives).

A step returns any number of ``MapPage``, ``SetSpace`` and ``LoadTask`` effects and, last, exactly one that says how it
goes on: ``EnterGuest``, ``AskHost``, ``AskGuest``, ``WaitUntil``, ``InjectReason``, ``ReadGuest``, ``WriteGuest``,
``FillShadow`` or ``Finish``. The shell carries them out in order, each in the window that holds the core's time.
"""

from __future__ import annotations

from typing import final

from apf.core import Kind, message
from apf.messages import Access, AddressSpace, Dispatch, FaultMet, HostReply, HostRequest, Sample, Trap


class ExitCause(Kind):
    """Why the CPU left guest mode."""

    BUDGET = "budget"  # the budget of instructions is used up
    EPT_VIOLATION = "ept_violation"  # ``gfn``, ``access``
    SYSCALL = "syscall"  # RIP is behind the instruction
    EXCEPTION = "exception"  # ``vector``, ``address``, ``rip``


# facts


@message
class Attached:
    """Both servers know this vCPU; time 0."""


@final
@message
class GuestExited:
    """The CPU left guest mode. ``retired`` is the total of retired instructions since the start."""

    cause: ExitCause
    retired: int
    gfn: int = 0
    access: Access = Access.READ
    vector: int = 0
    address: int = 0
    rip: int = 0


@final
@message
class HostReplied:
    """hostd answered the last AskHost."""

    reply: HostReply


@message
class GuestReplied:
    """guestsched answered the last AskGuest."""

    dispatch: Dispatch


@final
@message
class TimeReached:
    """The time of the last WaitUntil has come."""


@message
class ReasonRead:
    """The guest's #PF entry read and cleared the flags (2010: reason) word; None: its page is not mapped for writing."""

    reason: int | None


@message
class GuestMemoryRead:
    """The last ReadGuest; None: its page is not mapped."""

    data: bytes | None


@message
class GuestMemoryWritten:
    """The last WriteGuest; not done: its page is not mapped for writing."""

    done: bool


@message
class ShadowFilled:
    """The last FillShadow; not done: the host has not mapped the page for this access."""

    done: bool


@message
class InterruptPosted:
    """The vCPU has entered a window with an interrupt posted.

    ``retired`` as in GuestExited; ``rip`` of the task that the CPU runs, None if it has yet to be loaded. If the core
    runs, idles or is halted, what this step returns replaces the last effect of the step before.
    """

    retired: int
    rip: int | None


Event = (
    Attached
    | GuestExited
    | HostReplied
    | GuestReplied
    | TimeReached
    | ReasonRead
    | GuestMemoryRead
    | GuestMemoryWritten
    | ShadowFilled
    | InterruptPosted
)

# imperatives


@final
@message
class MapPage:
    """Put a mapping into the vCPU's private overlay."""

    gfn: int
    pfn: int
    writable: bool


@message
class FillShadow:
    """Put what the host has mapped for ``gfn`` into the shadow table of the address space that runs."""

    gfn: int
    access: Access


@message
class SetSpace:
    """Make an address space known."""

    space: AddressSpace


@message
class LoadTask:
    """Switch the CPU to another task."""

    asid: int
    registers: bytes


@final
@message
class EnterGuest:
    """Run guest code until the clock reaches ``until_ns`` or the guest exits.

    The clock is ``base_ns + total retired * 1000 // cpu_mips``: an exact function of the total, never of slices.
    """

    base_ns: int
    until_ns: int


@final
@message
class AskHost:
    """Send a request to hostd and wait for its reply."""

    request: HostRequest


@message
class AskGuest:
    """Deliver a trap to the guest kernel and wait for its reply; with the task's registers unless it is idle.

    The other fields are those of ``TrapRaised``.
    """

    trap: Trap
    with_registers: bool
    min_flt: int = 0
    maj_flt: int = 0
    faults: tuple[FaultMet, ...] = ()
    samples: tuple[Sample, ...] = ()
    kernel: bool = False


@final
@message
class WaitUntil:
    """Let the clock jump to ``at_ns``; ``interruptible``: or until an interrupt is posted."""

    at_ns: int
    interruptible: bool = False


@message
class InjectReason:
    """Write ``reason`` to the word at ``gpa`` as KVM does, then read and clear it as the guest's #PF entry does."""

    gpa: int
    reason: int


@message
class ReadGuest:
    """Read ``length`` bytes at ``gpa``, in one page, as the guest kernel or KVM does."""

    gpa: int
    length: int


@message
class WriteGuest:
    """Write ``data`` at ``gpa``, in one page, as the guest kernel or KVM does."""

    gpa: int
    data: bytes


@message
class Finish:
    """The run is over for this vCPU."""


Effect = (
    MapPage
    | SetSpace
    | LoadTask
    | EnterGuest
    | AskHost
    | AskGuest
    | WaitUntil
    | InjectReason
    | ReadGuest
    | WriteGuest
    | FillShadow
    | Finish
)
