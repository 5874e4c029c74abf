"""Daemons started by hand: how each ends when it is told to, at any time, and when another goes away; what they log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cluster_runs import DEADLINE_S, children_of, state_of, until

from apf.logs import FORMAT_VARIABLE
from apf.v1 import load_pb2, load_pb2_grpc

END_S = 10.0
"""What a container runtime grants."""
SCENARIO = """
apf = ["pv2010"]
duration_s = 0
[host]
vms = {vms}
reserve_frames = 256
[vm]
vcpus = 2
guest_memory = "96MiB"
group_memory = "16MiB"
[swap]
device = "nvme"
[bench]
buffer = "32MiB"
fault_threads = 2
work_threads = 2
"""
COMMANDS = {
    "hostd": ["hostd"],
    "guest-0": ["guestsched"],
    "guest-1": ["guestsched", "--vm", "1"],
    "vcpud-0": ["vcpud"],
    "vcpud-1": ["vcpud", "--vm", "1"],
}
DAEMONS = ["hostd", "guest-0", "vcpud-0"]


class Daemons:
    """Daemons by name, in directories of a test."""

    def __init__(self, directory: Path, vms: int = 1) -> None:
        self.memory, self.files = directory / "memory", directory / "files"
        self.memory.mkdir()
        self.files.mkdir()
        self._scenario = directory / "scenario.toml"
        self._scenario.write_text(SCENARIO.format(vms=vms))
        self.running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *options: str) -> subprocess.Popen[str]:
        common = ["--scenario", str(self._scenario), "--memory", str(self.memory), "--files", str(self.files)]
        program, *chosen = COMMANDS[name]
        log = (self.files / f"{name}.log").open("w")
        with log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", program, *chosen, *common, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                env={**os.environ, FORMAT_VARIABLE: ""},
            )
        return self.running[name]

    def log(self, name: str) -> str:
        return (self.files / f"{name}.log").read_text()

    def until_log(self, name: str, text: str) -> None:
        until(f"{text!r} in the log of {name}", lambda: self._said(name, text))

    def _said(self, name: str, text: str) -> bool:
        if text in self.log(name):
            return True
        assert self.running[name].poll() is None, self.log(name)
        return False

    def until_report(self, name: str) -> None:
        path = self.files / f"{name}.json"
        until(f"report {name}", path.exists)

    def until_windows(self) -> None:
        """Until virtual time passes."""
        self.until_log("hostd", "the first window opens")

    def ends(self, name: str) -> int:
        """Its status; it must come within ten seconds."""
        began_s = time.monotonic()
        status = self.running[name].wait(END_S)
        assert time.monotonic() - began_s < END_S
        assert "Traceback" not in self.log(name) and "Exception ignored" not in self.log(name), self.log(name)
        return status


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets' paths are short enough for sun_path; pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="apf-test-") as directory:
        yield Path(directory)


@pytest.fixture
def daemons(short_path: Path) -> Iterator[Daemons]:
    made = Daemons(short_path)
    yield made
    for daemon in made.running.values():
        daemon.kill()
        daemon.wait()


def terminate(daemon: subprocess.Popen[str]) -> None:
    daemon.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("name", DAEMONS)
@pytest.mark.parametrize("after_s", [0.05, 0.5, 0.0, 1.0])
def test_sigterm_before_any_peer_is_there(daemons: Daemons, name: str, after_s: float) -> None:
    """Also while Python still imports: then nothing heeds the signal yet, and nothing needs to."""
    daemon = daemons.start(name)
    if after_s not in (0.05, 0.5):
        until("a daemon with options", (daemons.files / f"{name}.lock").exists)
    time.sleep(after_s)
    terminate(daemon)
    assert daemons.ends(name) in ({-signal.SIGTERM, 143} if after_s in (0.05, 0.5) else {143})
    assert not list(daemons.memory.iterdir()) and not (daemons.files / "swap").exists()


@pytest.mark.parametrize("name", ["hostd", "guest-0"])
def test_sigterm_while_loading(daemons: Daemons, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, which waits for the load, says whom it lost."""
    slow = daemons.files / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'hostd' in ' '.join(sys.orig_argv):\n"
        "    import hostd.shell as shell\n"
        "    load = shell.HostShell.load\n"
        "    def slowly(*args):\n"
        "        open(sys.orig_argv[sys.orig_argv.index('--files') + 1] + '/loading', 'w').close()\n"
        "        time.sleep(30)\n"
        "    shell.HostShell.load = slowly\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(slow))
    daemons.start("hostd")
    daemons.start("guest-0")
    until("a load", (daemons.files / "loading").exists)
    terminate(daemons.running[name])
    assert daemons.ends(name) == 143
    if name == "hostd":
        assert daemons.ends("guest-0") == 1
        assert "guestsched: lost hostd while it loaded VM 0" in daemons.log("guest-0")


def test_sigterm_of_any_while_running(short_path: Path) -> None:
    """Whoever is told ends with 143, the others with 1 and whom they lost; no worker is left, nor memory."""
    for told in DAEMONS:
        (short_path / told).mkdir()
        daemons = Daemons(short_path / told)
        try:
            for name in DAEMONS:
                daemons.start(name, "--log-level", "INFO")
            daemons.until_windows()
            workers = children_of(daemons.running["vcpud-0"].pid)
            assert len(workers) == 2
            terminate(daemons.running[told])
            statuses = {name: daemons.ends(name) for name in DAEMONS}
            assert statuses == {name: 143 if name == told else 1 for name in DAEMONS}
            assert "ended by SIGTERM" in daemons.log(told)
            for name in set(DAEMONS) - {told}:
                assert re.search("lost|ended by another process", daemons.log(name).splitlines()[-1])
            assert all(state_of(pid) in "XZ" for pid in workers)
            assert not list(daemons.memory.iterdir()) and not (daemons.files / "swap").exists()
        finally:
            for daemon in daemons.running.values():
                daemon.kill()
                daemon.wait()


@pytest.mark.parametrize("killed", DAEMONS)
def test_a_peer_that_is_killed_is_named(daemons: Daemons, killed: str) -> None:
    for name in DAEMONS:
        daemons.start(name, "--log-level", "INFO")
    daemons.until_windows()
    daemons.running[killed].kill()
    for name in set(DAEMONS) - {killed}:
        assert daemons.ends(name) == 1
        assert re.search("lost|ended by another process|was ended", daemons.log(name).splitlines()[-1])


def test_guestsched_notices_that_hostd_is_gone_before_there_are_vcpus(daemons: Daemons) -> None:
    daemons.start("hostd")
    daemons.start("guest-0")
    daemons.until_report("metrics-guest-0")
    daemons.running["hostd"].kill()
    assert daemons.ends("guest-0") == 1
    assert daemons.log("guest-0").splitlines() == ["guestsched: lost hostd: it does not answer any more"]


def test_a_second_hostd_is_refused(daemons: Daemons) -> None:
    daemons.start("hostd")
    daemons.until_report("metrics-hostd")
    first = daemons.running["hostd"]
    assert daemons.start("hostd").wait(DEADLINE_S) == 2 and "another hostd runs there" in daemons.log("hostd")
    first.kill()
    first.wait()


def test_hostd_starts_where_one_was_killed(daemons: Daemons) -> None:
    first = daemons.start("hostd")
    daemons.until_report("metrics-hostd")
    first.kill()
    first.wait()
    assert (daemons.files / "swap").exists()
    (daemons.files / "metrics-hostd.json").unlink()
    second = daemons.start("hostd")
    daemons.until_report("metrics-hostd")
    terminate(second)
    assert daemons.ends("hostd") == 143 and not (daemons.files / "swap").exists()


@pytest.mark.grpc
def test_two_vms_log_json_with_request_ids(short_path: Path) -> None:
    daemons = Daemons(short_path, vms=2)
    api = f"unix:{short_path / 'api.sock'}"
    try:
        for name in COMMANDS:
            options = ["--api", api] if name == "guest-1" else []
            daemons.start(name, "--log-format", "json", "--log-level", "INFO", *options)
        daemons.until_windows()
        with grpc.insecure_channel(api) as channel:
            service = load_pb2_grpc.LoadServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                service.Spawn(
                    load_pb2.SpawnRequest(program="nonsense"),
                    metadata=[("x-request-id", "mine-7")],
                    timeout=DEADLINE_S,
                )
            assert ("x-request-id", "mine-7") in [tuple(item) for item in refused.value.trailing_metadata()]
            spawned = service.Spawn(
                load_pb2.SpawnRequest(name="p", access_threads=1, memory=1 << 20), timeout=DEADLINE_S
            )
            for page in range(20):
                access = load_pb2.AccessRequest(process=spawned.process, page=page, kind=1)
                service.Access(access, timeout=DEADLINE_S)
        terminate(daemons.running["vcpud-0"])
        assert {name: daemons.ends(name) for name in COMMANDS} == {
            name: 143 if name == "vcpud-0" else 1 for name in COMMANDS
        }
        lines = {name: [json.loads(line) for line in daemons.log(name).splitlines()] for name in COMMANDS}
    finally:
        for daemon in daemons.running.values():
            daemon.kill()
            daemon.wait()
    for name, said in lines.items():
        assert all(set(line) - {"request_id"} == {"time", "level", "process", "logger", "message"} for line in said)
        assert {line["process"] for line in said} <= {name, f"vcpu-{name[-1]}-0", f"vcpu-{name[-1]}-1"}
        assert len(said) < 12, "something is logged too often"
    calls = [line for line in lines["guest-1"] if line["logger"] == "guestsched.call_log"]
    assert [line["request_id"] for line in calls] == ["mine-7", "guest-1-1"], "no line for an access"
    assert calls[0]["message"].startswith("Spawn: INVALID_ARGUMENT: program = 'nonsense'")
    assert calls[1]["message"].startswith("Spawn: OK, ")
    assert all("request_id" not in line for line in lines["hostd"])
