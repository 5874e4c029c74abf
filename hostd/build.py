"""Makes a host core from a scenario; the same for the daemon and the twin."""

from __future__ import annotations

from apf.journal import Journal
from apf.scenario import Scenario
from hostd import device_profiles, reclaim_policies
from hostd.core.config import HostConfig
from hostd.core.host import HostCore


def host_core(scenario: Scenario, journal: Journal) -> HostCore:
    """The core of the scenario's host."""
    return HostCore(_config(scenario), journal)


def window_ns(scenario: Scenario) -> int:
    """Length of the host's windows."""
    return _config(scenario).window_ns


def _config(scenario: Scenario) -> HostConfig:
    profile = device_profiles.load(scenario.swap.device)
    return HostConfig.of(scenario, profile, scenario.host.places, reclaim_policies.load(scenario.host.reclaim))
