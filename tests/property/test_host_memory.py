"""No byte is lost, no frame shared, and every read sees what was last written, under eviction by several VMs."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apf.chance import Stream
from apf.messages import GupVariant
from apf.scenario import Costs
from hostd.core.config import HostConfig, VmConfig
from hostd.core.device import DeviceProfile
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


def config(gup: GupVariant, limits: tuple[int, ...], reserve: int, window_ns: int, seed: int = 1) -> HostConfig:
    """A host of small VMs with two vCPUs each."""
    vms = tuple(VmConfig(GUEST_PAGES, limit, 2) for limit in limits)
    return HostConfig(seed, gup, Costs(), window_ns, vms, PROFILE, reserve)


class HostMemory(RuleBasedStateMachine):
    """Random accesses by the vCPUs of two VMs."""

    @initialize(
        gup=st.sampled_from(GupVariant),
        limits=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        reserve=st.integers(1, 12),
        window_ns=st.sampled_from([2_000, 20_000, 150_000]),
        loaded=st.integers(0, GUEST_PAGES),
    )
    def boot(self, gup: GupVariant, limits: tuple[int, int], reserve: int, window_ns: int, loaded: int) -> None:
        """Start a host, the first VM with some pages loaded."""
        self.shell = FakeShell(config(gup, limits, reserve, window_ns))
        if loaded:
            self.shell.load(0, loaded)

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
TestHostMemory.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)


def thrash(gup: GupVariant, seed: int) -> FakeShell:
    """Some thousand accesses, half of them to a few hot pages, by eight vCPUs to twice the memory there is."""
    pages = (100, 24, 24, 24)
    vms = tuple(VmConfig(size, limit, 2) for size, limit in zip(pages, (60, 9, 12, 5), strict=True))
    shell = FakeShell(HostConfig(seed, gup, Costs(), 10_000, vms, PROFILE, reserve_frames=8))
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
