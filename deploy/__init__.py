"""The ways to put hostd, vcpud and guestsched together: local processes, the twin in one process, the command line.

``run(scenario)`` is the twin for notebooks: one run, in this process, with the digest the processes give.
"""

from deploy.result import RunResult
from deploy.twin import run

__all__ = ["RunResult", "run"]
