"""What a host has to say at the end of a run; the same from the daemon and the twin."""

from __future__ import annotations

from typing import Any

from hostd.shell import HostShell


def host_report(shell: HostShell) -> dict[str, Any]:
    """Counters by the kernel's names, memory pressure, and what the audit of all stamped pages found."""
    audit = shell.audit()
    pressure = shell.core.pressure()
    return {
        "counters": dict(shell.core.counters),
        "pressure_ns": {group: {"some": one.some_ns, "full": one.full_ns} for group, one in pressure.items()},
        "audit": {"pages": audit.pages, "corrupt": audit.corrupt, "writes": sum(audit.writes.values())},
        "lost_pages": dict(sorted(audit.lost.items())),
        "page_errors": [
            {
                "vm": vm,
                "gfn": gfn,
                "slot": one.slot,
                "why": one.error.words,
                "since_ns": one.since_ns,
                "faults": one.faults,
            }
            for vm, gfn, one in shell.core.troubles()
        ],
        "told": shell.core.told,
    }
