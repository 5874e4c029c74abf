"""Prometheus beside a cluster: what it is told, that it starts, and that nothing of it stays, whoever dies first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest

from apf.process import Failure
from deploy.scraper import Prometheus, Scraping, find_binary, rule_files, target_file

DEADLINE_S = 30.0
# What a Prometheus needs to be for its owner: it says it is ready where it was told to listen.
PLAYS_PROMETHEUS = """\
import http.server, os, sys
options = dict(word.split("=", 1) for word in sys.argv[1:])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/-/ready" else 404)
        self.end_headers()
host, port = options["--web.listen-address"].split(":")
os.mkdir(options["--storage.tsdb.path"])
http.server.HTTPServer((host, int(port)), Ready).serve_forever()
"""


def binary(directory: Path, code: str) -> str:
    """A program called prometheus in ``directory``."""
    path = directory / "prometheus"
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return str(path)


def scraping(directory: Path, code: str = PLAYS_PROMETHEUS, **fields: Any) -> Scraping:
    return Scraping(binary(directory, code), directory / "*.targets.yml", **fields)


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s
        connection.wait([], 0.01)


def test_the_configuration_names_targets_rules_and_pace(tmp_path: Path) -> None:
    rules = (tmp_path / "alerts.yml",)
    config = json.loads(Scraping("prometheus", tmp_path / "*.targets.yml", interval_ms=200, rules=rules).config())
    assert config["global"]["scrape_interval"] == config["global"]["evaluation_interval"] == "200ms"
    assert config["rule_files"] == [str(rules[0])]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == [f"{tmp_path}/*.targets.yml"]


def test_only_files_of_rules_are_rules(tmp_path: Path) -> None:
    (tmp_path / "b.rules.yml").write_text("# why\ngroups:\n- name: a\n")
    (tmp_path / "a.yaml").write_text("groups: []\n")
    (tmp_path / "prometheus.yml").write_text("global:\n  scrape_interval: 1s\n")
    assert rule_files(tmp_path) == (tmp_path / "a.yaml", tmp_path / "b.rules.yml")
    assert rule_files(tmp_path / "nowhere") == ()


def test_targets_carry_their_cluster() -> None:
    (group,) = json.loads(target_file("one", ["127.0.0.1:2", "127.0.0.1:1"]))
    assert group == {"targets": ["127.0.0.1:1", "127.0.0.1:2"], "labels": {"cluster": "one"}}


def test_it_answers_until_it_is_left(tmp_path: Path) -> None:
    with Prometheus(scraping(tmp_path), tmp_path / "run", DEADLINE_S) as prometheus:
        assert prometheus.address.startswith("127.0.0.1:")
        with urllib.request.urlopen(f"http://{prometheus.address}/-/ready", timeout=DEADLINE_S) as answer:
            assert answer.status == 200
        assert (tmp_path / "run" / "data").is_dir()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{prometheus.address}/-/ready", timeout=DEADLINE_S)


def test_one_that_ends_says_why(tmp_path: Path) -> None:
    ends = scraping(tmp_path, "print('first'); print('no such flag')")
    with pytest.raises(Failure, match=r"prometheus on 127\.0\.0\.1:\d+ ended: no such flag"):
        Prometheus(ends, tmp_path / "run", DEADLINE_S).__enter__()


def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    silent = scraping(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
    with pytest.raises(Failure, match="no answer within 2 s"):
        Prometheus(silent, tmp_path / "run", 2.0).__enter__()
    pid = int((tmp_path / "run" / "log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_host_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"prometheus on 192\.0\.2\.1: "):
        Prometheus(scraping(tmp_path, listen="192.0.2.1:0"), tmp_path / "run", DEADLINE_S).__enter__()


def test_it_does_not_outlive_its_owner(tmp_path: Path) -> None:
    """SIGKILL for the owner: nobody is left to end the child, so the kernel does."""
    told = scraping(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from deploy.scraper import Prometheus, Scraping\n"
        f"it = Prometheus(Scraping({told.binary!r}, Path('x')), Path({str(tmp_path / 'run')!r}), 30.0)\n"
        "it.__enter__(); print(it._child.pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert Path(f"/proc/{pid}/cmdline").exists()
        owner.send_signal(signal.SIGKILL)
        owner.wait(DEADLINE_S)

    def gone() -> bool:
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(") ")[2][0] in "ZX"

    until(gone)


@pytest.mark.skipif(find_binary() is None, reason="no prometheus on this machine")
def test_the_real_one_takes_the_configuration(tmp_path: Path) -> None:
    """promtool would check the same; a Prometheus that answers has read all of it."""
    real = find_binary()
    assert real is not None and shutil.which(real)
    (tmp_path / "a.targets.yml").write_text(target_file("one", ["127.0.0.1:9"]))
    told = Scraping(real, tmp_path / "*.targets.yml", interval_ms=200, rules=rule_files())
    with Prometheus(told, tmp_path / "run", DEADLINE_S) as prometheus:

        def scraped() -> bool:
            query = f"http://{prometheus.address}/api/v1/query?query=up"
            with urllib.request.urlopen(query, timeout=DEADLINE_S) as answer:
                result = json.load(answer)["data"]["result"]
            return bool(result) and result[0]["metric"]["cluster"] == "one" and result[0]["value"][1] == "0"

        until(scraped)
