"""The clock page: how the processes of one host agree on virtual time.

One page in shared memory holds, for every participant (vCPU) of the host, its *slot*: a lower bound on the time of
its next request. Everything about order follows from the slots:

- a server may take the request ``(time, participant)`` once no other participant can still issue an earlier one, that
  is once every other slot is beyond it (``has_turn``);
- a window ends when every slot has reached its border; then hostd opens the next one: the native thread that waits for
  that (``run_openings``), or the thread whose answer was the last that was missing (``open_next``), one at a time;
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
sleeps on a futex of its own; who stores a slot looks for those whom this lets pass, but for the server that gets its
request next, which looks when that arrives. Every wait returns after a while,
and at a signal, so that the caller can look at the world; the page's ``abort`` word ends all of them.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from apf import clockcells, sharedfile
from apf.clockcells import (
    ABORT,
    BEATS,
    BORDER,
    BORDER_WORK,
    ENDED_KNOWN,
    INTERRUPTIBLE,
    LIMIT,
    LINE,
    NOBODY,
    PARTICIPANTS,
    SERVERS,
    SLOTS,
    TAKEN,
    WANT_ARRIVALS,
    WANT_GRANTED,
    WINDOWS,
    Server,
    Waited,
)
from apf.messages import NEVER_NS

_WAITED: tuple[Waited, ...] = tuple(Waited)  # by number


def next_border_ns(earliest_ns: int, window_ns: int) -> int:
    """End of the window that holds ``earliest_ns``; the twin opens by the same rule as ``run_openings``."""
    return (earliest_ns // window_ns + 1) * window_ns


class ClockPage:
    """One process's view of the clock page."""

    def __init__(self, mapping: mmap.mmap) -> None:
        # An item of a memoryview is one load or store of eight bytes, as one of numpy's arrays is, for half the time.
        self._cells = memoryview(mapping).cast("q")
        self.address = int(np.frombuffer(mapping, dtype=np.int64).ctypes.data)
        self._border_due_ns: int | None = None

    @staticmethod
    def size(participants: int) -> int:
        """Bytes of the page for that many participants."""
        return 8 * (SLOTS + LINE * (1 + SERVERS) * participants)

    @classmethod
    def create(cls, path: Path, participants: int, present: int | None = None) -> ClockPage:
        """Make the page at ``path``: the slots of the first ``present`` (None: of all) at 0, no window open."""
        page = cls(sharedfile.create(path, cls.size(participants)))
        page._cells[PARTICIPANTS] = participants
        page._cells[BORDER_WORK] = NEVER_NS
        page._cells[LIMIT] = NEVER_NS
        for participant in range(participants if present is None else present, participants):
            page._cells[SLOTS + LINE * participant] = NEVER_NS
        page.note_ended()
        for entry in range(SERVERS * participants):
            page._cells[SLOTS + LINE * (participants + entry)] = NEVER_NS
            page._cells[SLOTS + LINE * (participants + entry) + WANT_GRANTED] = NEVER_NS
        return page

    @classmethod
    def attach(cls, path: Path) -> ClockPage:
        """Map the page another process made."""
        return cls(sharedfile.attach(path))

    @property
    def participants(self) -> int:
        """How many participants the host has."""
        return self._cells[PARTICIPANTS]

    @property
    def border_ns(self) -> int:
        """End of the open window."""
        return self._cells[BORDER]

    @property
    def windows(self) -> int:
        """Windows opened so far."""
        return self._cells[WINDOWS]

    def slot_ns(self, participant: int) -> int:
        """A participant's slot."""
        return self._cells[SLOTS + LINE * participant]

    def virtual_ns(self) -> int:
        """How far all participants have come (for show; it moves while one looks)."""
        return min((self.slot_ns(p) for p in range(self.participants)), default=0)

    def now_ns(self) -> int:
        """The same, but no later than the border of the open window: it stands still where all idle. Never goes back."""
        return min(self.virtual_ns(), self.border_ns)

    def publish(self, participant: int, time_ns: int, knows: int = NOBODY) -> None:
        """Store a slot and wake whoever this lets pass.

        Not the server of want entry ``knows``, to which the request that this is the time of goes next: it looks
        whenever one arrives, and need not be woken twice.
        """
        clockcells.publish(self.address, participant, time_ns, knows)

    def settle(self, participant: int, asked_ns: int, time_ns: int, knows: int = NOBODY, opens: bool = False) -> bool:
        """The request of ``asked_ns`` is answered for ``time_ns``: publish that, unless its vCPU has gone on already.

        What a vCPU stores after the reply is later than its request, so the slot never goes back. ``knows``: the want
        entry of who settles it, and looks itself for what may pass now. True: all have reached the border now, and the
        opener's thread was not woken for that, since the caller ``opens`` windows itself (``open_next``).
        """
        return bool(clockcells.settle(self.address, participant, asked_ns, time_ns, knows, opens))

    def want_entry(self, server: Server, first_participant: int) -> int:
        """The want entry of a server whose vCPUs have the slots from ``first_participant`` on."""
        return server * self.participants + first_participant

    def has_turn(self, participant: int, time_ns: int) -> bool:
        """Whether nobody else can still issue a request before ``(time_ns, participant)``."""
        return bool(clockcells.has_turn(self.address, time_ns, participant))

    def announce(self, entry: int, participant: int, time_ns: int) -> bool:
        """Say in ``entry`` which request is next for its server; returns whether it has its turn already.

        If not, ``wait_passed`` of that entry will tell when to look again.
        """
        return bool(clockcells.announce(self.address, entry, participant, time_ns))

    def withdraw(self, entry: int) -> None:
        """Nothing is waiting at ``entry``'s server."""
        clockcells.withdraw(self.address, entry)

    def wait_passed(self, entry: int, seen: int, descriptor: int) -> int:
        """Write to eventfd ``descriptor`` when a slot passed what ``entry`` announces.

        Runs natively; returns when nothing happened for 200 ms, with what to call it with (``seen``) next.
        """
        return int(clockcells.wait_passed(self.address, entry, seen, descriptor))

    def wait_want(self, entry: int, seen: int) -> int:
        """Wait, without a descriptor, until a slot passed what ``entry`` announces, for 200 ms at most.

        Returns what to call it with (``seen``) next: another number if one did.
        """
        return int(clockcells.wait_want(self.address, entry, seen))

    def wait_window(self, participant: int, time_ns: int) -> Waited:
        """Wait until a window holding ``time_ns`` is open; the slot must be at ``time_ns`` or a bound below it."""
        return _WAITED[int(clockcells.wait_window(self.address, participant, time_ns))]

    def rouse_next(self, participant: int) -> None:
        """Hostd is about to answer ``participant``; if all others wait for that, the first to go on wakes up now.

        It takes as long to wake up as to answer a fault; meanwhile nobody else has anything to do.
        """
        clockcells.rouse_next(self.address, participant)

    def run_openings(self, window_ns: int) -> Waited:
        """Open windows until hostd has to do something (BORDER_WORK), look around (LATER), or it is over.

        For the thread that waits for it. What it is told to do is done while nobody else opens a window.
        """
        return _WAITED[int(clockcells.run_openings(self.address, window_ns))]

    def open_next(self, window_ns: int) -> bool:
        """Open windows here and now: for a thread of hostd that has settled the last slot before the border.

        True: hostd has border work first; to be called again when that is done. For one thread at a time.
        """
        return int(clockcells.open_next(self.address, window_ns)) == Waited.BORDER_WORK

    # Coming and going -----------------------------------------------------------------------------------------------

    def note_ended(self) -> None:
        """The opener knows of all participants that have ended; called by it, at a border."""
        self._cells[ENDED_KNOWN] = int(clockcells.ended(self.address))

    def has_ended(self, participants: range) -> bool:
        """Whether all of these have ended, or are not there."""
        return all(self.slot_ns(participant) == NEVER_NS for participant in participants)

    def enter(self, participants: range, at_ns: int) -> None:
        """Participants that were not there go on at ``at_ns``; called by the opener, at a border."""
        for participant in participants:
            line = SLOTS + LINE * participant
            for cell in range(INTERRUPTIBLE, TAKEN + 1):
                self._cells[line + cell] = 0
            self._cells[line] = at_ns
        self.note_ended()

    def evict(self, participants: range, server: Server) -> None:
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
        clockcells.post_interrupt(self.address, participant, at_ns)

    def take_interrupt(self, participant: int, border_ns: int) -> int:
        """The vCPU enters the window that ends at ``border_ns``: the time of the post it takes there, 0 if none.

        It is not interruptible from here on; if it was, its slot is now no later than that time.
        """
        return int(clockcells.take_interrupt(self.address, participant, border_ns))

    def set_interruptible(self, participant: int, yes: bool) -> None:
        """Whether a post ends the wait that the vCPU's slot tells of; before ``publish`` if it does."""
        self._cells[SLOTS + LINE * participant + INTERRUPTIBLE] = yes

    # Arrivals and pace ----------------------------------------------------------------------------------------------

    def announce_arrivals(self, entry: int) -> None:
        """The server of ``entry`` has something from outside: ask for the clock."""
        clockcells.set_arrivals(self.address, entry, 1)

    def has_arrivals(self, entry: int) -> bool:
        """Whether the server of ``entry`` asks for the clock."""
        return bool(self._cells[SLOTS + LINE * (self.participants + entry) + WANT_ARRIVALS])

    def granted_ns(self, entry: int) -> int | None:
        """The time for the arrivals of ``entry``, if the opener has granted it."""
        granted = self._cells[SLOTS + LINE * (self.participants + entry) + WANT_GRANTED]
        return None if granted == NEVER_NS else granted

    def give_back(self, entry: int) -> None:
        """The arrivals of ``entry`` have been taken, and interrupts posted."""
        clockcells.set_arrivals(self.address, entry, 0)

    def grant(self, time_ns: int) -> None:
        """Let the servers that have arrivals take them at ``time_ns``."""
        clockcells.grant(self.address, time_ns)

    def earliest_ns(self) -> int:
        """The earliest bound of all participants."""
        return int(clockcells.earliest(self.address))

    def set_limit(self, time_ns: int) -> None:
        """Open no window that starts after ``time_ns``."""
        self._cells[LIMIT] = time_ns

    def wait_arrivals(self, there: bool, wait_ns: int) -> None:
        """The opener waits until there are arrivals (or until there are none), for ``wait_ns`` (below a second) at most.

        May return early: look again.
        """
        clockcells.wait_arrivals(self.address, wait_ns, there)

    def beat(self) -> None:
        """The opener waits, and knows why: nobody needs to lose patience."""
        self._cells[BEATS] += 1

    @property
    def beats(self) -> int:
        """What ``beat`` counts."""
        return self._cells[BEATS]

    def set_border_due(self, due_ns: int | None) -> None:
        """The first border at or after ``due_ns`` needs hostd (None: none does).

        Only hostd says so, before it publishes the slot of the vCPU whose request caused it.
        """
        if due_ns != self._border_due_ns:
            self._border_due_ns = due_ns
            self._cells[BORDER_WORK] = NEVER_NS if due_ns is None else due_ns

    @property
    def aborted(self) -> bool:
        """Whether somebody ended the run."""
        return bool(self._cells[ABORT])

    def abort(self) -> None:
        """End every wait of every process."""
        self._cells[ABORT] = 1
        clockcells.wake_everybody(self.address)
