"""Why an engine stops running user code, and where it publishes its clock meanwhile."""

from __future__ import annotations

from apf.core import message
from apf.messages import Access
from vcpud.core.effects import ExitCause


class EngineError(Exception):
    """Unicorn stopped for a reason that no guest can cause."""


@message
class Exit:
    """One exit from user code. ``retired`` counts the instructions of this ``run()``, exactly.

    EPT_VIOLATION: ``gfn``, ``access``, ``address`` (page). EXCEPTION: ``vector``, and for vector 14 ``access`` and
    ``address`` (page). Others are 0. ``rip`` is where the task goes on.
    """

    cause: ExitCause
    retired: int
    gfn: int
    access: Access
    address: int
    vector: int
    rip: int


@message
class Publisher:
    """Where a running vCPU's clock goes: ``slot`` of the clock page mapped at ``page_address``."""

    page_address: int
    slot: int
