"""A dying daemon, Ctrl-C, a dying parent: everything ends within ten seconds, says why, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_runs import MEMORY, children_of, small, state_of, until, until_running

from apf.process import Failure
from deploy.local import LocalCluster, processes_of

END_S = 10.0
LONG = {"duration_s": "20", "swap.device": "nvme", "apf": ["pv2010"]}
"""More guest seconds than any test waits for."""


def victim(cluster: LocalCluster, name: str) -> int:
    """Process id of a daemon or worker by name."""
    for child in cluster.processes:
        if child.name == name:
            return child.pid or 0
    workers = children_of(victim(cluster, "vcpud-0"))
    return workers[int(name.removeprefix("vcpu-0-"))]


def gone(pids: list[int]) -> bool:
    return all(state_of(pid) == "X" for pid in pids)


@pytest.mark.parametrize("name", ["hostd", "guest-0", "vcpud-0", "vcpu-0-1"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_dies(name: str, how: signal.Signals) -> None:
    with LocalCluster(small(duration_s="20")) as cluster:
        until_running(cluster)
        pids = processes_of(cluster)
        assert len(pids) == 3 + 4
        pid = victim(cluster, name)
        os.kill(pid, how)
        end_s = time.monotonic() + END_S
        with pytest.raises(Failure) as failed:
            cluster.wait()
        cluster.close()
    until(f"the end of {pids}", lambda: gone(pids), end_s - time.monotonic())
    assert name in str(failed.value), failed.value
    assert how.name in str(failed.value), failed.value
    assert not cluster.run.memory.exists() and not cluster.run.files.exists()


def test_a_stopped_process_does_not_hold_up_the_end() -> None:
    """SIGTERM does not reach a process under SIGSTOP until it is continued."""
    with LocalCluster(small(duration_s="20")) as cluster:
        until_running(cluster)
        pids = processes_of(cluster)
        os.kill(victim(cluster, "guest-0"), signal.SIGSTOP)
        os.kill(victim(cluster, "hostd"), signal.SIGKILL)
        end_s = time.monotonic() + END_S
        with pytest.raises(Failure, match=r"hostd.*SIGKILL"):
            cluster.wait()
        cluster.close()
    until(f"the end of {pids}", lambda: gone(pids), end_s - time.monotonic())


# The parent --------------------------------------------------------------------------------------------------------


class Parent:
    """A run in a process of its own; knows all processes and directories of it."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        assert popen.stdout is not None
        self.directories = [Path(popen.stdout.readline().strip()) for _ in range(2)]
        assert popen.stdout.readline() == "running\n"
        self.pids = [popen.pid, *self._descendants(popen.pid)]
        assert len(self.pids) == 1 + 3 + 4
        assert all(directory.is_dir() for directory in self.directories)

    def _descendants(self, pid: int) -> list[int]:
        children = children_of(pid)
        return children + [other for child in children for other in self._descendants(child)]

    def nothing_is_left(self) -> bool:
        """Neither processes nor, once they are gone, anything they had."""
        return gone(self.pids[1:]) and not any(directory.exists() for directory in self.directories)


@contextmanager
def a_parent() -> Iterator[Parent]:
    popen = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("run_in_a_process.py")), json.dumps({**MEMORY, **LONG})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Parent(popen)
    finally:
        popen.kill()
        popen.communicate()


def test_control_c() -> None:
    """A terminal sends SIGINT to every process of the foreground group."""
    with a_parent() as parent:
        os.killpg(parent.popen.pid, signal.SIGINT)
        assert parent.popen.wait(END_S) == 130
        until("the end of everything", parent.nothing_is_left, 1.0)


def test_sigint_to_the_parent_alone() -> None:
    with a_parent() as parent:
        parent.popen.send_signal(signal.SIGINT)
        assert parent.popen.wait(END_S) == 130
        until("the end of everything", parent.nothing_is_left, 1.0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_parent_is_killed(how: signal.Signals) -> None:
    """Nobody is left to clean up but the daemons themselves."""
    with a_parent() as parent:
        parent.popen.send_signal(how)
        assert parent.popen.wait(END_S) != 0
        until("the end of everything", parent.nothing_is_left)


def test_a_worker_is_killed_under_a_parent() -> None:
    with a_parent() as parent:
        worker = parent.pids[-1]
        os.kill(worker, signal.SIGKILL)
        _, said = parent.popen.communicate(timeout=END_S)
        assert parent.popen.returncode == 1
        assert f"worker vcpu-0-3 (pid {worker}): was killed by SIGKILL" in said
        until("the end of everything", parent.nothing_is_left, 1.0)
