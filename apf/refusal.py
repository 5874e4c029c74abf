"""Bad input, told in the project's way: field, value, what is allowed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

_Model = TypeVar("_Model", bound=BaseModel)


def checked(model: type[_Model], fields: Mapping[str, Any], refused: type[Exception]) -> _Model:
    """``model`` of ``fields``; raises ``refused`` with all that is wrong in a line."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise refused("; ".join(lines(error, model))) from error


def read_toml(path: Path, what: str, refused: type[Exception]) -> dict[str, Any]:
    """What the TOML file at ``path`` says; raises ``refused`` with ``what`` it was to be."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise refused(f"{what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise refused(f"{what} {path}: not TOML: {error}") from error


def lines(error: ValidationError, model: type[BaseModel], tags: Sequence[str] = ()) -> list[str]:
    """A line about each thing refused in ``model``. ``tags``: parts of a location that are no fields (of a union)."""
    items = error.errors()
    deeper = {item["loc"][: len(other["loc"])] for other in items for item in items if item is not other}
    told = [item for item in items if item["type"] != "too_short" or item["loc"] not in deeper]
    return [_explain(item, [part for part in item["loc"] if part not in tags], model) for item in told]


def _explain(item: Any, location: list[int | str], model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in location)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        for part in location[:-1]:
            if isinstance(part, str):
                model = _model_of(model.model_fields[part].annotation)
        return f"{where}: no such field; allowed: {', '.join(model.model_fields)}"
    if item["type"] == "missing":
        return f"{where}: missing"
    if not where:
        return str(message)
    return f"{where} = {_short(item['input'])}: {message[:1].lower()}{message[1:]}"


def _model_of(annotation: Any) -> type[BaseModel]:
    """The model in a field's type, which may be that model, a tuple of it, or a union."""
    found = [each for each in (annotation, *get_args(annotation)) if hasattr(each, "model_fields")]
    model: type[BaseModel] = found[0]
    return model


def _short(value: object) -> str:
    text = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
