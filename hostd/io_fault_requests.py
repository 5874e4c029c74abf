"""Failures of the swap device that operators ask for while the host runs.

Asked for on the event loop; taken by the opener, while all stand at a border, which is the time they are in force from.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from apf.io_faults import IoFaultWish
from hostd.io_fault_log import Asked, IoFaultLog
from hostd.shell import HostShell

log = logging.getLogger(__name__)
IO_FAULTS_MAX = 1024
"""Failures of the device that operators may ask for in a run."""


@dataclass(frozen=True, slots=True, eq=False)
class WantedIoFault:
    """What an operator wants the device to do. ``at_ns`` becomes known when it does."""

    wish: IoFaultWish
    at_ns: asyncio.Future[int]


class IoFaultRequests:
    """What is asked for is done and written down in the order of asking."""

    def __init__(self, shell: HostShell, notes: IoFaultLog) -> None:
        self._shell = shell
        self._log = notes
        self._wanted: deque[WantedIoFault] = deque()
        self._asked = 0

    @property
    def is_full(self) -> bool:
        """Whether no more may be asked for in this run."""
        return self._asked >= IO_FAULTS_MAX

    def ask(self, wish: IoFaultWish) -> asyncio.Future[int]:
        """Want the device to do that; the future has the time from which on it does, ns."""
        self._asked += 1
        wanted = WantedIoFault(wish, asyncio.get_running_loop().create_future())
        self._wanted.append(wanted)
        return wanted.at_ns

    def take(self, at_ns: int, joins: int) -> None:
        """Let the device do what was asked for, from the border at ``at_ns`` on, ``joins`` VMs having joined."""
        while self._wanted:
            wanted = self._wanted.popleft()
            self._shell.fail_ios(wanted.wish, at_ns)
            self._log.take(Asked(at_ns, joins, wanted.wish))
            log.warning("the swap device fails from %d ns on, as was asked for: %s", at_ns, wanted.wish)
            wanted.at_ns.get_loop().call_soon_threadsafe(wanted.at_ns.set_result, at_ns)

    def close(self, digest: str) -> None:
        """The run has come to its end."""
        self._log.close(digest)
