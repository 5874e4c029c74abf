"""What failed I/Os have left behind: slots that do not hold what was to be written, pages that could not be read.

A slot whose write was torn or lost is damaged until it is written again or freed; a place, until its VM has left. A
page whose read failed, or brought what the checksum refuses, stays in the swap cache, locked no more but not uptodate
(mm/page_io.c:__end_swap_bio_read): every fault on it is VM_FAULT_SIGBUS (mm/memory.c:do_swap_page), also when the
device works again, until reclaim takes the page and the next fault reads it anew. It is charged, clean, and on the
lists like any page of the swap cache.

Departures, both of memory that is not anonymous: a page of a file that is not uptodate is read once more by each fault
before that gives up (mm/filemap.c:filemap_fault, page_not_uptodate), here by none; of shared memory the first fault
that finds it so puts a poisoned entry in its place and frees the slot, and the page is lost for good (mm/shmem.c:
shmem_set_folio_swapin_error), here it may be read anew after reclaim.

``troubles`` remembers them for the end of the run, and how often each was asked for in vain (E39).
"""

from __future__ import annotations

from dataclasses import dataclass

from apf.messages import PageError
from hostd.core.io_faults import IoResult

TROUBLES_MAX = 4096

_OK = IoResult.OK
_OF_WRITES = {IoResult.TORN: PageError.TORN, IoResult.LOST: PageError.LOST}


@dataclass(slots=True)
class Trouble:
    """A page that could not be read, at first when; ``faults``: those that it was not there for."""

    error: PageError
    slot: int
    since_ns: int
    faults: int = 0


class Damage:
    """``slots``: damaged ones. ``pages``: by key, those that are in a frame or on their way there and not uptodate."""

    __slots__ = ("pages", "slots", "troubles")

    def __init__(self) -> None:
        self.slots: dict[int, PageError] = {}
        self.pages: dict[int, PageError] = {}
        self.troubles: dict[int, Trouble] = {}

    def written(self, slot: int, result: IoResult) -> None:
        """A write to ``slot`` was submitted, and comes to ``result``."""
        if result is not _OK and result in _OF_WRITES:
            self.slots[slot] = _OF_WRITES[result]
        else:
            self.slots.pop(slot, None)

    def read(self, key: int, slot: int, result: IoResult, now_ns: int) -> IoResult:
        """A read of page ``key`` was submitted, of which the device says ``result``; returns what it comes to."""
        error = self.slots.get(slot) if result is _OK else PageError.READ
        if error is None:
            self.pages.pop(key, None)
            return _OK
        self.pages[key] = error
        if key in self.troubles or len(self.troubles) < TROUBLES_MAX:
            self.troubles.setdefault(key, Trouble(error, slot, now_ns))
        return IoResult.ERROR if error is PageError.READ else IoResult.CHECKSUM

    def in_vain(self, key: int) -> None:
        """A fault on page ``key``, which is not uptodate."""
        if key in self.troubles:
            self.troubles[key].faults += 1

    def freed(self, slot: int) -> None:
        """Nobody has ``slot`` any more."""
        self.slots.pop(slot, None)

    def forget(self, key: int) -> None:
        """Page ``key`` is in no frame any more."""
        self.pages.pop(key, None)
