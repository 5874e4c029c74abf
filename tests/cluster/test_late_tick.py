"""A vCPU whose stall ends just before a border and that then takes a late tick: it goes on behind the border.

The server's promise says otherwise while the reply is under way. Whether the opener looks in between is chance.
One fault thread and nothing else on nvme meets it twice in 0.4 s. Seen as two digests of one scenario.
"""

from __future__ import annotations

from apf.scenario import load
from deploy.local import LocalCluster
from deploy.twin import run


def test_the_digest_does_not_depend_on_when_the_opener_looks() -> None:
    overrides = {
        "apf": ["off"],
        "duration_s": "0.4",
        "swap.device": "nvme",
        "vm.guest_memory": "96MiB",
        "vm.group_memory": "16MiB",
        "bench.buffer": "32MiB",
        "bench.fault_threads": 1,
        "bench.work_threads": 0,
        "host.reserve_frames": 256,
    }
    scenario = load(None, overrides)
    with LocalCluster(scenario) as cluster:
        result = cluster.wait()
    assert result.digest == run(scenario).digest
