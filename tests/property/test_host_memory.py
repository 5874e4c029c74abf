"""No byte is lost, no frame shared, and every read sees what was last written, under eviction by several VMs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apf.chance import Stream
from apf.costs import Costs
from apf.io_faults import OF_IOS, IoFaultWish
from apf.messages import GupVariant
from hostd.core.backing import ANON, BACKINGS, FILE, MEMFD, USERFAULT, Backing
from hostd.core.config import HostConfig, VmConfig
from hostd.core.device import DeviceProfile
from hostd.core.io_faults import Failure
from hostd.core.lru import Kernel, Policy
from hostd.core.policies import Clock, Fifo, Lru
from hostd.core.readahead import KernelReadahead, NoReadahead, Readahead, StrideReadahead, SwapFault
from hostd.core.userfault import UserfaultConfig
from tests.property.host_shell import FakeShell

GUEST_PAGES = 24
VMS = 3

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


@dataclass(frozen=True)
class Host:
    """What a host is made of, drawn."""

    gup: GupVariant
    limits: tuple[int, ...]
    highs: tuple[int, ...]
    backings: tuple[Backing, ...]
    reserve: int
    window_ns: int
    rotates: bool
    readahead: type[Readahead]
    reclaim: type[Policy]
    reports: bool
    swap_slots: int
    managed: int

    def config(self) -> HostConfig:
        """A host of small VMs with two vCPUs each."""
        vms = tuple(
            VmConfig(GUEST_PAGES, limit, 2, min(high, limit), backing=backing, userfault=HANDLERS)
            for limit, high, backing in zip(self.limits, self.highs, self.backings, strict=True)
        )
        return HostConfig(
            seed=1,
            gup=self.gup,
            costs=Costs(),
            window_ns=self.window_ns,
            vms=vms,
            profile=PROFILE if self.rotates else replace(PROFILE, rotation_ns=0),
            reserve_frames=self.reserve,
            swap_slots=self.swap_slots,
            managed_pages=self.managed,
            reclaim=self.reclaim,
            reports=self.reports,
            readahead=self.readahead,
            page_cluster=2,
        )


class WildReadahead(Readahead):
    """Wants pages all over the host, twice, and some that there are not."""

    def window(self, fault: SwapFault) -> list[int]:
        """See ``Readahead``."""
        others = [*range(fault.key % 5, VMS * GUEST_PAGES, 5)] * 2 + [-1, 1000]
        others = [key for key in others if key != fault.key]
        return [*others[::2], fault.key, *others[1::2]]


HOSTS = st.builds(
    Host,
    gup=st.sampled_from(GupVariant),
    limits=st.tuples(*[st.integers(1, 20)] * VMS),
    highs=st.tuples(*[st.sampled_from([0, 0, 2, 8, 15])] * VMS),
    backings=st.tuples(*[st.sampled_from(list(BACKINGS.values()))] * VMS),
    reserve=st.integers(1, 12),
    window_ns=st.sampled_from([10_000, 40_000, 150_000]),
    rotates=st.booleans(),
    readahead=st.sampled_from([KernelReadahead, NoReadahead, StrideReadahead, WildReadahead]),
    reclaim=st.sampled_from([Kernel, Clock, Lru, Fifo]),
    reports=st.booleans(),
    swap_slots=st.one_of(st.just(0), st.integers(1, 2 * GUEST_PAGES)),
    # With so few pages most of them are below the watermarks, which are 32 pages at the least.
    managed=st.sampled_from([0, 0, 34, 45, 60]),
)
GFNS = st.integers(0, GUEST_PAGES - 1)
KINDS = st.sampled_from(["read", "read", "write", "write", "zero"])


def of_ios(what: str, nth: int, count: int, vm: int) -> IoFaultWish:
    """A failure that happens to I/Os."""
    return IoFaultWish(what=what, nth=nth, count=count, vm=vm)


WISHES = st.one_of(
    st.builds(of_ios, st.sampled_from(OF_IOS), st.integers(1, 5), st.sampled_from([1, 1, 3, 40]), st.integers(-1, 2)),
    st.builds(IoFaultWish, what=st.sampled_from(["stop", "swap_full"]), for_ns=st.integers(1, 200_000)),
    st.builds(IoFaultWish, what=st.just("slow"), for_ns=st.integers(1, 200_000), factor=st.integers(2, 5)),
)


class HostMemory(RuleBasedStateMachine):
    """Random accesses by the vCPUs of a few VMs, which come and go."""

    @initialize(host=HOSTS, loaded=st.tuples(*[st.integers(0, GUEST_PAGES)] * VMS))
    def boot(self, host: Host, loaded: tuple[int, ...]) -> None:
        """Start a host, its VMs with some pages loaded, as far as they fit."""
        self.shell = FakeShell(host.config())
        for vm, pages in enumerate(loaded):
            if pages or host.backings[vm].starts_missing:
                self.shell.load(vm, pages)

    @rule(
        vcpu=st.integers(0, 2 * VMS - 1),
        accesses=st.lists(st.tuples(GFNS, KINDS), min_size=1, max_size=12),
        blocking=st.booleans(),
    )
    def access(self, vcpu: int, accesses: list[tuple[int, str]], blocking: bool) -> None:
        """Give a vCPU pages to access."""
        for gfn, kind in accesses:
            self.shell.enqueue(vcpu, gfn, kind != "read", blocking, kind == "zero")

    @rule(vcpu=st.integers(0, 2 * VMS - 1), first=GFNS, kind=KINDS, blocking=st.booleans())
    def sweep(self, vcpu: int, first: int, kind: str, blocking: bool) -> None:
        """Let a vCPU go through its memory."""
        for gfn in [*range(first, GUEST_PAGES), *range(first)]:
            self.shell.enqueue(vcpu, gfn, kind != "read", blocking, kind == "zero")

    @rule(vm=st.integers(0, VMS - 1))
    def leave(self, vm: int) -> None:
        """A VM ends in the midst of what it does."""
        self.shell.leave(vm)

    @rule(vm=st.integers(0, VMS - 1), pages=st.integers(0, GUEST_PAGES))
    def join(self, vm: int, pages: int) -> None:
        """Another comes, if there is a place."""
        self.shell.join(vm, pages)

    @rule(wish=WISHES)
    def fail(self, wish: IoFaultWish) -> None:
        """The device begins to fail."""
        self.shell.fail(wish)

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
        if hasattr(self, "shell") and self.shell.is_intact:
            self.shell.drain()


TestHostMemory = HostMemory.TestCase
TestHostMemory.settings = settings(max_examples=100, stateful_step_count=25, deadline=None, derandomize=True)


def access_at_random(shell: FakeShell, pages: tuple[int, ...], chance: Stream) -> None:
    """Some thousand accesses, half of them to a few hot pages, by all vCPUs; ``pages`` of each VM."""
    shell.check_every = 0
    shell.load(0, 100)
    for _ in range(3_000):
        vcpu = chance.below(len(shell.vcpus))
        among = pages[shell.vcpus[vcpu].vm] if chance.below(2) else 8
        shell.enqueue(vcpu, chance.below(among), chance.below(2) == 1, chance.below(4) == 0)
    shell.drain()
    shell.core.check()


def thrash(gup: GupVariant, seed: int, backing: Backing = ANON) -> FakeShell:
    """Random accesses by eight vCPUs to twice the memory there is."""
    pages = (100, 24, 24, 24)
    limits = (60, 9, 12, 5)
    vms = tuple(VmConfig(size, limit, 2, backing=backing) for size, limit in zip(pages, limits, strict=True))
    shell = FakeShell(
        HostConfig(seed, gup, Costs(), 10_000, vms, PROFILE, reserve_frames=8, readahead=KernelReadahead)
    )
    access_at_random(shell, pages, Stream(seed, "thrash"))
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


def test_failing_ios_lose_no_page_but_those_the_core_says_are_lost() -> None:
    """As above, with every kind of failure again and again: what is not lost is right to the last byte."""
    for gup in GupVariant:
        pages = (100, 24)
        vms = tuple(VmConfig(size, limit, 2) for size, limit in zip(pages, (60, 9), strict=True))
        failures = tuple(
            Failure(what, 0, nth=nth + 9 * place, count=2)
            for nth in range(20, 2000, 53)
            for place, what in enumerate(OF_IOS)
        )
        shell = FakeShell(HostConfig(5, gup, Costs(), 10_000, vms, PROFILE, reserve_frames=16, failures=failures))
        access_at_random(shell, pages, Stream(5, "failing"))
        assert shell.given_up > 20, gup
        for name in ("read_error", "write_error", "torn_write", "lost_write", "checksum_error"):
            assert shell.core.counters[f"swap_{name}"] > 3, f"{gup.name}: the test does not cover {name}"
