"""What a vCPU's faults took: counted beside the core for whoever watches; nothing here is decided upon or journaled.

A fault begins with the EPT violation. It is over when the instruction can go on (minor, major), or, handled
asynchronously, when page ready was delivered (of one for which the vCPU halted: when the page was mapped); one that is
not over counts nowhere here yet. Its time falls into
stages, one behind the other, so that the sums of all stages are the sums of all latencies, to the nanosecond:

| stage    | minor and major faults                          | asynchronous faults                                      |
|----------|-------------------------------------------------|----------------------------------------------------------|
| retry    | from the first violation to the last            | the same                                                 |
| host     | the vCPU in the host, but for the next row      | from the violation to the reply that leaves it to worker |
| wait     | the vCPU slept there for the read               | from not-present delivered until the worker was done     |
| inject   |                                                 | from that reply to not-present delivered                 |
| exit     |                                                 | from done until the vCPU took notice and left the guest  |
| prefault |                                                 | from there until the page was mapped                     |
| ready    |                                                 | from mapped to page ready delivered                      |

A violation goes on from an earlier one that hostd could not settle (Retry) if the vCPU has retired nothing between
the two and runs the same task on the same page. If anything else ran meanwhile, it begins anew, and the time before
is in no histogram. Faults at CPL 0 (the guest kernel's, KVM's for the reason word) are not the guest's instructions:
they are only counted, as a reason for handling a fault synchronously.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apf.histogram import Histogram
from apf.messages import FaultKind
from apf.stats import HISTOGRAMS

_LATENCIES = ("latency_minor", "latency_major", "latency_async")
"""By FaultKind."""
_SETTLE_AT = 5 * 256


class Observed:
    """Counts of one vCPU, in histograms of its own or in those given."""

    __slots__ = (
        *("_began_ns", "_histograms", "_items", "_place", "_raised_ns", "sync_disabled", "work"),
        "_mapped",
    )

    def __init__(self, histograms: Mapping[str, Histogram] | None = None) -> None:
        self.share(histograms or {name: Histogram() for name in HISTOGRAMS})
        self._mapped: list[int] = []  # what ``settle`` counts: five a fault, see ``mapped``
        self._place: tuple[int, int, int] | None = None  # gfn, task, retired of the fault that is under way
        self._began_ns = 0
        self._raised_ns = 0
        self._items: dict[int, list[int]] = {}  # by token: began, raised, replied, ready, injected, exited, mapped
        self.sync_disabled = 0
        self.work = 0
        """Instructions retired in counting tasks up to the last exit."""

    def share(self, histograms: Mapping[str, Histogram]) -> None:
        """Count into ``histograms`` from now on. Before the first fault."""
        self._histograms = dict(histograms)

    def raised(self, gfn: int, task: int, retired: int, now_ns: int) -> None:
        """An EPT violation of user code."""
        place = (gfn, task, retired)
        if place != self._place:
            self._place, self._began_ns = place, now_ns
        self._raised_ns = now_ns

    def mapped(self, kind: FaultKind, stall_ns: int, at_ns: int) -> None:
        """Hostd mapped the page; the vCPU goes on at ``at_ns``, having slept ``stall_ns``."""
        # Counted many at once: one after the other they would take 2 % of a fault's time in the twin.
        self._mapped += (kind, self._began_ns, self._raised_ns, at_ns, stall_ns)
        if len(self._mapped) == _SETTLE_AT:
            self.settle()
        self._place = None

    def settle(self) -> None:
        """Count in the histograms what is not yet: for whoever looks at them."""
        if not self._mapped:
            return
        of = self._histograms
        kinds, began_ns, raised_ns, at_ns, stalls_ns = np.array(self._mapped, np.int64).reshape(-1, 5).T
        waits_ns = np.minimum(stalls_ns, at_ns - raised_ns)
        latencies_ns, retries_ns = at_ns - began_ns, raised_ns - began_ns
        for kind, name in enumerate(_LATENCIES):
            of[name].observe_all(latencies_ns[kinds == kind])
        of["stage_retry"].observe_all(retries_ns[retries_ns != 0])
        of["stage_host"].observe_all(at_ns - raised_ns - waits_ns)
        of["stage_wait"].observe_all(waits_ns[waits_ns != 0])
        self._mapped.clear()

    def failed(self) -> None:
        """The page cannot be had: a fault that is in no histogram."""
        self._place = None

    def in_progress(self, token: int, at_ns: int, ready_ns: int) -> None:
        """The worker has it; the vCPU goes on at ``at_ns`` and tells the guest."""
        self._items[token] = [self._began_ns, self._raised_ns, at_ns, ready_ns, at_ns, at_ns, at_ns]
        self._place = None

    def injected(self, token: int, now_ns: int) -> None:
        """Not-present was delivered."""
        if token in self._items:
            self._items[token][4] = now_ns

    def exited(self, token: int, now_ns: int) -> None:
        """The vCPU has left the guest, or its halt, for an item that is done."""
        if token in self._items:
            self._items[token][5] = self._items[token][6] = now_ns

    def prefaulted(self, token: int, at_ns: int) -> None:
        """Its page is mapped."""
        if token in self._items:
            self._items[token][6] = at_ns

    def delivered(self, token: int, now_ns: int) -> None:
        """Page ready was delivered, or the vCPU may go on that halted for the page: the fault is over."""
        if token not in self._items:  # the guest kernel's own, a wake-all, or one too many
            return
        began_ns, raised_ns, replied_ns, ready_ns, injected_ns, exited_ns, mapped_ns = self._items.pop(token)
        of = self._histograms
        of["latency_async"].observe(now_ns - began_ns)
        self._retried(raised_ns - began_ns)
        of["stage_host"].observe(replied_ns - raised_ns)
        of["stage_inject"].observe(injected_ns - replied_ns)
        done_ns = max(ready_ns, injected_ns)
        of["stage_wait"].observe(done_ns - injected_ns)
        of["stage_exit"].observe(exited_ns - done_ns)
        of["stage_prefault"].observe(mapped_ns - exited_ns)
        of["stage_ready"].observe(now_ns - mapped_ns)

    def _retried(self, ns: int) -> None:
        if ns:
            self._histograms["stage_retry"].observe(ns)

    def document(self) -> dict[str, Any]:
        """For the JSON: number, sum in ns and buckets (``apf.histogram.BOUNDS_NS``) of each histogram."""
        self.settle()
        return {
            name: {"count": one.count, "sum_ns": one.sum_ns, "buckets": one.buckets()}
            for name, one in self._histograms.items()
        }
