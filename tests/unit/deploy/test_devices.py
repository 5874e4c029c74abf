"""apf device: the profiles there are, and profiles from fio's measurements."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from apf import swapdevice
from apf.scenario import load
from apf.swapdevice import NAMES, Profile
from deploy import fio, twin
from deploy.cli import app
from deploy.clusters import BadInput

PERCENTILES = {"1.000000": 60_000, "50.000000": 100_000, "90.000000": 200_000, "99.000000": 300_000}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["device", *arguments])


def direction(count: int = 1000, mean: float = 120_000.0, iops: float = 25_000.0, **more: Any) -> dict[str, Any]:
    """Reads or writes of a job, in fio's shape."""
    latency = {"min": 50_000, "max": 400_000, "mean": mean, "stddev": 1.5, "N": count, "percentile": PERCENTILES}
    return {"total_ios": count, "iops": iops, "slat_ns": {"min": 1}, "clat_ns": latency | more}


NOTHING = {"total_ios": 0, "iops": 0.0, "clat_ns": {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}}


def job(group: int = 0, read: Any = NOTHING, write: Any = NOTHING, error: int = 0, **options: str) -> dict[str, Any]:
    return {
        "jobname": "some",
        "groupid": group,
        "error": error,
        "job options": options,
        "read": read,
        "write": write,
        "trim": NOTHING,
    }


BOTH = job(read=direction(), write=direction())


def fitted(directory: Path, *jobs: Any, before: str = "", servers: int | None = None, **document: Any) -> Profile:
    path = directory / "fio.json"
    path.write_text(before + json.dumps({"fio version": "fio-3.33", "jobs": jobs, "disk_util": [], **document}))
    return swapdevice.parse(fio.fit(path, servers).encode(), "made")


def test_list_shows_every_profile_and_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("mine.toml")  # short, so that the table keeps it on one line
    mine.write_text(
        "servers = 7\nread_ns = [1000, 5000]\nwrite_ns = [1, 2]\nsource = 'a guess'\n"
        "bandwidth = 2_500_000\nread_errors = 2_000_000_000\nwrite_errors = 1_000_000_000_000_000\n"
    )
    shown = run("list", str(mine))
    assert shown.exit_code == 0, shown.stderr
    rows = {
        cells[0]: cells[1:]
        for line in shown.stdout.splitlines()
        if len(cells := re.split(r"\s*│\s*", line)[1:-1]) == 8
    }
    assert set(rows) == {*NAMES, str(mine)}
    assert rows[str(mine)] == ["5 us", "7", "yes", "2.5 MB/s", "2e-06", "1", "a guess"]
    assert rows["zram"][1:3] == ["per vCPU", "no"] and rows["nvme"][:3] == ["80 us", "32", "yes"]
    assert all(row[3] for row in rows.values())


def test_list_names_what_is_wrong_in_a_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("servers = -1\nread_ns = [1000, 5000]\nwrite_ns = [1, 2]\n")
    shown = run("list", str(mine))
    assert shown.exit_code == 2 and shown.stdout == ""
    assert f"{mine}: servers = -1: " in shown.stderr
    assert "nosuch.toml: No such file" in run("list", "nosuch.toml").stderr


def test_percentiles_are_met_with_lines_between_them(tmp_path: Path) -> None:
    profile = fitted(tmp_path, BOTH)
    assert len(profile.read_ns) == fio.POINTS + 1
    assert profile.read_ns == profile.write_ns
    assert profile.read_ns[0] == pytest.approx(50_000, rel=0.001)
    assert profile.median_ns == pytest.approx(100_000, rel=0.001)
    assert profile.read_ns[192] == pytest.approx(100_000 + 100_000 * 25 / 40, rel=0.001)
    # The last part is uniform: from 1/256 short of 100 % on a line from 300 us at 99 % to 400 us.
    assert profile.read_ns[-1] == pytest.approx(400_000, rel=0.001)


def test_the_tail_keeps_its_mean_not_its_largest_latency(tmp_path: Path) -> None:
    bins = {"1000": 9_990, "50000": 9, "90000000": 1}
    profile = fitted(tmp_path, job(read=direction(10_000, min=1_000, max=90_000_000, bins=bins), write=direction()))
    parts = zip(profile.read_ns, profile.read_ns[1:], strict=False)
    mean = sum((low + high) / 2 for low, high in parts) / fio.POINTS
    assert mean == pytest.approx((1_000 * 9_990 + 50_000 * 9 + 90_000_000) / 10_000, rel=0.001)
    assert profile.read_ns[-1] < 90_000_000


def test_bins_say_more_than_percentiles(tmp_path: Path) -> None:
    bins = {"70000": 100, "80000": 800, "90000": 100}
    profile = fitted(tmp_path, job(read=direction(min=70_000, max=90_000, bins=bins), write=direction()))
    assert profile.median_ns == pytest.approx(80_000, rel=0.001)
    assert profile.write_ns[128] == pytest.approx(100_000, rel=0.001)


def test_jobs_count_by_their_ios(tmp_path: Path) -> None:
    fast = direction(3000, min=10_000, max=10_000, percentile={"50.000000": 10_000})
    slow = direction(1000, min=90_000, max=90_000, percentile={"50.000000": 90_000})
    profile = fitted(tmp_path, job(read=fast, write=direction()), job(read=slow))
    assert profile.read_ns.count(10_000) == pytest.approx(192, abs=2)
    assert profile.read_ns.count(90_000) == pytest.approx(65, abs=2)


@pytest.mark.parametrize(
    ("jobs", "servers"),
    [
        # 25,000 a second of 120 us are 3 in flight.
        ([BOTH], 6),
        ([job(read=direction()), job(write=direction(iops=75_000.0))], 12),
        # One group after the other.
        ([job(0, read=direction()), job(1, write=direction(iops=75_000.0))], 9),
        ([job(read=direction(iops=10.0), write=direction(iops=10.0))], 1),
    ],
)
def test_servers_by_littles_law(jobs: list[Any], servers: int, tmp_path: Path) -> None:
    assert fitted(tmp_path, *jobs).servers == servers
    assert fitted(tmp_path, *jobs, servers=5).servers == 5


def test_notes_of_fio_before_the_document_are_no_part_of_it(tmp_path: Path) -> None:
    assert fitted(tmp_path, BOTH, before="note: both iodepth >= 1 and {synchronous}\n") == fitted(tmp_path, BOTH)


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        ([], "jobs = []: tuple should have at least 1 item"),
        ([job(read=direction())], "jobs.*.write.clat_ns.N = 0: at least one job with a write"),
        ([BOTH, job(error=5)], "jobs.1.error = 5: 0"),
        ([BOTH | {"job options": {"bs": "64k"}}], "bs = '64k': 4k"),
        ([BOTH | {"read": {"clat": {}}}], "jobs.0.read.clat_ns: missing"),
        ([BOTH | {"read": direction(percentile={})}], "jobs.0.read.clat_ns: neither percentile nor bins"),
        ([BOTH | {"read": direction(percentile={"101": 5})}], "less than or equal to 100"),
        ([job(read=direction(), write=direction(iops=1e9))], "servers = 120003: input should be less than or equal"),
    ],
)
def test_what_cannot_be_fitted_is_told(jobs: list[Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        fitted(tmp_path, *jobs)
    assert told in str(raised.value) and str(tmp_path / "fio.json") in str(raised.value)


def test_what_is_no_output_of_fio_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("", "[]", "read: IOPS=3\n", '{"jobs": []}'):
        path.write_text(text)
        shown = run("fit", str(path))
        assert shown.exit_code == 2 and shown.stdout == "" and str(path) in shown.stderr, text


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio")
def test_what_fio_measured_here_is_a_device_to_run_on(tmp_path: Path) -> None:
    job_of_fio = [
        "--name=here",
        f"--directory={tmp_path}",
        "--size=4M",
        "--rw=randrw",
        "--bs=4k",
        "--number_ios=4000",
    ]
    how = ["--ioengine=psync", "--numjobs=2", "--group_reporting", "--output-format=json+"]
    measured = subprocess.run(["fio", *job_of_fio, *how], capture_output=True, text=True, check=True, timeout=120)
    (tmp_path / "fio.json").write_text(measured.stdout)
    shown = run("fit", str(tmp_path / "fio.json"), "-o", str(tmp_path / "here.toml"))
    assert shown.exit_code == 0, shown.stderr
    sizes = {"vm.guest_memory": "96MiB", "vm.group_memory": "16MiB", "bench.buffer": "32MiB"}
    path = tmp_path / "scenario.toml"
    path.write_text('duration_s = 0.01\napf = ["pv2010"]\nswap.device = "here.toml"\nvm.vcpus = 2\n')
    scenario = load(path, sizes)
    latency = json.loads(measured.stdout[measured.stdout.index("{") :])["jobs"][0]["read"]["clat_ns"]
    middle = swapdevice.parse((tmp_path / "here.toml").read_bytes(), "here").median_ns
    # fio's bins are 1/64 wide, and its percentiles are those of bins.
    assert middle == pytest.approx(latency["percentile"]["50.000000"], rel=0.1, abs=100)
    result = twin.run(scenario)
    assert result.total > 0 and result.corrupt_pages == 0
    assert result.digest == twin.run(scenario).digest
