"""Kinds of fields that scenarios and what operators ask for have in common."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from apf.messages import PAGE_SIZE

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")


def parse_size(value: object) -> object:
    """Bytes from ``4096`` or ``"512MiB"``; anything else is left for the validator to refuse."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError("expected a number of bytes, or a number with B, KiB, MiB or GiB, as in '512MiB'")
        return int(match[1]) * _UNITS[match[2] or ""]
    return value


def decimal(value: object) -> object:
    """A float as the decimal number it is written as, for fields that are exact."""
    return Decimal(str(value)) if isinstance(value, float) else value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=PAGE_SIZE, le=1 << 40)]
SizeOrNone = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=1 << 40)]
"""0 where there is none, or where it follows from others."""
Seconds = Annotated[Decimal, BeforeValidator(decimal), Field(ge=0, le=100_000)]
"""Guest s."""
PluginName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=64)]
"""Of something that is there, or of an entry point that was installed."""


class Section(BaseModel):
    """A table of TOML whose fields are all known, and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
