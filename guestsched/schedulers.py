"""The guest kernel's schedulers by name: the built-in ones, and those that installed packages bring along.

A package brings one along with an entry point, in its pyproject.toml:

    [project.entry-points."apf.schedulers"]
    lifo = "my_package.lifo:LifoRunQueue"

where the class is a subclass of ``guestsched.core.sched.RunQueue``, which says what it has to do. Every machine that
runs a guest kernel needs the package. A built-in name cannot be taken.
"""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points

from apf.scenario import ScenarioError
from guestsched.core.cfs import CfsRunQueue
from guestsched.core.eevdf import EevdfRunQueue
from guestsched.core.rr import RrRunQueue
from guestsched.core.sched import RunQueue

GROUP = "apf.schedulers"
BUILT_IN: dict[str, type[RunQueue]] = {"cfs": CfsRunQueue, "eevdf": EevdfRunQueue, "rr": RrRunQueue}


def load(name: str) -> type[RunQueue]:
    """The class of the scheduler called ``name``. Raises ScenarioError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = entry_points(group=GROUP)
    # An installed package may be found twice, by two ways to the same place.
    points = {point.value: point for point in found if point.name == name}
    if not points:
        others = sorted({point.name for point in found} - set(BUILT_IN))
        raise ScenarioError(
            f"sched.policy = {name!r}: allowed: {', '.join(BUILT_IN)} "
            f"(and entry points of group {GROUP}: {', '.join(others) or 'none installed'})"
        )
    if len(points) > 1:
        raise ScenarioError(f"sched.policy = {name!r}: several entry points of group {GROUP}: {', '.join(points)}")
    return _load(next(iter(points.values())))


def _load(point: EntryPoint) -> type[RunQueue]:
    where = f"sched.policy = {point.name!r}: entry point {point.value}"
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise ScenarioError(f"{where}: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, RunQueue)):
        raise ScenarioError(f"{where}: {loaded!r} is no subclass of {RunQueue.__module__}.{RunQueue.__name__}")
    if inspect.isabstract(loaded):
        missing = ", ".join(sorted(loaded.__abstractmethods__))
        raise ScenarioError(f"{where}: {loaded.__name__} does not define {missing}")
    return loaded
