"""Run the benchmarks and print one table.

    python -m tests.bench [--only NAME]... [--json FILE]

Everything is a wall-clock figure of this machine and what else runs on it; the ratios are within one run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from apf import process
from tests.bench import access_stream, engine, metrics_cost, processes
from tests.bench.figure import Figure

BENCHMARKS: dict[str, Callable[[], list[Figure]]] = {
    "engine": engine.engine_mips,
    "tlb": engine.tlb_misses,
    "fault": processes.fault_round_trip,
    "requests": processes.ordered_requests,
    "cluster": processes.cluster_faults,
    "windows": processes.windows,
    "default": processes.default_bench,
    "vcpus": processes.counting_vcpus,
    "twin": processes.twin_faults,
    "access_stream": access_stream.access_stream,
    "metrics": metrics_cost.metrics_cost,
}


def main(argv: list[str]) -> int:
    """Run those that were asked for; 1 if one of them failed. A missed target is told, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Benchmarks of the emulator.")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(argv)
    process.start_logging()
    table = Table("name", "figure", "ratio", "to", "target", title="Benchmarks")
    figures: list[Figure] = []
    errors = Console(stderr=True)
    failed = False
    for name in options.only or BENCHMARKS:
        began_s = time.monotonic()
        try:
            found = BENCHMARKS[name]()
        except Exception as error:  # one broken benchmark does not hide the others
            errors.print(f"{name}: {type(error).__name__}: {error}", style="red", markup=False)
            failed = True
            continue
        errors.print(f"{name}: {time.monotonic() - began_s:.0f} s", style="dim")
        figures += found
        for figure in found:
            table.add_row(*_cells(figure))
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([figure.document() for figure in figures], indent=2) + "\n")
    return 1 if failed else 0


def _cells(figure: Figure) -> tuple[str, ...]:
    ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
    target = "-" if figure.target is None else f"{figure.target} {'met' if figure.met else 'MISSED'}"
    return figure.name, figure.figure, ratio, figure.against or "-", target


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
