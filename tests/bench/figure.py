"""One row of the table of benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio should be."""

    limit: float
    sense: Literal["<=", ">="]

    def __str__(self) -> str:
        return f"{self.sense} {self.limit:g}"

    def holds(self, ratio: float) -> bool:
        """Whether ``ratio`` is on the right side."""
        return ratio <= self.limit if self.sense == "<=" else ratio >= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """A measurement in words, its ratio to ``against`` in the same run, and what the ratio should be."""

    name: str
    figure: str
    ratio: float | None = None
    against: str = ""
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.target is None or self.ratio is None:
            return None
        return self.target.holds(self.ratio)

    def document(self) -> dict[str, object]:
        """As in the JSON."""
        return {
            "name": self.name,
            "figure": self.figure,
            "ratio": self.ratio,
            "against": self.against,
            "target": str(self.target) if self.target else None,
            "met": self.met,
        }
