"""No byte is lost, no frame shared, and every read sees what was last written, under eviction by several VMs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apf.chance import Stream
from apf.messages import GupVariant
from apf.scenario import Costs
from hostd.core.backing import ANON, BACKINGS, FILE, MEMFD, USERFAULT, Backing
from hostd.core.config import HostConfig, VmConfig
from hostd.core.device import DeviceProfile
from hostd.core.readahead import KernelReadahead, NoReadahead, Readahead, StrideReadahead, SwapFault
from hostd.core.userfault import UserfaultConfig
from tests.property.host_shell import FakeShell

GUEST_PAGES = 24

PROFILE = DeviceProfile(
    name="test",
    servers=2,
    background=True,
    read_median_ns=60_000,
    read_ns=(20_000, 60_000, 200_000),
    write_ns=(5_000, 30_000, 300_000),
    rotation_ns=1_000,
    transfer_ns=500,
    skip_slots_max=2,
)


HANDLERS = UserfaultConfig(handlers=2, service_ns=30_000)


def config(
    gup: GupVariant,
    limits: tuple[int, ...],
    reserve: int,
    window_ns: int,
    profile: DeviceProfile,
    readahead: type[Readahead],
    backings: tuple[Backing, ...],
) -> HostConfig:
    """A host of small VMs with two vCPUs each."""
    vms = tuple(
        VmConfig(GUEST_PAGES, limit, 2, backing=backing, userfault=HANDLERS)
        for limit, backing in zip(limits, backings, strict=True)
    )
    return HostConfig(1, gup, Costs(), window_ns, vms, profile, reserve, readahead=readahead, page_cluster=2)


class WildReadahead(Readahead):
    """Wants pages all over the host, twice, and some that there are not."""

    def window(self, fault: SwapFault) -> list[int]:
        """See ``Readahead``."""
        others = [*range(fault.key % 5, 2 * GUEST_PAGES, 5)] * 2 + [-1, 1000]
        others = [key for key in others if key != fault.key]
        return [*others[::2], fault.key, *others[1::2]]


class HostMemory(RuleBasedStateMachine):
    """Random accesses by the vCPUs of two VMs."""

    @initialize(
        gup=st.sampled_from(GupVariant),
        limits=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        reserve=st.integers(1, 12),
        window_ns=st.sampled_from([2_000, 20_000, 150_000]),
        rotates=st.booleans(),
        readahead=st.sampled_from([KernelReadahead, NoReadahead, StrideReadahead, WildReadahead]),
        backings=st.tuples(*[st.sampled_from(list(BACKINGS.values()))] * 2),
        loaded=st.tuples(st.integers(0, GUEST_PAGES), st.integers(0, GUEST_PAGES)),
    )
    def boot(
        self,
        gup: GupVariant,
        limits: tuple[int, int],
        reserve: int,
        window_ns: int,
        rotates: bool,
        readahead: type[Readahead],
        backings: tuple[Backing, Backing],
        loaded: tuple[int, int],
    ) -> None:
        """Start a host, its VMs with some pages loaded."""
        profile = PROFILE if rotates else replace(PROFILE, rotation_ns=0)
        self.shell = FakeShell(config(gup, limits, reserve, window_ns, profile, readahead, backings))
        for vm, pages in enumerate(loaded):
            if pages or backings[vm].starts_missing:
                self.shell.load(vm, pages)

    @rule(
        vcpu=st.integers(0, 3),
        accesses=st.lists(st.tuples(st.integers(0, GUEST_PAGES - 1), st.booleans()), min_size=1, max_size=12),
        blocking=st.booleans(),
    )
    def access(self, vcpu: int, accesses: list[tuple[int, bool]], blocking: bool) -> None:
        """Give a vCPU pages to access."""
        for gfn, write in accesses:
            self.shell.enqueue(vcpu, gfn, write, blocking)

    @rule(steps=st.integers(1, 30))
    def run_some(self, steps: int) -> None:
        """Let time pass."""
        self.shell.run(steps)

    @invariant()
    def consistent(self) -> None:
        """The core's own invariants (also checked after every step within)."""
        if hasattr(self, "shell"):
            self.shell.core.check()

    def teardown(self) -> None:
        """Finish and look at every page."""
        if hasattr(self, "shell"):
            self.shell.drain()


TestHostMemory = HostMemory.TestCase
TestHostMemory.settings = settings(max_examples=120, stateful_step_count=25, deadline=None, derandomize=True)


def thrash(gup: GupVariant, seed: int, backing: Backing = ANON) -> FakeShell:
    """Some thousand accesses, half of them to a few hot pages, by eight vCPUs to twice the memory there is."""
    pages = (100, 24, 24, 24)
    limits = (60, 9, 12, 5)
    vms = tuple(VmConfig(size, limit, 2, backing=backing) for size, limit in zip(pages, limits, strict=True))
    shell = FakeShell(
        HostConfig(seed, gup, Costs(), 10_000, vms, PROFILE, reserve_frames=8, readahead=KernelReadahead)
    )
    shell.check_each_step = False
    shell.load(0, 100)
    chance = Stream(seed, "thrash")
    for _ in range(3_000):
        vcpu = chance.below(len(shell.vcpus))
        among = pages[shell.vcpus[vcpu].vm] if chance.below(2) else 8
        shell.enqueue(vcpu, chance.below(among), chance.below(2) == 1, chance.below(4) == 0)
    shell.drain()
    shell.core.check()
    shell.core.finish(shell.now_ns)
    return shell


def test_thrashing_ends_with_every_byte_right_and_the_same_digest_every_time() -> None:
    """E38: pages evicted before their use only fault again; the same run twice is the same run."""
    for gup in GupVariant:
        shell = thrash(gup, 7)
        for name in ("swap_cache_hit", "swap_dropped_clean", "wp_fault", "read_wait", "retry", "pgactivate"):
            assert shell.core.counters[name], f"{gup.name}: the test no longer covers {name}"
        assert shell.core.journal.digest() == thrash(gup, 7).core.journal.digest()
    assert thrash(GupVariant.NOIO, 8).core.journal.digest() != thrash(GupVariant.NOIO, 7).core.journal.digest()


@pytest.mark.parametrize(
    ("backing", "names"),
    [
        (ANON, ("pswpin", "pswpout", "swap_ra", "swap_ra_hit", "workingset_refault_anon", "swap_dropped_clean")),
        (FILE, ("pgmajfault", "swap_dropped_clean", "nr_vmscan_write", "workingset_refault_file")),
        (MEMFD, ("pswpin", "pswpout", "swap_ra", "swap_ra_hit", "workingset_refault_anon")),
        (USERFAULT, ("userfault_event", "pswpin", "pswpout", "swap_ra")),
    ],
)
def test_thrashing_loses_no_byte_whatever_memory_is_made_of(backing: Backing, names: tuple[str, ...]) -> None:
    for gup in GupVariant:
        shell = thrash(gup, 7, backing)
        for name in names:
            assert shell.core.counters[name], f"{gup.name}: the test no longer covers {name}"
        if backing is FILE:
            counters = shell.core.counters
            assert counters["pswpin"] == counters["pswpout"] == counters["swap_ra"] == 0
        if backing is MEMFD:
            assert shell.core.counters["wp_fault"] == 0, "shared memory is mapped writable"
