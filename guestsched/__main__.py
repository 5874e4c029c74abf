"""``python -m guestsched``: one VM's guest kernel, by itself."""

from __future__ import annotations

from apf import launch
from apf.rundir import RunDir
from apf.scenario import Scenario


def main() -> None:
    """Parse the options and serve one run."""
    options = launch.parser("guestsched", "The guest kernel of one VM: loads it, then answers its vCPUs' traps.")
    options.add_argument("--host", metavar="ADDRESS", help="gRPC address of hostd")
    options.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="gRPC address: unix:PATH or HOST:PORT (repeatable)"
    )
    options.add_argument(
        "--api", metavar="ADDRESS", help="where the API for load generators listens: HOST:PORT or unix:PATH"
    )
    launch.vm_option(options)
    arguments = options.parse_args()

    def serve(scenario: Scenario, run: RunDir) -> None:
        from guestsched.daemon import GuestschedConfig
        from guestsched.daemon import main as daemon

        host = arguments.host or run.host_address
        vm = launch.vm_of(arguments, scenario)
        listen = tuple(arguments.listen or (run.guest_address(vm),))
        log, metrics = arguments.journal, arguments.metrics
        daemon(GuestschedConfig(scenario, run, vm, host, listen, log, arguments.api, metrics))

    launch.run("guestsched", arguments, serve, name=f"guest-{arguments.vm}")


if __name__ == "__main__":
    main()
