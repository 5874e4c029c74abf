"""The memory of each VM's group, for ``apf top``, from two scrapes of hostd's /metrics.

Sizes are those of the later scrape. Refaults, scans and steals are rates a guest second between the two, pressure the
share of virtual time between the two in which some, and all, of the group's tasks waited; avg10 is the kernel's average.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

Sums = Mapping[str, float]
"""Samples summed by name; those with labels also by ``name[vm].kind``, as ``deploy.top.scrape`` makes them."""

_SIZES = ("current", "max", "high", "swap.current", "swapcached")
_REFAULTS = ("workingset_refault_anon", "workingset_refault_file")
_EVENTS = ("high", "max", "oom_kill")


def vms(metrics: Sums) -> list[str]:
    """Numbers of the VMs that have a memory group."""
    prefix, suffix = "apf_memory_bytes[", "].current"
    found = [key[len(prefix) : -len(suffix)] for key in metrics if key.startswith(prefix) and key.endswith(suffix)]
    return sorted(found, key=int)


def table(before: Sums, after: Sums) -> Table:
    """A row a VM, and the root group's pressure."""
    guest_s = _grown(before, after, "apf_virtual_time_seconds")
    shown = Table(title="memory groups", title_justify="left")
    shown.add_column("VM")
    for heading in ("current", "max", "high", "swap", "swapcached"):
        shown.add_column(heading, justify="right")
    for heading in ("refaults a guest s", "scan / steal", "high / max / oom", "pressure some / full", "avg10"):
        shown.add_column(heading, justify="right")
    for vm in vms(after):
        sizes = [_size(after.get(f"apf_memory_bytes[{vm}].{kind}")) for kind in _SIZES]
        refaults = sum(_grown(before, after, f"apf_memory_stat_total[{vm}].{name}") for name in _REFAULTS)
        scans = [_grown(before, after, f"apf_memory_stat_total[{vm}].{name}") for name in ("pgscan", "pgsteal")]
        events = [f"{after.get(f'apf_memory_events_total[{vm}].{name}', 0.0):,.0f}" for name in _EVENTS]
        work = " / ".join(_rate(count, guest_s) for count in scans)
        row = (_rate(refaults, guest_s), work, " / ".join(events), *_pressure(before, after, vm, guest_s))
        shown.add_row(vm, *sizes, *row)
    shown.add_row("root", *[""] * (len(_SIZES) + 3), *_pressure(before, after, "root", guest_s))
    return shown


def _pressure(before: Sums, after: Sums, vm: str, guest_s: float) -> tuple[str, str]:
    shares, averages = [], []
    for kind in ("some", "full"):
        grown_s = _grown(before, after, f"apf_pressure_seconds_total[{vm}].{kind}")
        shares.append(f"{100 * grown_s / guest_s:.1f} %" if guest_s else "-")
        averages.append(f"{100 * after.get(f'apf_pressure_ratio[{vm}].{kind}.avg10', 0.0):.2f}")
    return " / ".join(shares), " / ".join(averages)


def _grown(before: Sums, after: Sums, key: str) -> float:
    return max(0.0, after.get(key, 0.0) - before.get(key, 0.0))


def _rate(count: float, guest_s: float) -> str:
    return f"{count / guest_s:,.0f}" if guest_s else "-"


def _size(size: float | None) -> str:
    if size is None:
        return "-"
    return "max" if size == float("inf") else f"{size / (1 << 20):,.1f} MiB"
