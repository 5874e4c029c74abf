"""``python -m hostd``: one host's memory daemon, by itself."""

from __future__ import annotations

from apf import launch
from apf.rundir import RunDir
from apf.scenario import Scenario


def main() -> None:
    """Parse the options and serve one run."""
    options = launch.parser("hostd", "The host's memory: answers page faults, opens the windows of virtual time.")
    options.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="gRPC address: unix:PATH or HOST:PORT (repeatable)"
    )
    arguments = options.parse_args()

    def serve(scenario: Scenario, run: RunDir) -> None:
        from hostd.daemon import HostdConfig
        from hostd.daemon import main as daemon

        listen = tuple(arguments.listen or (run.host_address,))
        daemon(HostdConfig(scenario, run, listen, arguments.journal, metrics=arguments.metrics))

    launch.run("hostd", arguments, serve, name="hostd", own=lambda run: (run.host_memory, run.clock, run.swap))


if __name__ == "__main__":
    main()
