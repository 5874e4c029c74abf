"""What the memory of a VM is made of in the host, and the few questions to which that makes a difference.

A slot is one of the swap area's, a place a number beyond those, which is a page's own: in a file, or in a snapshot.

| question                            | ANON         | FILE      | MEMFD      | USERFAULT            |
|-------------------------------------|--------------|-----------|------------|----------------------|
| where does a page lie that is out   | a slot       | its place | a slot     | its place; ANON then |
| is that kept when it is mapped      | until a write | for good | no         | no; ANON then        |
| can FOLL_NOWAIT sleep for its read  | no           | no        | yes        | no                   |
| whose read is it                    | the device's | as ANON   | as ANON    | a handler's; ANON then |
| which pages are read besides        | by address or slot | around | by slot | none; ANON then      |

ANON, private anonymous memory: mm/memory.c:do_swap_page, do_anonymous_page.

FILE, a shared mapping of a file (mm/filemap.c:filemap_fault). The page cache takes the part of the swap cache: a page
in it that is not mapped is CACHED, so get_user_pages_fast fails on it, and a look without I/O finds it. Departures: no
flusher threads: reclaim writes dirty pages itself, as it does anonymous ones; one pair of LRU lists; a page that was
never touched is filled with zeros without I/O, as the hole of a file is, and counts as no major fault. What ``damage``
says of errors is do_swap_page's rule for all of them.

MEMFD, shared memory (mm/shmem.c:shmem_swapin_folio): swapping in takes folio_lock, whatever the caller allows, so a
fault that must not sleep sleeps, and is not asynchronous (E14); the slot is freed and the page dirty even if it is only
read. Departure: the proposal of 2010 (``gup = "noio"``) never met this, and is taken at its word: no I/O to wait for, so
the worker has what a device reads in the background.

USERFAULT, anonymous memory that a userfaultfd watches for missing pages (fs/userfaultfd.c:handle_userfault), as of a VM
that is restored from a snapshot: see ``userfault``. All of the VM is missing at first.
"""

from __future__ import annotations

from dataclasses import dataclass

from hostd.core.device import DeviceProfile
from hostd.core.readahead import Way


@dataclass(frozen=True, slots=True)
class Backing:
    """One kind; the answers are those of the table above."""

    name: str
    fixed_place: bool = False
    """A page that is out lies at a place of its own, which it keeps; else in a swap slot."""
    map_frees_slot: bool = False
    """Any mapping makes the page dirty and frees its slot; else only one for writing."""
    nowait_sleeps: bool = False
    """FOLL_NOWAIT waits for the page's read."""
    starts_missing: bool = False
    """Pages are fetched by a userfaultfd's handler the first time."""
    way: Way | None = None
    """How the kernel reads ahead; None: by slot if the device rotates, else by address."""

    @property
    def swaps(self) -> bool:
        """Whether its I/O is swapping in and out."""
        return not self.fixed_place

    @property
    def kind(self) -> str:
        """Of which kind its pages are to the counters of refaults; shared memory swaps, and counts as anonymous."""
        return "anon" if self.swaps else "file"

    @property
    def is_shared(self) -> bool:
        """Whether its pages count as shared memory, which are page cache too."""
        return self.map_frees_slot


ANON = Backing("anon")
FILE = Backing("file", fixed_place=True, way=Way.FILE)
MEMFD = Backing("memfd", map_frees_slot=True, nowait_sleeps=True, way=Way.SLOT)
USERFAULT = Backing("userfault", starts_missing=True)
BACKINGS = {backing.name: backing for backing in (ANON, FILE, MEMFD, USERFAULT)}


def way_of(backing: Backing, profile: DeviceProfile) -> Way:
    """How the kernel reads ahead for such memory on such a device (mm/swap_state.c:swap_use_vma_readahead)."""
    if backing.way is not None:
        return backing.way
    return Way.SLOT if profile.rotation_ns else Way.ADDRESS
