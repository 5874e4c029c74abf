"""``apf memory``: the files of a VM's memory group and the host's counters, from a running host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from apf.v1 import host_pb2
from deploy import client
from deploy.clusters import BadInput

_AVERAGES = ("avg10", "avg60", "avg300")


def show(address: str, vm: int, json_file: Path | None, console: Console) -> None:
    """Print the memory of a VM as its host shows it, and write it to ``json_file``. Raises BadInput or Failure."""
    with client.host_service(address) as service:
        answer = service.GetMemory(host_pb2.GetMemoryRequest(vm=vm), timeout=client.CALL_S)
    found = document(vm, answer)
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise BadInput(f"--json = {json_file}: {error.strerror}") from error
    console.print("\n".join(_lines(vm, found)), highlight=False, soft_wrap=True)


def document(vm: int, answer: host_pb2.GetMemoryResponse) -> dict[str, Any]:
    """An answer in the form that ``memory`` and ``vmstat`` have in a run's results; counters by name."""
    group = answer.group
    files = {
        "memory.current": group.current,
        "memory.high": group.high if group.HasField("high") else "max",
        "memory.max": group.max,
        "memory.swap.current": group.swap_current,
        "memory.swap.max": "max",
        "memory.stat": dict(sorted(group.stat.items())),
        "memory.events": dict(sorted(group.events.items())),
        "memory.pressure": _pressure(group.pressure),
    }
    root = {"memory.pressure": _pressure(answer.root_pressure)}
    vmstat = dict(sorted(answer.vmstat.items()))
    return {"now_ns": answer.now_ns, "memory": {str(vm): files, "root": root}, "vmstat": vmstat}


def _pressure(found: host_pb2.Pressure) -> dict[str, dict[str, Any]]:
    return {"some": _line(found.some), "full": _line(found.full)}


def _line(found: host_pb2.PressureLine) -> dict[str, Any]:
    return {name: f"{getattr(found, name):.2f}" for name in _AVERAGES} | {"total": found.total_us}


def _lines(vm: int, found: dict[str, Any]) -> list[str]:
    """As cat(1) would print the files, each below its name."""
    lines = [f"VM {vm} at {found['now_ns'] / 1e9:.9f} s of guest time"]
    for name, content in found["memory"][str(vm)].items():
        lines += _file(name, content)
    lines.append("host")
    lines += _file("memory.pressure of the fault-in workers", found["memory"]["root"]["memory.pressure"])
    return lines + _file("vmstat", found["vmstat"])


def _file(name: str, content: Any) -> list[str]:
    if not isinstance(content, dict):
        return [f"{name} {content}"]
    lines = [name]
    for key, value in content.items():
        shown = " ".join(f"{word}={number}" for word, number in value.items()) if isinstance(value, dict) else value
        lines.append(f"  {key} {shown}")
    return lines
