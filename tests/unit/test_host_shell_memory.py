"""What the host's shell reads from shared memory: used frames, and stamps that must have survived."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf.hostmem import Geometry, HostMemory
from apf.journal import Journal
from apf.scenario import Scenario, load
from guestsched.build import guest_core
from hostd.build import host_core
from hostd.shell import HostShell, _take_set
from hostd.swapfile import SwapFile

SCENARIO: Scenario = load(
    None,
    {
        "apf": ["off"],
        "vm.guest_memory": "72MiB",
        "vm.group_memory": "4MiB",
        "bench.buffer": "6MiB",
        "host.reserve_frames": 64,
    },
)


@given(st.integers(0, 70), st.sets(st.integers(0, 69)))
def test_set_bytes_are_found_in_order_and_cleared(length: int, marks: set[int]) -> None:
    flags = np.zeros(length, np.uint8)
    expected = sorted(mark for mark in marks if mark < length)
    flags[expected] = 1
    found = np.empty(length, np.int64)
    assert found[: _take_set(flags.ctypes.data, length, found.ctypes.data)].tolist() == expected
    assert not flags.any()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostShell, HostMemory, SwapFile]]:
    core = host_core(SCENARIO, Journal())
    swap = SwapFile(Path(tmp_path_factory.mktemp("swap")) / "swap", core.config.slots)
    memory = HostMemory.anonymous(Geometry.of(SCENARIO))
    shell = HostShell(core, memory, swap)
    shell.load(0, guest_core(SCENARIO, Journal()).segments())
    yield shell, memory, swap
    swap.close()


def _buffer_pages(shell: HostShell, framed: bool) -> list[int]:
    """Frames, or slots, of the stamped pages."""
    (segment,) = [one for one in guest_core(SCENARIO, Journal()).segments() if one.stamps]
    pfns, slots = shell.core.locate(0, np.arange(segment.pages) + segment.gfn)
    return [int(n) for n in (pfns[pfns >= 0] if framed else slots[pfns < 0])]


def test_the_audit_of_a_loaded_vm_is_clean(loaded: tuple[HostShell, HostMemory, SwapFile]) -> None:
    shell, _, _ = loaded
    audit = shell.audit()
    assert (audit.pages, audit.corrupt) == (SCENARIO.bench.buffer // 4096, 0)
    assert _buffer_pages(shell, True) and _buffer_pages(shell, False)


# Stamps of four threads are at 0, 64, 128 and 192; the third word of each is the writer's own.
@pytest.mark.parametrize("offset", [0, 4, 7, 8, 15, 24, 63, 64, 79, 88, 127, 192, 207, 216, 2048, 4088, 4095])
@pytest.mark.parametrize("framed", [True, False])
def test_the_audit_finds_a_flipped_byte_anywhere(
    loaded: tuple[HostShell, HostMemory, SwapFile], framed: bool, offset: int
) -> None:
    shell, memory, swap = loaded
    numbers = _buffer_pages(shell, framed)
    for number in (numbers[0], numbers[len(numbers) // 2], numbers[-1]):
        page = memory.frames[number] if framed else np.empty(4096, np.uint8)
        if not framed:
            swap.read(number, page)
        page[offset] ^= 0x10
        if not framed:
            swap.write(number, page)
        assert shell.audit().corrupt == 1
        page[offset] ^= 0x10
        if not framed:
            swap.write(number, page)
    assert shell.audit().corrupt == 0
