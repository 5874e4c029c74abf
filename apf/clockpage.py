"""The clock page: how the processes of one host agree on virtual time.

One page in shared memory holds, for every participant (vCPU) of the host, its *slot*: a lower bound on the time of
its next request. Everything about order follows from the slots:

- a server may take the request ``(time, participant)`` once no other participant can still issue an earlier one, that
  is once every other slot is beyond it (``has_turn``);
- a window ends when every slot has reached its border (``run_openings``, the one opener, a native thread of hostd);
- a participant goes on at time t once the window that holds t is open (``wait_window``).

A slot is stored by its own vCPU, natively while it runs, or by the server that answers it, which replaces the time of
the request it has answered and nothing else (``settle``), so that reply and slot may overtake each other. A stalled or
idle vCPU's slot is the time it will go on, so nobody waits for it and nobody wakes it before; when all wait, the opener
jumps to the earliest.

Interrupts. What guestsched does to a vCPU that did not ask is posted: the border of the open window, at which it takes
effect, goes into a cell beside the vCPU's slot (as into a posted-interrupt descriptor), before the slot of the vCPU
whose request led to it. A vCPU looks when it enters a window (``take_interrupt``), so whether it sees a post is a
function of virtual time. One that idles, or is halted, has said that it can be interrupted; its slot then counts as no
later than the post.

Coming and going. The slot of a participant that has ended, or whose VM is not on the host, is never. A VM leaves and
joins at a border, when all others have reached it: the opener learns that participants have ended (``ENDED``), and a VM
that joins gets the border, or a later one, as its slots.

Arrivals. What comes to guestsched from outside of the run waits until all have reached the border; the opener then
grants guestsched the clock at a time of its choice (``ARRIVALS``), and opens no window before that is given back.

Nobody polls. Who waits announces what for (its slot, or a *want* entry: a server's next request), looks once more, and
sleeps on a futex of its own; who stores a slot looks for those whom this lets pass. Every wait returns after a while,
and at a signal, so that the caller can look at the world; the page's ``abort`` word ends all of them.
"""

# numba's decorators are untyped; what they decorate is typed here by signature strings instead.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np
from numba import njit

from apf.messages import FOREVER_NS, NEVER_NS
from apf.native import add_i64, futex_wait, futex_wake, load_i64, replace_i64, store_i64, write_fd


class Waited(IntEnum):
    """How a wait ended."""

    DONE = 0
    LATER = 1  # nothing yet: look around and wait again
    ABORTED = 2
    BORDER_WORK = 3  # run_openings only: all are at the border and hostd has work there
    FINISHED = 4  # run_openings only: no participant will ever ask again
    PARKED = 5  # run_openings only: all wait for an interrupt, none is posted
    AHEAD = 6  # run_openings only: the next window lies beyond the limit (``set_limit``)
    ARRIVALS = 7  # run_openings only: all are at the border and a server has arrivals
    ENDED = 8  # run_openings only: all are at the border, and a participant has ended since ``note_ended``


# Cells are int64, a cache line (8 cells) for each thing that is stored by somebody else.
_PARTICIPANTS: Final = 0
_BORDER: Final = 8
_WINDOWS: Final = 9
_ABORT: Final = 16
_BORDER_WORK: Final = 24
_ENDED_KNOWN: Final = 25
_OPENER: Final = 32
_WAITERS: Final = 40
_LIMIT: Final = 48
_BEATS: Final = 49
_SLOTS: Final = 56
_LINE: Final = 8
# A slot line: time, futex, whether it can be interrupted, the two newest posts, the newest post it has taken.
# A want line: time, participant, futex, whether there are arrivals, the time granted for them.
_TIME: Final = 0
_SLOT_FUTEX: Final = 1
_INTERRUPTIBLE: Final = 2
_POST: Final = 3
_TAKEN: Final = 5
_WANT_WHO: Final = 1
_WANT_FUTEX: Final = 2
_WANT_ARRIVALS: Final = 3
_WANT_GRANTED: Final = 4

_NEVER: Final = NEVER_NS
_FOREVER: Final = FOREVER_NS
_DONE, _LATER, _ABORTED, _WORK, _FINISHED, _PARKED, _AHEAD, _ARRIVALS, _ENDED = (int(w) for w in Waited)
_WAIT_SECONDS: Final = 0
_WAIT_NANOSECONDS: Final = 200_000_000

SERVERS: Final = 2
"""Kinds of servers, which have want entries of their own: hostd and guestsched. A server uses its first vCPU's."""


@njit("int64(int64, int64)", cache=True, nogil=True, inline="always")
def _cell(page, index):
    return page + 8 * index


@njit("int64(int64, int64)", cache=True, nogil=True)
def _slot(page, participant):
    return page + 8 * (_SLOTS + _LINE * participant)


@njit("int64(int64, int64)", cache=True, nogil=True)
def _want(page, entry):
    return page + 8 * (_SLOTS + _LINE * (load_i64(page) + entry))


@njit("int64(int64, int64)", cache=True, nogil=True)
def _posted(slot, before):
    """The newest post that takes effect before ``before`` and was not taken yet, 0 if there is none."""
    taken = load_i64(slot + 8 * _TAKEN)
    newest = 0
    for cell in range(2):
        post = load_i64(slot + 8 * (_POST + cell))
        if taken < post < before and post > newest:
            newest = post
    return newest


@njit("int64(int64)", cache=True, nogil=True)
def _bound(slot):
    """What the slot stands for: its time, or a post that will interrupt its wait."""
    time_ns = load_i64(slot)
    if load_i64(slot + 8 * _INTERRUPTIBLE) != 0:
        post = _posted(slot, time_ns)
        if post != 0:
            # Of two untaken posts the older one: the newer is of the window that is open now.
            other = _posted(slot, post)
            return other if other != 0 else post
    return time_ns


@njit("boolean(int64, int64)", cache=True, nogil=True)
def _all_reached(page, border):
    # A loop, not all(): numba has no generators in nopython mode.
    for participant in range(load_i64(page)):
        if _bound(_slot(page, participant)) < border:
            return False
    return True


@njit("void(int64, int64, int64)", cache=True, nogil=True)
def _post_interrupt(page, participant, at_ns):
    slot = _slot(page, participant)
    first, second = load_i64(slot + 8 * _POST), load_i64(slot + 8 * (_POST + 1))
    if at_ns > max(first, second):
        store_i64(slot + 8 * (_POST if first < second else _POST + 1), at_ns)


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def _take_interrupt(page, participant, border):
    slot = _slot(page, participant)
    post = _posted(slot, border)
    if load_i64(slot + 8 * _INTERRUPTIBLE) != 0:
        # The slot first: it holds the others back from here on, as the post has done so far.
        if post != 0 and post < load_i64(slot):
            store_i64(slot, post)
        store_i64(slot + 8 * _INTERRUPTIBLE, 0)
    if post != 0:
        store_i64(slot + 8 * _TAKEN, post)
    return post


@njit("void(int64, int64, int64, int64)", cache=True, nogil=True)
def _wake_passed(page, participant, before, time_ns):
    if load_i64(_cell(page, _WAITERS)) > 0:
        for entry in range(SERVERS * load_i64(page)):
            want = _want(page, entry)
            wanted = load_i64(want)
            who = load_i64(want + 8 * _WANT_WHO)
            held_back = before < wanted or (before == wanted and participant < who)
            passes = time_ns > wanted or (time_ns == wanted and participant > who)
            if held_back and passes:
                futex_wake(want + 8 * _WANT_FUTEX, 1)
    border = load_i64(_cell(page, _BORDER))
    if time_ns >= border and _all_reached(page, border):
        futex_wake(_cell(page, _OPENER), 1)


@njit("void(int64, int64, int64)", cache=True, nogil=True)
def publish(page, participant, time_ns):
    """Store a slot and wake whoever this lets pass: a server waiting for its turn, or the opener."""
    slot = _slot(page, participant)
    before = load_i64(slot)
    store_i64(slot, time_ns)
    _wake_passed(page, participant, before, time_ns)


@njit("void(int64, int64, int64, int64)", cache=True, nogil=True)
def _settle(page, participant, asked_ns, time_ns):
    if replace_i64(_slot(page, participant), asked_ns, time_ns):
        _wake_passed(page, participant, asked_ns, time_ns)


@njit("boolean(int64, int64, int64)", cache=True, nogil=True)
def _has_turn(page, time_ns, participant):
    for other in range(load_i64(page)):
        if other != participant:
            bound = _bound(_slot(page, other))
            if bound < time_ns or (bound == time_ns and other < participant):
                return False
    return True


@njit("boolean(int64, int64, int64, int64)", cache=True, nogil=True)
def _announce(page, entry, participant, time_ns):
    want = _want(page, entry)
    before = load_i64(want)
    store_i64(want + 8 * _WANT_WHO, participant)
    store_i64(want, time_ns)
    if before == _NEVER:
        add_i64(_cell(page, _WAITERS), 1)
    return _has_turn(page, time_ns, participant)


@njit("void(int64, int64)", cache=True, nogil=True)
def _withdraw(page, entry):
    want = _want(page, entry)
    if load_i64(want) != _NEVER:
        store_i64(want, _NEVER)
        add_i64(_cell(page, _WAITERS), -1)


@njit("int64(int64, int64, int64, int64)", cache=True, nogil=True)
def _wait_passed(page, entry, seen, descriptor):
    futex = _want(page, entry) + 8 * _WANT_FUTEX
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    one = np.ones(1, np.int64)
    while True:
        now = load_i64(futex)
        if now != seen:
            seen = now
            write_fd(descriptor, one.ctypes.data, 8)
        elif futex_wait(futex, seen, timespec.ctypes.data) != 0 and load_i64(futex) == seen:
            return seen


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def _wait_want(page, entry, seen):
    futex = _want(page, entry) + 8 * _WANT_FUTEX
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    if load_i64(futex) == seen:
        futex_wait(futex, seen, timespec.ctypes.data)
    return load_i64(futex)


@njit("boolean(int64, int64, int64)", cache=True, nogil=True)
def _may_go_on(page, slot, time_ns):
    border = load_i64(_cell(page, _BORDER))
    if border > time_ns:
        return True
    return load_i64(slot + 8 * _INTERRUPTIBLE) != 0 and _posted(slot, border) != 0


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def _wait_window(page, participant, time_ns):
    slot = _slot(page, participant)
    if _may_go_on(page, slot, time_ns):
        return _DONE
    futex = slot + 8 * _SLOT_FUTEX
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    seen = load_i64(futex)
    if _may_go_on(page, slot, time_ns):
        return _DONE
    if load_i64(_cell(page, _ABORT)) != 0:
        return _ABORTED
    futex_wait(futex, seen, timespec.ctypes.data)
    if _may_go_on(page, slot, time_ns):
        return _DONE
    return _LATER


@njit("boolean(int64)", cache=True, nogil=True)
def _has_arrivals(page):
    for entry in range(SERVERS * load_i64(page)):
        if load_i64(_want(page, entry) + 8 * _WANT_ARRIVALS) != 0:
            return True
    return False


@njit("int64(int64)", cache=True, nogil=True)
def _earliest(page):
    earliest = _NEVER
    for participant in range(load_i64(page)):
        earliest = min(earliest, _bound(_slot(page, participant)))
    return earliest


@njit("int64(int64)", cache=True, nogil=True)
def _ended(page):
    ended = 0
    for participant in range(load_i64(page)):
        if load_i64(_slot(page, participant)) == _NEVER:
            ended += 1
    return ended


@njit("int64(int64, int64)", cache=True, nogil=True)
def _run_openings(page, window_ns):
    opener = _cell(page, _OPENER)
    border_cell = _cell(page, _BORDER)
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    while True:
        border = load_i64(border_cell)
        seen = load_i64(opener)
        if load_i64(_cell(page, _ABORT)) != 0:
            return _ABORTED
        if not _all_reached(page, border):
            futex_wait(opener, seen, timespec.ctypes.data)
            if not _all_reached(page, border):
                return _LATER
        earliest = _earliest(page)
        if earliest >= _NEVER:
            return _FINISHED
        if _ended(page) != load_i64(_cell(page, _ENDED_KNOWN)):
            return _ENDED
        if load_i64(_cell(page, _BORDER_WORK)) <= border:
            return _WORK
        if _has_arrivals(page):
            return _ARRIVALS
        if earliest >= _FOREVER:
            return _PARKED
        if earliest // window_ns * window_ns > load_i64(_cell(page, _LIMIT)):
            return _AHEAD
        opened = (earliest // window_ns + 1) * window_ns
        add_i64(_cell(page, _WINDOWS), 1)
        store_i64(border_cell, opened)
        for participant in range(load_i64(page)):
            slot = _slot(page, participant)
            if _bound(slot) < opened:
                futex_wake(slot + 8 * _SLOT_FUTEX, 1)


@njit("void(int64, int64)", cache=True, nogil=True)
def _grant(page, time_ns):
    for entry in range(SERVERS * load_i64(page)):
        want = _want(page, entry)
        if load_i64(want + 8 * _WANT_ARRIVALS) != 0 and load_i64(want + 8 * _WANT_GRANTED) == _NEVER:
            store_i64(want + 8 * _WANT_GRANTED, time_ns)
            futex_wake(want + 8 * _WANT_FUTEX, 1)


@njit("void(int64, int64, int64)", cache=True, nogil=True)
def _set_arrivals(page, entry, there):
    want = _want(page, entry)
    if there == 0:
        store_i64(want + 8 * _WANT_GRANTED, _NEVER)
    if load_i64(want + 8 * _WANT_ARRIVALS) != there:
        store_i64(want + 8 * _WANT_ARRIVALS, there)
        futex_wake(_cell(page, _OPENER), 1)


@njit("void(int64, int64, boolean)", cache=True, nogil=True)
def _wait_arrivals(page, wait_ns, there):
    opener = _cell(page, _OPENER)
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = 0, wait_ns
    seen = load_i64(opener)
    if load_i64(_cell(page, _ABORT)) == 0 and _has_arrivals(page) != there:
        futex_wait(opener, seen, timespec.ctypes.data)


@njit("void(int64)", cache=True, nogil=True)
def _wake_everybody(page):
    participants = load_i64(page)
    futex_wake(_cell(page, _OPENER), 1)
    for participant in range(participants):
        futex_wake(_slot(page, participant) + 8 * _SLOT_FUTEX, 1)
    for entry in range(SERVERS * participants):
        futex_wake(_want(page, entry) + 8 * _WANT_FUTEX, 1)


def next_border_ns(earliest_ns: int, window_ns: int) -> int:
    """End of the window that holds ``earliest_ns``; the twin opens by the same rule as ``run_openings``."""
    return (earliest_ns // window_ns + 1) * window_ns


class ClockPage:
    """One process's view of the clock page."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._cells = np.frombuffer(mapping, dtype=np.int64)
        self.address = int(self._cells.ctypes.data)

    @staticmethod
    def size(participants: int) -> int:
        """Bytes of the page for that many participants."""
        return 8 * (_SLOTS + _LINE * (1 + SERVERS) * participants)

    @classmethod
    def create(cls, path: Path, participants: int, present: int | None = None) -> ClockPage:
        """Make the page at ``path``: the slots of the first ``present`` (None: of all) at 0, no window open."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, cls.size(participants))
            page = cls(mmap.mmap(fd, cls.size(participants)))
        finally:
            os.close(fd)
        page._cells[_PARTICIPANTS] = participants
        page._cells[_BORDER_WORK] = NEVER_NS
        page._cells[_LIMIT] = NEVER_NS
        for participant in range(participants if present is None else present, participants):
            page._cells[_SLOTS + _LINE * participant] = NEVER_NS
        page.note_ended()
        for entry in range(SERVERS * participants):
            page._cells[_SLOTS + _LINE * (participants + entry)] = NEVER_NS
            page._cells[_SLOTS + _LINE * (participants + entry) + _WANT_GRANTED] = NEVER_NS
        return page

    @classmethod
    def attach(cls, path: Path) -> ClockPage:
        """Map the page another process made."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(mmap.mmap(fd, os.fstat(fd).st_size))
        finally:
            os.close(fd)

    @property
    def participants(self) -> int:
        """How many participants the host has."""
        return int(self._cells[_PARTICIPANTS])

    @property
    def border_ns(self) -> int:
        """End of the open window."""
        return int(self._cells[_BORDER])

    @property
    def windows(self) -> int:
        """Windows opened so far."""
        return int(self._cells[_WINDOWS])

    def slot_ns(self, participant: int) -> int:
        """A participant's slot."""
        return int(self._cells[_SLOTS + _LINE * participant])

    def virtual_ns(self) -> int:
        """How far all participants have come (for show; it moves while one looks)."""
        return min((self.slot_ns(p) for p in range(self.participants)), default=0)

    def now_ns(self) -> int:
        """The same, but no later than the border of the open window: it stands still where all idle. Never goes back."""
        return min(self.virtual_ns(), self.border_ns)

    def publish(self, participant: int, time_ns: int) -> None:
        """Store a slot and wake whoever this lets pass."""
        publish(self.address, participant, time_ns)

    def settle(self, participant: int, asked_ns: int, time_ns: int) -> None:
        """The request of ``asked_ns`` is answered for ``time_ns``: publish that, unless its vCPU has gone on already.

        What a vCPU stores after the reply is later than its request, so the slot never goes back.
        """
        _settle(self.address, participant, asked_ns, time_ns)

    def want_entry(self, server: int, first_participant: int) -> int:
        """The want entry of a server whose vCPUs have the slots from ``first_participant`` on."""
        return server * self.participants + first_participant

    def has_turn(self, participant: int, time_ns: int) -> bool:
        """Whether nobody else can still issue a request before ``(time_ns, participant)``."""
        return bool(_has_turn(self.address, time_ns, participant))

    def announce(self, entry: int, participant: int, time_ns: int) -> bool:
        """Say in ``entry`` which request is next for its server; returns whether it has its turn already.

        If not, ``wait_passed`` of that entry will tell when to look again.
        """
        return bool(_announce(self.address, entry, participant, time_ns))

    def withdraw(self, entry: int) -> None:
        """Nothing is waiting at ``entry``'s server."""
        _withdraw(self.address, entry)

    def wait_passed(self, entry: int, seen: int, descriptor: int) -> int:
        """Write to eventfd ``descriptor`` when a slot passed what ``entry`` announces.

        Runs natively; returns when nothing happened for 200 ms, with what to call it with (``seen``) next.
        """
        return int(_wait_passed(self.address, entry, seen, descriptor))

    def wait_want(self, entry: int, seen: int) -> int:
        """Wait, without a descriptor, until a slot passed what ``entry`` announces, for 200 ms at most.

        Returns what to call it with (``seen``) next: another number if one did.
        """
        return int(_wait_want(self.address, entry, seen))

    def wait_window(self, participant: int, time_ns: int) -> Waited:
        """Wait until a window holding ``time_ns`` is open; the slot must be at ``time_ns`` or a bound below it."""
        return Waited(_wait_window(self.address, participant, time_ns))

    def run_openings(self, window_ns: int) -> Waited:
        """Open windows until hostd has to do something (BORDER_WORK), look around (LATER), or it is over."""
        return Waited(_run_openings(self.address, window_ns))

    # Coming and going -----------------------------------------------------------------------------------------------

    def note_ended(self) -> None:
        """The opener knows of all participants that have ended; called by it, at a border."""
        self._cells[_ENDED_KNOWN] = _ended(self.address)

    def has_ended(self, participants: range) -> bool:
        """Whether all of these have ended, or are not there."""
        return all(self.slot_ns(participant) == NEVER_NS for participant in participants)

    def enter(self, participants: range, at_ns: int) -> None:
        """Participants that were not there go on at ``at_ns``; called by the opener, at a border."""
        for participant in participants:
            line = _SLOTS + _LINE * participant
            self._cells[line + _INTERRUPTIBLE : line + _TAKEN + 1] = 0
            self._cells[line] = at_ns
        self.note_ended()

    def evict(self, participants: range, server: int) -> None:
        """These participants and their ``server`` are dead, all their processes: nobody waits for them any more."""
        entry = self.want_entry(server, participants.start)
        self.withdraw(entry)
        self.give_back(entry)
        for participant in participants:
            self.set_interruptible(participant, False)
            self.publish(participant, NEVER_NS)

    # Interrupts -----------------------------------------------------------------------------------------------------

    def post(self, participant: int, at_ns: int) -> None:
        """Interrupt a vCPU at ``at_ns``: the border of the open window, or the time granted for arrivals."""
        _post_interrupt(self.address, participant, at_ns)

    def take_interrupt(self, participant: int, border_ns: int) -> int:
        """The vCPU enters the window that ends at ``border_ns``: the time of the post it takes there, 0 if none.

        It is not interruptible from here on; if it was, its slot is now no later than that time.
        """
        return int(_take_interrupt(self.address, participant, border_ns))

    def set_interruptible(self, participant: int, yes: bool) -> None:
        """Whether a post ends the wait that the vCPU's slot tells of; before ``publish`` if it does."""
        self._cells[_SLOTS + _LINE * participant + _INTERRUPTIBLE] = yes

    # Arrivals and pace ----------------------------------------------------------------------------------------------

    def announce_arrivals(self, entry: int) -> None:
        """The server of ``entry`` has something from outside: ask for the clock."""
        _set_arrivals(self.address, entry, 1)

    def has_arrivals(self, entry: int) -> bool:
        """Whether the server of ``entry`` asks for the clock."""
        return bool(self._cells[_SLOTS + _LINE * (self.participants + entry) + _WANT_ARRIVALS])

    def granted_ns(self, entry: int) -> int | None:
        """The time for the arrivals of ``entry``, if the opener has granted it."""
        granted = int(self._cells[_SLOTS + _LINE * (self.participants + entry) + _WANT_GRANTED])
        return None if granted == NEVER_NS else granted

    def give_back(self, entry: int) -> None:
        """The arrivals of ``entry`` have been taken, and interrupts posted."""
        _set_arrivals(self.address, entry, 0)

    def grant(self, time_ns: int) -> None:
        """Let the servers that have arrivals take them at ``time_ns``."""
        _grant(self.address, time_ns)

    def earliest_ns(self) -> int:
        """The earliest bound of all participants."""
        return int(_earliest(self.address))

    def set_limit(self, time_ns: int) -> None:
        """Open no window that starts after ``time_ns``."""
        self._cells[_LIMIT] = time_ns

    def wait_arrivals(self, there: bool, wait_ns: int) -> None:
        """The opener waits until there are arrivals (or until there are none), for ``wait_ns`` (below a second) at most.

        May return early: look again.
        """
        _wait_arrivals(self.address, wait_ns, there)

    def beat(self) -> None:
        """The opener waits, and knows why: nobody needs to lose patience."""
        self._cells[_BEATS] += 1

    @property
    def beats(self) -> int:
        """What ``beat`` counts."""
        return int(self._cells[_BEATS])

    def set_border_due(self, due_ns: int | None) -> None:
        """The first border at or after ``due_ns`` needs hostd (None: none does).

        Only hostd says so, before it publishes the slot of the vCPU whose request caused it.
        """
        self._cells[_BORDER_WORK] = NEVER_NS if due_ns is None else due_ns

    @property
    def aborted(self) -> bool:
        """Whether somebody ended the run."""
        return bool(self._cells[_ABORT])

    def abort(self) -> None:
        """End every wait of every process."""
        self._cells[_ABORT] = 1
        _wake_everybody(self.address)
