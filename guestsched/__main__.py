"""``python -m guestsched``: one VM's guest kernel, by itself."""

from __future__ import annotations

from apf import launch, roles
from apf.rundir import RunDir
from apf.scenario import Scenario


def main() -> None:
    """Parse the options and serve one run."""
    options = launch.parser("guestsched", "The guest kernel of one VM: loads it, then answers its vCPUs' traps.")
    options.add_argument("--host", metavar="ADDRESS", help="gRPC address of hostd")
    options.add_argument(
        "--api",
        metavar="ADDRESS",
        help="where the API for load generators listens beside its roles' sockets: HOST:PORT, or unix: at these only",
    )
    launch.add_listen(options)
    launch.vm_option(options)
    arguments = options.parse_args()
    security, listen = launch.listeners(options, arguments, roles.GUESTSCHED)

    def serve(scenario: Scenario, run: RunDir) -> None:
        from guestsched.daemon import GuestschedConfig
        from guestsched.daemon import main as daemon

        host = arguments.host or run.host_load_address
        vm = launch.vm_of(arguments, scenario)
        log, metrics = arguments.journal, arguments.metrics
        daemon(GuestschedConfig(scenario, run, vm, host, listen, log, arguments.api, metrics, security))

    launch.run("guestsched", arguments, serve, name=f"guest-{arguments.vm}")


if __name__ == "__main__":
    main()
