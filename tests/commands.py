"""Many calls of the command line, each in a process of its own that need not import anything first.

A new Python takes half a second of CPU time to import the command line, and two for ``apf up``. So one process imports
what commands need, and forks for each. It is started anew, not forked from the test process, which has threads and may
have used gRPC; it never uses gRPC itself.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import NoReturn

DEADLINE_S = 60
ROOT = Path(__file__).resolve().parent.parent
_MESSAGE_BYTES = 1 << 16


class Commands:
    """Runs programs, which are Python files, with arguments; an empty one is ``apf``."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.commands", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )
        self._socket = ours
        self._socket.settimeout(DEADLINE_S)

    def run(
        self, *arguments: str, program: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``environment``: what differs from this process's."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            order = json.dumps([program, arguments, dict(environment or {})]).encode()
            socket.send_fds(self._socket, [order], [out.fileno(), errors.fileno()])
            status = int(self._socket.recv(_MESSAGE_BYTES))
            out.seek(0)
            errors.seek(0)
            code = os.waitstatus_to_exitcode(status)
            return subprocess.CompletedProcess([program, *arguments], code, out.read(), errors.read())

    def close(self) -> None:
        self._socket.close()
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()


def _serve(orders: socket.socket) -> None:
    """Fork for each order."""
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, _MESSAGE_BYTES, 2)
        if not order:
            return
        child = os.fork()
        if child == 0:
            orders.close()
            for target, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, target)
                os.close(descriptor)
            _become(*json.loads(order))
        for descriptor in descriptors:
            os.close(descriptor)
        orders.send(str(os.waitpid(child, 0)[1]).encode())


def _become(program: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Run a program, and exit with its status: at once, for taking apart what was imported takes half a second."""
    status = 1
    try:
        _run(program, arguments, environment)
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(program: str, arguments: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    sys.argv[:] = [program, *arguments]
    if program:
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        from deploy.cli import main

        main()


if __name__ == "__main__":
    for module in ("apf.v1.load_pb2", "deploy.bench", "deploy.cli", "deploy.supervisor"):
        import_module(module)
    assert "grpc" not in sys.modules
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
