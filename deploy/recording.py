"""A recording: a directory that keeps what runs have journaled, for ``apf trace`` and ``apf explain``.

    recording.json              format, and for each run its mode, digest and scenario
    MODE/CORE.journal           the journals of that run (``apf.journal``)

``recording.json`` is written last: a directory without it is no recording, or that of a run which did not end. A
nanosecond of a run is told by about as many bytes as its cores journal, some hundred a fault.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apf.journal import run_digest
from apf.scenario import Scenario, ScenarioError
from deploy.result import RunResult

FORMAT = 1
_INDEX = "recording.json"
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run that has ended: its scenario (of one mode) and its journals by core name."""

    scenario: Scenario
    digest: str
    journals: dict[str, Path]

    @property
    def mode(self) -> str:
        """Off or pv2010."""
        return self.scenario.apf[0]


class Recorder:
    """Makes a recording in ``directory``, which must be new or empty. Raises ScenarioError if it is not, OSError."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ScenarioError(f"--record = {directory}: a directory that is new or empty")
        self._directory = directory
        self._runs: list[dict[str, Any]] = []

    def keep(self, result: RunResult, journals: Mapping[str, Path]) -> None:
        """Take over the journals of a run that has ended."""
        place = self._directory / result.mode
        place.mkdir()
        for path in journals.values():
            shutil.move(path, place / path.name)
        scenario = result.scenario.model_dump(mode="json")
        self._runs.append({"apf": result.mode, "digest": result.digest, "scenario": scenario})

    def finish(self) -> None:
        """All runs are there."""
        (self._directory / _INDEX).write_text(json.dumps({"format": FORMAT, "runs": self._runs}, indent=2) + "\n")


def read(directory: Path) -> list[RecordedRun]:
    """The runs of a recording, in the order in which they ran. Raises ScenarioError for what is none."""
    try:
        index = json.loads((directory / _INDEX).read_text())
        if index["format"] != FORMAT:
            raise ScenarioError(f"{directory}: a recording of format {index['format']}; this reads format {FORMAT}")
        return [_run(directory, entry) for entry in index["runs"]]
    except FileNotFoundError as error:
        raise ScenarioError(
            f"{directory}: no recording (--record makes one), or of a run that did not end"
        ) from error
    except OSError as error:
        raise ScenarioError(f"{error.filename}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ScenarioError(f"{directory / _INDEX}: not what --record writes: {error}") from error


def _run(directory: Path, entry: dict[str, Any]) -> RecordedRun:
    scenario = Scenario.model_validate(entry["scenario"])
    journals = {path.stem: path for path in sorted((directory / entry["apf"]).glob("*.journal"))}
    digest = run_digest({name: _digest(path) for name, path in journals.items()})
    if digest != entry["digest"]:
        raise ScenarioError(f"{directory / entry['apf']}: digest {digest}, but {entry['digest']} was recorded")
    return RecordedRun(scenario, digest, journals)


def _digest(path: Path) -> str:
    """As ``Journal.digest`` has it."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
