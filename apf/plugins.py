"""Classes by name: built-in ones, and those that installed packages bring along as entry points.

A name that is built in cannot be taken. Every machine that runs the daemon concerned needs the package.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from apf.scenario import ScenarioError

Base = TypeVar("Base")


@dataclass(frozen=True, slots=True)
class Plugins(Generic[Base]):
    """Subclasses of ``base``, which scenario field ``field`` names; ``group``: the entry points' group."""

    field: str
    group: str
    base: type[Base]
    built_in: Mapping[str, type[Base]]

    def load(self, name: str) -> type[Base]:
        """The class called ``name``. Raises ScenarioError."""
        if name in self.built_in:
            return self.built_in[name]
        found = entry_points(group=self.group)
        # An installed package may be found twice, by two ways to the same place.
        points = {point.value: point for point in found if point.name == name}
        if not points:
            others = sorted({point.name for point in found} - set(self.built_in))
            raise ScenarioError(
                f"{self.field} = {name!r}: allowed: {', '.join(self.built_in)} "
                f"(and entry points of group {self.group}: {', '.join(others) or 'none installed'})"
            )
        if len(points) > 1:
            raise ScenarioError(
                f"{self.field} = {name!r}: several entry points of group {self.group}: {', '.join(points)}"
            )
        return self._load(next(iter(points.values())))

    def _load(self, point: EntryPoint) -> type[Base]:
        where = f"{self.field} = {point.name!r}: entry point {point.value}"
        try:
            loaded = point.load()
        except (ImportError, AttributeError) as error:
            raise ScenarioError(f"{where}: {error}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise ScenarioError(f"{where}: {loaded!r} is no subclass of {self.base.__module__}.{self.base.__name__}")
        if inspect.isabstract(loaded):
            missing = ", ".join(sorted(getattr(loaded, "__abstractmethods__", ())))
            raise ScenarioError(f"{where}: {loaded.__name__} does not define {missing}")
        return loaded
