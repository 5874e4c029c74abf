"""The ways to put hostd, vcpud and guestsched together: local processes, the twin in one process, the command line.

``run(scenario)`` is the twin for notebooks: one run, in this process, with the digest the processes give. It is imported
when it is asked for: the clients of a running guest do without the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.result import RunResult
    from deploy.twin import run

__all__ = ["RunResult", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from deploy.twin import run

        return run
    if name == "RunResult":
        from deploy.result import RunResult

        return RunResult
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
