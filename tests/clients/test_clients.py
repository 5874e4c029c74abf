"""Load generators of others on a real cluster: Locust, and grpc-js by .proto files and by server reflection.

Skipped, and said so, where npm or Locust is not installed. ``APF_LOCUST`` names an interpreter that has Locust, if the
one that runs the tests has not (see the extra ``clients``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEADLINE_S = 300
PAGES = 4096

pytestmark = pytest.mark.long


def apf(directory: Path, *arguments: str) -> str:
    """What a command of the emulator prints."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def api(tmp_path: Path) -> Iterator[str]:
    """API of a guest whose process ``mem`` has twice the memory that its group may keep resident."""
    settings = {
        "vm.guest_memory": "96MiB",
        "vm.group_memory": "8MiB",
        "swap.device": "nvme",
        "host.reserve_frames": "1024",
        "process": '[{name = "mem", memory = "16MiB", access_threads = 8}]',
    }
    apf(tmp_path, "up", *(word for field, value in settings.items() for word in ("--set", f"{field}={value}")))
    try:
        yield str(json.loads(apf(tmp_path, "status", "--json"))[0]["api"])
    finally:
        assert "corrupt pages 0" in apf(tmp_path, "down")


@pytest.fixture
def locust() -> str:
    """An interpreter that has Locust."""
    python = os.environ.get("APF_LOCUST")
    if python is None and importlib.util.find_spec("locust") is None:
        pytest.skip("Locust is not installed: pip install -e '.[clients]', or set APF_LOCUST")
    return python or sys.executable


@pytest.fixture
def access_js(tmp_path: Path) -> Path:
    """The grpc-js client with its packages, in a copy that leaves nothing in the repository."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    copy = tmp_path / "tests" / "clients" / "grpc-js"
    shutil.copytree(HERE / "grpc-js", copy, ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return copy / "access.js"


def told(*command: str) -> dict[str, Any]:
    """The JSON document that ``command`` prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_fifty_locust_users(api: str, locust: str) -> None:
    runner = str(HERE / "run_locust.py")
    options = ("--users", "50", "--seconds", "30", "--pages", str(PAGES), "--python", locust)
    rows = told(sys.executable, runner, "--api", api, *options)
    calls = rows["grpc Access"]
    assert calls["failures"] == 0 and calls["requests"] > 50
    met = {name: row["requests"] for name, row in rows.items() if name.startswith("guest-us ")}
    assert sum(met.values()) == calls["requests"] and len(met) > 1, met


@pytest.mark.parametrize("mode", ["proto", "reflection"])
def test_grpc_js(api: str, access_js: Path, mode: str) -> None:
    options = ("--process", "mem", "--mode", mode, "--number", "300", "--pages", str(PAGES))
    found = told("node", str(access_js), "--api", api, *options)
    assert found["performed"] == sum(found["met"].values()) == 300
    assert 0 < found["guest_ns"]["p50"] <= found["guest_ns"]["p99"]
    assert len(found["met"]) > 1, found["met"]
