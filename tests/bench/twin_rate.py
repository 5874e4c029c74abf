"""The twin's rate of major faults in a process of its own, which may run without assertions.

    python [-O] -m tests.bench.twin_rate SCENARIO.json RUNS

Prints, as JSON, the least CPU time and the least wall time of some runs in seconds, and the faults of one: what others
do on the machine only makes a run slower. SCENARIO.json is an object of scenario settings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from apf.scenario import load
from deploy.twin import Twin, few_collections

_DEADLINE_S = 600


def rate(overrides: dict[str, Any], runs: int, *flags: str) -> tuple[float, float, int]:
    """CPU seconds, wall seconds and major faults, with these ``flags`` of Python's."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as settings:
        json.dump(overrides, settings)
        settings.flush()
        command = [sys.executable, *flags, "-m", "tests.bench.twin_rate", settings.name, str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DEADLINE_S)
    found = json.loads(done.stdout)
    return found["cpu_s"], found["wall_s"], found["faults"]


def main(settings: str, runs: str) -> None:
    """Run and print."""
    scenario = load(None, json.loads(Path(settings).read_text()))
    spent: list[tuple[float, float]] = []
    faults = 0
    for _ in range(int(runs)):
        with tempfile.TemporaryDirectory() as scratch, closing(Twin(scenario, Path(scratch) / "swap")) as twin:
            twin.start()
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            with few_collections():
                while twin.run_window():
                    pass
            spent.append((time.process_time() - cpu_s, time.perf_counter() - wall_s))
            faults = twin.result(0).counter("faults_major")
    cpu_s, wall_s = (min(of) for of in zip(*spent, strict=True))
    print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "faults": faults}))


if __name__ == "__main__":
    main(*sys.argv[1:])
