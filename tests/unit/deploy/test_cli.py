"""The command line: bad input is named before anything starts, journals are compared, results are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy import bench as benchmark
from deploy.cli import app

SMALL = (
    *("bench", "--twin", "--guest-memory", "96MiB", "--group-memory", "16MiB", "--buffer", "32MiB"),
    *("--device", "nvme", "--duration", "0.03"),
)


@pytest.fixture(autouse=True)
def _quiet_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run in pytest's own process: leave its log handlers and signals alone."""
    monkeypatch.setattr("apf.process.start_logging", lambda *_: None)
    monkeypatch.setattr("apf.process.heed_signals", lambda: None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--vcpus", "0"), ("vm.vcpus = 0", "greater than or equal to 1")),
        (("--device", "floppy"), ("swap.device = 'floppy'", "allowed: hdd-7200, ", "zram, or a TOML file")),
        (("--device", "no/such.toml"), ("swap.device = 'no/such.toml'", "No such file")),
        (("--apf", "on"), ("'on'", "'off', 'halt', 'pv2010' or 'pv'")),
        (("--gup", "slow"), ("gup = 'slow'", "'fast', 'noio' or 'nowait'")),
        (("--guest-memory", "3MB"), ("vm.guest_memory = '3MB'", "MiB")),
        (("--buffer", "4GiB"), ("bench.buffer = 4294967296", "at most")),
        (("--group-memory", "1MiB"), ("vm.group_memory = 1048576", "at least")),
        (("--duration", "0"), ("duration_s = 0", "greater than 0")),
        (("--fault-threads", "100"), ("bench.fault_threads = 100", "at most 64")),
        (("--fault-threads", "0", "--work-threads", "0"), ("bench.fault_threads", "at least one thread")),
        (("--window", "5"), ("window_ns = 5", "at least 1000")),
        (("--guest-memory", "64TiB"), ("vm.guest_memory", "GiB")),
        (("--scenario", "nosuch"), ("nosuch", "published")),
        (("--scenario", "/nowhere/s.toml"), ("/nowhere/s.toml", "No such file")),
        (("--log-level", "LOUD"), ("'LOUD'", "WARNING")),
        (("--json", "/nowhere/result.json"), ("/nowhere/result.json", "No such file")),
        (("--group-memory", "900GiB", "--guest-memory", "900GiB"), ("too little shared memory", "MiB free")),
    ],
)
def test_bad_input_is_named_and_nothing_starts(
    arguments: tuple[str, ...], named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it started")

    monkeypatch.setattr(benchmark, "run_modes", must_not_run)
    result = run("bench", *arguments)
    assert result.exit_code == 2, result.output
    for part in named:
        assert part in result.stderr
    assert result.stdout == ""


def test_unknown_field_of_a_scenario_file(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[costs]\ntick = 1000\n")
    result = run("bench", "--scenario", str(path))
    assert result.exit_code == 2
    assert "costs.tick" in result.stderr and "tick_ns" in result.stderr


def test_options_come_before_the_scenario_file(tmp_path: Path) -> None:
    path, out = tmp_path / "s.toml", tmp_path / "r.json"
    path.write_text("seed = 5\n[vm]\nvcpus = 3\n[costs]\ntick_ns = 1234\n")
    assert run(*SMALL, "--scenario", str(path), "--vcpus", "2", "--json", str(out)).exit_code == 0
    scenario = json.loads(out.read_text())["scenario"]
    assert (scenario["seed"], scenario["vm"]["vcpus"], scenario["costs"]["tick_ns"]) == (5, 2, 1234)


def test_results_are_shown_and_written(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    result = run(*SMALL, "--json", str(out))
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    off, with_apf = document["runs"]
    assert (off["apf"], with_apf["apf"]) == ("off", "pv2010")
    assert document["ratio"] == pytest.approx(with_apf["total"] / off["total"], abs=1e-3)
    for entry in document["runs"]:
        assert entry["total"] == sum(entry["workers"]) > 0 and len(entry["workers"]) == 4
        assert entry["virtual_seconds"] == 0.03 and entry["wall_seconds"] > 0 and entry["corrupt_pages"] == 0
        assert entry["digest"] in result.stdout and entry["seed"] == 1
        for spent in entry["vcpu_time"].values():
            assert sum(spent.values()) == pytest.approx(0.03)
    assert off["faults"]["major"] > 0 == off["faults"]["async"]
    assert with_apf["faults"]["async"] > 0
    assert "258,846,142,585" in result.stdout and "cpu_mips 1000" in result.stdout
    assert "charges to the task that faulted" in " ".join(result.stdout.split())


def test_diff(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in "abc")
    assert run(*SMALL, "--journal", str(one)).exit_code == 0
    assert run(*SMALL, "--journal", str(two)).exit_code == 0
    same = run("diff", str(one), str(two))
    assert same.exit_code == 0 and "the same" in same.stdout
    lines = one.read_text().splitlines(keepends=True)
    lines[100], lines[101] = lines[101], lines[100]
    other.write_text("".join(lines))
    differs = run("diff", str(one), str(other))
    assert differs.exit_code == 1
    assert "event 101" in differs.stdout
    assert f"- {lines[101].rstrip()}" in differs.stdout and f"+ {lines[100].rstrip()}" in differs.stdout
    other.write_text("".join(one.read_text().splitlines(keepends=True)[:-1]))
    assert "+ (end)" in run("diff", str(one), str(other)).stdout
    assert run("diff", str(one), str(tmp_path / "nowhere")).exit_code == 2
