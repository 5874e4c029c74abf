"""avg10, avg60, avg300: against the definition, period by period, and against what they approximate."""

from __future__ import annotations

import math
import random

import pytest

from hostd.core import pressure
from hostd.core.averages import PSI_PERIOD_NS, calc_load, text
from hostd.core.pressure import Pressure

Span = tuple[int, int]


def waited_ns(spans: list[Span], from_ns: int, until_ns: int) -> int:
    """Spans do not overlap."""
    return sum(max(0, min(end, until_ns) - max(start, from_ns)) for start, end in spans)


def naive(spans: list[Span], now_ns: int) -> tuple[int, ...]:
    loads = [0, 0, 0]
    for update in range(now_ns // PSI_PERIOD_NS):
        waited = waited_ns(spans, update * PSI_PERIOD_NS, (update + 1) * PSI_PERIOD_NS)
        percent = waited * 100 // PSI_PERIOD_NS
        for at, exp in enumerate((1677, 1981, 2034)):
            up = 2047 if percent * 2048 >= loads[at] else 0
            loads[at] = (loads[at] * exp + percent * 2048 * (2048 - exp) + up) // 2048
    return tuple(loads)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fold_at", [1, 5, 4096])
def test_against_every_period_by_itself(seed: int, fold_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits from a moment to minutes long, minutes apart; one task, so that some and full are the same."""
    monkeypatch.setattr(pressure, "_FOLD_AT", fold_at)
    chance, group, spans, now_ns = random.Random(seed), Pressure(1), [], 0
    for _ in range(8):
        start_ns = now_ns + int(PSI_PERIOD_NS * 10 ** chance.uniform(-3, 2.3))
        now_ns = start_ns + int(PSI_PERIOD_NS * 10 ** chance.uniform(-3, 2.3))
        spans.append((start_ns, now_ns))
        group.waits(start_ns, now_ns)
        for look_ns in sorted(chance.randrange(start_ns, now_ns) for _ in range(3)):
            found = group.totals(look_ns).averages
            assert found.some == naive(spans, look_ns) == found.full
            group.fold(look_ns)
        found = group.totals(now_ns).averages
        assert found.some == naive(spans, now_ns) == found.full


def test_years_are_not_gone_through_period_by_period() -> None:
    group, year_ns = Pressure(1), 365 * 86_400 * 10**9
    group.waits(year_ns, 2 * year_ns)
    found = [group.totals(at_ns).averages.some for at_ns in (year_ns, 2 * year_ns, 3 * year_ns)]
    assert found == [(0, 0, 0), (100 * 2048,) * 3, (0, 0, 0)]


def test_a_look_changes_nothing() -> None:
    often, once = Pressure(2), Pressure(2)
    for group in (often, once):
        group.waits(10, 7 * PSI_PERIOD_NS)
        group.waits(3 * PSI_PERIOD_NS, 5 * PSI_PERIOD_NS)
    for at_ns in range(0, 9 * PSI_PERIOD_NS, PSI_PERIOD_NS // 3):
        often.totals(at_ns)
    assert often.totals(9 * PSI_PERIOD_NS) == once.totals(9 * PSI_PERIOD_NS)
    assert once.totals(9 * PSI_PERIOD_NS).averages.full != once.totals(9 * PSI_PERIOD_NS).averages.some


@pytest.mark.parametrize(("at", "seconds"), [(0, 10), (1, 60), (2, 300)])
def test_they_are_about_exponential_averages(at: int, seconds: int) -> None:
    """A group that waits for a quarter of the time, for as long as the average is long: 25 (1 - 1/e) per cent."""
    group = Pressure(1)
    quarter_ns = PSI_PERIOD_NS // 4
    for period in range(200):
        group.waits(period * PSI_PERIOD_NS, period * PSI_PERIOD_NS + quarter_ns + 1)
    periods = seconds * 10**9 // PSI_PERIOD_NS
    load = group.totals(periods * PSI_PERIOD_NS).averages.some[at]
    wanted = 25 * (1 - math.exp(-periods * PSI_PERIOD_NS / 1e9 / seconds))
    assert load / 2048 == pytest.approx(wanted, rel=0.02), "integers, and a rate of 2034 / 2048"
    assert text(load) == f"{math.floor(load / 2048 * 100) / 100:.2f}"


def test_as_the_kernel_prints_them() -> None:
    assert [text(load) for load in (0, 1, 21, 2047, 2048, 100 * 2048)] == [
        *("0.00", "0.00", "0.01", "0.99", "1.00", "100.00")
    ]
    assert calc_load(0, 1677, 100 * 2048) == 100 * 371
    assert calc_load(1, 1677, 0) == 0 and calc_load(0, 1677, 1) == 1, "down on the way down, up on the way up"
