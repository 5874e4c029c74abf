"""The table that zipfian draws its ranks from, and how ranks are scattered over pages."""

from __future__ import annotations

import _pydecimal
import hashlib
from fractions import Fraction
from math import gcd

import numpy as np
import pytest

from guestsched.programs import coprime_scatter, zipf
from guestsched.programs.zipf import PARTS, zipf_table


@pytest.mark.parametrize("theta", [0, 50, 99, 100, 150])
@pytest.mark.parametrize("pages", [1, 7, 511, 512, 513, 20_000])
def test_the_table_is_the_inverse_of_the_distribution(pages: int, theta: int) -> None:
    """In floats, which is near enough to see a mistake."""
    points = np.frombuffer(zipf_table(pages, theta), "<u8").astype(float) / 2**32
    below = np.concatenate(([0.0], np.cumsum(np.arange(1, pages + 1) ** (-theta / 100))))
    expected = np.interp(np.linspace(0, below[-1], PARTS + 1), below, np.arange(pages + 1))
    assert np.abs(points - expected).max() <= 1e-5 * pages
    assert points[0] == 0 and points[-1] == pages and (np.diff(points) >= 0).all()


@pytest.mark.parametrize(
    ("pages", "theta", "digest"),
    [
        (64, 99, "90a833bc5be13f12"),
        (262_144, 99, "2d841def77c72f1f"),
        (64, 100, "8360388f2a5d578e"),
        (262_144, 100, "d871fae645c9b769"),
    ],
)
def test_the_table_is_the_same_on_every_machine(pages: int, theta: int, digest: str) -> None:
    assert hashlib.sha256(zipf_table(pages, theta)).hexdigest().startswith(digest)


def test_the_table_is_the_same_with_another_decimal_library(monkeypatch) -> None:
    expected = zipf_table(530, 99)
    for name in ("Context", "Decimal", "localcontext"):
        monkeypatch.setattr(zipf, name, getattr(_pydecimal, name))
    monkeypatch.setattr(zipf, "_CONTEXT", _pydecimal.Context(prec=40, Emin=-999999, Emax=999999))
    assert zipf_table.__wrapped__(530, 99) == expected


def test_an_even_table_is_exact() -> None:
    points = np.frombuffer(zipf_table(PARTS * 3, 0), "<u8").tolist()
    for part, point in enumerate(points):
        assert abs(Fraction(point, 1 << 32) - 3 * part) <= Fraction(1, 1 << 32)


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 6, 64, 97, 30_030, 1 << 20])
def test_a_scatter_is_a_bijection(pages: int) -> None:
    scatter = coprime_scatter(pages)
    assert gcd(scatter, pages) == 1 and 1 <= scatter <= pages
