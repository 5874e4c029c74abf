"""Directories of a run, last words, exits in words."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from apf import process
from apf.process import EXIT_FAILED, EXIT_STOPPED, Failure, PeerLost, StopRequested, guarded
from apf.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    memory, files = tmp_path / "memory", tmp_path / "files"
    memory.mkdir()
    files.mkdir()
    return RunDir(memory, files)


def test_every_run_has_its_own_directories() -> None:
    one, other = RunDir.make(), RunDir.make()
    try:
        assert len({one.memory, one.files, other.memory, other.files}) == 4
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (one.memory, one.files))
    finally:
        one.remove()
        other.remove()
        other.remove()  # what is gone is no error
    assert not one.memory.exists() and not other.files.exists()


def test_no_directory_stays_if_the_second_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Path] = []

    def mkdtemp(prefix: str, dir: Path | None = None) -> str:
        if made:
            raise OSError(28, "no space")
        made.append(tmp_path / "first")
        made[0].mkdir()
        return str(made[0])

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    with pytest.raises(OSError, match="no space"):
        RunDir.make()
    assert not made[0].exists()


def test_reports(run: RunDir) -> None:
    assert run.read_report("hostd") is None
    run.write_report("hostd", {"a": [1]})
    assert run.read_report("hostd") == {"a": [1]}
    assert [path.name for path in run.files.iterdir()] == ["hostd.json"]


def fail(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "code", "why", "secondary"),
    [
        (Failure("no frame"), EXIT_FAILED, "no frame", False),
        (PeerLost("lost hostd"), EXIT_FAILED, "lost hostd", True),
        (ValueError("odd"), EXIT_FAILED, "ValueError: odd", False),
        (StopRequested(), EXIT_STOPPED, "was ended by SIGTERM", False),
    ],
)
def test_last_words(error: BaseException, code: int, why: str, secondary: bool, run: RunDir) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert guarded(fail, (error,), run, "hostd") == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.read_report("failed-hostd") == {"name": "hostd", "why": why, "secondary": secondary}


def test_a_good_end_leaves_no_words(run: RunDir) -> None:
    assert guarded(fail, (None,), run, "hostd") == 0
    assert run.read_report("failed-hostd") is None


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [
        (-9, "was killed by SIGKILL"),
        (-11, "was killed by SIGSEGV"),
        (143, "was ended by SIGTERM"),
        (1, "exited with status 1"),
    ],
)
def test_exits_in_words(exitcode: int, words: str) -> None:
    assert process.describe_exit(exitcode) == words
