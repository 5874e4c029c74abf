"""Which I/Os of the swap device fail, how, and what the device's state does to the times of the others.

An I/O fails because a scenario or an operator wants it to (``Failure``), or by chance, as often as the device's profile
says (``Rates``); what that does is the same. Whether an I/O fails is decided when it is submitted, by the time and the
order of submission, as its completion is. So the core knows of a failure before anybody can see it; what it does takes
effect when the I/O completes. Torn and lost writes are carried out for real (``events.WriteSlot``), and the checksum of
the slot finds them when it is read: the core predicts that (``damage``), and the shell holds the two against each other.

A device that stops goes on with what it had where it stopped. A slow one is slow for the I/Os that start while it is; of
what makes it slow at a time, the worst counts.

Departures: a failure is of the one I/O it hits; no retries by a drive or its driver, and what is queued behind it is not
hit; what failed by chance may go well when it is tried again, for slots do not go bad. What is asked for while the host
runs is in force for I/Os submitted from then on, also a stop: the completion of those before is promised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apf.chance import events
from apf.core import Kind
from apf.io_faults import ANY, IoFault, IoFaultWish
from apf.swapdevice import ERRORS_OF
from hostd.core.device import Op


class IoResult(Kind):
    """What becomes of an I/O. OK and ERROR are what the device says; TORN and LOST writes it takes for done."""

    OK = "ok"
    ERROR = "error"
    TORN = "torn"
    LOST = "lost"
    CHECKSUM = "checksum"
    """A read that brings bytes that are not those which were to be written."""


_OK, _ERROR = IoResult.OK, IoResult.ERROR


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure in force from ``at_ns`` on, for ``for_ns`` (0: to the end) or for ``count`` I/Os (0: all), ns."""

    what: str
    at_ns: int
    nth: int = 1
    count: int = 1
    vm: int = ANY
    gfn: int = ANY
    slot: int = ANY
    io: str = "any"
    factor: int = 1
    for_ns: int = 0
    add_ns: int = 0

    @classmethod
    def of(cls, wanted: IoFault | IoFaultWish, at_ns: int) -> Failure:
        """``wanted`` from ``at_ns`` on."""
        return cls(
            wanted.what,
            at_ns,
            wanted.nth,
            wanted.count,
            wanted.vm,
            wanted.gfn,
            wanted.slot,
            wanted.io,
            wanted.factor,
            wanted.for_ns,
            wanted.add_ns,
        )


_OF_IOS: dict[str, tuple[Op, IoResult]] = {
    "read_error": (Op.READ, IoResult.ERROR),
    "write_error": (Op.WRITE, IoResult.ERROR),
    "torn_write": (Op.WRITE, IoResult.TORN),
    "lost_write": (Op.WRITE, IoResult.LOST),
}
_OPS = {"any": tuple(Op), "read": (Op.READ,), "write": (Op.WRITE,)}


class _Counted:
    """One that happens to I/Os: how many that it is about were seen."""

    __slots__ = ("_failure", "_op", "_seen", "result")

    def __init__(self, failure: Failure) -> None:
        self._failure = failure
        self._op, self.result = _OF_IOS[failure.what]
        self._seen = 0

    def hits(self, op: Op, vm: int, gfn: int, slot: int, now_ns: int) -> bool:
        """Whether it happens to this I/O, which it counts."""
        failure = self._failure
        if op is not self._op or now_ns < failure.at_ns:
            return False
        if failure.vm not in (ANY, vm) or failure.gfn not in (ANY, gfn) or failure.slot not in (ANY, slot):
            return False
        self._seen += 1
        behind = self._seen - failure.nth
        return behind >= 0 and (not failure.count or behind < failure.count)

    @property
    def is_over(self) -> bool:
        """Whether it can happen to no other I/O."""
        failure = self._failure
        return bool(failure.count) and self._seen >= failure.nth + failure.count - 1


Chances = tuple[Callable[[], bool], Callable[[], bool]]
"""By Op: whether the next I/O of that kind fails."""


def chances(errors: tuple[int, int], seed: int) -> Chances:
    """I/Os that fail by chance: of ``ERRORS_OF`` reads and writes ``errors``, by Op.

    Each I/O has a draw of its own, of the stream of its kind, so that of all others none is another for it.
    """
    reads, writes = errors
    return (
        events(seed, "device.read_error", reads, ERRORS_OF),
        events(seed, "device.write_error", writes, ERRORS_OF),
    )


class IoFaults:
    """The failures of one device. ``end_ns``: when the run ends; what stops for ever goes on only after it."""

    __slots__ = ("_counted", "_end_ns", "_full", "_slow", "_stops", "is_counting")

    def __init__(self, failures: tuple[Failure, ...], end_ns: int) -> None:
        self._end_ns = end_ns
        self._counted: list[_Counted] = []
        self.is_counting = False
        """Whether ``result`` has to be asked of every I/O."""
        self._slow: list[tuple[int, int, Failure]] = []
        self._stops: list[tuple[int, int]] = []  # ascending and apart
        self._full: list[tuple[int, int]] = []
        for failure in failures:
            self.add(failure)

    def add(self, failure: Failure) -> None:
        """One more."""
        if failure.what in _OF_IOS:
            self._counted.append(_Counted(failure))
            self.is_counting = True
            return
        until_ns = failure.at_ns + failure.for_ns if failure.for_ns else self._end_ns + 1
        if failure.what == "slow":
            self._slow.append((failure.at_ns, until_ns, failure))
        elif failure.what == "stop":
            self._stops = _merged([*self._stops, (failure.at_ns, until_ns)])
        else:
            assert failure.what == "swap_full", failure
            self._full.append((failure.at_ns, until_ns))

    def result(self, op: Op, vm: int, gfn: int, slot: int, now_ns: int, by_chance: bool = False) -> IoResult:
        """What becomes of an I/O that is submitted at ``now_ns``; all failures that are about it count it.

        What is wanted comes before what chance has it: that it fails ``by_chance``.
        """
        hit = [one for one in self._counted if one.hits(op, vm, gfn, slot, now_ns)]
        self._counted = [one for one in self._counted if not one.is_over]
        self.is_counting = bool(self._counted)
        return hit[0].result if hit else _ERROR if by_chance else _OK

    def is_swap_full(self, now_ns: int) -> bool:
        """Whether no swap slot can be had."""
        return bool(self._full) and any(from_ns <= now_ns < until_ns for from_ns, until_ns in self._full)

    def served(self, op: Op, start_ns: int, service_ns: int) -> tuple[int, int]:
        """When an I/O for which a server is free at ``start_ns`` starts and is done."""
        for from_ns, until_ns in self._stops:
            if from_ns <= start_ns < until_ns:
                start_ns = until_ns
        slow_ns = service_ns
        for from_ns, until_ns, slow in self._slow:
            if from_ns <= start_ns < until_ns and op in _OPS[slow.io]:
                slow_ns = max(slow_ns, service_ns * slow.factor + slow.add_ns)
        done_ns = start_ns + slow_ns
        for from_ns, until_ns in self._stops:
            if start_ns <= from_ns < done_ns:
                done_ns += until_ns - from_ns
        return start_ns, done_ns


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same times as spans that are apart, in order."""
    merged: list[tuple[int, int]] = []
    for from_ns, until_ns in sorted(spans):
        if merged and from_ns <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(until_ns, merged[-1][1]))
        else:
            merged.append((from_ns, until_ns))
    return merged
