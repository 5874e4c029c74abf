"""The host's memory as messages, for who watches over gRPC; the figures are ``hostd.memory``'s."""

from __future__ import annotations

from typing import Any

from apf.v1 import host_pb2
from hostd import memory
from hostd.core.mm import Mm


def memory_out(mm: Mm, vm: int, now_ns: int) -> host_pb2.GetMemoryResponse:
    """Memory of VM ``vm`` and of its host at virtual time ``now_ns``; beside a step of the core too."""
    files = memory.group_files(mm, vm, now_ns)
    high = files["memory.high"]
    group = host_pb2.MemoryGroup(
        current=files["memory.current"],
        high=None if high == memory.NO_LIMIT else high,
        max=files["memory.max"],
        swap_current=files["memory.swap.current"],
        stat=files["memory.stat"],
        events=files["memory.events"],
        pressure=_pressure_out(files["memory.pressure"]),
    )
    root = memory.pressure_file(mm.root_pressure.totals(now_ns))
    return host_pb2.GetMemoryResponse(
        now_ns=now_ns, group=group, vmstat=memory.vmstat(mm), root_pressure=_pressure_out(root)
    )


def _pressure_out(found: dict[str, dict[str, Any]]) -> host_pb2.Pressure:
    return host_pb2.Pressure(some=_line_out(found["some"]), full=_line_out(found["full"]))


def _line_out(line: dict[str, Any]) -> host_pb2.PressureLine:
    ten, sixty, three_hundred = (float(line[name]) for name in ("avg10", "avg60", "avg300"))
    return host_pb2.PressureLine(avg10=ten, avg60=sixty, avg300=three_hundred, total_us=line["total"])
