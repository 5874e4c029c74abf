"""Policies of swap readahead by name: the built-in ones, and those that installed packages bring along.

A package brings one along with an entry point, in its pyproject.toml:

    [project.entry-points."apf.readahead"]
    markov = "my_package.markov:MarkovReadahead"

where the class is a subclass of ``hostd.core.readahead.Readahead``, which says what it has to do. Every machine that
runs a host needs the package. A built-in name cannot be taken.
"""

from __future__ import annotations

from apf.plugins import Plugins
from hostd.core.readahead import KernelReadahead, NoReadahead, Readahead, StrideReadahead

_PLUGINS: Plugins[Readahead] = Plugins(
    "swap.readahead",
    "apf.readahead",
    Readahead,  # type: ignore[type-abstract]  # it is asked for subclasses only
    {"kernel": KernelReadahead, "none": NoReadahead, "stride": StrideReadahead},
)


def load(name: str) -> type[Readahead]:
    """The class of the policy called ``name``. Raises ScenarioError."""
    return _PLUGINS.load(name)
