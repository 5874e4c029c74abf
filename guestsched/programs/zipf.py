"""The table of ``zipfian``: the inverse of Zipf's distribution function, for any number of pages.

Rank r of n (from 0) has the weight (r + 1)**-theta. With H(x) the weight of the ranks below x, entry q of the table is
the x at which H is q of ``PARTS`` parts of H(n), as an integer in units of 2**-32 rank. The program draws a part and a
place in it evenly (zipfian.asm), so that the distribution is exact between parts and even within one. A part is 0.2 %
of all accesses.

Everything is decimal arithmetic of fixed precision, whose ``ln`` and ``exp`` are correctly rounded in every
implementation, so that the table is the same on every machine; a float's ``pow`` is the math library's affair. Up to
``_SUMMED`` H is summed; beyond it is the Euler-Maclaurin formula, whose first term left out is below 1e-12 there.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

PARTS = 511
TABLE_BYTES = 8 * (PARTS + 1)

_SUMMED = 512
_FRACTION_BITS = 32
_ROUNDS = 4
"""Newton's rounds; the first guess is next to the answer, and each round doubles the digits."""
_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN, Emin=-999999, Emax=999999)


@lru_cache(maxsize=16)
def zipf_table(pages: int, theta_hundredths: int) -> bytes:
    """The table for ``pages`` ranks and an exponent in hundredths, 0 (even) to 150: ``TABLE_BYTES`` bytes."""
    with localcontext(_CONTEXT):
        weights = _Weights(pages, Decimal(theta_hundredths) / 100)
        points = [0]
        for part in range(1, PARTS):
            point = int((weights.rank(weights.total * part / PARTS) * (1 << _FRACTION_BITS)).to_integral(ROUND_FLOOR))
            points.append(min(max(point, points[-1]), pages << _FRACTION_BITS))
    points.append(pages << _FRACTION_BITS)
    return struct.pack(f"<{PARTS + 1}Q", *points)


class _Weights:
    """H and its inverse; to be used within ``_CONTEXT``."""

    def __init__(self, pages: int, theta: Decimal) -> None:
        self._theta = theta
        self._below = [Decimal(0)]
        for rank in range(min(pages, _SUMMED)):
            self._below.append(self._below[-1] + self._power(Decimal(rank + 1)))
        self._start = Decimal(_SUMMED)
        self._offset = self._below[-1] - self._smooth(self._start)
        self.total = self._below[pages] if pages <= _SUMMED else self._offset + self._smooth(Decimal(pages))

    def _power(self, x: Decimal) -> Decimal:
        """x**-theta."""
        return (-self._theta * x.ln()).exp()

    def _smooth(self, x: Decimal) -> Decimal:
        """H(x) for large x, but for a constant: the integral, half the last term, a twelfth of its derivative."""
        power = self._power(x)
        integral = x.ln() if self._theta == 1 else x * power / (1 - self._theta)
        return integral + power / 2 - self._theta * power / x / 12

    def rank(self, weight: Decimal) -> Decimal:
        """The x with H(x) = ``weight``."""
        if weight < self._below[-1] or len(self._below) <= _SUMMED:
            whole = bisect_right(self._below, weight) - 1
            return whole + (weight - self._below[whole]) / (self._below[whole + 1] - self._below[whole])
        sought = weight - self._offset
        x = self._guess(sought)
        for _ in range(_ROUNDS):
            x = max(self._start, x - (self._smooth(x) - sought) / self._power(x))
        return x

    def _guess(self, sought: Decimal) -> Decimal:
        """Where the integral alone is ``sought``."""
        if self._theta == 1:
            return sought.exp()
        exponent = 1 - self._theta
        return max(self._start, ((sought * exponent).ln() / exponent).exp())
