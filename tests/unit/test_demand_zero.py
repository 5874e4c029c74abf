"""A buffer that starts untouched (``bench.populate = false``), and what still counts as corruption there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apf import wire
from apf.journal import Journal
from apf.messages import CHECK_MULTIPLIER, PAGE_SIZE, Segment, Stamp
from apf.scenario import Scenario, load
from deploy.result import RunResult
from deploy.twin import Twin
from guestsched.build import guest_core, memory_gfn
from hostd.contents import Audit

STAMPS = (Stamp(0, 1 << 32, 2 << 32), Stamp(64, 2 << 32, 2 << 32))
MASK = (1 << 64) - 1


def scenario(populate: bool) -> Scenario:
    """A run that lasts long enough to swap."""
    chosen = {
        "apf": ["off"],
        "duration_s": "0.006",
        "vm.vcpus": 1,
        "vm.guest_memory": "96MiB",
        "vm.group_memory": "4MiB",
        "bench.buffer": "4MiB",
        "bench.fault_threads": 1,
        "bench.work_threads": 0,
        "bench.populate": populate,
        "host.reserve_frames": 256,
        "swap.device": "nvme",
    }
    return load(None, chosen)


def run_with_pages_zeroed(populate: bool, swap: Path, zero: bool) -> RunResult:
    """Run; half-way, if ``zero``, wipe the pages of the buffer that are in memory."""
    twin = Twin(scenario(populate), swap)
    twin.start()
    wiped = not zero
    while twin.run_window():
        if not wiped and twin.border_ns > 3_000_000:
            ept = twin.memory.epts[0][memory_gfn(twin.guest.core) :]
            twin.memory.frames[(ept[ept != 0] >> np.uint64(12)).astype(np.int64)] = 0
            wiped = True
    result = twin.result(0)
    twin.close()
    assert wiped
    return result


@pytest.mark.parametrize("populate", [False, True])
def test_pages_that_lost_their_bytes_to_zeros_are_found_in_either(populate: bool, tmp_path: Path) -> None:
    good = run_with_pages_zeroed(populate, tmp_path / "good", zero=False)
    assert (good.corrupt_pages, good.lost_writes) == (0, 0)
    assert good.host_counters["pswpout"] > 0
    bad = run_with_pages_zeroed(populate, tmp_path / "bad", zero=True)
    assert bad.corrupt_pages > 0
    (task,) = bad.tasks
    assert bool(task["values"]["corrupt"]) == populate, (
        "where pages had stamps from the start, the guest itself sees it"
    )
    assert bad.lost_writes > 0


def test_populated_run_takes_a_page_of_zeros_for_corrupt_at_once() -> None:
    """By the audit; the sum of writes cannot see a page that nobody has written."""
    pages, numbers = np.zeros((3, PAGE_SIZE), np.uint8), np.arange(3)
    audit = Audit()
    audit.take(Segment(10, 3, stamps=STAMPS), numbers, pages)
    assert audit.corrupt == 3


def test_audit_of_a_demand_zero_segment_accepts_unwritten_stamps_only() -> None:
    segment, numbers = Segment(10, 4, stamps=STAMPS, demand_zero=True), np.arange(4)
    pages = np.zeros((4, PAGE_SIZE), np.uint8)
    words = pages.view(np.uint64)
    word = (2 << 32) + (2 << 32) * 1 + 5  # page 1 was written five times by the second thread
    words[1, 8], words[1, 9] = word, word * CHECK_MULTIPLIER & MASK
    audit = Audit()
    audit.take(segment, numbers, pages)
    assert (audit.corrupt, sum(audit.writes.values())) == (0, 5)
    words[2, 0] = 1 << 32  # another page's tag
    words[3, 9] = 1  # a product without its word
    words[0, 100] = 1  # a byte where nobody writes
    audit = Audit()
    audit.take(segment, numbers, pages)
    assert audit.corrupt == 3


def test_only_the_buffer_is_demand_zero_and_only_if_asked() -> None:
    for populate in (False, True):
        core = guest_core(scenario(populate), Journal())
        assert [s.gfn for s in core.segments() if s.demand_zero] == ([] if populate else [memory_gfn(core)])


def test_demand_zero_crosses_the_wire_and_comes_without_data() -> None:
    segments = [Segment(1, 2, b"x"), Segment(10, 4, stamps=STAMPS, demand_zero=True)]
    assert wire.segments_in(wire.segments_out(0, segments), 100) == segments
    with pytest.raises(wire.WireError, match=r"segments\[0\]\.data: 1 bytes, but demand_zero"):
        wire.segments_in(wire.segments_out(0, [Segment(10, 4, b"x", demand_zero=True)]), 100)
