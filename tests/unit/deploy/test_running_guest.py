"""The commands for a running guest, as a user calls them: with a cluster of one process that plays the guest."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path

import pytest

from tests.commands import Commands

PROGRAM = str(Path(__file__).with_name("apf_with_fake_cluster.py"))
DEADLINE_S = 60


class Apf:
    """The command line, with a state directory of its own."""

    def __init__(self, directory: Path, commands: Commands) -> None:
        self.directory = directory
        self._commands = commands
        self.environment = {"XDG_RUNTIME_DIR": str(directory), "COLUMNS": "160"}

    def start(self, *arguments: str, fault: str = "", stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """A command in a new Python, as the shell starts it."""
        return subprocess.Popen(
            [sys.executable, PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.environment, "APF_FAKE": fault},
        )

    def __call__(self, *arguments: str, code: int = 0, fault: str = "") -> str:
        """What a command prints, on both streams; it must exit with ``code``."""
        environment = {**self.environment, "APF_FAKE": fault}
        done = self._commands.run(*arguments, program=PROGRAM, environment=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "apf").glob("*"))

    def pid(self) -> int:
        (told,) = json.loads(self("status", "--json"))
        return int(told["pid"])


@pytest.fixture
def apf(tmp_path: Path, commands: Commands) -> Iterator[Apf]:
    command = Apf(tmp_path, commands)
    yield command
    if command.files():  # it runs, or was left behind
        for name in json.loads(command("status", "--json", code=0)):
            command("down", "--name", name["name"], code=0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Iterator[Apf]:
    """One cluster for all that leave it as it is."""
    command = Apf(tmp_path_factory.mktemp("running"), commands)
    command("up")
    yield command
    command("down")


def test_the_command_in_a_new_python(apf: Apf) -> None:
    with apf.start("status") as command:
        out, errors = command.communicate(timeout=DEADLINE_S)
    assert command.returncode == 0 and "no clusters" in out and not errors


def test_up_status_down(apf: Apf) -> None:
    told = apf("up", "--name", "one")
    assert "cluster one: pv2010" in told and "API      127.0.0.1:" in told and "apf down --name one" in told
    assert "metrics  http://127.0.0.1:9/metrics  (hostd)" in told
    refused = apf("up", "--name", "one", code=2)
    assert "--name = one: a cluster of this name runs already" in refused
    assert apf.files() == ["one.json", "one.log", "one.targets.yml"]
    (entry,) = json.loads(apf("status", "--name", "one", "--json"))
    assert entry["answers"] and entry["status"] == "running" and entry["guest_s"] > 0
    runs = [Path(entry["run_memory"]), Path(entry["run_files"])]
    assert all(path.is_dir() for path in runs)
    assert "running" in apf("status")
    assert "digest 0123abcd" in apf("down", "--name", "one")
    assert apf.files() == [] and not any(path.exists() for path in runs)
    assert "no such cluster" in apf("down", "--name", "one", code=2)
    assert "no such cluster" in apf("status", "--name", "one", code=1)
    assert "no clusters" in apf("status")


def test_results_go_where_they_were_wanted(apf: Apf, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    apf("up", "--json", str(path))
    assert f"results: {path}" in apf("down")
    assert json.loads(path.read_text())["runs"][0]["digest"] == "0123abcd"


def test_a_start_that_fails_says_why_and_leaves_nothing(apf: Apf) -> None:
    assert "apf: hostd: no such luck" in apf("up", code=1, fault="refuse")
    assert apf.files() == []


def test_a_start_that_takes_too_long(apf: Apf) -> None:
    assert "no answer within 1 s" in apf("up", "--timeout", "1", code=1, fault="silent")
    assert apf.files() == []


def test_a_start_that_is_interrupted_leaves_nothing(apf: Apf) -> None:
    with apf.start("up", fault="silent") as command:
        until(command, lambda: '"run_files": "/' in state(apf))
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=DEADLINE_S)
    assert command.returncode == 130 and "interrupted" in errors
    assert apf.files() == []


def until(command: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds while ``command`` runs."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert command.poll() is None and time.monotonic() < deadline_s, command.communicate()
        connection.wait([], 0.01)


def state(apf: Apf) -> str:
    try:
        return (apf.directory / "apf" / "default.json").read_text()
    except FileNotFoundError:
        return ""


def test_a_run_that_fails_is_told_by_down(apf: Apf) -> None:
    apf("up", fault="die")
    assert "the run of cluster default failed: guest-0 was killed by SIGKILL" in apf("down", code=1)
    assert apf.files() == []


def test_a_guest_that_does_not_heed_shutdown_is_ended_by_force(apf: Apf) -> None:
    apf("up", fault="stubborn")
    assert "was ended by SIGTERM" in apf("down", "--timeout", "0.2", code=1)
    assert apf.files() == []


def test_a_supervisor_that_was_killed_is_recognised(apf: Apf) -> None:
    apf("up")
    os.kill(apf.pid(), signal.SIGKILL)
    assert "no such cluster" in apf("spawn", code=2)
    apf("up")


def test_a_cluster_in_the_foreground(apf: Apf) -> None:
    with apf.start("up", "--foreground") as command:
        assert command.stdout is not None
        assert "cluster default" in command.stdout.readline()
        apf("down")
        out, _ = command.communicate(timeout=DEADLINE_S)
    assert command.returncode == 0 and "digest 0123abcd" in out
    assert apf.files() == []


def test_spawn_kill_list(running: Apf) -> None:
    made = running("spawn", "--process", "mem", "--memory", "64MiB", "--access-threads", "4", "--nice", "-5")
    assert "process 3, tasks 4-6, 9, started at" in made
    assert "tasks 3 will end" in running("kill", "mem")
    assert "process_name = 'x': no such process" in running("kill", "x", code=2)
    spoilt = running("inject", "lapic_off", "--vcpu", "1", "--for", "0.002")
    assert "lapic_off on vCPU 1 from 0.000001500 s of guest time on" in spoilt
    listed = running("list")
    assert "0x10000000" in listed and "SIGSEGV at 0x1000" in listed and "APF_WAIT" in listed
    assert "program = 'nosuch': allowed: count, touch" in running("spawn", "--program", "nosuch", code=2)
    assert "RESOURCE_EXHAUSTED: the guest has 10 pages left" in running("spawn", "--memory", "2048GiB", code=1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("spawn", "--program", "x", "--elf", "y"), "one of the two"),
        (("spawn", "--elf", "/nowhere"), "--elf = /nowhere: No such file"),
        (("spawn", "--nice", "20"), "--nice = 20: -20 to 19"),
        (("spawn", "--memory", "3MB"), "--memory = '3MB'"),
        (("spawn", "--vcpus", "0,x"), "--vcpus = 'x'"),
        (("spawn", "--parameter", "pages"), "--parameter = 'pages': expected NAME=NUMBER"),
        (("spawn", "--parameter", "pages=-1"), "--parameter pages = '-1'"),
        (("spawn", "--lifetime", "long"), "--lifetime = 'long': expected seconds"),
        (("spawn", "--threads", "2"), "--threads = 2: needs --program or --elf"),
        (("kill", "0"), "--process = '0'"),
        (("inject", "lost_ready", "--vcpu", "0", "--nth", "0"), "--nth = 0: 1 to 4294967296"),
        (("inject", "lapic_off", "--vcpu", "0", "--for", "long"), "--for = 'long': expected seconds"),
        (("spawn", "--api", "nowhere"), "--api = 'nowhere': expected HOST:PORT"),
        (("load", "--iodepth", "1", "--number", "1"), "process: missing"),
        (("load", "--process", "mem", "--iodepth", "x", "--number", "1"), "iodepth = 'x'"),
        (("load", "/nowhere.toml"), "job file /nowhere.toml: No such file"),
        (("load", "/nowhere.toml", "--rate", "1"), "rate: with a job file its jobs say everything"),
        (
            ("load", "--process", "no", "--iodepth", "1", "--number", "1", "--name", "x"),
            "--name = x: no such cluster",
        ),
        (("top", "--interval", "1"), "--interval"),
        (("up", "--set", "vm.vcpus"), "--set = 'vm.vcpus': expected FIELD=VALUE"),
        (("up", "--set", "vm.vcpus=0"), "vm.vcpus = 0"),
        (("up", "--set", "vm.group_memory=1MB"), "vm.group_memory = '1MB'"),
        (("up", "--api", "8080"), "--api = '8080': expected HOST:PORT"),
        (("up", "--apf", "on"), "'on'"),
        (("up", "--pace", "fast"), "pace = 'fast'"),
        (("up", "nosuch"), "SCENARIO = nosuch"),
        (("up", "--name", "../x"), "--name = '../x'"),
        (("up", "--json", "/nowhere/x.json"), "--json = /nowhere/x.json: no such directory"),
        (("up", "--log-level", "LOUD"), "--log-level = 'LOUD'"),
        (("down", "--name", "x"), "--name = x: no such cluster; there are none"),
    ],
)
def test_bad_input_is_named(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from deploy import supervisor
    from deploy.cli import app

    def must_not_start(*args: object) -> None:
        raise AssertionError("it started")

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(supervisor, "start", must_not_start)
    if arguments[0] in {"spawn", "kill", "inject"} and "--api" not in arguments:
        arguments = (*arguments, "--api", "127.0.0.1:1")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert named in done.output
    assert not list((tmp_path / "apf").glob("*"))


def test_nobody_at_an_address_is_told(apf: Apf) -> None:
    told = apf("kill", "mem", "--api", "127.0.0.1:1", code=1)
    assert "apf: 127.0.0.1:1: the run is ending, or nobody answers" in told


def test_load_prints_and_writes_what_it_measured(running: Apf, tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    told = running("load", "--process", "mem", "--iodepth", "4", "--number", "200", "--json", str(path))
    assert "200 accesses in" in told and "met hit 200 (100.00 %)" in told
    document = json.loads(path.read_text())["jobs"]["job"]
    assert document["performed"] == 200 and document["guest_latency"]["percentiles_ns"]["p50"] == 500
    job_file = tmp_path / "jobs.toml"
    job_file.write_text("[defaults]\nprocess = 2\nnumber = 20\n[job.a]\niodepth = 1\n[job.b]\nrate = 1000\n")
    told = running("load", str(job_file))
    assert "a: random on process 2" in told and "b: random on process 2" in told and "sent late by" in told


def test_load_says_what_is_not_there(running: Apf) -> None:
    told = running("load", "--process", "no", "--iodepth", "1", "--number", "1", code=2)
    assert "process = 'no': no such process in the guest; there are 1 (init), 2 (mem)" in told


def test_top_once(running: Apf) -> None:
    told = running("top", "--once")
    assert "default: guest time" in told and "1 RUNNING, 1 APF_WAIT, 1 DEAD" in told
    assert "vCPUs: 1 with a task, 1 idle" in told and "1 init" in told
    assert "p50 1.500 us, p90 2.500 ms" in told and "p99.99 10.000 ms" in told
    assert "no answer from /metrics of hostd, guest-0, vcpud-0" in told
    assert "faults: minor -; major -; async -" in told


def test_top_ends_with_ctrl_c(running: Apf) -> None:
    """On a terminal: a frame appears, and Ctrl-C ends it without a word."""
    terminal, theirs = os.openpty()
    shown = b""
    with running.start("top", "--interval", "50", stdout=theirs) as command:
        os.close(theirs)
        try:
            while b"vCPUs: 1 with a task" not in shown:
                assert select.select([terminal], [], [], DEADLINE_S)[0], shown
                shown += os.read(terminal, 65536)
            command.send_signal(signal.SIGINT)
            drain(terminal)
            _, errors = command.communicate(timeout=DEADLINE_S)
        finally:
            command.kill()
            os.close(terminal)
    assert command.returncode == 0, errors
    assert errors == ""


def drain(terminal: int) -> None:
    """Read until nobody writes to the terminal any more."""
    while select.select([terminal], [], [], DEADLINE_S)[0]:
        try:
            if not os.read(terminal, 65536):
                return
        except OSError:  # EIO: closed at the other end
            return


PLAYS_PROMETHEUS = """\
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
(where,) = (word.split("=", 1)[1] for word in sys.argv if word.startswith("--web.listen-address"))
http.server.HTTPServer((where.split(":")[0], int(where.split(":")[1])), Ready).serve_forever()
"""


def test_a_prometheus_lives_as_long_as_its_cluster(apf: Apf, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    (path / "prometheus").write_text(f"#!{sys.executable}\n{PLAYS_PROMETHEUS}")
    (path / "prometheus").chmod(0o755)
    apf.environment["PATH"] = f"{path}:{os.environ['PATH']}"
    told = apf("up", "--prometheus")
    (entry,) = json.loads(apf("status", "--json"))
    assert f"prometheus  http://{entry['prometheus']}" in told
    files = Path(entry["run_files"]) / "prometheus"
    assert str(tmp_path / "apf" / "*.targets.yml") in (files / "prometheus.yml").read_text()
    with urllib.request.urlopen(f"http://{entry['prometheus']}/-/ready", timeout=DEADLINE_S) as answer:
        assert answer.status == 200
    apf("down")
    assert not files.exists() and apf.files() == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{entry['prometheus']}/-/ready", timeout=DEADLINE_S)


def test_a_prometheus_that_is_not_there_or_does_not_start(apf: Apf, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    apf.environment["PATH"] = str(path)
    refused = apf("up", "--prometheus", code=2)
    assert "--prometheus: there is no 'prometheus' on the PATH" in refused and "apt-get install" in refused
    assert "--prometheus-at = 'here'" in apf("up", "--prometheus", "--prometheus-at", "here", code=2)
    (path / "prometheus").write_text(f"#!{sys.executable}\nprint('disk full')\n")
    (path / "prometheus").chmod(0o755)
    assert "ended: disk full" in apf("up", "--prometheus", code=1)
    assert apf.files() == []
