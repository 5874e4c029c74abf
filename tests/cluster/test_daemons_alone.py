"""The three daemons as commands of their own, over TCP on the loopback: the twin's digest once more."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster_runs import DEADLINE_S, small

from apf.journal import run_digest
from apf.scenario import Scenario
from deploy import twin
from deploy.certs import files_of, make


def free_addresses(count: int) -> list[str]:
    """Addresses of the loopback that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def toml(scenario: Scenario) -> str:
    """The scenario as a file, as far as TOML's plain values go."""
    document = scenario.model_dump(mode="json")
    document["duration_s"] = float(document["duration_s"])
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    plain = [f"{name} = {json.dumps(value)}" for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        plain += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(plain) + "\n"


@pytest.mark.parametrize("how", ["tcp", "tls", "sockets"])
def test_same_digest_by_hand(how: str, tmp_path: Path) -> None:
    scenario = small(device="hdd-7200", duration_s="0.1")
    (tmp_path / "scenario.toml").write_text(toml(scenario))
    memory, files = tmp_path / "memory", tmp_path / "files"
    memory.mkdir()
    files.mkdir()
    host, guest = free_addresses(2)
    common = ["--scenario", str(tmp_path / "scenario.toml"), "--memory", str(memory), "--files", str(files)]
    where = {"hostd": ["--listen", host], "guestsched": ["--host", host, "--listen", guest]}
    where["vcpud"] = ["--host", host, "--guest", guest]
    if how == "sockets":
        where = {name: [] for name in where}
    if how == "tls":
        make(tmp_path / "certs")
        for name, shown in (("hostd", "hostd"), ("guestsched", "guest"), ("vcpud", "vcpu")):
            pem = files_of(tmp_path / "certs", shown)
            where[name] += ["--tls-cert", str(pem.cert), "--tls-key", str(pem.key), "--tls-ca", str(pem.ca)]
    commands = [[name, *common, *options] for name, options in where.items()]
    daemons = [subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.DEVNULL) for command in commands]
    try:
        assert [daemon.wait(DEADLINE_S) for daemon in daemons] == [0, 0, 0]
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
    names = {"host": "hostd", "guest-0": "guest-0", **{f"vcpu-0-{i}": f"vcpu-0-{i}" for i in range(4)}}
    digests = {core: json.loads((files / f"{name}.json").read_text())["digest"] for core, name in names.items()}
    assert run_digest(digests) == twin.run(scenario).digest


@pytest.mark.parametrize("daemon", ["hostd", "guestsched", "vcpud"])
def test_bad_options_are_named_and_end_with_2(daemon: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", daemon, "--files", str(tmp_path), *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    nowhere = run("--memory", str(tmp_path / "nowhere"))
    assert nowhere.returncode == 2 and "--memory" in nowhere.stderr and "nowhere" in nowhere.stderr
    unknown = run("--memory", str(tmp_path), "--apf", "sometimes")
    assert unknown.returncode == 2 and "'sometimes'" in unknown.stderr and "'pv2010'" in unknown.stderr
