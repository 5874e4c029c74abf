"""Faults of the APF protocol injected while the guest runs: what is asked for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apf import refusal
from apf.messages import ProtocolFault
from apf.protocol_faults import InjectName, check_inject
from apf.scenario import ScenarioError


class InjectWish(BaseModel):
    """Fields as in InjectRequest, without the vCPU; ranges as of the scenario's ``[[inject]]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: InjectName
    nth: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    count: Annotated[int, Field(ge=1, le=1 << 32)] = 1
    for_ns: Annotated[int, Field(ge=0, le=100_000 * 1_000_000_000)] = 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        check_inject(self.what, self.nth, self.count, "for_ns", self.for_ns)
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> InjectWish:
        """Checked. Raises ScenarioError that names field, value and what is allowed."""
        return refusal.checked(cls, fields, ScenarioError)

    def fault(self) -> ProtocolFault:
        """As the vCPU is told."""
        return ProtocolFault(self.what, self.nth, self.count, self.for_ns)
