"""What every process of the emulator does the same way: logging, signals, parents that die, last words.

Workers are forked before anything in their parent imports gRPC; a child gets its parent's log queue from
multiprocessing-logging, so lines of all processes come out whole and in one stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import Any, NoReturn

import multiprocessing_logging

from apf import logs
from apf.rundir import RunDir

_PR_SET_PDEATHSIG = 1
_FLUSH_S = 2.0
_REMIND_S = 4.0
"""A process that was told to end and still runs is told again after so long. An exception that a signal handler raises
is lost when it hits a finalizer or a callback from native code: Python prints it there and goes on."""
_fork = multiprocessing.get_context("fork")

_GRPC_EXPERIMENTS = "-event_engine_client,-event_engine_listener"
"""gRPC's event engine hands every read and write of a socket to a pool of threads; without it the thread that waits
polls the socket itself. On two cores a ping-pong takes 200 us instead of 290, and half the CPU time."""

COLLECT_AFTER = 100_000
"""Objects that are new before cycles are looked for: every 700, as Python has it, takes 3 % of a run's time."""

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 143
"""Ended by SIGTERM, in good order."""


class Failure(Exception):
    """A run cannot go on; the message says who failed and why."""


class PeerLost(Failure):
    """A process cannot go on because another one ended: not the reason a user wants to hear first."""


class StopRequested(SystemExit):
    """SIGTERM arrived. A SystemExit, since those pass through an event loop wherever they are raised.

    It has its status, for where nobody catches it.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


def settle_grpc() -> None:
    """Choose gRPC's settings for this process and what it starts; read when gRPC is imported, so call this before."""
    os.environ.setdefault("GRPC_EXPERIMENTS", _GRPC_EXPERIMENTS)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a handshake that fails is a line otherwise: anybody's to cause


def settle_polling() -> None:
    """Let each thread that polls poll its own sockets; for a process with more than one, before gRPC is imported.

    gRPC's default is one epoll(7) set for all: whichever thread is in it reads what another one waits for, and wakes it.
    """
    os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")


def settle_collector() -> None:
    """What there is stays; look for cycles seldom. A daemon that runs makes many small objects and hardly any cycle."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def start_logging(level: str = "WARNING", form: str | None = None) -> None:
    """One log stream on standard error for this process and all it forks, as ``apf.logs`` has it.

    Call once, before forking. ``form``: text or json; None: as the environment says. As JSON, gRPC's own lines are left
    out: it writes them past everything here, and what goes wrong with a call is told where the call is made.
    """
    chosen = form or logs.default_format()
    if chosen == "json":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(level=level, handlers=[logs.handler(chosen)])
    logging.captureWarnings(True)
    # Calls that a stopping server aborts it warns of, after our own last words; what ends a run is told by us.
    logging.getLogger("grpc").setLevel(logging.ERROR)
    multiprocessing_logging.install_mp_handler()


def die_with_parent(how: signal.Signals) -> None:
    """Let the kernel send this process ``how`` when its parent ends, however that happens."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)


def request_stop(signum: int, frame: FrameType | None) -> None:
    """Signal handler: end this process in good order. Once: a parent that dies as well must not disturb it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise StopRequested


def insist_on_stop(signum: int, frame: FrameType | None) -> None:
    """As ``request_stop``, for a daemon: it is told again until it ends (``_ending``)."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _remind)
    signal.setitimer(signal.ITIMER_REAL, _REMIND_S, _REMIND_S)
    sys.unraisablehook = _unraisable
    raise StopRequested


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """A stop that came while C called back into Python is lost there; ``_remind`` says it again. No traceback."""
    if not isinstance(unraisable.exc_value, StopRequested):
        sys.__unraisablehook__(unraisable)


def _remind(signum: int, frame: FrameType | None) -> None:
    raise StopRequested


def _ending() -> None:
    """This process ends: no signal is to disturb that any more."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if signal.getsignal(signal.SIGALRM) is _remind:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def heed_signals(on_term: Callable[[int, FrameType | None], None] = request_stop) -> None:
    """Let Ctrl-C and SIGTERM end this process in good order, also where a shell has it ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, on_term)


def leave(code: int) -> NoReturn:
    """Exit at once: gRPC's threads must not hold up, or crash, the end."""
    _ending()
    _flush_logging()
    sys.stdout.flush()
    os._exit(code)


def spawn(
    name: str, target: Callable[..., None], *args: Any, run: RunDir, report: str, heir: bool = False
) -> ForkProcess:
    """Fork a process that runs ``target(*args)``; if it raises, report ``report`` says why before it exits.

    An ``heir`` removes the run's directories when it ends after its parent, who would have done it.
    """
    process = _fork.Process(target=_main, name=name, args=(target, args, run, report, os.getpid() if heir else 0))
    process.start()
    return process


def _main(target: Callable[..., None], args: tuple[Any, ...], run: RunDir, report: str, testator: int) -> None:
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, insist_on_stop)
    code = guarded(target, args, run, report)
    if testator and os.getppid() != testator:
        run.remove()
    leave(code)


def _flush_logging() -> None:
    """Let this process's last lines reach the log queue; nobody may be left to read it, so not for ever."""
    logging.shutdown()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, multiprocessing_logging.MultiProcessingHandler):
            handler.queue.close()
            flushing = threading.Thread(target=handler.queue.join_thread, daemon=True)
            flushing.start()
            flushing.join(_FLUSH_S)
    sys.stderr.flush()


def guarded(target: Callable[..., None], args: tuple[Any, ...], run: RunDir, report: str) -> int:
    """Run ``target(*args)`` and return the exit code; a failure is left as the process's last word."""
    settle_grpc()
    os.umask(0o077)  # what a run leaves is this user's; sockets of other groups get their rights one by one
    secondary, code = False, EXIT_FAILED
    try:
        target(*args)
        return 0
    except (StopRequested, KeyboardInterrupt):
        why, code = describe_exit(EXIT_STOPPED), EXIT_STOPPED
    except Failure as failure:
        why, secondary = str(failure), isinstance(failure, PeerLost)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
    _ending()
    if run.files.is_dir():
        run.write_report(f"failed-{report}", {"name": report, "why": why, "secondary": secondary})
    return code


def stop(processes: list[ForkProcess], grace_s: float) -> None:
    """End processes: SIGTERM, then after ``grace_s`` in all SIGKILL. Stopped ones (SIGSTOP) are continued."""
    for process in processes:
        if process.is_alive():
            process.terminate()
            with contextlib.suppress(ProcessLookupError):  # it died, and a signal interrupted who was told so
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
    if exitcode == EXIT_STOPPED:
        return f"was ended by {signal.SIGTERM.name}"
    return f"exited with status {exitcode}"
