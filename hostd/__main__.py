"""``python -m hostd``: one host's memory daemon, by itself."""

from __future__ import annotations

from apf import launch, roles
from apf.process import settle_polling
from apf.rundir import RunDir
from apf.scenario import Scenario


def main() -> None:
    """Parse the options and serve one run."""
    options = launch.parser("hostd", "The host's memory: answers page faults, opens the windows of virtual time.")
    launch.add_listen(options)
    arguments = options.parse_args()
    security, listen = launch.listeners(options, arguments, roles.HOSTD)

    def serve(scenario: Scenario, run: RunDir) -> None:
        settle_polling()
        from hostd.config import HostdConfig
        from hostd.daemon import main as daemon

        log, metrics = arguments.journal, arguments.metrics
        daemon(HostdConfig(scenario, run, listen, log, metrics, security))

    launch.run("hostd", arguments, serve, name="hostd", own=lambda run: (run.host_memory, run.clock, run.swap))


if __name__ == "__main__":
    main()
