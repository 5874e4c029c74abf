"""Device "file": swap I/O on a real file, what that says of itself, and its repetition from a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from apf.core import CoreError
from apf.messages import PAGE_SIZE
from apf.scenario import Scenario, ScenarioError, load
from deploy import replay, twin
from deploy.cli import app
from deploy.local import check_space
from deploy.recording import Recorder
from deploy.result import RunResult
from hostd.core.device import MeasuredDevice, Op
from hostd.realdevice import MeasuredFile, Recorded

SMALL: dict[str, Any] = {
    "apf": ["pv"],
    "duration_s": "0.02",
    "vm.vcpus": 2,
    "vm.guest_memory": "96MiB",
    "vm.group_memory": "4MiB",
    "bench.buffer": "8MiB",
    "host.reserve_frames": 256,
    "swap.device": "file",
}


def scenario_on(file: Path, **more: Any) -> Scenario:
    return load(None, {**SMALL, "swap.file": str(file), **more})


def recorded(directory: Path) -> tuple[RunResult, Path]:
    """A run on a real file, and its recording."""
    scratch = directory / "scratch"
    scratch.mkdir()
    result = twin.run(scenario_on(directory / "swap"), journals=scratch)
    recorder = Recorder(directory / "recording")
    recorder.keep(result, {path.stem: path for path in scratch.glob("*.journal")})
    recorder.finish()
    return result, directory / "recording"


def test_a_run_on_a_real_file_keeps_every_byte_and_says_that_it_is_not_reproducible(tmp_path: Path) -> None:
    result, _recording = recorded(tmp_path)
    assert result.corrupt_pages == 0
    assert result.host_counters["pswpin"] > 20 and result.host_counters["pswpout"] > 20
    assert any(str(tmp_path / "swap") in line and "another run is another" in line for line in result.told)
    assert result.document()["reproducible"] is False
    assert not (tmp_path / "swap").exists()


def test_a_recording_repeats_it_with_the_times_of_then(tmp_path: Path) -> None:
    result, recording = recorded(tmp_path)
    [(again, digest)] = replay.run_recorded(recording)
    assert again.digest == digest == result.digest
    assert again.host_counters == result.host_counters and again.corrupt_pages == 0
    shown = CliRunner().invoke(app, ["replay", str(recording)])
    assert shown.exit_code == 0 and f"the digest is the recorded one: {digest}" in shown.stdout


def test_what_was_measured_is_what_the_device_takes(tmp_path: Path) -> None:
    told = iter([500, 0])
    device = MeasuredDevice(lambda _op, _slot, _pfn: next(told))
    assert device.submit(Op.READ, 7, 100, 3) == (100, 600)
    assert device.submit(Op.WRITE, 7, 100, 3) == (100, 101), "at least a nanosecond"


def test_a_measured_file_moves_the_bytes_before_the_effect_that_names_them(tmp_path: Path) -> None:
    frames = np.empty((3, PAGE_SIZE), np.uint8)
    aligned = np.empty(4 * PAGE_SIZE, np.uint8)
    start = -aligned.ctypes.data % PAGE_SIZE
    frames = aligned[start : start + 3 * PAGE_SIZE].reshape(3, PAGE_SIZE)
    frames[0], frames[1] = 17, 0
    file = MeasuredFile(tmp_path / "swap", 16, frames.ctypes.data)
    assert not (tmp_path / "swap").exists()
    assert file.carry(Op.WRITE, 5, 0) > 0
    file.write_from(5, frames[0].ctypes.data)
    frames[0] = 99
    assert file.carry(Op.READ, 5, 1) > 0
    assert (frames[1] == 17).all()
    assert file.read_to(5, frames[1].ctypes.data) == ""
    pages, wrong = file.read_many(np.array([5]))
    assert (pages == 17).all() and not wrong.any()
    [told] = file.told()
    assert ("O_DIRECT)" in told) is file.is_direct
    file.close()


def test_a_recording_of_another_run_is_found_out() -> None:
    measured = Recorded([("read", 4, 1000)])
    with pytest.raises(CoreError, match="read of slot 5, but next in the recording is read 4 1000"):
        measured.carry(Op.READ, 5, 0)
    assert measured.carry(Op.READ, 4, 0) == 1000
    with pytest.raises(CoreError, match="next in the recording is nothing"):
        measured.carry(Op.WRITE, 4, 0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"swap.device": "file"}, "device = 'file', file = '': device 'file' needs a file"),
        ({"swap.device": "nvme", "swap.file": "x"}, "needs a file, and no other has one"),
        ({"swap.device": "tape"}, "or 'file' with a real one in swap.file"),
    ],
)
def test_scenarios_that_make_no_sense(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        load(None, changes)
    assert told in str(raised.value)


def test_a_file_that_exists_is_nobodys_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ScenarioError, match=r"swap\.file = .*mine.*: exists"):
        check_space(scenario_on(tmp_path / "mine"))
    with pytest.raises(ScenarioError, match=r"swap\.file = .*: no directory .*nowhere"):
        check_space(scenario_on(tmp_path / "nowhere" / "swap"))
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_files_name_is_relative_to_the_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text('[swap]\ndevice = "file"\nfile = "here"\n')
    assert load(path, {}).swap.file == str(tmp_path / "here")
