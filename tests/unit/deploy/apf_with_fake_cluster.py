"""The ``apf`` command with a cluster that is one process, ``fake_guest``: python apf_with_fake_cluster.py COMMAND ...

``APF_FAKE`` says what goes wrong: "refuse" (the start fails), "silent" (it never answers), "die" (the process fails soon
after it answers), "stubborn" (Shutdown is not heeded).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from apf import process
from apf.process import Failure
from apf.rundir import RunDir
from apf.scenario import Scenario
from deploy import cli
from deploy.result import CAUSES

FAULT = os.environ.get("APF_FAKE", "")


class FakeResult:
    mode = "pv2010"

    def document(self) -> dict[str, Any]:
        return {
            "apf": "pv2010",
            "digest": "0123abcd",
            "virtual_seconds": 1.5,
            "wall_seconds": 2.0,
            "run_seconds": 2.0,
            "windows": 77,
            "faults": {"minor": 1, "major": 2, "async": 3},
            "corrupt_pages": 0,
            "vcpu_time": {"0": dict.fromkeys(CAUSES, 0.5)},
            "told": [],
        }


class FakeCluster:
    def __init__(self, scenario: Scenario, *, api: str | None = None, security: Any = None) -> None:
        self.scenario = scenario
        self.run = RunDir.make()
        self._api = api
        self.processes: list[Any] = []
        self.vms = (0,)

    def __enter__(self) -> FakeCluster:
        if FAULT == "refuse":
            self.run.remove()
            raise Failure("hostd: no such luck")
        self.processes.append(
            process.spawn("guest-0", serve, self.run, self._api, run=self.run, report="guest-0", heir=True)
        )
        return self

    def __exit__(self, *exc: object) -> None:
        process.stop(self.processes, 5)
        self.run.remove()

    def wait(self, watch: Any) -> FakeResult:
        (child,) = self.processes
        child.join()
        if child.exitcode:
            raise Failure(f"guest-0 {process.describe_exit(child.exitcode)}")
        return FakeResult()


def serve(run: RunDir, api: str) -> None:
    import fake_guest

    def tell(address: str) -> None:
        if FAULT == "silent":
            return
        for name in ("hostd", "guest-0", "vcpud-0"):
            run.write_report(f"metrics-{name}", {"port": 9})
        run.write_report("api-guest-0", {"address": address})

    class Guest(fake_guest.FakeGuest):
        async def Shutdown(self, request: Any, context: Any) -> Any:
            if FAULT == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if FAULT == "stubborn":
                return fake_guest.load_pb2.ShutdownResponse()
            return await super().Shutdown(request, context)

    asyncio.run(fake_guest.serve_until_over(tell, api, Guest))


def play() -> None:
    """Only ``apf up`` starts a cluster; the others do without the engine, as the real ones do."""
    from deploy import bench, supervisor

    supervisor.LocalCluster = FakeCluster  # type: ignore[assignment,misc]
    bench.prepare = lambda scenario, **_: None


if __name__ == "__main__":
    if sys.argv[1:2] == ["up"]:
        play()
    cli.main()
