"""PromQL that panels share: rates in virtual time, modes of VMs, quantiles.

A run is as fast as the machine under it, so a rate a wall second says something about the emulator only. What the guest
sees is a rate a *virtual* second: both rates over the same interval, one divided by the other. Virtual time is told by
hostd and most counters by others, so the two meet by ``cluster``. While virtual time stands still there is no such rate,
and the panel has a gap: that is what ``> 0`` is for.

Counters are cut by ``$__rate_interval``, as Grafana advises: four scrapes at the least, whatever the zoom.
"""

from __future__ import annotations

CLUSTER = 'cluster=~"$cluster"'
VM = 'cluster=~"$cluster",vm=~"$vm"'
RANGE = "[$__rate_interval]"
PAGE_BYTES = 4096

VIRTUAL = f"(max by (cluster) (rate(apf_virtual_time_seconds{{{CLUSTER}}}{RANGE})) > 0)"
"""Virtual seconds a wall second of each cluster, where there are any."""


def rate(counter: str, by: str, where: str = VM) -> str:
    """A counter's rate a wall second, summed up to the labels ``by``."""
    return f"sum by ({by}) (rate({counter}{{{where}}}{RANGE}))"


def virtual_rate(counter: str, by: str, where: str = VM) -> str:
    """A counter's rate a virtual second; ``by`` must name ``cluster``."""
    assert by.split(", ", maxsplit=1)[0] == "cluster", by
    return f"{rate(counter, by, where)} / on (cluster) group_left () {VIRTUAL}"


def with_mode(vector: str, only: str = "") -> str:
    """``vector``, whose labels include ``cluster`` and ``vm``, with the label ``mode``; ``only``: a matcher of modes."""
    where = f"{VM},{only}" if only else VM
    return f"{vector} * on (cluster, vm) group_left (mode) max by (cluster, vm, mode) (apf_mode_info{{{where}}})"


def quantile(q: float, histogram: str, by: str, where: str = VM) -> str:
    """A quantile of a histogram, for each value of the labels ``by``."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', f'{by}, le', where)})"


def mean(histogram: str, by: str, where: str = VM) -> str:
    """Mean of a histogram, for each value of the labels ``by``; nothing where nothing was counted."""
    return f"{rate(f'{histogram}_sum', by, where)} / ({rate(f'{histogram}_count', by, where)} > 0)"


def share(part: str, whole: str, by: str) -> str:
    """``part`` of ``whole``, matched by the labels ``by``, where there is a whole."""
    return f"{part} / on ({by}) group_left () ({whole} > 0)"
