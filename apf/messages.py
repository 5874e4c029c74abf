"""What crosses a process border (``apf.core.message``): the cores speak these, ``apf.wire`` maps them to protobuf.

Two conversations, both request and reply, both stamped with the vCPU's time. A vCPU has at most one request
under way, to one of the two servers, and goes on at the reply's ``at_ns``, which is always later than the request.

vCPU -> hostd        ``FaultRaised``, ``PrefaultRaised``   answered by ``Mapped``, ``Retry``, ``InProgress``, ``Failed``
vCPU -> guestsched   a trap (``Trap`` union)               answered by ``Dispatch``
guestsched -> hostd  ``Segment`` list, once, before window 0  (loading the VM)

All times are guest ns, all addresses bytes, gfn and pfn are frame numbers of 4096-byte pages.
"""

from __future__ import annotations

from enum import IntEnum
from typing import final

from apf.core import message

PAGE_SIZE = 4096
PAGE_SHIFT = 12
NEVER_NS = (1 << 62) - 1
"""A time that does not come: no event, no tick to take."""
FOREVER_NS = NEVER_NS - 1
"""The end of a run that lasts until it is shut down; who waits for it waits for an interrupt."""


class Access(IntEnum):
    """What the guest did to the page (the qualification of an EPT violation)."""

    READ = 0
    WRITE = 1
    EXEC = 2


class ApfMode(IntEnum):
    """Which asynchronous page fault protocol the VM runs.

    OFF: none, the vCPU sleeps in the host. HALT: the host's half only, the vCPU halts in KVM and serves interrupts.
    PV2010: both events are #PF. PV: since Linux 5.8, not-present is #PF and ready an interrupt.
    """

    OFF = 0
    PV2010 = 1
    HALT = 2
    PV = 3


class GupVariant(IntEnum):
    """The first, non-sleeping ``get_user_pages`` attempt of an asynchronous fault.

    FAST: ``get_user_pages_fast``, succeeds only on a present host mapping. NOIO: the 2010 proposal, succeeds if there is
    no I/O to wait for (zero page, swap cache, a page that the faulting thread decompresses itself). NOWAIT: today's
    FOLL_NOWAIT, as NOIO but starts the read it needs.
    """

    FAST = 0
    NOIO = 1
    NOWAIT = 2


class FaultMode(IntEnum):
    """What the vCPU allows hostd to do about a fault."""

    BLOCKING = 0
    NOWAIT = 1


class PageError(IntEnum):
    """Why a page cannot be had.

    READ: the device says that the read failed. TORN, LOST: it says that all is well, but the bytes are not those that
    were to be written, which the checksum tells. OUT_OF_MEMORY: it is not the page's fault, the VMM is being killed.
    """

    READ = 1
    TORN = 2
    LOST = 3
    OUT_OF_MEMORY = 4

    @property
    def words(self) -> str:
        """For messages."""
        return _PAGE_ERRORS[self]


_PAGE_ERRORS = {
    PageError.READ: "its read from the swap device failed",
    PageError.TORN: "its write to the swap device was torn",
    PageError.LOST: "its write to the swap device was lost",
    PageError.OUT_OF_MEMORY: "the VM's memory group is out of memory, and the VMM is killed",
}


class FaultKind(IntEnum):
    """How a fault was served. MINOR: without I/O. MAJOR: the vCPU waited for I/O. ASYNC: the worker has it."""

    MINOR = 0
    MAJOR = 1
    ASYNC = 2


# vCPU -> hostd -------------------------------------------------------------------------------------------------


@final
@message
class FaultRaised:
    """An EPT violation. ``work`` names the async_pf work item (its token) if ``mode`` is NOWAIT, else 0.

    ``forgotten``: earlier work items for which no ``PrefaultRaised`` will come.
    """

    gfn: int
    access: Access
    mode: FaultMode
    work: int = 0
    forgotten: tuple[int, ...] = ()


@message
class PrefaultRaised:
    """The work item's I/O is over and the vCPU maps the page before it tells the guest (kvm_arch_async_page_ready).

    May have to wait for the page again if it was evicted meanwhile: the reply is ``Mapped`` or ``Retry``.
    """

    gfn: int
    work: int


HostRequest = FaultRaised | PrefaultRaised


# hostd -> vCPU -------------------------------------------------------------------------------------------------


@final
@message
class Mapped:
    """The page is mapped. From ``at_ns`` on the vCPU may use ``pfn`` (its private overlay holds it until the border).

    ``stall_ns`` is the part of ``at_ns - request time`` in which the vCPU slept for I/O.
    """

    at_ns: int
    gfn: int
    pfn: int
    writable: bool
    kind: FaultKind
    stall_ns: int


@final
@message
class Retry:
    """Cannot be settled now; the guest executes the access again at ``at_ns`` (KVM's RET_PF_RETRY)."""

    at_ns: int


@final
@message
class InProgress:
    """The dedicated fault-in worker has work item ``work``; it will be done at ``ready_at_ns``, never revised.

    The vCPU itself goes on at ``at_ns`` and decides what to tell the guest.
    """

    at_ns: int
    work: int
    ready_at_ns: int


@final
@message
class Failed:
    """The page cannot be had, ever as far as is known: get_user_pages returns -EFAULT, of VM_FAULT_SIGBUS.

    ``stall_ns`` as of ``Mapped``.
    """

    at_ns: int
    gfn: int
    error: PageError
    stall_ns: int


HostReply = Mapped | Retry | InProgress | Failed


# vCPU -> guestsched --------------------------------------------------------------------------------------------


@message
class Booted:
    """The vCPU is up and asks what to run. First trap of every vCPU, at time 0."""


@message
class TickArrived:
    """A timer tick at or after the last Dispatch's ``run_until_ns`` was delivered."""


@message
class TimerArrived:
    """The timer of the last Dispatch (``timer_ns``) has expired: at that time, or late if the vCPU was stalled."""


@message
class InterruptArrived:
    """A posted interrupt was delivered: the guest kernel has changed something that concerns this vCPU."""


@message
class NotPresentArrived:
    """#PF whose word (2010: reason, since 5.8: flags) said 'page not present': CR2 is ``token``."""

    token: int


@message
class PageReadyArrived:
    """'Page ready' for ``token``: a #PF with it in CR2 (2010), or an interrupt and the token word (since 5.8).

    ``failed``: the page could not be had (KVM_PV_REASON_PAGE_ERROR, which was proposed in 2020 and not merged); only
    where the scenario says ``swap.errors = "report"``.
    """

    token: int
    failed: bool = False


@message
class SyscallRaised:
    """The task executed ``syscall``; number and arguments are in its registers.

    ``data``: the guest memory that the last Dispatch wanted with it (``syscall_fetch``).
    """

    data: bytes = b""


@message
class ExceptionRaised:
    """The task did what user code may not: x86 ``vector``, faulting ``address`` (0 if none), at ``rip``."""

    vector: int
    address: int
    rip: int


@message
class Fetched:
    """The guest memory that the last Dispatch asked for (``fetch``), its pieces one after the other."""

    data: bytes


@message
class RunFailed:
    """KVM_RUN has returned -EFAULT: a page that the vCPU needs cannot be had. The VMM ends, and its VM with it."""

    gfn: int
    error: PageError


@message
class Stopped:
    """The vCPU reached the end of the run; its last trap. The reply ends the stream."""


Trap = (
    Booted
    | TickArrived
    | TimerArrived
    | InterruptArrived
    | NotPresentArrived
    | PageReadyArrived
    | SyscallRaised
    | ExceptionRaised
    | Fetched
    | RunFailed
    | Stopped
)


class KernelPath(IntEnum):
    """What the guest kernel was doing when a sample of the profile was taken; USER: nothing, a task ran."""

    USER = 0
    TICK = 1
    SCHEDULE = 2
    TIMER = 3
    INTERRUPT = 4
    NOT_PRESENT = 5
    PAGE_READY = 6
    SYSCALL = 7
    EXCEPTION = 8
    IDLE = 9


@message
class Sample:
    """``count`` samples of the profile: in task ``task`` at ``rip`` (USER), or on the kernel's ``path`` (both 0)."""

    task: int
    rip: int
    path: KernelPath
    count: int


@message
class FaultMet:
    """A fault of a task's own access: the page, and how the host served it."""

    gfn: int
    kind: FaultKind


@final
@message
class TrapRaised:
    """A trap with the registers of the task it interrupted (``None`` if the vCPU was idle).

    ``min_flt`` and ``maj_flt`` count that task's faults since the last trap, ``faults`` lists them if the Dispatch said
    ``log_faults`` (the first FAULTS_LOGGED_MAX), ``samples`` are those taken since then. ``kernel``: what the trap
    interrupted is not the task's own code but the guest kernel that works for it, with interrupts on (regs->cs).
    """

    trap: Trap
    registers: bytes | None
    min_flt: int = 0
    maj_flt: int = 0
    faults: tuple[FaultMet, ...] = ()
    samples: tuple[Sample, ...] = ()
    kernel: bool = False


FAULTS_LOGGED_MAX = 1024


# guestsched -> vCPU --------------------------------------------------------------------------------------------


class Account(IntEnum):
    """Whose time the vCPU is spending while a task runs: what the bench's table of vCPU time is made of."""

    IDLE = 0
    COUNTING = 1
    FAULTING = 2
    OTHER = 3


@message
class Extent:
    """``pages`` pages of a process: guest-virtual ``gva`` (bytes) maps to guest frame ``gfn`` onwards.

    Either writable or executable, never both (W^X).
    """

    gva: int
    gfn: int
    pages: int
    writable: bool
    executable: bool


@message
class AddressSpace:
    """A guest process's page tables, as extents in ascending order of ``gva``; ``asid`` > 0."""

    asid: int
    extents: tuple[Extent, ...]


MSR_KVM_ASYNC_PF_EN = 0x4B564D02
MSR_KVM_ASYNC_PF_INT = 0x4B564D06
MSR_KVM_ASYNC_PF_ACK = 0x4B564D07
ASYNC_PF_ENABLED = 1 << 0
ASYNC_PF_SEND_ALWAYS = 1 << 1
ASYNC_PF_DELIVERY_AS_PF_VMEXIT = 1 << 2
ASYNC_PF_DELIVERY_AS_INT = 1 << 3
APF_FLAGS_OFFSET = 0
APF_TOKEN_OFFSET = 4
"""``struct kvm_vcpu_pv_apf_data`` (uapi/asm/kvm_para.h): u32 ``flags`` (2010: ``reason``), u32 ``token``.

With ``swap.errors = "report"`` a u32 follows that is not 0 if the token's page could not be had.
"""


@message
class MsrWrite:
    """The guest kernel executes WRMSR."""

    msr: int
    value: int


@message
class Store:
    """The guest kernel stores ``data`` at guest-physical ``gpa``, within a page, with interrupts off."""

    gpa: int
    data: bytes


@message
class ProtocolFault:
    """A fault of the APF protocol that is injected while the guest runs: ``what`` in the scenario's words.

    It hits the ``nth`` event of its kind from then on and the ``count`` - 1 after it, or lasts ``for_ns``.
    """

    what: str
    nth: int = 1
    count: int = 1
    for_ns: int = 0


KernelStep = MsrWrite | Store
"""What a handler of the guest kernel does with interrupts off before it returns, in order."""


@message
class Dispatch:
    """What the vCPU does from ``at_ns`` on: run ``task`` (0: idle), until a tick at or after ``run_until_ns`` is due.

    ``registers`` is None when the interrupted task simply goes on. ``apf_ns`` is the part of ``at_ns`` minus the
    trap's time that belongs to the APF protocol (handlers and the switches they cause); the rest is guest kernel.
    ``timer_ns``: when its local APIC timer is to expire (NEVER_NS: not). ``copies``: before the task runs, write these
    (guest-physical address, bytes); ``fetch``: then read these (guest-physical address, length) and trap with a
    ``Fetched`` rather than run the task. Both are accesses of the guest kernel; they fault like others, synchronously.
    ``syscall_fetch``: read these when the task makes its next
    system call, and send them along. ``shutdown`` ends the run for this vCPU now.
    ``spaces`` carries address spaces this vCPU has not been told of yet. ``steps``: what the handler does before all
    that. ``injections``: faults of the protocol that are in force from ``at_ns`` on; the operator's, not the guest's.
    To a trap that interrupted the guest kernel (``TrapRaised.kernel``) only ``at_ns``, ``run_until_ns``, ``apf_ns``,
    ``timer_ns``, ``steps``, ``shutdown`` and ``injections`` count: the vCPU goes on with what was interrupted.
    """

    at_ns: int
    task: int
    asid: int
    account: Account
    registers: bytes | None
    run_until_ns: int
    apf_ns: int = 0
    spaces: tuple[AddressSpace, ...] = ()
    steps: tuple[KernelStep, ...] = ()
    timer_ns: int = NEVER_NS
    copies: tuple[tuple[int, bytes], ...] = ()
    fetch: tuple[tuple[int, int], ...] = ()
    log_faults: bool = False
    shutdown: bool = False
    syscall_fetch: tuple[tuple[int, int], ...] = ()
    injections: tuple[ProtocolFault, ...] = ()


# guestsched -> hostd: loading ----------------------------------------------------------------------------------


@message
class Stamp:
    """A self-verifying word in every page of a segment, at byte ``offset`` of the page (8-aligned).

    In page number p of the segment the word starts as ``base + stride * p`` (mod 2**64): its high 32 bits are a tag
    that no other page and stamp has, its low 32 bits count the writes. The word behind it is always the stamp word
    times ``CHECK_MULTIPLIER`` (mod 2**64). A third word (offset + 16) is free for the writer. Everything else in
    the page stays zero.
    """

    offset: int
    base: int
    stride: int


CHECK_MULTIPLIER = 0x9E3779B97F4A7C15


@message
class Segment:
    """``pages`` guest pages from ``gfn`` on, filled before window 0 as if the guest had written them one by one.

    ``data`` (zero-padded, at most ``pages`` pages) is their start; ``stamps`` are written into every page.
    ``demand_zero``: none of this is done. A page is zero when the guest first touches it, and has a stamp once the
    guest has written it; there is no ``data``. ``read_only``: the guest does not write it.
    """

    gfn: int
    pages: int
    data: bytes = b""
    stamps: tuple[Stamp, ...] = ()
    demand_zero: bool = False
    read_only: bool = False
