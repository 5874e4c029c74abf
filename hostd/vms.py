"""The VMs of one host: which are loaded, which want to join while it runs, which are lost.

A place is a VM's number. It is claimed when somebody begins to load a VM into it, and free again at the border at
which that VM leaves. VMs that are there from the start are loaded one after the other, before the first window; later
ones wait until their vCPUs are here too, and join at a border. The event loop takes what is asked for; what changes a
host that runs is done by the opener, while all stand at a border.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from apf.clockcells import Server
from apf.clockpage import ClockPage
from apf.messages import Segment
from apf.process import Failure
from apf.serving import TurnServer
from hostd.config import HostdConfig
from hostd.shell import HostShell

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """A VM that wants to join a host that runs. ``start_ns`` becomes known when it does."""

    vm: int
    segments: tuple[Segment, ...]
    start_ns: asyncio.Future[int]


class Vms:
    """``present``: VMs on the host; ``lost``: why some of them, or the last of their places, were lost.

    ``events``: how many have joined, ended and been lost so far. ``is_running``: whether the first window has opened.
    """

    def __init__(self, config: HostdConfig, turns: TurnServer, shell: HostShell, clock: ClockPage) -> None:
        self._config = config
        self._turns = turns
        self._shell = shell
        self._clock = clock
        self._claimed: set[int] = set()  # loaded, or being loaded
        self._loads: set[asyncio.Future[None]] = set()
        self._loaded = 0
        self._loading = asyncio.Condition()
        # Not the loop's own executor, whose threads it waits for at its end: a load may take seconds.
        self._loader = ThreadPoolExecutor(1, "loader")
        self._starts: dict[int, asyncio.Future[int]] = {}  # of VMs that are not there from the start
        self._joins: dict[int, Join] = {}
        self.present = set(range(config.scenario.host.vms))
        self.lost: dict[int, Failure] = {}
        self.events: Counter[str] = Counter()
        self.all_loaded = threading.Event()
        self.is_running = False
        turns.survive(self._lose, self._detached)

    # These run on the event loop ... ---------------------------------------------------------------------------------

    def is_taken(self, vm: int) -> bool:
        """Whether a place is a VM's, which is not about to leave."""
        return vm in self._joins or (vm in self._claimed and not self._is_leaving(vm))

    async def load(self, vm: int, segments: tuple[Segment, ...]) -> int:
        """Load a VM into a place that is not taken; returns when the VM starts.

        The place is this caller's from here on. A VM that is there from the start is loaded to its end even if the
        caller goes away; one that joins later gives up its place then.
        """
        self._claimed.add(vm)
        if vm not in self.present or self._is_leaving(vm):
            return await self._join(vm, segments)
        loading = asyncio.ensure_future(self._load(vm, segments))
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)
        await asyncio.shield(loading)
        return 0

    async def started(self, vm: int) -> int:
        """When the VM of a vCPU that has attached starts; returns once that is known."""
        if vm not in self.present or self._is_leaving(vm):
            start = self._start_of(vm)
            self._ask_to_join(vm)
            return await asyncio.shield(start)
        return self._starts[vm].result() if vm in self._starts else 0

    def end_loads(self) -> None:
        """Nobody waits for them any more."""
        for loading in self._loads:
            loading.cancel()

    async def _load(self, vm: int, segments: tuple[Segment, ...]) -> None:
        async with self._loading:
            # One VM after the other, whichever comes first: who gets which frame is part of the run.
            await self._loading.wait_for(lambda: self._loaded == vm)
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._loader, self._shell.load, vm, segments)
            except Exception as error:
                self._turns.fail(Failure(f"cannot load VM {vm}: {type(error).__name__}: {error}"))
                raise
            self._loaded += 1
            self._loading.notify_all()
            if self._loaded == len(self.present):
                self.all_loaded.set()

    async def _join(self, vm: int, segments: tuple[Segment, ...]) -> int:
        """Let a VM join at a border, once its vCPUs are here too; returns when it starts."""
        join = self._joins[vm] = Join(vm, segments, self._start_of(vm))
        self._ask_to_join(vm)
        try:
            return await asyncio.shield(join.start_ns)
        except asyncio.CancelledError:
            if self._joins.pop(vm, None) is not None:  # else the opener has it, and it joins
                self._claimed.discard(vm)
            raise

    def _is_leaving(self, vm: int) -> bool:
        """Whether all of a VM has ended, and its place is free at the next border."""
        return self.is_running and vm in self.present and self._clock.has_ended(self._config.participants(vm))

    def _start_of(self, vm: int) -> asyncio.Future[int]:
        """Of the VM that is about to take the place ``vm``."""
        start = self._starts.get(vm)
        if start is None or start.done():  # that of the VM before it
            start = self._starts[vm] = asyncio.get_running_loop().create_future()
        return start

    def _ask_to_join(self, vm: int) -> None:
        if vm in self._joins and self._turns.is_attached(vm):
            self._turns.ask_for_clock()

    def _lose(self, vm: int, failure: Failure) -> bool:
        """A vCPU of a VM is lost. Whether the host goes on without that VM."""
        if self._config.scenario.host.on_vm_loss == "end" or not self.is_running or vm not in self.present:
            return False
        if vm not in self.lost:
            self.lost[vm] = failure
            log.warning("VM %d is lost and will leave: %s", vm, failure)
        return True

    def _detached(self, vm: int) -> None:
        """No stream of a VM is left: its processes, if it is lost, cannot touch the clock any more."""
        if vm in self.lost and vm in self.present:
            self._clock.evict(self._config.participants(vm), Server.GUESTSCHED)
            self._turns.forget_waiting()

    # ... and these in the opener, while all stand at a border. -------------------------------------------------------

    @property
    def wants_to_join(self) -> bool:
        """Whether a VM waits for its place."""
        return bool(self._joins)

    def take_joins(self) -> list[Join]:
        """The VMs that are ready to join, by number."""
        ready = [vm for vm in sorted(self._joins) if vm not in self.present and self._turns.is_attached(vm)]
        return [join for vm in ready if (join := self._joins.pop(vm, None)) is not None]

    def put_back(self, join: Join) -> None:
        """It cannot join yet."""
        self._joins[join.vm] = join

    def joined(self, join: Join, at_ns: int) -> None:
        """A VM is loaded and starts at ``at_ns``."""
        self.lost.pop(join.vm, None)
        self.present.add(join.vm)
        self.events["joined"] += 1
        join.start_ns.get_loop().call_soon_threadsafe(join.start_ns.set_result, at_ns)

    def ended(self) -> list[int]:
        """The VMs none of whose vCPUs will ask again, by number."""
        return [vm for vm in sorted(self.present) if self._clock.has_ended(self._config.participants(vm))]

    def left(self, vm: int) -> None:
        """A VM's place is free."""
        self.present.discard(vm)
        if vm not in self._joins:
            self._claimed.discard(vm)
        self.events["lost" if vm in self.lost else "ended"] += 1

    def why_all_lost(self) -> Failure | None:
        """Why the first VM was lost, if none has ended well and none is left: such a host has failed."""
        if self.lost and not self.events["ended"] and self.present <= self.lost.keys():
            return Failure(f"every VM was lost; the first: {next(iter(self.lost.values()))}")
        return None
