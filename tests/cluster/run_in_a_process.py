"""A run in a process of its own, for tests that end it from outside: ``python run_in_a_process.py OVERRIDES_JSON``.

Prints the run's two directories and then, once virtual time moves, ``running``; at the end the digest. A run that
fails says why on standard error and exits 1, one that is interrupted 130.
"""

from __future__ import annotations

import json
import sys

from apf import process
from apf.process import Failure
from apf.scenario import load
from deploy.local import LocalCluster, Snapshot


def main() -> int:
    """Run it."""
    process.start_logging()
    scenario = load(None, json.loads(sys.argv[1]))
    told = False

    def progress(snapshot: Snapshot) -> None:
        nonlocal told
        if snapshot.now_ns > 0 and not told:
            told = True
            print("running", flush=True)

    try:
        with LocalCluster(scenario) as cluster:
            print(cluster.run.memory, flush=True)
            print(cluster.run.files, flush=True)
            print(cluster.wait(progress).digest, flush=True)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return process.EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
