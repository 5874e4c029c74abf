"""The table of tasks that wait for a page the host is fetching (arch/x86/kernel/kvm.c, async_pf_sleepers).

Theory. Not-present and ready are two events that name the same token, in either order. Whoever comes first leaves a
node in bucket hash_32(token, 8) of 256: not-present leaves the task that now sleeps, ready leaves a dummy. Whoever
comes second removes it: ready wakes the task, not-present finds the dummy and does not sleep (kvm_async_pf_task_wait,
kvm_async_pf_task_wake). Token ~0 wakes every task that began to wait on this CPU (apf_task_wake_all).

As the kernel does, wake-all also unhashes this CPU's dummies, and a second ready for a token finds the first one's
dummy and removes it. A new node goes to the head of its bucket, so wake-all meets the youngest first.

Departures: storing a dummy cannot fail (no GFP_ATOMIC); a dummy that wake-all unhashes is not leaked.
"""

from __future__ import annotations

from dataclasses import dataclass

WAKE_ALL = 0xFFFF_FFFF
TOKEN_MAX = 0xFFFF_FFFF
_HASH_BITS = 8
_GOLDEN_RATIO_32 = 0x61C88647
DUMMY = 0
"""In place of a task id: nobody waits, ready was here first."""


def bucket_of(token: int) -> int:
    """hash_32(token, 8)."""
    return (token * _GOLDEN_RATIO_32 & 0xFFFF_FFFF) >> (32 - _HASH_BITS)


@dataclass(frozen=True, slots=True)
class Node:
    """struct kvm_task_sleep_node: ``task`` waits for ``token`` since it faulted on vCPU ``cpu``."""

    token: int
    cpu: int
    task: int


class WaitTable:
    """The 256 buckets."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: list[list[Node]] = [[] for _ in range(1 << _HASH_BITS)]

    def find(self, token: int) -> Node | None:
        """The node that ``token`` left, if any."""
        for node in self._buckets[bucket_of(token)]:
            if node.token == token:
                return node
        return None

    def wait(self, token: int, cpu: int, task: int) -> bool:
        """Not-present: True if ``task`` has to sleep, False if ready came first. A live token is never reused."""
        node = self.find(token)
        if node is None:
            self._buckets[bucket_of(token)].insert(0, Node(token, cpu, task))
            return True
        assert node.task == DUMMY, f"token {token:#x} of task {task} on vCPU {cpu} is still that of {node}"
        self._buckets[bucket_of(token)].remove(node)
        return False

    def wake(self, token: int, cpu: int) -> int:
        """Ready: the task to wake, or DUMMY if nobody waited (stored, for the not-present that may follow)."""
        node = self.find(token)
        if node is None:
            self._buckets[bucket_of(token)].insert(0, Node(token, cpu, DUMMY))
            return DUMMY
        self._buckets[bucket_of(token)].remove(node)
        return node.task

    def wake_all(self, cpu: int) -> list[int]:
        """The tasks that began to wait on ``cpu``, in the order the kernel's walk meets them; they wait no more."""
        woken: list[int] = []
        for index, bucket in enumerate(self._buckets):
            if bucket:
                woken += [node.task for node in bucket if node.cpu == cpu and node.task != DUMMY]
                self._buckets[index] = [node for node in bucket if node.cpu != cpu]
        return woken

    def nodes(self) -> list[Node]:
        """All nodes, by bucket."""
        return [node for bucket in self._buckets for node in bucket]

    def check(self) -> None:
        """Assert that every node is in its own bucket and every token is there once."""
        for index, bucket in enumerate(self._buckets):
            for node in bucket:
                assert bucket_of(node.token) == index, f"{node} in bucket {index}"
        tokens = [node.token for node in self.nodes()]
        assert len(tokens) == len(set(tokens)), f"a token twice in {self.nodes()}"
