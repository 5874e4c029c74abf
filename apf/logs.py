"""How a log line looks: as text for people, or as a JSON object a line for whatever collects logs.

A line says when, how bad, which process, which logger, what; and, if it was written while a call of the API for load
generators was served, whose: the caller's ``x-request-id``, or a number of ours. The id is a context variable, so it
goes with the call's task through everything the call awaits; ``stamp`` copies it to the record in the process that
logs, for the record is formatted in the process that owns the stream (``apf.process.start_logging``).

Nothing is logged per fault, window or access: such things are counted (``apf.metrics``).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, get_args

LogFormat = Literal["text", "json"]
FORMATS: tuple[str, ...] = get_args(LogFormat)
FORMAT_VARIABLE = "APF_LOG_FORMAT"
"""Environment variable: the format where no option says one; images set it to json."""
REQUEST_ID_MAX = 64
_TEXT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the call that is being served; empty: none."""


def default_format() -> str:
    """The format to use unless an option says another. Text if the environment says something else than we know."""
    given = os.environ.get(FORMAT_VARIABLE, "")
    return given if given in FORMATS else "text"


class TextFormatter(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, D102 - logging's
        line = super().formatMessage(record)
        call = getattr(record, "request_id", "")
        return f"{line} (request {call})" if call else line


class JsonFormatter(logging.Formatter):
    """A JSON object, in one line whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - logging's
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": record.processName,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if call := getattr(record, "request_id", ""):
            line["request_id"] = call
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False)


def _is_noise(record: logging.LogRecord) -> bool:
    """Whether gRPC only says that a call was cancelled: that is how streams end when a daemon does."""
    error = record.exc_info[1] if record.exc_info else None
    return record.name.startswith("grpc.") and isinstance(error, asyncio.CancelledError)


def stamp(record: logging.LogRecord) -> bool:
    """A logging filter that stamps the record with the call that is being served."""
    if _is_noise(record):
        return False
    if call := request_id.get():
        record.request_id = call
    return True


def handler(form: str) -> logging.Handler:
    """What writes lines of this format to standard error."""
    writing = logging.StreamHandler(sys.stderr)
    writing.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    writing.addFilter(stamp)
    return writing
