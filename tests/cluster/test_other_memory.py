"""Ways of the host's memory other than the default: the same digest from the twin and the processes."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_runs import MEMORY, on_processes

from apf.scenario import load
from deploy import twin

WAYS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lru": ({"host.reclaim": "lru"}, ()),
    "clock": ({"host.reclaim": "clock", "gup": "nowait"}, ()),
    "fifo": ({"host.reclaim": "fifo", "apf": ["off"]}, ()),
    "high": ({"vm.group_high": "3MiB", "gup": "nowait"}, ()),
    "watermarks": (
        {"host.vms": 2, "host.memory": "9MiB", "vm.group_memory": "8MiB", "host.reserve_frames": 64},
        ("pgscan_kswapd", "pgsteal_kswapd", "pageoutrun", "kswapd_wake"),
    ),
    "scarce slots": ({"swap.size": "24MiB"}, ()),
}
"""What is changed, and counters that must then have counted."""


@pytest.mark.parametrize("way", WAYS)
def test_twin_and_processes(way: str) -> None:
    changes, counted = WAYS[way]
    base = {**MEMORY, "duration_s": "0.003", "bench.work_threads": 0, "apf": ["pv"], "swap.device": "nvme"}
    scenario = load(None, base | changes)
    one, other = twin.run(scenario), on_processes(scenario)
    assert one.digest == other.digest
    assert (one.windows, one.host_counters) == (other.windows, other.host_counters)
    assert one.host_counters["pgmajfault"] > 30 and one.corrupt_pages == other.corrupt_pages == 0
    for name in counted:
        assert one.host_counters[name], name
