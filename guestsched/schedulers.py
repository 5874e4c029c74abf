"""The guest kernel's schedulers by name: the built-in ones, and those that installed packages bring along.

A package brings one along with an entry point, in its pyproject.toml:

    [project.entry-points."apf.schedulers"]
    lifo = "my_package.lifo:LifoRunQueue"

where the class is a subclass of ``guestsched.core.sched.RunQueue``, which says what it has to do.
"""

from __future__ import annotations

from apf.plugins import Plugins
from guestsched.core.cfs import CfsRunQueue
from guestsched.core.eevdf import EevdfRunQueue
from guestsched.core.rr import RrRunQueue
from guestsched.core.sched import RunQueue

BUILT_IN: dict[str, type[RunQueue]] = {"cfs": CfsRunQueue, "eevdf": EevdfRunQueue, "rr": RrRunQueue}
_PLUGINS: Plugins[RunQueue] = Plugins(
    *("sched.policy", "apf.schedulers"),
    RunQueue,  # type: ignore[type-abstract]  # it is asked for subclasses only
    BUILT_IN,
)


def load(name: str) -> type[RunQueue]:
    """The class of the scheduler called ``name``. Raises ScenarioError."""
    return _PLUGINS.load(name)
