"""The async_pf queue of one vCPU: work items from setup to page ready.

Follows virt/kvm/async_pf.c (A) and the x86 side of it in arch/x86/kvm/x86.c (X) and mmu/mmu.c (M). ``queue`` holds all
live items, ``done`` those whose worker has finished, in the order in which it did. ``queued`` counts both, and the
wake-all items too: what is done but undelivered is still within the limit (E02).

When an item's worker runs is settled when the item is set up (a device settles an I/O when it is submitted): it is
picked up ``fault_in_worker_ns`` after it was scheduled, and done at ``ready_at_ns``. ``advance`` moves every item to
where the vCPU's clock says it is.

Departures: the gfn hash of 64 slots is a dict; its probing order is not observable. A worker that is to be cancelled
before it was picked up (cancel_work_sync) is one that would be picked up later than now.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from apf.core import Kind
from apf.messages import NEVER_NS
from apf.rules import Rule, Table

ASYNC_PF_PER_VCPU = 64
WAKE_ALL = 0xFFFF_FFFF
_TOKEN_ID_SHIFT = 12
_TOKEN_ID_MASK = (1 << 20) - 1


class ItemState(Kind):
    """Where a work item is."""

    FREE = "FREE"
    LISTED = "LISTED"  # in ``queue``, gfn hashed, not-present injected or not; its work is not scheduled yet
    PENDING = "PENDING"  # scheduled
    RUNNING = "RUNNING"  # the worker is in get_user_pages
    DONE = "DONE"  # get_user_pages has returned, whatever it returned; page ready is not delivered yet
    PREFAULT = "PREFAULT"  # the vCPU maps the page before it tells the guest
    PRESENT = "PRESENT"  # page ready goes out, if it is to


class ItemEvent(Kind):
    """What happens to a work item."""

    SETUP = "setup"
    SCHEDULED = "schedule_work"
    PICKED = "worker picks it up"
    RETURNED = "get_user_pages returns"
    ENABLED = "EN written"
    DEQUEUED = "can_dequeue"
    MAPPED = "mapped"
    DELIVERED = "delivered"
    CLEARED = "queue cleared"


_S, _E = ItemState, ItemEvent
TABLE: Table[ItemState, ItemEvent] = Table(
    "APF work item",
    Rule(_S.FREE, _E.SETUP, _S.LISTED, "A:kvm_setup_async_pf, X:kvm_add_async_pf_gfn"),
    Rule(_S.FREE, _E.ENABLED, _S.DONE, "A:kvm_async_pf_wakeup_all"),
    Rule(_S.LISTED, _E.SCHEDULED, _S.PENDING, "A:kvm_setup_async_pf"),
    Rule(_S.PENDING, _E.PICKED, _S.RUNNING, "A:async_pf_execute"),
    Rule(_S.PENDING, _E.CLEARED, _S.FREE, "A:kvm_clear_async_pf_completion_queue (cancelled)"),
    Rule(_S.RUNNING, _E.RETURNED, _S.DONE, "A:async_pf_execute"),
    Rule(_S.RUNNING, _E.CLEARED, _S.FREE, "A:kvm_clear_async_pf_completion_queue (waits)"),
    Rule(_S.DONE, _E.DEQUEUED, _S.PREFAULT, "A:kvm_check_async_pf_completion"),
    Rule(_S.DONE, _E.CLEARED, _S.FREE, "A:kvm_clear_async_pf_completion_queue"),
    Rule(_S.PREFAULT, _E.MAPPED, _S.PRESENT, "M:kvm_arch_async_page_ready"),
    Rule(_S.PREFAULT, _E.CLEARED, _S.FREE, "A:kvm_clear_async_pf_completion_queue"),
    Rule(_S.PRESENT, _E.DELIVERED, _S.FREE, "X:kvm_arch_async_page_present"),
    Rule(_S.PRESENT, _E.CLEARED, _S.FREE, "A:kvm_clear_async_pf_completion_queue"),
)
_AFTER = TABLE.transitions
_LIVE = (_S.LISTED, _S.PENDING, _S.RUNNING)
NO_GFN = -1


@dataclass(slots=True)
class WorkItem:
    """One asynchronous fault: ``struct kvm_async_pf``. ``asid``: the address space it happened in (arch.cr3).

    ``picked_ns``: when the worker starts. ``user``: a task's own access. ``injected``: notpresent_injected. ``failed``:
    the page cannot be had, and the guest is to be told.
    """

    token: int
    gfn: int
    picked_ns: int
    ready_at_ns: int
    asid: int = 0
    user: bool = True
    injected: bool = False
    wakeup_all: bool = False
    failed: bool = False
    state: ItemState = ItemState.FREE

    def move(self, event: ItemEvent) -> None:
        """Take one transition of the table."""
        after = _AFTER.get((self.state, event))
        if after is None:
            raise AssertionError(f"async_pf item {self.token:#x} (gfn {self.gfn:#x}): {event} while {self.state}")
        self.state = after


class AsyncPfQueue:
    """All live items of one vCPU."""

    def __init__(self, vcpu: int) -> None:
        assert 0 <= vcpu < 1 << _TOKEN_ID_SHIFT
        self._vcpu = vcpu
        self._id = 0
        self.queue: list[WorkItem] = []
        self.done: deque[WorkItem] = deque()
        self._by_gfn: dict[int, WorkItem] = {}
        self.next_ns = NEVER_NS
        """When the next worker is done."""

    def __len__(self) -> int:
        return len(self.queue)

    @property
    def full(self) -> bool:
        """Whether a further fault must be handled synchronously (E01, E02)."""
        return len(self.queue) >= ASYNC_PF_PER_VCPU

    def find(self, gfn: int) -> WorkItem | None:
        """The item by which this vCPU already waits for ``gfn`` (kvm_find_async_pf_gfn)."""
        return self._by_gfn.get(gfn)

    def next_token(self) -> int:
        """A token that is neither 0 nor ~0 nor live: (id << 12) | vcpu, ids from 1, wrapping (``alloc_apf_token``).

        Departure: ~0, which the kernel would issue as id 0xfffff of vCPU 0xfff, is passed over (E27), and so is an id
        whose item still lives; with 64 of 2**20 live at the most the kernel relies on the distance (E28).
        """
        live = {item.token for item in self.queue}
        while True:
            self._id = (self._id + 1) & _TOKEN_ID_MASK or 1
            token = self._id << _TOKEN_ID_SHIFT | self._vcpu
            if token != WAKE_ALL and token not in live:
                return token

    def setup(self, item: WorkItem) -> None:
        """List an item, whose times are promised; its not-present may now be injected."""
        assert not self.full and item.gfn not in self._by_gfn
        item.move(ItemEvent.SETUP)
        self.queue.append(item)
        self._by_gfn[item.gfn] = item

    def schedule(self, item: WorkItem, now_ns: int) -> None:
        """schedule_work: not before the not-present is injected, so the worker is never ahead of it (E17)."""
        item.picked_ns = max(item.picked_ns, now_ns)
        item.ready_at_ns = max(item.ready_at_ns, item.picked_ns)
        item.move(ItemEvent.SCHEDULED)
        self._settle()

    def wakeup_all(self, now_ns: int) -> bool:
        """kvm_async_pf_wakeup_all: True if an item that wakes every waiter is done now; not if any is done (E32).

        Departure: A tests the list before it allocates (GFP_ATOMIC), which cannot fail here.
        """
        if self.done:
            return False
        item = WorkItem(WAKE_ALL, NO_GFN, now_ns, now_ns, user=False, wakeup_all=True)
        item.move(ItemEvent.ENABLED)
        self.queue.append(item)
        self.done.append(item)
        return True

    def next_done_ns(self) -> int | None:
        """When the next worker is done, or None."""
        return None if self.next_ns == NEVER_NS else self.next_ns

    def advance(self, now_ns: int) -> bool:
        """Let workers run up to ``now_ns``; True if the first item came into an empty ``done`` (E22)."""
        if self.next_ns > now_ns:
            return False
        finished = [item for item in self.queue if item.state in _LIVE and item.ready_at_ns <= now_ns]
        first = not self.done
        for item in sorted(finished, key=lambda item: (item.ready_at_ns, item.token)):
            if item.state is ItemState.PENDING:
                item.move(ItemEvent.PICKED)
            item.move(ItemEvent.RETURNED)
            self.done.append(item)
        self._settle()
        return first

    def dequeue(self) -> WorkItem:
        """The item that was done first, moved to PREFAULT; it stays in the queue."""
        item = self.done.popleft()
        item.move(ItemEvent.DEQUEUED)
        return item

    def present(self, item: WorkItem) -> None:
        """Page ready goes out for ``item``: it leaves the queue."""
        item.move(ItemEvent.MAPPED)
        self._forget(item, ItemEvent.DELIVERED)

    def clear(self, now_ns: int) -> int:
        """kvm_clear_async_pf_completion_queue: drop all; returns when the workers that were running have returned."""
        until_ns = now_ns
        for item in list(self.queue):
            if item.state is ItemState.LISTED:
                item.move(ItemEvent.SCHEDULED)
            if item.state is ItemState.PENDING and item.picked_ns <= now_ns:
                item.move(ItemEvent.PICKED)
            if item.state is ItemState.RUNNING:
                until_ns = max(until_ns, item.ready_at_ns)
            self._forget(item, ItemEvent.CLEARED)
        self.done.clear()
        self._settle()
        return until_ns

    def _forget(self, item: WorkItem, event: ItemEvent) -> None:
        self.queue.remove(item)
        if self._by_gfn.get(item.gfn) is item:
            del self._by_gfn[item.gfn]
        item.move(event)

    def _settle(self) -> None:
        waiting = (item.ready_at_ns for item in self.queue if item.state in (ItemState.PENDING, ItemState.RUNNING))
        self.next_ns = min(waiting, default=NEVER_NS)

    def check(self) -> None:
        """Assert the queue's invariants."""
        assert len(self.queue) <= ASYNC_PF_PER_VCPU + 1  # a wake-all may be the one beyond
        tokens = [item.token for item in self.queue if not item.wakeup_all]
        assert len(set(tokens)) == len(tokens) and 0 not in tokens and WAKE_ALL not in tokens
        assert all(item.gfn == gfn for gfn, item in self._by_gfn.items())
        assert {id(item) for item in self._by_gfn.values()} == {id(i) for i in self.queue if not i.wakeup_all}
        assert all(item.state is ItemState.DONE and item in self.queue for item in self.done)
        assert all(item.state is not ItemState.FREE for item in self.queue)
