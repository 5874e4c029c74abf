"""Files of background clusters: taken once, recognised when their supervisor is dead, gone when they are removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apf.process import Failure
from apf.rundir import RunDir
from deploy.clusters import BadInput, Clusters, Record, check_name, started_ticks


@pytest.fixture
def clusters(tmp_path: Path) -> Clusters:
    return Clusters(tmp_path)


def record(clusters: Clusters, **fields: Any) -> Record:
    chosen: dict[str, Any] = {
        "name": "default",
        "pid": os.getpid(),
        "started_ticks": started_ticks(os.getpid()),
        "since_s": 1.0,
        "mode": "pv2010",
        "scenario": "the defaults",
        "fingerprint": "f",
        "log": str(clusters.log("default")),
        "result": str(clusters.result("default")),
        "keep_result": False,
    }
    return Record(**(chosen | fields))


def dead_process() -> tuple[int, int]:
    """Pid and start of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        pid, ticks = child.pid, started_ticks(child.pid)
        assert ticks > 0
        child.communicate(b"\n")
    return pid, ticks


def test_a_name_is_taken_once(clusters: Clusters) -> None:
    clusters.claim(record(clusters))
    with pytest.raises(BadInput, match=rf"--name = default: .* runs already \(pid {os.getpid()}\)"):
        clusters.claim(record(clusters))
    clusters.claim(record(clusters, name="other"))
    assert clusters.names() == ["default", "other"]
    assert clusters.find("default") == record(clusters)


def test_nothing_is_left_of_what_is_removed(clusters: Clusters) -> None:
    run = RunDir.make()
    taken = record(clusters, run_memory=str(run.memory), run_files=str(run.files))
    clusters.claim(taken)
    clusters.log("default").write_text("x")
    clusters.result("default").write_text("x")
    clusters.remove(taken)
    assert list(clusters.directory.iterdir()) == []
    assert not run.memory.exists() and not run.files.exists()
    assert clusters.find("default") is None


def test_results_that_were_asked_for_stay(clusters: Clusters) -> None:
    taken = record(clusters, keep_result=True)
    clusters.claim(taken)
    clusters.result("default").write_text("x")
    clusters.remove(taken)
    assert list(clusters.directory.iterdir()) == [clusters.result("default")]


def test_a_dead_supervisor_is_recognised_and_cleaned(clusters: Clusters) -> None:
    pid, ticks = dead_process()
    clusters.claim(record(clusters, pid=pid, started_ticks=ticks, status="running"))
    clusters.log("default").write_text("x")
    assert clusters.find("default") is None
    assert list(clusters.directory.iterdir()) == []


def test_a_pid_that_is_somebody_else_now_is_a_dead_supervisor(clusters: Clusters) -> None:
    clusters.claim(record(clusters, started_ticks=started_ticks(os.getpid()) - 1, status="running"))
    assert clusters.find("default") is None


def test_a_run_that_is_over_waits_for_down_and_gives_its_name_up(clusters: Clusters) -> None:
    pid, ticks = dead_process()
    over = record(clusters, pid=pid, started_ticks=ticks, status="ended")
    clusters.claim(over)
    assert clusters.find("default") == over and over.over
    clusters.claim(record(clusters))
    assert clusters.find("default") == record(clusters)


def test_a_file_of_another_version_is_told(clusters: Clusters) -> None:
    (clusters.directory / "default.json").write_text("{}")
    with pytest.raises(Failure, match=r"default\.json: not written by this version"):
        clusters.find("default")


@pytest.mark.parametrize("name", ["", "../x", ".x", "-x", "a b", "x" * 65])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(BadInput, match="--name = "):
        check_name(name)


def test_the_directory_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = Clusters.of_user().directory
    assert path == tmp_path / "apf" and path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o770)
    with pytest.raises(Failure, match="must be a directory of uid"):
        Clusters.of_user()
    path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(Failure, match="must be a directory of uid"):
        Clusters.of_user()


def test_a_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(Failure, match="No such file"):
        Clusters.of_user()
