"""Makes a host from a scenario; the same for the daemon and the twin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from apf.hostmem import HostMemory
from apf.journal import Journal
from apf.scenario import Scenario
from hostd import device_profiles, readaheads, reclaim_policies
from hostd.core.config import HostConfig
from hostd.core.device import Carry
from hostd.core.host import HostCore
from hostd.realdevice import MeasuredFile, Recorded
from hostd.shell import HostShell
from hostd.swapfile import SwapFile

Measured = Iterable[tuple[str, int, int]]
"""Operation, slot and ns of each I/O of a real device."""


def host_core(scenario: Scenario, journal: Journal, carry: Carry | None = None) -> HostCore:
    """The core of the scenario's host. ``carry``: of device "file", who does the I/O."""
    return HostCore(_config(scenario), journal, carry)


def host_shell(
    scenario: Scenario, journal: Journal, memory: HostMemory, swap_path: Path, measured: Measured | None = None
) -> tuple[HostShell, SwapFile]:
    """The scenario's host with its memory, and its swap file at ``swap_path``, or where the scenario has it.

    ``measured``: what a recorded run of this scenario measured, which is repeated.
    """
    slots = _config(scenario).places
    carry: Carry | None = None
    if not scenario.swap.is_measured:
        swap = SwapFile(swap_path, slots)
    elif measured is not None:
        swap = SwapFile(swap_path, slots)
        carry = Recorded(measured).carry
    else:
        swap = real = MeasuredFile(Path(scenario.swap.file), slots, memory.address)
        carry = real.carry
    return HostShell(host_core(scenario, journal, carry), memory, swap), swap


def window_ns(scenario: Scenario) -> int:
    """Length of the host's windows."""
    return _config(scenario).window_ns


def _config(scenario: Scenario) -> HostConfig:
    profile = device_profiles.load(scenario.swap.device)
    reclaim, readahead = reclaim_policies.load(scenario.host.reclaim), readaheads.load(scenario.swap.readahead)
    return HostConfig.of(scenario, profile, scenario.host.places, reclaim, readahead)
