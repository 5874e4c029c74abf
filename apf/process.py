"""What every process of the emulator does the same way: logging, signals, parents that die, last words.

Workers are forked before anything in their parent imports gRPC; a child gets its parent's log queue from
multiprocessing-logging, so lines of all processes come out whole and in one stream.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import Any

import multiprocessing_logging

from apf.rundir import RunDir

_PR_SET_PDEATHSIG = 1
_fork = multiprocessing.get_context("fork")

_GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener"
"""gRPC's event engine hands every read and write of a socket to a pool of threads; without it the thread that waits
polls the socket itself. On two cores a ping-pong takes 200 us instead of 290, and half the CPU time."""

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 143
"""Ended by SIGTERM, in good order."""


class Failure(Exception):
    """A run cannot go on; the message says who failed and why."""


class PeerLost(Failure):
    """A process cannot go on because another one ended: not the reason a user wants to hear first."""


class StopRequested(SystemExit):
    """SIGTERM arrived. A SystemExit, since those pass through an event loop wherever they are raised."""


def start_logging(level: str = "WARNING") -> None:
    """One log stream on standard error for this process and all it forks. Call once, before forking."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"
    )
    multiprocessing_logging.install_mp_handler()


def die_with_parent(how: signal.Signals) -> None:
    """Let the kernel send this process ``how`` when its parent ends, however that happens."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise StopRequested


def spawn(name: str, target: Callable[..., None], *args: Any, run: RunDir, report: str) -> ForkProcess:
    """Fork a process that runs ``target(*args)``; if it raises, report ``report`` says why before it exits."""
    process = _fork.Process(target=_main, name=name, args=(target, args, run, report))
    process.start()
    return process


def _main(target: Callable[..., None], args: tuple[Any, ...], run: RunDir, report: str) -> None:
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, _on_sigterm)
    os.environ.setdefault("GRPC_EXPERIMENTS", _GRPC_EXPERIMENTS)  # read when gRPC is imported, which is after this
    code = guarded(target, args, run, report)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # gRPC's threads must not hold up, or crash, the end


def guarded(target: Callable[..., None], args: tuple[Any, ...], run: RunDir, report: str) -> int:
    """Run ``target(*args)`` and return the exit code; a failure is logged and left as the process's last word."""
    secondary = False
    try:
        target(*args)
        return 0
    except StopRequested:
        return EXIT_STOPPED
    except Failure as failure:
        why, secondary = str(failure), isinstance(failure, PeerLost)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        if os.environ.get("APF_TRACEBACK"):
            traceback.print_exc()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if run.files.is_dir():
        run.write_report(f"failed-{report}", {"name": report, "why": why, "secondary": secondary})
    return EXIT_FAILED


def stop(processes: list[ForkProcess], grace_s: float) -> None:
    """End processes: SIGTERM, then after ``grace_s`` in all SIGKILL. Stopped ones (SIGSTOP) are continued."""
    for process in processes:
        if process.is_alive():
            process.terminate()
            os.kill(process.pid or 0, signal.SIGCONT)
    deadline = _monotonic() + grace_s
    for process in processes:
        process.join(max(0.0, deadline - _monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _monotonic() -> float:
    return os.times().elapsed


def describe_exit(exitcode: int | None) -> str:
    """An exit code in words."""
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"exited with status {exitcode}"
