"""The async_pf queue of one vCPU: work items from not-present to ready.

Follows virt/kvm/async_pf.c and the x86 side of it in arch/x86/kvm/x86.c: ``kvm_setup_async_pf`` (limit of 64, which
counts what is done but undelivered), ``kvm_find_async_pf_gfn`` (one item per gfn and vCPU), ``alloc_apf_token``,
``kvm_check_async_pf_completion`` (first in, first out by completion time).

An item's completion time is known from the start (a device settles an I/O when it is submitted), so LISTED, PENDING
and RUNNING are one state here, ``IN_PROGRESS``; it is ``DONE`` once the vCPU's clock has reached ``ready_at_ns``.

Departure: the gfn hash of 64 slots is a dict; its probing order is not observable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

ASYNC_PF_PER_VCPU = 64
_TOKEN_ID_SHIFT = 12
_TOKEN_ID_MASK = (1 << 20) - 1


class ItemState(Enum):
    """Where a work item is."""

    FREE = "free"
    IN_PROGRESS = "in progress"  # LISTED, PENDING or RUNNING: the fault-in worker has it
    DONE = "done"  # the worker's get_user_pages returned; page ready is not delivered yet
    PREFAULT = "prefault"  # the vCPU maps the page before it tells the guest
    PRESENT = "present"  # mapped; page ready is being injected


TRANSITIONS: frozenset[tuple[ItemState, ItemState]] = frozenset(
    {
        (ItemState.FREE, ItemState.IN_PROGRESS),  # kvm_setup_async_pf
        (ItemState.IN_PROGRESS, ItemState.DONE),  # async_pf_execute
        (ItemState.DONE, ItemState.PREFAULT),  # kvm_check_async_pf_completion -> kvm_arch_async_page_ready
        (ItemState.PREFAULT, ItemState.PRESENT),  # kvm_arch_async_page_present
        (ItemState.PRESENT, ItemState.FREE),  # queued--
    }
)


@dataclass(slots=True)
class WorkItem:
    """One asynchronous fault: ``struct kvm_async_pf``."""

    token: int
    gfn: int
    ready_at_ns: int
    state: ItemState = ItemState.FREE

    def move(self, state: ItemState) -> None:
        """Take one transition of the table."""
        if (self.state, state) not in TRANSITIONS:
            raise AssertionError(f"async_pf item {self.token:#x} (gfn {self.gfn:#x}): {self.state} -> {state}")
        self.state = state


class AsyncPfQueue:
    """All live items of one vCPU."""

    def __init__(self, vcpu: int) -> None:
        assert 0 <= vcpu < 1 << _TOKEN_ID_SHIFT
        self._vcpu = vcpu
        self._id = 0
        self._by_gfn: dict[int, WorkItem] = {}

    def __len__(self) -> int:
        return len(self._by_gfn)

    @property
    def full(self) -> bool:
        """Whether a further fault must be handled synchronously (E01, E02)."""
        return len(self._by_gfn) >= ASYNC_PF_PER_VCPU

    def has_gfn(self, gfn: int) -> bool:
        """Whether this vCPU already waits for ``gfn`` (a repeated fault halts the vCPU, E08)."""
        return gfn in self._by_gfn

    def next_token(self) -> int:
        """A token that is neither 0 nor live: (id << 12) | vcpu, ids from 1, wrapping (``alloc_apf_token``)."""
        self._id = (self._id + 1) & _TOKEN_ID_MASK or 1
        return self._id << _TOKEN_ID_SHIFT | self._vcpu

    def setup(self, token: int, gfn: int, ready_at_ns: int) -> WorkItem:
        """List an item whose completion has been promised for ``ready_at_ns``."""
        assert not self.full and gfn not in self._by_gfn
        item = WorkItem(token, gfn, ready_at_ns)
        item.move(ItemState.IN_PROGRESS)
        self._by_gfn[gfn] = item
        return item

    def next_ready_ns(self) -> int | None:
        """When the next item is done, or None."""
        return min((item.ready_at_ns for item in self._by_gfn.values()), default=None)

    def pop_done(self, now_ns: int) -> WorkItem | None:
        """The item that was done first at or before ``now_ns``, moved to PREFAULT; it stays in the queue."""
        item = min(self._by_gfn.values(), key=lambda i: (i.ready_at_ns, i.token), default=None)
        if item is None or item.ready_at_ns > now_ns:
            return None
        item.move(ItemState.DONE)
        item.move(ItemState.PREFAULT)
        return item

    def present(self, item: WorkItem) -> None:
        """Page ready goes out for ``item``: it leaves the queue."""
        item.move(ItemState.PRESENT)
        del self._by_gfn[item.gfn]
        item.move(ItemState.FREE)

    def check(self) -> None:
        """Assert the queue's invariants."""
        assert len(self._by_gfn) <= ASYNC_PF_PER_VCPU
        tokens = [item.token for item in self._by_gfn.values()]
        assert len(set(tokens)) == len(tokens) and 0 not in tokens
        assert all(item.gfn == gfn for gfn, item in self._by_gfn.items())
