"""``python -m vcpud``: one VM's vCPUs, by themselves."""

from __future__ import annotations

from apf import launch
from apf.listen import add_options
from apf.rundir import RunDir
from apf.scenario import Scenario


def main() -> None:
    """Parse the options and run the vCPUs to their end."""
    options = launch.parser("vcpud", "The vCPUs of one VM: a worker process each.")
    options.add_argument("--host", metavar="ADDRESS", help="gRPC address of hostd")
    options.add_argument("--guest", metavar="ADDRESS", help="gRPC address of guestsched")
    add_options(options, serves=False)
    launch.vm_option(options)
    arguments = options.parse_args()
    tls = launch.security(options, arguments).tls

    def serve(scenario: Scenario, run: RunDir) -> None:
        from vcpud.daemon import VcpudConfig
        from vcpud.daemon import main as daemon

        vm = launch.vm_of(arguments, scenario)
        host, guest = arguments.host or run.host_address, arguments.guest or run.guest_address(vm)
        daemon(VcpudConfig(scenario, run, vm, host, guest, arguments.journal, arguments.metrics, tls))

    launch.run(
        "vcpud", arguments, serve, name=f"vcpud-{arguments.vm}", own=lambda run: (run.vcpu_stats(arguments.vm),)
    )


if __name__ == "__main__":
    main()
