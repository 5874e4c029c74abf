"""The swap device: when an I/O that is submitted now will be done.

k servers with one FIFO queue: an I/O starts when it has arrived and a server is free, in the order of submission,
and its completion is settled at once, so that a promise made from it is never revised. Its service time is a draw
from the profile's quantile table, plus a uniform rotational delay if the device rotates, plus the transfer. An I/O
of the same kind a few slots further on than the same server's last one costs only the transfers of the slots
passed: the head stays on its track. If the servers share a link, it moves one page after the other: an I/O starts a
page's time after the one before it at the earliest, whichever server has it. That is a cap on what the device does in
a second; a single I/O takes what the table says, in which its own transfer is.

Departures: no elevator, no merging, no cache; an I/O whose arrival lies a little ahead of the submission's time (a
worker that has yet to wake up) keeps its place in the queue before one submitted later that arrives earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from heapq import heapify, heapreplace

from apf.chance import Stream, quantiles
from apf.scenario import WINDOW_NS_MAX, WINDOW_NS_MIN


class Op(IntEnum):
    """What an I/O does."""

    READ = 0
    WRITE = 1


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A latency model, all in integer guest ns.

    ``read_ns`` and ``write_ns`` are quantile tables (see ``apf.chance.Stream.quantile``). ``rotation_ns`` is the
    length of a revolution (0: none), ``transfer_ns`` the time of one page. ``skip_slots_max`` is the largest step
    ahead that stays on the track (0: every I/O is drawn). ``background`` False: the I/O finishes on the CPU that
    submits it. ``servers`` 0: one for each CPU of the host it is for (``for_cpus``). ``page_ns`` is what the link takes
    for a page (0: there is no such link). ``errors``: how many of ``ERRORS_OF`` reads and writes fail, by Op.
    """

    name: str
    servers: int
    background: bool
    read_median_ns: int
    read_ns: tuple[int, ...]
    write_ns: tuple[int, ...]
    rotation_ns: int
    transfer_ns: int
    skip_slots_max: int
    measured: bool = False
    page_ns: int = 0
    errors: tuple[int, int] = (0, 0)

    def for_cpus(self, cpus: int) -> DeviceProfile:
        """The device of a host whose guests have ``cpus`` vCPUs."""
        return self if self.servers else replace(self, servers=cpus)


def default_window_ns(profile: DeviceProfile) -> int:
    """A twentieth of the device's median read latency, clamped."""
    return min(max(profile.read_median_ns // 20, WINDOW_NS_MIN), WINDOW_NS_MAX)


Served = Callable[[Op, int, int], tuple[int, int]]
"""What a device that stops or is slow at times makes of an I/O's start and service time: when it starts and is done."""


class Device:
    """The queue and servers of one device."""

    __slots__ = (
        "_draws",
        "_last",
        "_link_ns",
        "_moves",
        "_page_ns",
        "_rotation",
        "_rotation_ns",
        "_served",
        "_servers",
        "_skip_slots_max",
        "_transfer_ns",
    )

    def __init__(self, profile: DeviceProfile, seed: int, served: Served | None = None) -> None:
        self._served = served
        self._draws = (
            quantiles(seed, "device.read", [ns + profile.transfer_ns for ns in profile.read_ns]),
            quantiles(seed, "device.write", [ns + profile.transfer_ns for ns in profile.write_ns]),
        )
        """Of service times with the transfer, by Op."""
        self._rotation = Stream(seed, "device.rotation")
        self._rotation_ns, self._transfer_ns = profile.rotation_ns, profile.transfer_ns
        self._skip_slots_max = profile.skip_slots_max
        self._moves = bool(profile.skip_slots_max or profile.rotation_ns)
        self._servers = [(0, server) for server in range(profile.servers)]
        heapify(self._servers)
        self._page_ns = profile.page_ns
        self._link_ns = 0
        """When the link can take the next page."""
        self._last: list[tuple[Op, int]] = [(Op.READ, -1 - profile.skip_slots_max)] * profile.servers

    def serve_by(self, served: Served) -> None:
        """From now on the device stops, or is slow, at times."""
        self._served = served

    def submit(self, op: Op, slot: int, arrival_ns: int, pfn: int = -1) -> tuple[int, int]:
        """When an I/O on ``slot`` that arrives at ``arrival_ns`` starts and is done."""
        free_ns, server = self._servers[0]
        start_ns = free_ns if free_ns > arrival_ns else arrival_ns
        if start_ns < self._link_ns:
            start_ns = self._link_ns
        service_ns = (self._moved_ns(op, slot, server) if self._moves else self._draws[op]()) or 1
        if self._served is None:
            done_ns = start_ns + service_ns
        else:
            start_ns, done_ns = self._served(op, start_ns, service_ns)
        if self._page_ns:
            self._link_ns = start_ns + self._page_ns
        heapreplace(self._servers, (done_ns, server))
        return start_ns, done_ns

    def _moved_ns(self, op: Op, slot: int, server: int) -> int:
        """The service time of a device that rotates, or has tracks to stay on."""
        last_op, last_slot = self._last[server]
        self._last[server] = (op, slot)
        passed = slot - last_slot
        if op is last_op and 0 < passed <= self._skip_slots_max:
            return passed * self._transfer_ns
        return self._draws[op]() + (self._rotation.below(self._rotation_ns) if self._rotation_ns else 0)


Carry = Callable[[Op, int, int], int]
"""Carries out an I/O between a slot and a frame, now, and says what that took in ns; or knows what it once took."""


class MeasuredDevice:
    """A real device: an I/O is carried out when it is submitted, and takes from its arrival what that took.

    It has no queue here: what waits for what is the real device's business, which is given one I/O at a time.
    ``took_ns`` is what the last one took.
    """

    __slots__ = ("_carry", "_served", "took_ns")

    def __init__(self, carry: Carry, served: Served | None = None) -> None:
        self._carry = carry
        self._served = served
        self.took_ns = 0

    def serve_by(self, served: Served) -> None:
        """As ``Device.serve_by``."""
        self._served = served

    def submit(self, op: Op, slot: int, arrival_ns: int, pfn: int = -1) -> tuple[int, int]:
        """As ``Device.submit``."""
        self.took_ns = max(1, self._carry(op, slot, pfn))
        if self._served is None:
            return arrival_ns, arrival_ns + self.took_ns
        return self._served(op, arrival_ns, self.took_ns)
