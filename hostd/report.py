"""What a host has to say at the end of a run; the same from the daemon and the twin."""

from __future__ import annotations

from typing import Any

from hostd import memory
from hostd.core.host import HostCore
from hostd.shell import HostShell

_GFNS_SHOWN = 8


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
        "told": [*shell.core.told, *_hanging(shell.core), *shell.swap.told()],
    }


def _hanging(core: HostCore) -> list[str]:
    """Who waits for ever, a line for each VM."""
    lines = []
    for vm, config in enumerate(core.config.vms):
        pages = core.hanging(vm)
        if pages:
            gfns = ", ".join(f"{gfn:#x}" for gfn, _since_ns in pages[:_GFNS_SHOWN])
            lines.append(
                f"VM {vm}: the handlers of its userfaultfd died at {(config.userfault.dies_ns or 0) / 1e9:g} s; who "
                f"touched these {len(pages)} pages waits for ever, and so would the VM's destruction: gfn {gfns}"
                f"{', ...' if len(pages) > _GFNS_SHOWN else ''}, the first since "
                f"{min(since_ns for _gfn, since_ns in pages) / 1e9:g} s"
            )
    return lines
