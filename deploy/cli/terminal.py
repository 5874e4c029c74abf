"""What commands say, where, and the code they exit with: results on standard output, all else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from apf import process
from apf.process import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_STOPPED, Failure, StopRequested
from apf.scenario import ScenarioError
from deploy.clusters import BadInput

_EXIT_INTERRUPTED = 130


def console() -> Console:
    """Standard output; where it is no terminal, wide enough for the tables."""
    output = Console()
    return output if output.is_terminal else Console(width=160)


def say(lines: Sequence[str]) -> None:
    """Beside the results, which go to standard output."""
    for line in lines:
        print(f"apf: {line}", file=sys.stderr)


@contextmanager
def told() -> Iterator[None]:
    """Tell what went wrong on standard error, and exit with the code for it."""
    try:
        yield
    except (BadInput, ScenarioError) as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except Failure as failure:
        _fail(str(failure), EXIT_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", _EXIT_INTERRUPTED)
    except StopRequested:
        _fail("ended by SIGTERM", EXIT_STOPPED)


@contextmanager
def calling() -> Iterator[None]:
    """``told``, for commands that call daemons; what they import with gRPC in it they import within."""
    process.settle_grpc()
    with told():
        yield


@contextmanager
def named_files() -> Iterator[None]:
    """A file that cannot be read or written is bad input."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from error


def _fail(message: str, code: int) -> NoReturn:
    say(message.splitlines())
    raise typer.Exit(code)
