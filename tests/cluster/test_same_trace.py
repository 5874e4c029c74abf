"""The trace and the recording of a run are the same, byte for byte, from the twin and from the processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_runs import small

from apf.scenario import Scenario
from deploy import bench
from deploy.keeping import Keeper


def kept(scenario: Scenario, directory: Path, in_twin: bool) -> dict[str, bytes]:
    """Every file that is kept of the runs, by its path."""
    directory.mkdir()
    with Keeper(directory / "journal", directory / "trace", directory / "recording") as keeper:
        bench.run_modes(scenario, in_twin=in_twin, keep=keeper.keep)
        keeper.finish()
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize("modes", [("off", "pv2010"), ("halt", "pv")])
def test_twin_and_processes(modes: tuple[str, ...], tmp_path: Path) -> None:
    scenario = small().model_copy(update={"apf": modes})
    one, other = kept(scenario, tmp_path / "twin", True), kept(scenario, tmp_path / "processes", False)
    assert len(one) == 3 + len(modes) * (2 + scenario.vm.vcpus)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert len(one["trace"]) > 100_000
