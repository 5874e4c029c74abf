"""One fault of a run, with all that its journals tell of it: what it was, how it was handled, when each stage was over.

``deploy.faults`` puts them together, and says when a fault is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Read:
    """A page's read from the swap device, of ``slot`` into frame ``pfn``; the device has it from start to done.

    ``fetched``: it was not the device, but a userfaultfd's handler, and ``slot`` is a place in the snapshot.
    """

    slot: int
    pfn: int
    submitted_ns: int
    start_ns: int
    done_ns: int
    fetched: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """What hostd answered to one request about a page: ``minor``, ``major`` or ``retry``, in effect at ``at_ns``.

    ``skipped``: it was not asked (E43).
    """

    asked_ns: int
    outcome: str
    at_ns: int


@dataclass(slots=True)
class Fault:
    """One fault; times in guest ns, None for what has not happened (yet). ``serial`` counts a run's faults from 1."""

    serial: int
    vm: int
    vcpu: int
    gfn: int
    task: int
    access: str
    mode: str
    rip: int
    began_ns: int
    raised_ns: int
    """The last violation: that which was settled."""
    kind: str = "raised"
    """raised, minor, major, async, failed (the page cannot be had), or abandoned."""
    error: str = ""
    """Why the page could not be had, for the fault itself (failed) or when it was to be mapped (PageError's name)."""
    retries: list[Attempt] = field(default_factory=list)
    replied_ns: int | None = None
    stall_ns: int = 0
    pfn: int | None = None
    read: Read | None = None
    own_read: bool = False
    """Whether this fault submitted ``read``; otherwise it waited for somebody else's."""
    user: bool = True
    """Of the task's own code; otherwise of the guest kernel's, for the task."""
    # The rest of an asynchronous fault.
    token: int = 0
    ready_ns: int | None = None
    """When the worker is done, as settled at the start."""
    halted_ns: int | None = None
    """When the vCPU halted, for the guest could not be told."""
    injected_ns: int | None = None
    not_present_ns: int | None = None
    slept_ns: int | None = None
    other: int = 0
    """The task that runs instead, 0: none."""
    other_ns: int | None = None
    completed_ns: int | None = None
    exited_ns: int | None = None
    prefaults: list[Attempt] = field(default_factory=list)
    mapped_ns: int | None = None
    sent_ns: int | None = None
    """When KVM sent page ready (kvm_arch_async_page_present)."""
    lost: bool = False
    """It was lost on the way: injected."""
    overwritten_ns: int | None = None
    """When a snapshot's token took the place of this one's in the token word, before the guest had read it."""
    dropped_ns: int | None = None
    """When KVM dropped the work item (kvm_clear_async_pf_completion_queue)."""
    delivered_ns: int | None = None
    woken_ns: int | None = None
    woken_cpu: int = 0
    wake_all: bool = False
    """Woken by token ~0, with all others of its vCPU."""
    back_ns: int | None = None
    back_cpu: int = 0
    repeated: list[int] = field(default_factory=list)
    """Times of faults on the same page by the same vCPU meanwhile, each of which halts it."""
    kernel_faults: list[Attempt] = field(default_factory=list)
    """Faults that KVM and the guest kernel met on the way (E45)."""

    @property
    def over_ns(self) -> int | None:
        """When the fault was over: the page is mapped, or page ready was delivered."""
        return self.delivered_ns if self.kind == "async" else self.replied_ns

    @property
    def latency_ns(self) -> int | None:
        """From the first violation until it was over; None of one that failed."""
        return None if self.over_ns is None or self.kind == "failed" else self.over_ns - self.began_ns

    def stages(self) -> dict[str, int]:
        """How long each stage took, in their order (``vcpud.core.observed``); together ``latency_ns``."""
        assert self.replied_ns is not None, "a fault that is not over"
        stages = {"retry": self.raised_ns - self.began_ns}
        if self.kind != "async":
            stages["host"] = self.replied_ns - self.raised_ns - self.stall_ns
            return stages | {"wait": self.stall_ns}
        assert self.exited_ns is not None and self.mapped_ns is not None, "a fault that is not over"
        assert self.delivered_ns is not None and self.ready_ns is not None
        waits_ns = self.replied_ns if self.injected_ns is None else self.injected_ns
        done_ns = max(self.ready_ns, waits_ns)
        return stages | {
            "host": self.replied_ns - self.raised_ns,
            "inject": waits_ns - self.replied_ns,
            "wait": done_ns - waits_ns,
            "exit": self.exited_ns - done_ns,
            "prefault": self.mapped_ns - self.exited_ns,
            "ready": self.delivered_ns - self.mapped_ns,
        }


@dataclass(slots=True)
class Vain:
    """Faults of one task on one page that could not be had, since when, and why; over when it can be again."""

    since_ns: int
    error: str
    faults: int = 0
