"""Classes by name: built-in ones, and those that installed packages bring along as entry points."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from apf.scenario import ScenarioError

T = TypeVar("T")


def load(name: str, field: str, group: str, built_in: Mapping[str, type[T]], base: type[T]) -> type[T]:
    """The subclass of ``base`` that the scenario's ``field`` calls ``name``. A built-in name cannot be taken.

    Raises ScenarioError if there is none in ``built_in`` nor among the entry points of ``group``, or several, or one
    that cannot be used.
    """
    if name in built_in:
        return built_in[name]
    found = entry_points(group=group)
    # An installed package may be found twice, by two ways to the same place.
    points = {point.value: point for point in found if point.name == name}
    if not points:
        others = sorted({point.name for point in found} - set(built_in))
        raise ScenarioError(
            f"{field} = {name!r}: allowed: {', '.join(built_in)} "
            f"(and entry points of group {group}: {', '.join(others) or 'none installed'})"
        )
    if len(points) > 1:
        raise ScenarioError(f"{field} = {name!r}: several entry points of group {group}: {', '.join(points)}")
    return _load(next(iter(points.values())), field, base)


def _load(point: EntryPoint, field: str, base: type[T]) -> type[T]:
    where = f"{field} = {point.name!r}: entry point {point.value}"
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise ScenarioError(f"{where}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ScenarioError(f"{where}: {loaded!r} is no subclass of {base.__module__}.{base.__name__}")
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(getattr(loaded, "__abstractmethods__", ())))
        raise ScenarioError(f"{where}: {loaded.__name__} does not define {missing}")
    return loaded
