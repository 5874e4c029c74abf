"""Run the Locust users for a while without a browser, and print what they measured as one JSON document.

    python tests/clients/run_locust.py --api 127.0.0.1:41234 [--users 50] [--seconds 60] [--process mem] [--pages 256]
                                       [--python INTERPRETER]

``--python`` (or ``APF_LOCUST``) names an interpreter that has Locust, grpcio and protobuf, if this one has not; the
package ``apf`` is taken from this repository. Exits 1 if a request failed, or none was made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_START_S = 60


def run(api: str, users: int, seconds: int, process: str, pages: int, python: str) -> list[dict[str, Any]]:
    """Rows of Locust's statistics. Raises CalledProcessError, with Locust's own words, if it fails."""
    with tempfile.TemporaryDirectory(prefix="apf-locust-") as directory:
        command = [
            *(python, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"),
            *("--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds}s", "--stop-timeout", "10"),
            *("--host", api, "--guest-process", process, "--guest-pages", str(pages)),
            *("--json-file", str(Path(directory) / "stats"), "--exit-code-on-error", "1"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=seconds + _START_S,
            check=False,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        rows: list[dict[str, Any]] = json.loads((Path(directory) / "stats.json").read_text())
    return rows


def percentile(row: dict[str, Any], percent: float) -> float:
    """A percentile of a row's response times, as fine as Locust keeps them."""
    times = sorted((float(ms), count) for ms, count in row["response_times"].items())
    left = row["num_requests"] * percent / 100
    for ms, count in times:
        left -= count
        if left <= 0:
            return ms
    return times[-1][0]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is worth printing, by type and name of request; times in ms of ``grpc``, in us of ``guest-us``."""
    told = {}
    for row in rows:
        seconds = max(row["last_request_timestamp"] - row["start_time"], 1e-9)
        told[f"{row['method']} {row['name']}"] = {
            "requests": row["num_requests"],
            "failures": row["num_failures"],
            "per_s": round(row["num_requests"] / seconds, 1),
            "percentiles": {f"p{percent:g}": percentile(row, percent) for percent in (50, 90, 99, 99.9)},
        }
    return told


def main(argv: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="run_locust.py", description="Locust users that access a guest's memory.")
    parser.add_argument("--api", required=True, metavar="HOST:PORT")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--process", default="mem")
    parser.add_argument("--pages", type=int, default=256)
    parser.add_argument("--python", default=os.environ.get("APF_LOCUST", sys.executable))
    options = parser.parse_args(argv)
    try:
        rows = run(options.api, options.users, options.seconds, options.process, options.pages, options.python)
    except subprocess.CalledProcessError as error:
        print(error.output, file=sys.stderr)
        return 1
    told = summary(rows)
    print(json.dumps(told, indent=2))
    return 0 if told else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
