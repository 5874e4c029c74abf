"""The swap file is real: a byte flipped in it during a run is found by the read that brings it, which ends the run.

What nobody reads again comes out as a corrupt page in the audit at the end; otherwise there is none.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cluster_runs import small, state_of, until, until_running

from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE
from apf.process import Failure
from apf.scenario import Scenario
from deploy import twin
from deploy.local import LocalCluster
from deploy.twin import Twin

SCENARIO = {"duration_s": "0.04"}


@dataclass(frozen=True)
class Slots:
    """Of an undisturbed run: when each slot was first read, and the slots nobody read or wrote."""

    first_read_ns: dict[int, int]
    untouched: list[int]
    digest: str

    def last_read_before(self, time_ns: int) -> tuple[int, int]:
        """A slot with a page of the buffer and when it is first read, the last such before ``time_ns``."""
        early = {slot: at for slot, at in self.first_read_ns.items() if at < time_ns}
        return max(early.items(), key=lambda item: item[1])

    @classmethod
    def of(cls, scenario: Scenario, directory: Path) -> Slots:
        """Learn it from the twin's journal."""
        result = twin.run(scenario, journals=directory)
        read: dict[int, int] = {}
        written: set[int] = set()
        swapped = 0
        for line in (directory / "host.journal").read_text().splitlines():
            time_ns, kind, *fields = line.split()
            if kind == "segment" and int(fields[4]):
                swapped = int(fields[4])
            elif kind == "read":
                read.setdefault(int(fields[2]), int(time_ns))
            elif kind == "write":
                written.add(int(fields[2]))
        loaded = {slot: at for slot, at in read.items() if slot < swapped and slot not in written}
        untouched = [slot for slot in range(swapped) if slot not in read and slot not in written]
        assert result.corrupt_pages == result.lost_writes == 0
        return cls(loaded, untouched, result.digest)


def is_stamped(page: bytes) -> bool:
    """Whether the page's first stamp is there and right."""
    word, check = np.frombuffer(page[:16], np.uint64)
    return bool(word) and int(check) == int(word) * CHECK_MULTIPLIER % (1 << 64)


def flip(swap: Path, slot: int, offset: int) -> None:
    """Flip a bit of one byte of a stamped page in the swap file."""
    with swap.open("r+b", buffering=0) as file:
        file.seek(slot * PAGE_SIZE)
        page = file.read(PAGE_SIZE)
        assert is_stamped(page), f"slot {slot} holds no stamped page"
        file.seek(slot * PAGE_SIZE + offset)
        file.write(bytes([page[offset] ^ 0x10]))


def _run_on(machine: Twin) -> None:
    while machine.run_window():
        pass


@pytest.mark.parametrize("apf", ["off", "pv2010"])
def test_on_the_processes(apf: str, tmp_path: Path) -> None:
    """One byte in a page that is read later: the guest never gets it."""
    scenario = small(apf, **SCENARIO)
    slots = Slots.of(scenario, tmp_path)
    slot, read_ns = slots.last_read_before(scenario.duration_ns * 2 // 3)
    with LocalCluster(scenario) as cluster:
        until_running(cluster)
        hostd = cluster.processes[0].pid or 0
        os.kill(hostd, signal.SIGSTOP)
        until("hostd stopped", lambda: state_of(hostd) == "T")
        snapshot = cluster.snapshot()
        assert snapshot is not None and snapshot.now_ns < read_ns, "too late: the page has been read already"
        flip(cluster.run.swap, slot, 3000)
        os.kill(hostd, signal.SIGCONT)
        with pytest.raises(
            Failure, match=rf"slot {slot}, which has gfn 0x[0-9a-f]+ of VM 0: bytes 2048 to 4095 are not"
        ):
            cluster.wait()


def test_one_byte_on_the_processes_is_enough(tmp_path: Path) -> None:
    scenario = small("off", **SCENARIO)
    slots = Slots.of(scenario, tmp_path)
    with LocalCluster(scenario) as cluster:
        until_running(cluster)
        flip(cluster.run.swap, slots.untouched[0], 5)
        result = cluster.wait()
    assert result.corrupt_pages == 1
    assert result.digest == slots.digest, "a page nobody looked at changed the course of the run"


@pytest.mark.parametrize(
    ("window", "offset"), [(1, 0), (10, 7), (100, 12), (400, 0x40 * 3 + 2), (600, 2048), (700, 4095)]
)
def test_in_the_twin_at_any_time_anywhere_in_a_page(window: int, offset: int, tmp_path: Path) -> None:
    scenario = small("off")
    slots = Slots.of(scenario, tmp_path)
    machine = Twin(scenario, tmp_path / "swap")
    try:
        machine.start()
        while machine.run_window():
            if machine.windows == window:
                flip(tmp_path / "swap", slots.untouched[window], offset)
        result = machine.result(0.0)
    finally:
        machine.close()
    assert machine.windows > window
    assert result.corrupt_pages == 1


@pytest.mark.parametrize(("apf", "before_ns"), [("off", 7_000_000), ("pv2010", 15_000_000)])
def test_in_the_twin_the_read_finds_it(apf: str, before_ns: int, tmp_path: Path) -> None:
    scenario = small(apf)
    slots = Slots.of(scenario, tmp_path)
    slot, read_ns = slots.last_read_before(before_ns)
    machine = Twin(scenario, tmp_path / "swap")
    found = f"slot {slot}, which has gfn 0x[0-9a-f]+ of VM 0: bytes 0 to 2047 are not those of write 1 of this slot"
    try:
        machine.start()
        while machine.windows < 20:
            assert machine.run_window()
        assert machine.border_ns < read_ns
        flip(tmp_path / "swap", slot, 12)
        with pytest.raises(Failure, match=found):
            _run_on(machine)
    finally:
        machine.close()
