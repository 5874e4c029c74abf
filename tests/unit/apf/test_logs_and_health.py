"""Log lines as text and JSON, and the probe of containers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from apf import health, logs


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, None)
    made = logging.LogRecord("a.logger", logging.WARNING, "file.py", 1, message, args, exc_info)
    made.processName = "vcpu-0-1"
    logs.stamp(made)
    return made


def test_json_is_one_line_whatever_the_message() -> None:
    line = logs.JsonFormatter().format(record('two\nlines, "quotes" and %d \u00fc', 7))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "WARNING",
        "process": "vcpu-0-1",
        "logger": "a.logger",
        "message": 'two\nlines, "quotes" and 7 \u00fc',
    }


def test_json_has_the_exception_also_when_another_process_formats_it() -> None:
    made = record("failed", error=ValueError("no"))
    assert "ValueError: no" in json.loads(logs.JsonFormatter().format(made))["exception"]
    made.exc_info = None  # as multiprocessing-logging sends it
    assert "ValueError: no" in json.loads(logs.JsonFormatter().format(made))["exception"]


def test_lines_of_a_call_have_its_id() -> None:
    token = logs.request_id.set("r-1")
    try:
        made = record("hello")
    finally:
        logs.request_id.reset(token)
    assert json.loads(logs.JsonFormatter().format(made))["request_id"] == "r-1"
    assert logs.TextFormatter().format(made).endswith("vcpu-0-1 a.logger: hello (request r-1)")
    assert "request" not in logs.TextFormatter().format(record("hello"))


def test_the_environment_says_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (("json", "json"), ("text", "text"), ("", "text"), ("yaml", "text")):
        monkeypatch.setenv(logs.FORMAT_VARIABLE, given)
        assert logs.default_format() == expected


def test_all_processes_write_json_into_one_stream() -> None:
    code = (
        "import logging, multiprocessing as mp\n"
        "from apf import process\n"
        "process.start_logging('INFO', 'json')\n"
        "def work():\n"
        "    for i in range(100): logging.getLogger('w').info('%s %d', 'x' * 2000, i)\n"
        "    process.leave(0)\n"
        "ps = [mp.get_context('fork').Process(target=work, name=f'w{i}') for i in range(3)]\n"
        "[p.start() for p in ps]; [p.join() for p in ps]\n"
        "logging.shutdown()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert len(said) == 300 and {line["process"] for line in said} == {"w0", "w1", "w2"}


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.server.well else 503)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.well = True  # type: ignore[attr-defined]
    serving = threading.Thread(target=made.serve_forever, daemon=True)
    serving.start()
    yield made
    made.shutdown()
    made.server_close()


def test_probe(server: HTTPServer) -> None:
    address = f"127.0.0.1:{server.server_port}"
    assert health.answers(address) == ""
    server.well = False  # type: ignore[attr-defined]
    assert "503" in health.answers(address)
    assert "refused" in health.answers("127.0.0.1:1")
    assert "expected HOST:PORT" in health.answers("nowhere")


def test_probe_is_cheap_and_its_status_tells(server: HTTPServer) -> None:
    command = [sys.executable, "-S", "-X", "importtime", "-m", "apf.health", f"127.0.0.1:{server.server_port}"]
    well = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert not {"grpc", "numpy", "http.client"} & {line.split("|")[-1].strip() for line in well.stderr.splitlines()}
    command[-1] = "127.0.0.1:1"
    ill = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ill.returncode == 1 and "not healthy: 127.0.0.1:1" in ill.stderr
