"""What a host core is a function of, besides its events."""

from __future__ import annotations

from dataclasses import dataclass

from apf.core import CoreError
from apf.costs import Costs
from apf.messages import FOREVER_NS, PAGE_SIZE, GupVariant
from apf.scenario import Scenario
from hostd.core.backing import ANON, BACKINGS, Backing
from hostd.core.device import DeviceProfile, default_window_ns
from hostd.core.io_faults import Failure
from hostd.core.lru import Kernel, Policy
from hostd.core.readahead import NoReadahead, Readahead
from hostd.core.userfault import ONE_HANDLER, UserfaultConfig


@dataclass(frozen=True, slots=True)
class VmConfig:
    """One VM and the memory group it lives in; sizes in pages. ``high_pages`` 0: no memory.high.

    ``userfault``: its handlers, if that is what ``backing`` says. ``read_only``: whether segments that the guest does
    not write are in areas that the VMM may not write.
    """

    guest_pages: int
    limit_pages: int
    vcpus: int
    high_pages: int = 0
    backing: Backing = ANON
    userfault: UserfaultConfig = ONE_HANDLER
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The host's part of a scenario.

    ``swap_slots`` 0: twice the guests' pages, so that slots stay in runs. ``managed_pages``: the host's memory for the
    VMs, which the watermarks keep some of free; 0: as much as all groups' limits together, and no watermarks. What waits
    for ever waits until the run is over, at ``end_ns``.
    """

    seed: int
    gup: GupVariant
    costs: Costs
    window_ns: int
    vms: tuple[VmConfig, ...]
    profile: DeviceProfile
    reserve_frames: int
    swap_slots: int = 0
    end_ns: int = FOREVER_NS
    failures: tuple[Failure, ...] = ()
    reports: bool = False
    managed_pages: int = 0
    reclaim: type[Policy] = Kernel
    readahead: type[Readahead] = NoReadahead
    page_cluster: int = 3

    @property
    def frames(self) -> int:
        """Frames in the pool."""
        return (self.managed_pages or sum(vm.limit_pages for vm in self.vms)) + self.reserve_frames

    @property
    def slots(self) -> int:
        """Slots of the swap area."""
        return self.swap_slots or 2 * sum(vm.guest_pages for vm in self.vms)

    @property
    def places(self) -> int:
        """Slots of the swap area, and places behind them."""
        return self.slots + sum(vm.guest_pages for vm in self.vms)

    def verify(self) -> None:
        """Raise CoreError, naming the field, for a host that cannot work."""
        if not self.vms:
            raise CoreError("vms: at least one")
        for number, vm in enumerate(self.vms):
            if min(vm.guest_pages, vm.limit_pages, vm.vcpus) < 1:
                raise CoreError(f"vms[{number}] = {vm}: everything at least 1")
        if self.window_ns < 1:
            raise CoreError(f"window_ns = {self.window_ns}: at least 1")
        if self.profile.servers < 1:
            raise CoreError(f"profile.servers = {self.profile.servers}: at least 1")
        if self.reserve_frames < 1:
            raise CoreError(f"reserve_frames = {self.reserve_frames}: at least 1")

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        profile: DeviceProfile,
        vms: int = 1,
        reclaim: type[Policy] = Kernel,
        readahead: type[Readahead] = NoReadahead,
    ) -> HostConfig:
        """The host of ``scenario``, with ``vms`` VMs of its kind."""
        handlers = scenario.userfault
        vm = VmConfig(
            guest_pages=scenario.vm.guest_memory // PAGE_SIZE,
            limit_pages=scenario.vm.group_memory // PAGE_SIZE,
            vcpus=scenario.vm.vcpus,
            high_pages=scenario.vm.group_high // PAGE_SIZE,
            backing=BACKINGS[scenario.vm.backing],
            userfault=UserfaultConfig(handlers.handlers, handlers.handler_ns, handlers.dies_ns),
            read_only=scenario.vm.read_only,
        )
        return cls(
            seed=scenario.seed,
            gup=scenario.gup_variant,
            costs=scenario.costs,
            window_ns=scenario.window_ns or default_window_ns(profile),
            vms=(vm,) * vms,
            profile=profile.for_cpus(vms * vm.vcpus),
            reserve_frames=scenario.host.reserve_frames,
            end_ns=scenario.end_ns,
            failures=tuple(Failure.of(fault, fault.at_ns) for fault in scenario.swap.fault),
            reports=scenario.swap.errors == "report",
            swap_slots=scenario.swap.size // PAGE_SIZE,
            managed_pages=scenario.host.memory // PAGE_SIZE,
            reclaim=reclaim,
            readahead=readahead,
            page_cluster=scenario.swap.page_cluster,
        )
