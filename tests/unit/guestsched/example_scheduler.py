"""A scheduler of one's own, as small as one can be: last in, first out.

Whoever wakes takes the CPU at once and keeps it until it sleeps, dies or yields; no tick ever takes it away.
"""

from __future__ import annotations

from collections.abc import Sequence

from apf.messages import NEVER_NS
from guestsched.core.sched import Entity, RunQueue


class LifoRunQueue(RunQueue):
    """A stack; its top is next."""

    __slots__ = ("_stack",)

    def __init__(self, cpus: int, hz: int) -> None:
        super().__init__(cpus, hz)
        self._stack: list[Entity] = []

    def _push(self, entity: Entity) -> None:
        self._account_enqueue(entity)
        self._stack.append(entity)

    enqueue_new = enqueue_woken = enqueue_migrated = _push

    def dequeue_waiting(self, entity: Entity) -> None:
        self._stack.remove(entity)
        self._account_dequeue(entity)

    def dequeue_curr(self, sleeps: bool = True) -> None:
        assert self.curr is not None
        self._account_dequeue(self.curr)
        self.curr = None

    def wakeup_preempts(self, woken: Entity) -> bool:
        return True

    def tick_preempts(self) -> bool:
        return False

    def run_until_ns(self) -> int:
        return NEVER_NS

    def pick_next(self, preferred: Entity | None = None, skip: bool = False) -> Entity | None:
        before = self.curr
        if self._stack and (before is None or skip or preferred is not None):
            chosen = self._stack.pop()
            if before is not None:
                self._stack.insert(0 if skip else len(self._stack), before)
            chosen.prev_sum_exec_ns = chosen.sum_exec_ns
            self.curr = chosen
        return self.curr

    def waiting(self) -> Sequence[Entity]:
        return self._stack[::-1]
