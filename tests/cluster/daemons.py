"""Daemons that are started by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster_runs import until

from apf.logs import FORMAT_VARIABLE

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


def terminate(daemon: subprocess.Popen[str]) -> None:
    daemon.send_signal(signal.SIGTERM)
