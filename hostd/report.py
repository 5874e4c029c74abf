"""What a host has to say at the end of a run; the same from the daemon and the twin."""

from __future__ import annotations

from typing import Any

from hostd import memory
from hostd.shell import HostShell


def host_report(shell: HostShell) -> dict[str, Any]:
    """Counters and memory by the kernel's names, memory pressure, and what the audit of all stamped pages found."""
    audit, mm, now_ns = shell.audit(), shell.core.watched(), shell.core.now_ns
    pressure = shell.core.pressure()
    return {
        "counters": dict(shell.core.counters),
        "pressure_ns": {group: {"some": one.some_ns, "full": one.full_ns} for group, one in pressure.items()},
        "memory": {str(vm): memory.group_files(mm, vm, now_ns) for vm in range(len(mm.groups))}
        | {"root": {"memory.pressure": memory.pressure_file(mm.root_pressure.totals(now_ns))}},
        "vmstat": memory.vmstat(mm),
        "audit": {"pages": audit.pages, "corrupt": audit.corrupt, "writes": sum(audit.writes.values())},
    }
