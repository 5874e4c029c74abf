"""Accesses that tasks perform for others: those that come from outside, and traces.

Theory. An access thread (``guestsched/programs/access_thread.asm``) asks the kernel for work with the system call
``take``. The kernel writes a batch of entries into the thread's ring page and returns their number; the thread performs
them, in order, and notes beside each when it was done. What each met on its way follows from the faults that the
vCPU reports for the task: a fault is the doing of the first access of the batch that touches the page.

A batch is as small as keeps all idle access threads of the process busy, so that an access seldom waits behind
another one's fault while somebody could perform it.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from dataclasses import dataclass, field

from apf.messages import FaultKind, FaultMet
from guestsched.core.task import AccessList

QUEUE_MAX = 4096
"""Accesses of a process that wait for an access thread; what comes then is refused."""
BATCH_MAX = 127
WORDS_MAX = 8192
_ENTRY = struct.Struct("<QQQQ")
ENTRY_BYTES = _ENTRY.size
_WRITE_BIT = 1 << 63


@dataclass(frozen=True, slots=True)
class Access:
    """One access from outside: ``words`` words of 8 bytes from ``address`` on; ``ticket`` is the asker's number."""

    ticket: int
    address: int
    words: int
    write: bool
    arrived_ns: int
    gfns: tuple[int, ...]
    think: int = 0


@dataclass(frozen=True, slots=True)
class Retired:
    """An access is done: when, and what it met (None: nothing, a hit)."""

    access: Access
    done_ns: int
    met: FaultKind | None


@dataclass(frozen=True, slots=True)
class Replay:
    """A list of accesses from outside, for one access thread."""

    ticket: int
    accesses: AccessList
    arrived_ns: int


@dataclass(slots=True)
class AccessQueue:
    """The accesses of one process that no thread has taken, and the access threads that wait for work (task ids)."""

    waiting: deque[Access] = field(default_factory=deque)
    idle: deque[int] = field(default_factory=deque)
    replays: deque[Replay] = field(default_factory=deque)

    @property
    def full(self) -> bool:
        """Whether another access has to be refused."""
        return len(self.waiting) >= QUEUE_MAX

    def take_batch(self) -> list[Access]:
        """The next accesses for one thread, others being idle beside it."""
        share = -(-len(self.waiting) // (len(self.idle) + 1))
        return [self.waiting.popleft() for _ in range(min(share, BATCH_MAX))]

    def cancel(self, ticket: int) -> Access | None:
        """Take back an access that no thread has taken yet."""
        for access in self.waiting:
            if access.ticket == ticket:
                self.waiting.remove(access)
                return access
        return None


@dataclass(slots=True)
class Work:
    """What an access thread does. ``batch``: the accesses in its ring; ``outside``: each is answered by itself.

    ``own``: the list it works through, of which ``position`` were put into its ring: its trace, or (``ticket`` > 0) a
    replay, of which ``met`` says what its accesses met. ``resume_ns``: when its next access is to start, 0 if at once.
    """

    batch: list[Access] = field(default_factory=list)
    outside: bool = False
    faults: list[FaultMet] = field(default_factory=list)
    own: AccessList | None = None
    position: int = 0
    ticket: int = 0
    base: int = 0
    arrived_ns: int = 0
    met: Counter[FaultKind | None] = field(default_factory=Counter)
    resume_ns: int = 0


def ring_of(batch: list[Access]) -> bytes:
    """The ring page's entries for a batch."""
    return b"".join(
        _ENTRY.pack(access.address, access.words | (_WRITE_BIT if access.write else 0), access.think, 0)
        for access in batch
    )


def retired(batch: list[Access], ring: bytes, faults: list[FaultMet]) -> list[Retired]:
    """What became of a batch, from the ring as the thread left it and the faults of the task meanwhile.

    Without a ring nothing is known of when (``done_ns`` 0).
    """
    met: dict[int, FaultKind] = {}
    for fault in faults:
        for index, access in enumerate(batch):
            if fault.gfn in access.gfns:
                met[index] = max(met.get(index, fault.kind), fault.kind)
                break
    done = [_ENTRY.unpack_from(ring, index * ENTRY_BYTES)[3] if ring else 0 for index in range(len(batch))]
    return [Retired(access, done[index], met.get(index)) for index, access in enumerate(batch)]
