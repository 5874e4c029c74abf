"""What a hostd is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

from apf import metrics
from apf.listen import PLAIN, Listener, Security
from apf.rundir import RunDir
from apf.scenario import Scenario


@dataclass(frozen=True, slots=True)
class HostdConfig:
    """The scenario's host. ``listen``: where it answers; without, at its roles' sockets."""

    scenario: Scenario
    run: RunDir
    listen: tuple[Listener, ...] = ()
    journal: bool = False
    metrics: str = metrics.ANYWHERE
    security: Security = PLAIN

    @property
    def places(self) -> int:
        """How many VMs it may have at a time."""
        return self.scenario.host.places

    def participants(self, vm: int) -> range:
        """The slots of a VM's vCPUs on the clock page."""
        vcpus = self.scenario.vm.vcpus
        return range(vm * vcpus, (vm + 1) * vcpus)
