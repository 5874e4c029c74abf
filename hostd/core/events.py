"""What goes into the host core (facts) and what comes out of it (imperatives).

The order of a step's effects is a contract; a shell carries them out in that order, as if one by one:

- a request step gives a ``ZeroFrame`` or ``ReadSlot`` for each page that it makes or reads (the one that faults, and
  those read ahead), then exactly one ``Reply``, which is the last;
- a border step gives one ``WriteSlots``, then a ``WriteSlot`` for each write that goes wrong, then a ``RewriteEpt`` for
  each VM, each only if there is anything to do; between borders nothing touches an EPT;
- a step with VmLeft gives one ``ClearVm``;
- a population step gives one ``FillPages`` for each segment that is not demand-zero.

Three rules let real I/O run beside the core. (1) The bytes of a ``ZeroFrame`` or ``ReadSlot`` are in the frame
before the ``Reply`` of the same step leaves. (2) Effects that name the same slot take effect in the order given,
over all steps: a slot is not read before its last write returned, nor written while an older write to it runs. (3)
Likewise for a frame: a write must have taken the frame's bytes before a later ``ZeroFrame`` or ``ReadSlot`` refills
it. The core hands frames out oldest first, so a shell seldom waits for (3).

An I/O that the device reports as failed moves nothing and has no effect here.

``ZeroFrame``, ``ReadSlot`` and ``FillPages`` give a frame other contents: the shell bumps the frame's generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from apf.core import message
from apf.io_faults import IoFaultWish
from apf.messages import HostReply, HostRequest, Segment
from hostd.core.io_faults import IoResult

Pfns = Sequence[int] | npt.NDArray[np.signedinteger]
"""Host frame numbers, ascending."""

Numbers = npt.NDArray[np.int64]
"""Page, frame or slot numbers, one-dimensional."""


@final
@message
class RequestTaken:
    """A vCPU's request, taken in its place in the order of all requests; the step's time is the request's."""

    vm: int
    vcpu: int
    request: HostRequest


@final
@message
class BorderReached:
    """All vCPUs stand at the border, which is the step's time, and their TLBs are flushed.

    ``accessed`` and ``dirty`` are the frames used and written since the last such event, each ascending. ``zero`` are
    those of ``HostCore.writes_ahead`` that hold nothing but zeros.
    """

    accessed: Pfns
    dirty: Pfns
    zero: Sequence[int] = ()


@message
class SegmentsLoaded:
    """What VM ``vm`` holds before its first window, in the order its pages were written; no page of it is there yet.

    Before window 0, or at a border.
    """

    vm: int
    segments: tuple[Segment, ...]


@message
class VmLeft:
    """VM ``vm`` is no more: none of its vCPUs will ask again. At a border, behind its BorderReached."""

    vm: int


@message
class IoFaultArrived:
    """An operator lets the device fail, from the step's time on. At a border, before its window."""

    wish: IoFaultWish


HostEvent = RequestTaken | BorderReached | SegmentsLoaded | VmLeft | IoFaultArrived


@final
@message
class ZeroFrame:
    """Fill frame ``pfn`` with zeros and bump its generation."""

    pfn: int


@final
@message
class ReadSlot:
    """Read swap slot ``slot`` into frame ``pfn`` and bump its generation.

    ``damaged``: its last write was torn or lost, so its checksum must be wrong; otherwise it must be right.
    """

    slot: int
    pfn: int
    damaged: bool = False


@final
@message
class WriteSlots:
    """Write frames to swap slots: slot, frame, slot, frame ...; no slot or frame is there twice."""

    pairs: list[int]


@final
@message
class WriteSlot:
    """Write frame ``pfn`` to swap slot ``slot`` badly: its first half (TORN), or nothing (LOST)."""

    slot: int
    pfn: int
    result: IoResult


@final
@message
class RewriteEpt:
    """Change the EPT of ``vm``: its new entries by gfn (``apf.hostmem.ept_entry``), 0 for what it maps no more."""

    vm: int
    entries: dict[int, int]


@final
@message
class Reply:
    """Send ``reply`` to a vCPU."""

    vm: int
    vcpu: int
    reply: HostReply


@dataclass(frozen=True, slots=True, eq=False)
class FillPages:
    """Generate the pages of ``segment``, whose numbers count from its start.

    Page ``swapped[i]`` goes to slot ``slots[i]``. Page ``resident[i]`` goes to frame ``pfns[i]`` and is mapped
    writable in the EPT of ``vm``, at ``segment.gfn + resident[i]``.
    """

    vm: int
    segment: Segment
    resident: Numbers
    pfns: Numbers
    swapped: Numbers
    slots: Numbers


@message
class ClearVm:
    """Empty the EPT of ``vm``."""

    vm: int


HostEffect = ZeroFrame | ReadSlot | WriteSlots | WriteSlot | RewriteEpt | Reply | FillPages | ClearVm
