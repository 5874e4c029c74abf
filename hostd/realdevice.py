"""Device "file": swap I/O on a real file, which takes as long as it takes there.

The core has an I/O carried out at the moment it submits it, so that its completion is settled then as every device's is;
the bytes have moved when the effect that names the I/O comes. What was measured is in the core's journal, from which the
run can be repeated (``Recorded``); a second run measures anew, and is another one.

One I/O at a time: of a device with a queue this measures how long an I/O takes alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from apf.core import CoreError
from apf.messages import PAGE_SIZE
from hostd.core.device import Op
from hostd.swapfile import SwapFile


class MeasuredFile(SwapFile):
    """A swap file at ``path``, where nothing may be yet; its name is gone at once, so nobody has to remove it.

    ``address`` is that of the host's first frame. What an I/O takes includes its checksums.
    """

    def __init__(self, path: Path, slots: int, address: int) -> None:
        super().__init__(path, slots, direct=True)
        path.unlink()
        self._address = address
        self._found: dict[int, str] = {}
        """What is wrong with slots that were read ahead of the effects that name them."""

    def told(self) -> list[str]:
        """See ``SwapFile``."""
        way = "O_DIRECT" if self.is_direct else "through the page cache, for its file system has no O_DIRECT"
        return [f"swap.device = 'file': I/O took what it took on {self.path} ({way}), so another run is another"]

    def carry(self, op: Op, slot: int, pfn: int) -> int:
        """Read ``slot`` into frame ``pfn``, or write it, now; the ns of wall time that took."""
        began_ns = time.perf_counter_ns()
        if op is Op.READ:
            self._found[slot] = super().read_to(slot, self._address + pfn * PAGE_SIZE)
        else:
            super().write_all([slot, pfn], self._address)
        return time.perf_counter_ns() - began_ns

    def read_to(self, slot: int, address: int) -> str:
        """What is wrong with what ``carry`` read."""
        return self._found.pop(slot)

    def write_all(self, pairs: list[int], frames_at: int) -> None:
        """``carry`` has written them."""


class Recorded:
    """What another run measured: (operation, slot, ns), in order."""

    def __init__(self, measured: Iterable[tuple[str, int, int]]) -> None:
        self._left = deque(measured)

    def carry(self, op: Op, slot: int, pfn: int) -> int:
        """What the recorded run measured here. CoreError if it did something else here."""
        wanted = (op.name.lower(), slot)
        if not self._left or self._left[0][:2] != wanted:
            there = " ".join(map(str, self._left[0])) if self._left else "nothing"
            raise CoreError(f"{wanted[0]} of slot {slot}, but next in the recording is {there}: not of this run")
        return self._left.popleft()[2]
