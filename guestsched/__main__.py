"""``python -m guestsched``: one VM's guest kernel, by itself."""

from __future__ import annotations

from apf import launch, roles
from apf.rundir import RunDir
from apf.scenario import Scenario


def main() -> None:
    """Parse the options and serve one run."""
    options = launch.parser("guestsched", "The guest kernel of one VM: loads it, then answers its vCPUs' traps.")
    options.add_argument("--host", metavar="ADDRESS", help="gRPC address of hostd")
    launch.add_listen(options)
    arguments = options.parse_args()
    security, listen = launch.listeners(options, arguments, roles.GUESTSCHED)

    def serve(scenario: Scenario, run: RunDir) -> None:
        from guestsched.daemon import GuestschedConfig
        from guestsched.daemon import main as daemon

        host = arguments.host or run.host_load_address
        daemon(GuestschedConfig(scenario, run, 0, 0, host, listen, arguments.journal, security=security))

    launch.run("guestsched", arguments, serve)


if __name__ == "__main__":
    main()
