"""The user space that fetches missing pages of a VM: the handlers behind its userfaultfd (fs/userfaultfd.c).

A fault on a missing page that may not sleep returns at once and tells nobody; the fault-in worker's, or one that may,
queues one event and sleeps (handle_userfault). A handler reads the event, takes the page from a snapshot, and puts it in
place with UFFDIO_COPY, which allocates and charges it and wakes all who wait for it (mm/userfaultfd.c:mfill_atomic): it is
mapped in the host then, dirty, and anonymous memory like any other. ``handlers`` threads serve the events in the order
in which they were queued.

A handler that dies leaves all events for ever that it has not served by then: who waits for such a page can neither be
killed nor woken, and destroying the VM waits for its workers (E56). ``after the run`` is when they go on.

Departures: frame and charge of a page are taken when the event is queued, not at UFFDIO_COPY; a second event for a page
that a handler has already costs it nothing, since UFFDIO_COPY's wake-up finds that waiter too.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heapreplace


@dataclass(frozen=True, slots=True)
class UserfaultConfig:
    """The handlers of one VM: how many, what an event takes one of them (ns), and when they die (ns; None: never)."""

    handlers: int = 1
    service_ns: int = 25_000
    dies_ns: int | None = None


class Handlers:
    """The handlers' queue."""

    __slots__ = ("_config", "_free")

    def __init__(self, config: UserfaultConfig) -> None:
        self._config = config
        self._free = [0] * config.handlers
        heapify(self._free)

    def done_ns(self, event_ns: int, extra_ns: int = 0) -> int | None:
        """When a page whose event is queued at ``event_ns`` would be there; None: never. ``extra_ns``: reclaim."""
        done_ns = max(self._free[0], event_ns) + self._config.service_ns + extra_ns
        dies_ns = self._config.dies_ns
        return None if dies_ns is not None and done_ns > dies_ns else done_ns

    def serve(self, event_ns: int, extra_ns: int) -> int:
        """Queue an event at ``event_ns``, which a handler will live to serve; when its page is there."""
        done_ns = max(self._free[0], event_ns) + self._config.service_ns + extra_ns
        heapreplace(self._free, done_ns)
        return done_ns
