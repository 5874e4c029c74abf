"""Files that processes share as memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from apf import sharedfile


def test_what_one_writes_all_see(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    made = sharedfile.create(path, 100)
    assert made[:] == bytes(100) and path.stat().st_mode & 0o777 == 0o600
    for size in (100, None):
        other = sharedfile.attach(path, size)
        made[7] += 1
        other[8] += 1
        assert made[:] == other[:] and len(other) == 100
    assert made[7:9] == b"\2\2"


def test_a_file_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    sharedfile.create(path, 100)[0] = 1
    with pytest.raises(FileExistsError):
        sharedfile.create(path, 50)
    assert sharedfile.attach(path, 100)[0] == 1


def test_a_file_that_is_not_what_was_expected_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    with pytest.raises(FileNotFoundError):
        sharedfile.attach(path)
    sharedfile.create(path, 100)
    with pytest.raises(ValueError, match=r"shared: 100 bytes, but this scenario's has 101"):
        sharedfile.attach(path, 101)
