"""Reclaim policies by name: the built-in ones, and those that installed packages bring along.

A package brings one along with an entry point, in its pyproject.toml:

    [project.entry-points."apf.reclaim"]
    nru = "my_package.nru:NotRecentlyUsed"

where the class is a subclass of ``hostd.core.lru.Policy``, which says what it has to do.
"""

from __future__ import annotations

from apf.plugins import Plugins
from hostd.core.lru import Kernel, Policy
from hostd.core.policies import Clock, Fifo, Lru

BUILT_IN: dict[str, type[Policy]] = {"kernel": Kernel, "clock": Clock, "lru": Lru, "fifo": Fifo}
_PLUGINS: Plugins[Policy] = Plugins(
    *("host.reclaim", "apf.reclaim"),
    Policy,  # type: ignore[type-abstract]  # it is asked for subclasses only
    BUILT_IN,
)


def load(name: str) -> type[Policy]:
    """The class of the policy called ``name``. Raises ScenarioError."""
    return _PLUGINS.load(name)
