"""Makes a VM's boot image from a scenario; the same for the daemon and the twin."""

from __future__ import annotations

from apf.scenario import Scenario
from guestsched.core.image import Image, build
from guestsched.core.program import LoadedProgram
from guestsched.programs import BUILTINS


def guest_image(scenario: Scenario) -> Image:
    """Memory, address spaces and tasks of the published benchmark. Raises ScenarioError if they do not fit."""
    return build(scenario, _loaded("fault_thread"), _loaded("work_thread"))


def _loaded(name: str) -> LoadedProgram:
    program = BUILTINS[name]
    return LoadedProgram(program, program.arguments, program.results)
