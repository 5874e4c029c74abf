"""A Prometheus beside a cluster: the machine's own binary, with a configuration made for it.

What it scrapes is no list of ports but the files that say which clusters run (``Clusters.targets``), so that clusters
started later are seen too, and "with APF" and "without" meet on one dashboard. Each target has the label ``cluster``;
by it the metrics of different daemons of one run are joined. The rules of ``deploy/prometheus`` are loaded as far as
there are any.

It is a child of whoever starts it and dies with it. Nothing it has stored is worth anything then, so the kernel may end
it by SIGKILL; and its data lies in the run's directory, whose heirs remove it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from apf import process
from apf.process import Failure

log = logging.getLogger(__name__)

BINARY = "prometheus"
ANY_PORT = "127.0.0.1:0"
SCRAPE_MS = 1000
"""Fast enough for a run of a minute; a scrape of a daemon takes some milliseconds of one core."""
RULES = Path(__file__).parent / "prometheus"
_RETENTION = "512MB"
_STOP_S = 5.0
_POLL_S = 0.05
_ASK_S = 2.0
_PORTS_TRIED = 3


@dataclass(frozen=True, slots=True)
class Scraping:
    """What a Prometheus is to do: ``binary`` serves ``listen`` (``HOST:PORT``, port 0: any that is free).

    ``targets`` is a pattern of files in the format of Prometheus's file_sd, ``rules`` are files of rules.
    """

    binary: str
    targets: Path
    listen: str = ANY_PORT
    interval_ms: int = SCRAPE_MS
    rules: tuple[Path, ...] = ()

    def config(self) -> str:
        """The configuration file. JSON is YAML, which spares us a library."""
        interval = f"{self.interval_ms}ms"
        return json.dumps(
            {
                "global": {
                    "scrape_interval": interval,
                    "scrape_timeout": interval,
                    "evaluation_interval": interval,
                },
                "rule_files": [str(path) for path in self.rules],
                "scrape_configs": [
                    {
                        "job_name": "apf",
                        # Files are watched; the interval is for what a watch misses.
                        "file_sd_configs": [{"files": [str(self.targets)], "refresh_interval": "5s"}],
                    }
                ],
            },
            indent=2,
        )


def find_binary() -> str | None:
    """The machine's Prometheus, if it has one."""
    return shutil.which(BINARY)


def rule_files(directory: Path = RULES) -> tuple[Path, ...]:
    """Files of rules among the YAML files in ``directory``, which may hold other configuration as well."""
    found = sorted([*directory.glob("*.yml"), *directory.glob("*.yaml")])
    return tuple(path for path in found if any(line.startswith("groups:") for line in path.read_text().splitlines()))


def target_file(cluster: str, addresses: Iterable[str]) -> str:
    """What file_sd reads of one cluster."""
    return json.dumps([{"targets": sorted(addresses), "labels": {"cluster": cluster}}], indent=2) + "\n"


class Prometheus:
    """A running Prometheus whose files are all in ``directory``. A context manager: leaving it ends the process."""

    def __init__(self, scraping: Scraping, directory: Path, start_s: float) -> None:
        self._scraping = scraping
        self._directory = directory
        self._start_s = start_s
        self._child: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Prometheus:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; one that has ended by itself is worth a line in the log."""
        if self._child is None:
            return
        if self._child.poll() is not None:
            log.warning("prometheus %s: %s", process.describe_exit(self._child.returncode), self._last_line())
        self._child.terminate()
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child = None

    def _start(self) -> None:
        """Start it, and wait until it answers. Raises Failure."""
        deadline_s = time.monotonic() + self._start_s
        self._directory.mkdir(mode=0o700, exist_ok=True)
        (self._directory / "prometheus.yml").write_text(self._scraping.config())
        host, _, port = self._scraping.listen.rpartition(":")
        tries = _PORTS_TRIED if port == "0" else 1
        for _ in range(tries):
            # Prometheus does not tell which port it got, so it gets none to choose; somebody may be faster.
            self.address = f"{host}:{_free_port(host) if port == '0' else port}"
            self._child = self._spawn()
            if self._answers(deadline_s):
                return
        raise Failure(f"prometheus on {self.address} ended: {self._last_line()}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        output: IO[bytes]
        with (self._directory / "log").open("wb") as output:
            return subprocess.Popen(
                [
                    self._scraping.binary,
                    f"--config.file={self._directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--storage.tsdb.retention.size={_RETENTION}",
                    f"--web.listen-address={self.address}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # One core at the most: the others are the emulator's.
                env={**os.environ, "GOMAXPROCS": "1"},
                # A terminal's Ctrl-C is for the owner, which ends it in its turn.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - as the daemons, it is forked before threads matter
            )

    def _answers(self, deadline_s: float) -> bool:
        """Whether it answers; False if it has ended. Raises Failure at the deadline."""
        assert self._child is not None
        while self._child.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                # Not through a proxy of the environment: it is on this machine.
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(f"http://{self.address}/-/ready", timeout=_ASK_S):
                    # Somebody else may have taken the port, and answer; then the child ends soon, for that reason.
                    return self._child.poll() is None
            if time.monotonic() > deadline_s:
                raise Failure(f"prometheus on {self.address}: no answer within {self._start_s:g} s")
            time.sleep(_POLL_S)
        return False

    def _last_line(self) -> str:
        lines = (self._directory / "log").read_text(errors="replace").splitlines()
        return lines[-1][:500] if lines else "without a word"


def _die_with_parent() -> None:
    process.die_with_parent(signal.SIGKILL)


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise Failure(f"prometheus on {host}: {error.strerror}") from error
