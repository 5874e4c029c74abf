"""Which I/Os fail, and when those of a device that stops or is slow complete."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apf.swapdevice import ERRORS_OF
from hostd.core.device import Op
from hostd.core.io_faults import Failure, IoFaults, IoResult, chances

END_NS = 1_000_000


def plan(*failures: Failure) -> IoFaults:
    return IoFaults(failures, END_NS)


class Spoilt:
    """A device some of whose I/Os fail by chance too."""

    def __init__(self, faults: IoFaults, errors: tuple[int, int], seed: int) -> None:
        self._faults = faults
        self._fails = chances(errors, seed)

    def result(self, op: Op, vm: int, gfn: int, slot: int, now_ns: int) -> IoResult:
        return self._faults.result(op, vm, gfn, slot, now_ns, self._fails[op]())


def reads(faults: IoFaults | Spoilt, times_ns: list[int], vm: int = 0, gfn: int = 0, slot: int = 0) -> list[IoResult]:
    return [faults.result(Op.READ, vm, gfn, slot, now_ns) for now_ns in times_ns]


OK, ERROR = IoResult.OK, IoResult.ERROR


def by_chance(read_errors: int, write_errors: int = 0, *failures: Failure, seed: int = 1) -> Spoilt:
    return Spoilt(IoFaults(failures, END_NS), (read_errors, write_errors), seed)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5])
def test_as_many_ios_fail_by_chance_as_the_profile_says_whatever_the_seed(share: float) -> None:
    for seed in (1, 2, 3):
        faults = by_chance(round(share * ERRORS_OF), seed=seed)
        failed = reads(faults, [1] * 50_000).count(ERROR)
        assert abs(failed - 50_000 * share) < 5 * math.sqrt(50_000 * share)
        assert faults.result(Op.WRITE, 0, 0, 0, 1) is OK


def test_none_and_all_are_exact() -> None:
    assert set(reads(by_chance(0, ERRORS_OF), [1] * 3000)) == {OK}
    assert set(reads(by_chance(ERRORS_OF), [1] * 3000)) == {ERROR}


def test_which_reads_fail_by_chance_is_the_seeds_and_nothing_elses() -> None:
    """Not of the writes between them, nor of failures that are wanted, which come first."""
    alone = reads(by_chance(ERRORS_OF // 5), [1] * 300)
    other = by_chance(ERRORS_OF // 5, ERRORS_OF // 2, Failure("read_error", 0, nth=4))
    mixed = []
    for _ in range(300):
        other.result(Op.WRITE, 0, 0, 0, 1)
        mixed += reads(other, [1])
    alone[3] = ERROR
    assert mixed == alone != reads(by_chance(ERRORS_OF // 5, seed=2), [1] * 300)


def test_a_write_that_is_to_be_torn_is_torn_whatever_chance_has_for_it() -> None:
    faults = by_chance(0, ERRORS_OF, Failure("torn_write", 0, nth=2))
    assert [faults.result(Op.WRITE, 0, 0, 0, 1) for _ in range(3)] == [ERROR, IoResult.TORN, ERROR]


def test_the_nth_and_count_of_reads_from_its_time_on_fail_and_no_write() -> None:
    faults = plan(Failure("read_error", at_ns=100, nth=2, count=2))
    assert faults.result(Op.WRITE, 0, 0, 0, 150) is OK
    assert reads(faults, [50, 99, 100, 101, 101, 102, 103]) == [OK, OK, OK, ERROR, ERROR, OK, OK]


def test_count_0_is_for_ever() -> None:
    assert reads(plan(Failure("read_error", 0, nth=3, count=0)), [1] * 6) == [OK, OK, ERROR, ERROR, ERROR, ERROR]


def test_only_the_page_slot_and_vm_it_is_about_count() -> None:
    faults = plan(Failure("read_error", 0, vm=1, gfn=7, slot=9))
    for vm, gfn, slot in ((0, 7, 9), (1, 8, 9), (1, 7, 8)):
        assert faults.result(Op.READ, vm, gfn, slot, 5) is OK
    assert faults.result(Op.READ, 1, 7, 9, 5) is ERROR
    assert faults.result(Op.READ, 1, 7, 9, 5) is OK


def test_each_kind_of_write_failure_has_its_result_and_all_count_an_io() -> None:
    faults = plan(
        Failure("write_error", 0, nth=1), Failure("torn_write", 0, nth=2), Failure("lost_write", 0, nth=3, count=2)
    )
    results = [faults.result(Op.WRITE, 0, 0, 0, 1) for _ in range(5)]
    assert results == [IoResult.ERROR, IoResult.TORN, IoResult.LOST, IoResult.LOST, OK]


def test_an_io_waits_for_a_device_that_stands_and_one_under_way_goes_on_where_it_stopped() -> None:
    faults = plan(Failure("stop", 100, for_ns=50))
    assert faults.served(Op.READ, 120, 10) == (150, 160)
    assert faults.served(Op.READ, 95, 10) == (95, 155)
    assert faults.served(Op.READ, 100, 10) == (150, 160)
    assert faults.served(Op.READ, 90, 10) == (90, 100)
    assert faults.served(Op.READ, 150, 10) == (150, 160)


def test_stops_that_touch_are_one_and_others_add_up() -> None:
    faults = plan(Failure("stop", 200, for_ns=10), Failure("stop", 100, for_ns=50), Failure("stop", 140, for_ns=20))
    assert faults.served(Op.WRITE, 99, 100) == (99, 99 + 100 + 60 + 10)


def test_a_stop_for_ever_is_over_only_after_the_run() -> None:
    start_ns, done_ns = plan(Failure("stop", 100)).served(Op.READ, 200, 10)
    assert END_NS < start_ns < done_ns


def test_slow_is_for_the_ios_that_start_meanwhile_and_of_its_kind() -> None:
    faults = plan(Failure("slow", 100, for_ns=100, factor=3, add_ns=7, io="read"))
    assert faults.served(Op.READ, 100, 10) == (100, 137)
    assert faults.served(Op.WRITE, 100, 10) == (100, 110)
    assert faults.served(Op.READ, 99, 10) == (99, 109)
    assert faults.served(Op.READ, 200, 10) == (200, 210)


def test_of_what_makes_a_device_slow_at_a_time_the_worst_counts() -> None:
    faults = plan(
        Failure("slow", 0, factor=3), Failure("slow", 100, for_ns=100, add_ns=50), Failure("slow", 0, factor=2)
    )
    assert [faults.served(Op.READ, at_ns, 10)[1] - at_ns for at_ns in (50, 150)] == [30, 60]


def test_swap_is_full_for_its_time() -> None:
    faults = plan(Failure("swap_full", 100, for_ns=10))
    assert [faults.is_swap_full(at_ns) for at_ns in (99, 100, 109, 110)] == [False, True, True, False]


@given(
    stops=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=4),
    start_ns=st.integers(0, 80),
    service_ns=st.integers(1, 30),
)
def test_an_io_is_served_as_long_as_it_takes_in_the_time_the_device_does_anything(
    stops: list[tuple[int, int]], start_ns: int, service_ns: int
) -> None:
    faults = plan(*(Failure("stop", at_ns, for_ns=for_ns) for at_ns, for_ns in stops))
    stands = {ns for at_ns, for_ns in stops for ns in range(at_ns, at_ns + for_ns)}
    begun_ns, done_ns = faults.served(Op.READ, start_ns, service_ns)
    assert begun_ns not in stands and all(ns in stands for ns in range(start_ns, begun_ns))
    served = [ns for ns in range(begun_ns, done_ns) if ns not in stands]
    assert len(served) == service_ns and served[-1] == done_ns - 1
