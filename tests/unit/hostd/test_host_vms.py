"""The VMs of a host: which place is whose, who joins when, and what is asked for of the device meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from apf.io_faults import IoFaultWish
from apf.process import Failure
from apf.rundir import RunDir
from apf.scenario import load
from hostd.config import HostdConfig
from hostd.io_fault_log import IoFaultLog, read
from hostd.io_fault_requests import IO_FAULTS_MAX, IoFaultRequests
from hostd.vms import Vms


class Host:
    """A host of four places, two VMs from the start; what is not the VMs' business does as the test says."""

    def __init__(self, tmp_path: Path, on_vm_loss: str = "leave") -> None:
        overrides = {"host.vms": 2, "host.max_vms": 4, "host.on_vm_loss": on_vm_loss, "vm.vcpus": 2}
        config = HostdConfig(load(None, overrides), RunDir(tmp_path, tmp_path))
        self.attached: set[int] = set()
        self.ended: set[int] = set()
        self.evicted: list[range] = []
        self.loaded: list[int] = []
        self.asked = 0
        self.failures: list[Failure] = []
        self.fails = False
        turns = SimpleNamespace(
            survive=self._survive,
            is_attached=self.attached.__contains__,
            ask_for_clock=self._ask,
            forget_waiting=lambda: None,
            fail=self.failures.append,
        )
        clock = SimpleNamespace(
            has_ended=lambda slots: slots[0] // 2 in self.ended,
            evict=lambda slots, server: self.evicted.append(slots),
        )
        shell = SimpleNamespace(load=self._load)
        self.vms = Vms(config, cast(Any, turns), cast(Any, shell), cast(Any, clock))

    def _survive(self, lost: Callable[[int, Failure], bool], detached: Callable[[int], None]) -> None:
        self.lose, self.detach = lost, detached

    def _ask(self) -> None:
        self.asked += 1

    def _load(self, vm: int, segments: object) -> None:
        if self.fails:
            raise ValueError("no room")
        self.loaded.append(vm)


def in_loop(tmp_path: Path, test: Callable[[Host], Awaitable[None]], **options: str) -> None:
    async def body() -> None:
        await test(Host(tmp_path, **options))

    asyncio.run(body())


async def begun(awaitable: Awaitable[int]) -> asyncio.Future[int]:
    """Something that waits now."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_vms_of_the_start_are_loaded_by_number_whoever_comes_first(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vms = host.vms
        second = await begun(vms.load(1, ()))
        assert vms.is_taken(1) and not vms.is_taken(0) and not host.loaded and not second.done()
        assert await vms.load(0, ()) == await second == 0
        assert host.loaded == [0, 1] and vms.all_loaded.is_set()
        assert await vms.started(1) == 0

    in_loop(tmp_path, test)


def test_a_load_that_fails_ends_the_run(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        host.fails = True
        with pytest.raises(ValueError, match="no room"):
            await host.vms.load(0, ())
        assert [str(failure) for failure in host.failures] == ["cannot load VM 0: ValueError: no room"]
        assert not host.vms.all_loaded.is_set()

    in_loop(tmp_path, test)


def test_a_vm_joins_once_it_is_loaded_and_attached(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vms = host.vms
        vms.is_running = True
        loading = await begun(vms.load(2, ()))
        assert vms.wants_to_join and vms.is_taken(2) and not host.asked and vms.take_joins() == []
        host.attached.add(2)
        start = await begun(vms.started(2))
        assert host.asked == 1
        (join,) = vms.take_joins()
        vms.put_back(join)
        assert vms.take_joins() == [join] and not vms.wants_to_join
        vms.joined(join, 40_000)
        assert await loading == await start == 40_000 and await vms.started(2) == 40_000
        assert vms.present == {0, 1, 2} and vms.events == {"joined": 1}

    in_loop(tmp_path, test)


def test_vcpus_may_come_before_their_vm(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vms = host.vms
        vms.is_running = True
        host.attached.add(2)
        start = await begun(vms.started(2))
        assert not host.asked and not start.done()
        await begun(vms.load(2, ()))
        assert host.asked == 1
        (join,) = vms.take_joins()
        vms.joined(join, 20_000)
        assert await start == 20_000

    in_loop(tmp_path, test)


def test_who_gives_up_waiting_gives_up_its_place_unless_it_joins_already(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vms = host.vms
        vms.is_running = True
        host.attached |= {2, 3}
        gone, late = await begun(vms.load(2, ())), await begun(vms.load(3, ()))
        gone.cancel()
        await asyncio.wait([gone])
        assert not vms.is_taken(2)
        (join,) = vms.take_joins()
        late.cancel()
        await asyncio.wait([late])
        assert join.vm == 3 and vms.is_taken(3)

    in_loop(tmp_path, test)


def test_a_place_is_free_again_for_the_next_vm_which_starts_when_it_joins(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vms = host.vms
        await vms.load(0, ())
        assert vms.is_taken(0)
        vms.is_running = True
        host.attached.add(0)
        host.ended.add(0)
        assert not vms.is_taken(0) and vms.ended() == [0]
        loading = await begun(vms.load(0, ()))
        assert vms.is_taken(0) and vms.take_joins() == [], "the one before is still there"
        vms.left(0)
        assert vms.is_taken(0) and vms.events == {"ended": 1}
        (join,) = vms.take_joins()
        host.ended.clear()
        vms.joined(join, 60_000)
        assert await loading == await vms.started(0) == 60_000 and vms.is_taken(0)
        host.ended.add(0)
        again = await begun(vms.load(0, ()))
        vms.left(0)
        (join,) = vms.take_joins()
        host.ended.clear()
        vms.joined(join, 80_000)
        assert await again == await vms.started(0) == 80_000

    in_loop(tmp_path, test)


def test_a_host_survives_lost_vms_until_none_is_left(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        vms = host.vms
        assert not host.lose(0, Failure("too early"))
        vms.is_running = True
        assert host.lose(1, Failure("first")) and host.lose(1, Failure("again")) and not host.lose(3, Failure("who?"))
        host.detach(0)
        host.detach(1)
        assert host.evicted == [range(2, 4)]
        assert vms.why_all_lost() is None
        vms.left(1)
        assert host.lose(0, Failure("second"))
        vms.left(0)
        assert vms.events == {"lost": 2} and str(vms.why_all_lost()) == "every VM was lost; the first: first"
        vms.events["ended"] += 1
        assert vms.why_all_lost() is None

    in_loop(tmp_path, test)


def test_or_ends_with_the_first_one_lost(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        host.vms.is_running = True
        assert not host.lose(1, Failure("first")) and not host.vms.lost

    in_loop(tmp_path, test, on_vm_loss="end")


def test_what_is_asked_of_the_device_is_done_in_order_written_down_and_limited(tmp_path: Path) -> None:
    async def test(host: Host) -> None:
        done: list[tuple[IoFaultWish, int]] = []
        shell = SimpleNamespace(fail_ios=lambda wish, now_ns: done.append((wish, now_ns)))
        path = tmp_path / "log"
        requests = IoFaultRequests(cast(Any, shell), IoFaultLog(path, load(None, {})))
        requests.take(10_000, 0)
        assert not path.exists()
        wishes = [IoFaultWish(what="read_error", nth=nth) for nth in (3, 1)]
        asked = [requests.ask(wish) for wish in wishes]
        requests.take(20_000, 1)
        assert done == [(wish, 20_000) for wish in wishes] and [await each for each in asked] == [20_000, 20_000]
        requests.close("0123")
        log = read(path)
        assert [(each.at_ns, each.joins, each.wish) for each in log.asked] == [(20_000, 1, wish) for wish in wishes]
        assert log.digest == "0123"
        for _ in range(IO_FAULTS_MAX - 2):
            assert not requests.is_full
            requests.ask(wishes[0])
        assert requests.is_full

    in_loop(tmp_path, test)
