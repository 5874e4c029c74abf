"""The cells of the clock page, and what is done with them natively (see ``clockpage`` for what it is all about).

Every function takes the address of the page; times are guest ns.
"""

# numba's decorators are untyped; what they decorate is typed here by signature strings instead.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numba import njit

from apf.messages import FOREVER_NS, NEVER_NS
from apf.native import add_i64, futex_wait, futex_wake, load_i64, replace_i64, sched_yield, store_i64, write_fd


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
PARTICIPANTS: Final = 0
BORDER: Final = 8
WINDOWS: Final = 9
ABORT: Final = 16
BORDER_WORK: Final = 24
ENDED_KNOWN: Final = 25
OPENER: Final = 32
_OPENING: Final = 33
WAITERS: Final = 40
LIMIT: Final = 48
BEATS: Final = 49
SLOTS: Final = 56
LINE: Final = 8
# A slot line: time, futex, whether it can be interrupted, the two newest posts, the newest post it has taken.
# A want line: time, participant, futex, whether there are arrivals, the time granted for them.
_TIME: Final = 0
_SLOT_FUTEX: Final = 1
INTERRUPTIBLE: Final = 2
_POST: Final = 3
TAKEN: Final = 5
_WANT_WHO: Final = 1
_WANT_FUTEX: Final = 2
WANT_ARRIVALS: Final = 3
WANT_GRANTED: Final = 4

_NEVER: Final = NEVER_NS
_FOREVER: Final = FOREVER_NS
_DONE, _LATER, _ABORTED, _WORK, _FINISHED, _PARKED, _AHEAD, _ARRIVALS, _ENDED = (int(w) for w in Waited)
# Who opens a window at the moment: nobody, the thread that waits for it, or the one that answered last.
_FREE: Final = 0
_THREAD: Final = 1
_ANSWERER: Final = 2
_POLLS: Final = 200
"""Looks of a participant that was roused: some 100 us if nobody else wants the core."""
_WAIT_SECONDS: Final = 0
_WAIT_NANOSECONDS: Final = 200_000_000


class Server(IntEnum):
    """Kinds of servers, which have want entries of their own. A server uses its first vCPU's."""

    HOSTD = 0
    GUESTSCHED = 1


SERVERS: Final = len(Server)
NOBODY: Final = -1
"""The want entry of no server: all are woken."""


@njit("int64(int64, int64)", cache=True, nogil=True, inline="always")
def _cell(page, index):
    return page + 8 * index


@njit("int64(int64, int64)", cache=True, nogil=True)
def _slot(page, participant):
    return page + 8 * (SLOTS + LINE * participant)


@njit("int64(int64, int64)", cache=True, nogil=True)
def _want(page, entry):
    return page + 8 * (SLOTS + LINE * (load_i64(page) + entry))


@njit("int64(int64, int64)", cache=True, nogil=True)
def _posted(slot, before):
    """The newest post that takes effect before ``before`` and was not taken yet, 0 if there is none."""
    taken = load_i64(slot + 8 * TAKEN)
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
    if load_i64(slot + 8 * INTERRUPTIBLE) != 0:
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
def post_interrupt(page, participant, at_ns):
    """Post an interrupt of ``participant`` at ``at_ns``, unless a later one is posted."""
    slot = _slot(page, participant)
    first, second = load_i64(slot + 8 * _POST), load_i64(slot + 8 * (_POST + 1))
    if at_ns > max(first, second):
        store_i64(slot + 8 * (_POST if first < second else _POST + 1), at_ns)


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def take_interrupt(page, participant, border):
    """``participant`` enters the window that ends at ``border``: the post it takes, 0 if none."""
    slot = _slot(page, participant)
    post = _posted(slot, border)
    if load_i64(slot + 8 * INTERRUPTIBLE) != 0:
        # The slot first: it holds the others back from here on, as the post has done so far.
        if post != 0 and post < load_i64(slot):
            store_i64(slot, post)
        store_i64(slot + 8 * INTERRUPTIBLE, 0)
    if post != 0:
        store_i64(slot + 8 * TAKEN, post)
    return post


@njit("boolean(int64, int64, int64, int64, int64)", cache=True, nogil=True)
def _wake_passed(page, participant, before, time_ns, knows):
    """Wake the servers that this lets pass; whether all have reached the border."""
    if load_i64(_cell(page, WAITERS)) > 0:
        for entry in range(SERVERS * load_i64(page)):
            if entry == knows:
                continue
            want = _want(page, entry)
            wanted = load_i64(want)
            who = load_i64(want + 8 * _WANT_WHO)
            held_back = before < wanted or (before == wanted and participant < who)
            passes = time_ns > wanted or (time_ns == wanted and participant > who)
            if held_back and passes:
                futex_wake(want + 8 * _WANT_FUTEX, 1)
    border = load_i64(_cell(page, BORDER))
    return time_ns >= border and _all_reached(page, border)


@njit("void(int64, int64, int64, int64)", cache=True, nogil=True)
def publish(page, participant, time_ns, knows):
    """Store a slot and wake whoever this lets pass: a server waiting for its turn, but not ``knows``, or the opener."""
    slot = _slot(page, participant)
    before = load_i64(slot)
    store_i64(slot, time_ns)
    if _wake_passed(page, participant, before, time_ns, knows):
        futex_wake(_cell(page, OPENER), 1)


@njit("boolean(int64, int64, int64, int64, int64, boolean)", cache=True, nogil=True)
def settle(page, participant, asked_ns, time_ns, knows, opens):
    """Publish ``time_ns`` if the slot still holds ``asked_ns``; whether who ``opens`` has one to open now."""
    if not replace_i64(_slot(page, participant), asked_ns, time_ns):
        return False
    if not _wake_passed(page, participant, asked_ns, time_ns, knows):
        return False
    if not opens:
        futex_wake(_cell(page, OPENER), 1)
    return opens


@njit("boolean(int64, int64, int64)", cache=True, nogil=True)
def has_turn(page, time_ns, participant):
    """Whether nobody else can still issue a request before ``(time_ns, participant)``."""
    for other in range(load_i64(page)):
        if other != participant:
            bound = _bound(_slot(page, other))
            if bound < time_ns or (bound == time_ns and other < participant):
                return False
    return True


@njit("boolean(int64, int64, int64, int64)", cache=True, nogil=True)
def announce(page, entry, participant, time_ns):
    """Make that request the want of ``entry``; whether it has its turn."""
    want = _want(page, entry)
    before = load_i64(want)
    store_i64(want + 8 * _WANT_WHO, participant)
    store_i64(want, time_ns)
    if before == _NEVER:
        add_i64(_cell(page, WAITERS), 1)
    return has_turn(page, time_ns, participant)


@njit("void(int64, int64)", cache=True, nogil=True)
def withdraw(page, entry):
    """``entry`` wants nothing."""
    want = _want(page, entry)
    if load_i64(want) != _NEVER:
        store_i64(want, _NEVER)
        add_i64(_cell(page, WAITERS), -1)


@njit("int64(int64, int64, int64, int64)", cache=True, nogil=True)
def wait_passed(page, entry, seen, descriptor):
    """Write to eventfd ``descriptor`` as often as ``entry``'s futex moves on from ``seen``; its value once it rests."""
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
def wait_want(page, entry, seen):
    """Wait until ``entry``'s futex has moved on from ``seen``, or for a while; its value."""
    futex = _want(page, entry) + 8 * _WANT_FUTEX
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    if load_i64(futex) == seen:
        futex_wait(futex, seen, timespec.ctypes.data)
    return load_i64(futex)


@njit("boolean(int64, int64, int64)", cache=True, nogil=True)
def _may_go_on(page, slot, time_ns):
    border = load_i64(_cell(page, BORDER))
    if border > time_ns:
        return True
    return load_i64(slot + 8 * INTERRUPTIBLE) != 0 and _posted(slot, border) != 0


@njit("void(int64, int64)", cache=True, nogil=True)
def rouse_next(page, participant):
    """If all others have reached the border, wake the one of them that goes on first."""
    border = load_i64(_cell(page, BORDER))
    first, first_ns = -1, _FOREVER
    for other in range(load_i64(page)):
        if other != participant:
            bound = _bound(_slot(page, other))
            if bound < border:
                return
            if bound < first_ns:
                first, first_ns = other, bound
    if first >= 0:
        futex_wake(_slot(page, first) + 8 * _SLOT_FUTEX, 1)


@njit("int64(int64, int64, int64)", cache=True, nogil=True)
def wait_window(page, participant, time_ns):
    """Wait once until ``participant`` may go on at ``time_ns``: DONE, LATER or ABORTED.

    One that is woken before that was roused (``rouse_next``), and polls for a while.
    """
    slot = _slot(page, participant)
    if _may_go_on(page, slot, time_ns):
        return _DONE
    futex = slot + 8 * _SLOT_FUTEX
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    seen = load_i64(futex)
    if _may_go_on(page, slot, time_ns):
        return _DONE
    if load_i64(_cell(page, ABORT)) != 0:
        return _ABORTED
    futex_wait(futex, seen, timespec.ctypes.data)
    for _ in range(_POLLS if load_i64(futex) != seen else 1):
        if _may_go_on(page, slot, time_ns):
            return _DONE
        sched_yield()
    return _LATER


@njit("boolean(int64)", cache=True, nogil=True)
def _has_arrivals(page):
    for entry in range(SERVERS * load_i64(page)):
        if load_i64(_want(page, entry) + 8 * WANT_ARRIVALS) != 0:
            return True
    return False


@njit("int64(int64)", cache=True, nogil=True)
def earliest(page):
    """The earliest bound of all participants."""
    first = _NEVER
    for participant in range(load_i64(page)):
        first = min(first, _bound(_slot(page, participant)))
    return first


@njit("int64(int64)", cache=True, nogil=True)
def ended(page):
    """How many participants have ended."""
    number = 0
    for participant in range(load_i64(page)):
        if load_i64(_slot(page, participant)) == _NEVER:
            number += 1
    return number


@njit("int64(int64, int64)", cache=True, nogil=True)
def _open(page, window_ns):
    """All have reached the border: open the next window (DONE), or say why not."""
    border = load_i64(_cell(page, BORDER))
    first = earliest(page)
    if first >= _NEVER:
        return _FINISHED
    if ended(page) != load_i64(_cell(page, ENDED_KNOWN)):
        return _ENDED
    if load_i64(_cell(page, BORDER_WORK)) <= border:
        return _WORK
    if _has_arrivals(page):
        return _ARRIVALS
    if first >= _FOREVER:
        return _PARKED
    if first // window_ns * window_ns > load_i64(_cell(page, LIMIT)):
        return _AHEAD
    opened = (first // window_ns + 1) * window_ns
    add_i64(_cell(page, WINDOWS), 1)
    store_i64(_cell(page, BORDER), opened)
    for participant in range(load_i64(page)):
        slot = _slot(page, participant)
        if _bound(slot) < opened:
            futex_wake(slot + 8 * _SLOT_FUTEX, 1)
    return _DONE


@njit("int64(int64, int64)", cache=True, nogil=True)
def run_openings(page, window_ns):
    """Open windows until there is a reason not to, a ``Waited``: the thread that waits for that.

    Nobody else opens one while it does what BORDER_WORK, ENDED and ARRIVALS ask for, until it comes back.
    """
    opener = _cell(page, OPENER)
    opening = _cell(page, _OPENING)
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = _WAIT_SECONDS, _WAIT_NANOSECONDS
    replace_i64(opening, _THREAD, _FREE)
    while True:
        seen = load_i64(opener)
        if load_i64(_cell(page, ABORT)) != 0:
            return _ABORTED
        if not _all_reached(page, load_i64(_cell(page, BORDER))) or not replace_i64(opening, _FREE, _THREAD):
            futex_wait(opener, seen, timespec.ctypes.data)
            if not _all_reached(page, load_i64(_cell(page, BORDER))) or load_i64(opening) != _FREE:
                return _LATER
            continue
        # Another may have opened one between the look and the lock.
        waited = _open(page, window_ns) if _all_reached(page, load_i64(_cell(page, BORDER))) else _DONE
        if waited in (_WORK, _ENDED, _ARRIVALS):
            return waited
        store_i64(opening, _FREE)
        if waited != _DONE:
            return waited


@njit("int64(int64, int64)", cache=True, nogil=True)
def open_next(page, window_ns):
    """Open windows as long as all have reached the border, unless somebody is about to: BORDER_WORK, or DONE.

    After BORDER_WORK nobody else opens one until this is called again. Everything else is left to the thread that waits
    (``run_openings``): it is woken, or looks again when it is done.
    """
    opening = _cell(page, _OPENING)
    border = _cell(page, BORDER)
    if load_i64(opening) != _ANSWERER and not replace_i64(opening, _FREE, _ANSWERER):
        return _DONE
    while _all_reached(page, load_i64(border)) and load_i64(_cell(page, ABORT)) == 0:
        waited = _open(page, window_ns)
        if waited == _WORK:
            return waited
        if waited != _DONE:
            break
    store_i64(opening, _FREE)
    if _all_reached(page, load_i64(border)):
        futex_wake(_cell(page, OPENER), 1)
    return _DONE


@njit("void(int64, int64)", cache=True, nogil=True)
def grant(page, time_ns):
    """Give ``time_ns`` to the entries that have arrivals and no time for them yet."""
    for entry in range(SERVERS * load_i64(page)):
        want = _want(page, entry)
        if load_i64(want + 8 * WANT_ARRIVALS) != 0 and load_i64(want + 8 * WANT_GRANTED) == _NEVER:
            store_i64(want + 8 * WANT_GRANTED, time_ns)
            futex_wake(want + 8 * _WANT_FUTEX, 1)


@njit("void(int64, int64, int64)", cache=True, nogil=True)
def set_arrivals(page, entry, there):
    """Whether ``entry`` has arrivals; without, no time for them either."""
    want = _want(page, entry)
    if there == 0:
        store_i64(want + 8 * WANT_GRANTED, _NEVER)
    if load_i64(want + 8 * WANT_ARRIVALS) != there:
        store_i64(want + 8 * WANT_ARRIVALS, there)
        futex_wake(_cell(page, OPENER), 1)


@njit("void(int64, int64, boolean)", cache=True, nogil=True)
def wait_arrivals(page, wait_ns, there):
    """Wait once, for ``wait_ns`` at most, until whether there are arrivals is ``there``."""
    opener = _cell(page, OPENER)
    timespec = np.empty(2, np.int64)
    timespec[0], timespec[1] = 0, wait_ns
    seen = load_i64(opener)
    if load_i64(_cell(page, ABORT)) == 0 and _has_arrivals(page) != there:
        futex_wait(opener, seen, timespec.ctypes.data)


@njit("void(int64)", cache=True, nogil=True)
def wake_everybody(page):
    """Wake all that sleep on the page."""
    participants = load_i64(page)
    futex_wake(_cell(page, OPENER), 1)
    for participant in range(participants):
        futex_wake(_slot(page, participant) + 8 * _SLOT_FUTEX, 1)
    for entry in range(SERVERS * participants):
        futex_wake(_want(page, entry) + 8 * _WANT_FUTEX, 1)
