"""The device model and its profiles."""

from __future__ import annotations

import runpy
from dataclasses import replace
from importlib import resources
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf.chance import Stream
from apf.core import CoreError
from apf.scenario import Scenario, Swap, Vm
from apf.swapdevice import NAMES
from hostd import device_profiles
from hostd.core.config import HostConfig
from hostd.core.device import Device, DeviceProfile, Op, default_window_ns


def profile(servers: int = 1, skip: int = 0) -> DeviceProfile:
    return DeviceProfile("test", servers, True, 1000, (1000, 1000), (500, 500), 0, 10, skip)


def test_one_server_is_a_fifo_queue() -> None:
    device = Device(profile(), 1)
    assert device.submit(Op.READ, 5, 100) == (100, 1110)
    assert device.submit(Op.WRITE, 9, 200) == (1110, 1620)
    assert device.submit(Op.READ, 1, 5000) == (5000, 6010)


def test_k_servers_work_on_k_ios_at_once() -> None:
    device = Device(profile(servers=2), 1)
    assert [device.submit(Op.READ, 9 * slot, 0)[0] for slot in range(5)] == [0, 0, 1010, 1010, 2020]


def test_an_io_a_little_ahead_of_the_last_one_of_its_kind_costs_only_transfers() -> None:
    device = Device(profile(skip=4), 1)
    done = [device.submit(op, slot, 0)[1] for op, slot in [(Op.READ, 10), (Op.READ, 11), (Op.READ, 15)]]
    assert done == [1010, 1020, 1060]
    for op, slot, cost in [(Op.WRITE, 16, 510), (Op.WRITE, 16, 510), (Op.WRITE, 21, 510), (Op.WRITE, 20, 510)]:
        start, end = device.submit(op, slot, 0)
        assert end - start == cost, (op, slot)


def test_servers_that_share_a_link_start_a_page_apart_and_one_alone_is_not_slower() -> None:
    device = Device(replace(profile(servers=3), page_ns=40), 1)
    assert [device.submit(Op.READ, 9 * slot, 0) for slot in range(3)] == [(0, 1010), (40, 1050), (80, 1090)]
    assert device.submit(Op.WRITE, 50, 0) == (1010, 1520), "the link has long been free"
    assert device.submit(Op.READ, 90, 10_000) == (10_000, 11_010)


@pytest.mark.parametrize(("name", "rate"), [("sata-ssd", 600_000_000), ("rdma", 12_500_000_000)])
def test_no_device_moves_more_in_a_second_than_its_link(name: str, rate: int) -> None:
    """Four times as many servers as there are, so that the link is what keeps them."""
    loaded = device_profiles.load(name)
    device = Device(replace(loaded, servers=4 * loaded.servers), 1)
    done_ns = max(device.submit(Op(slot & 1), 1000 * slot, 0)[1] for slot in range(20_000))
    assert 0.9 * rate < 20_000 * 4096 * 10**9 / done_ns <= rate


@given(
    arrivals=st.lists(st.integers(0, 3000), min_size=2, max_size=40),
    servers=st.integers(1, 4),
    page_ns=st.integers(0, 700),
)
def test_of_any_two_ios_one_starts_a_page_after_the_other(arrivals: list[int], servers: int, page_ns: int) -> None:
    device = Device(replace(profile(servers), page_ns=page_ns), 1)
    served = [device.submit(Op.READ, 9 * slot, arrival_ns) for slot, arrival_ns in enumerate(sorted(arrivals))]
    starts = [start_ns for start_ns, _ in served]
    assert all(later - earlier >= page_ns for earlier, later in pairwise(starts))
    assert all(done_ns - start_ns == 1010 for start_ns, done_ns in served)
    for moment in starts:
        assert sum(start_ns <= moment < done_ns for start_ns, done_ns in served) <= servers


def test_reads_and_writes_draw_from_streams_of_their_own() -> None:
    nvme = device_profiles.load("nvme")
    alone, mixed = Device(nvme, 3), Device(nvme, 3)
    reads = [alone.submit(Op.READ, 0, at)[1] - at for at in range(0, 10**9, 10**8)]
    again = []
    for at in range(0, 10**9, 10**8):
        mixed.submit(Op.WRITE, 0, at)
        again.append(mixed.submit(Op.READ, 0, at)[1] - at)
    assert reads == again


def latencies(name: str, count: int = 20_000) -> list[int]:
    device = Device(device_profiles.load(name).for_cpus(2), 1)
    slots = Stream(1, "slots")
    return sorted(device.submit(Op.READ, slots.below(1 << 40), at * 10**9)[1] - at * 10**9 for at in range(count))


def test_nvme_reads_have_the_stated_percentiles() -> None:
    drawn = latencies("nvme")
    assert drawn[len(drawn) // 2] == pytest.approx(80_000, rel=0.03)
    assert drawn[len(drawn) * 99 // 100] == pytest.approx(350_000, rel=0.06)


@pytest.mark.parametrize(
    ("name", "percentiles"),
    [
        ("sata-ssd", {10: 90_000, 90: 150_000}),
        ("rdma", {1: 4_000, 50: 5_000, 99: 255_000}),
        ("zswap", {50: 6_000, 99: 10_000}),
        ("zram", {99: 7_456}),
    ],
)
def test_other_reads_have_the_stated_percentiles(name: str, percentiles: dict[int, int]) -> None:
    drawn = latencies(name)
    for percent, stated_ns in percentiles.items():
        assert drawn[len(drawn) * percent // 100] == pytest.approx(stated_ns, rel=0.08), percent


def test_zram_reads_have_the_stated_mean() -> None:
    drawn = latencies("zram")
    assert sum(drawn) / len(drawn) == pytest.approx(2_428, rel=0.02)


def test_a_device_that_is_work_of_the_cpu_has_a_server_for_each_vcpu_of_the_host() -> None:
    scenario = Scenario(vm=Vm(vcpus=3), swap=Swap(device="zram"))
    assert HostConfig.of(scenario.for_mode("off"), device_profiles.load("zram"), vms=2).profile.servers == 6
    assert HostConfig.of(scenario.for_mode("off"), device_profiles.load("nvme"), vms=2).profile.servers == 32
    config = HostConfig.of(scenario.for_mode("off"), device_profiles.load("zram"))
    with pytest.raises(CoreError, match=r"profile\.servers = 0: at least 1"):
        replace(config, profile=device_profiles.load("zram")).verify()


def test_hdd_reads_take_a_seek_half_a_turn_and_a_transfer_in_the_mean() -> None:
    drawn = latencies("hdd-7200")
    assert sum(drawn) / len(drawn) == pytest.approx(8_500_000 + 4_166_667 + 27_306, rel=0.01)
    assert drawn[len(drawn) // 2] == pytest.approx(device_profiles.load("hdd-7200").read_median_ns, rel=0.01)


@pytest.mark.parametrize(("name", "window_ns"), [("nvme", 20_000), ("hdd-7200", 637_305)])
def test_the_default_window_is_a_twentieth_of_the_median_read(name: str, window_ns: int) -> None:
    assert default_window_ns(device_profiles.load(name)) == window_ns


def test_committed_profiles_are_what_the_generator_makes() -> None:
    folder = resources.files("hostd.core").joinpath("profiles")
    made = runpy.run_path(str(folder.joinpath("generate.py")))["render"]()
    assert sorted(made) == sorted(f"{name}.toml" for name in NAMES)
    for name, text in made.items():
        assert folder.joinpath(name).read_text(encoding="utf-8") == text, f"{name}: run generate.py"


def test_tables_ascend() -> None:
    for name in NAMES:
        loaded = device_profiles.load(name)
        for table in (loaded.read_ns, loaded.write_ns):
            assert list(table) == sorted(table) and table[0] > 0
