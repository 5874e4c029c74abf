"""The user space that fetches missing pages of a VM: the handlers behind its userfaultfd (fs/userfaultfd.c).

A fault on a missing page that may not sleep returns at once and tells nobody; the fault-in worker's, or one that may,
queues one event and sleeps (handle_userfault). A handler reads the event, takes the page from a snapshot, and puts it
in place with UFFDIO_COPY, which allocates and charges it and wakes all who wait for it (mm/userfaultfd.c:mfill_atomic):
it is mapped in the host then, dirty, and anonymous memory like any other. ``handlers`` threads serve the events in the
order in which they were queued.

Handlers that die leave for ever what they have not begun by then: who waits for such a page can neither be killed nor
woken, and destroying the VM waits for its workers (E56). Here for ever is until the run is over.

Departures: frame and charge of a page are taken when the event is queued, not at UFFDIO_COPY; a second event for a page
that a handler has already costs it nothing, since UFFDIO_COPY's wake-up finds that waiter too.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapreplace


@dataclass(frozen=True, slots=True)
class UserfaultConfig:
    """The handlers of one VM: how many, what an event takes one of them (ns), and when they die (ns; None: never)."""

    handlers: int = 1
    service_ns: int = 25_000
    dies_ns: int | None = None


ONE_HANDLER = UserfaultConfig()


class Handlers:
    """The handlers' queue. What they leave at their death they serve from ``resumes_ns`` on: after the run."""

    __slots__ = ("_config", "_free", "_resumes_ns")

    def __init__(self, config: UserfaultConfig, resumes_ns: int) -> None:
        self._config = config
        self._resumes_ns = resumes_ns
        self._free = [0] * config.handlers

    def serve(self, event_ns: int, reclaim_ns: int) -> tuple[int, bool]:
        """When the page is there whose event is queued at ``event_ns``, and whether that is only after the run.

        ``reclaim_ns`` is what charging the page takes.
        """
        config = self._config
        start_ns = max(self._free[0], event_ns)
        is_left = config.dies_ns is not None and start_ns >= config.dies_ns
        if is_left:
            start_ns = max(start_ns, self._resumes_ns)
        done_ns = start_ns + config.service_ns + reclaim_ns
        heapreplace(self._free, done_ns)
        return done_ns, is_left
