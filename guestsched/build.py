"""Makes a VM's guest kernel from a scenario; the same for the daemon and the twin."""

from __future__ import annotations

from apf.journal import Journal
from apf.messages import PAGE_SHIFT
from apf.scenario import Scenario, ScenarioError
from guestsched import schedulers
from guestsched.core.core import GuestCore
from guestsched.core.process import OutOfMemory
from guestsched.plan import MEMORY_GVA, plans, vm_seed


def guest_core(scenario: Scenario, journal: Journal, vm: int = 0, boot_ns: int = 0) -> GuestCore:
    """The guest kernel of VM ``vm`` with its processes at boot, which is at ``boot_ns``.

    Raises ScenarioError if something of them cannot be.
    """
    policy = schedulers.load(scenario.sched.policy)
    own = scenario.model_copy(update={"seed": vm_seed(scenario.seed, vm)})
    try:
        return GuestCore(scenario, plans(own), policy, journal, boot_ns)
    except OutOfMemory as error:
        raise ScenarioError(f"vm.guest_memory = {scenario.vm.guest_memory}: {error}") from error


def memory_gfn(core: GuestCore, process: int = 1) -> int:
    """The guest frame at which a process's memory starts."""
    extent = core.processes[process].extent_of(MEMORY_GVA)
    assert extent is not None, f"process {process} has no memory"
    return extent.gfn + ((MEMORY_GVA - extent.gva) >> PAGE_SHIFT)
