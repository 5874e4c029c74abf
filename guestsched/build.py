"""Makes a VM's boot image from a scenario; the same for the daemon and the twin."""

from __future__ import annotations

from apf.scenario import Scenario
from guestsched import programs
from guestsched.core.image import Image, build
from guestsched.core.program import LoadedProgram


def guest_image(scenario: Scenario) -> Image:
    """Memory, address spaces and tasks of the published benchmark. Raises ScenarioError if they do not fit."""
    fault = LoadedProgram(
        programs.load("fault_thread"),
        arguments={
            "buffer": programs.FAULT_BUFFER,
            "pages": programs.FAULT_PAGES,
            "rng_seed": programs.FAULT_RANDOM,
            "stamp_base": programs.FAULT_STAMP_BASE,
            "stamp_stride": programs.FAULT_STAMP_STRIDE,
            "multiplier": programs.FAULT_CHECK_MULTIPLIER,
            "zero_ok": programs.FAULT_ZERO_OK,
        },
        results={"accesses": programs.FAULT_ACCESSES, "corrupt": programs.FAULT_CORRUPT},
    )
    work = LoadedProgram(
        programs.load("work_thread"),
        arguments={"counter": programs.WORK_PAGE},
        results={"count": programs.WORK_COUNT},
    )
    return build(scenario, fault, work)
