"""The ``apf`` command line: one function a command, its options in the signature, in files by what they are about.

What a command needs beside its options it imports when it runs: ``apf --help`` and the clients of a running guest do
without the engine, and those that fork processes without gRPC.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from deploy.cli import cluster, devices, guests, recordings, runs
from deploy.cli.groups import ungrouped

_COMMANDS: dict[str, Callable[..., None]] = {
    "bench": runs.bench,
    "run": runs.run,
    "replay": runs.replay,
    "walk": recordings.walk,
    "explain": recordings.explain,
    "trace": recordings.trace,
    "diff": recordings.diff,
    "include": runs.include,
    "certs": cluster.certs,
    "up": cluster.up,
    "status": cluster.status,
    "down": cluster.down,
    "join": cluster.join,
    "spawn": guests.spawn,
    "kill": guests.kill,
    "inject": guests.inject,
    "io-fault": guests.io_fault,
    "list": guests.list_,
    "load": guests.load,
    "top": guests.top,
    "memory": guests.memory,
    "policies": runs.policies,
}
_DEVICE_COMMANDS: dict[str, Callable[..., None]] = {"list": devices.list_, "fit": devices.fit}

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_device = typer.Typer(no_args_is_help=True, help="Swap devices: what there is, and your own from fio's measurements.")

for _name, _command in _COMMANDS.items():
    app.command(_name)(ungrouped(_command))
for _name, _command in _DEVICE_COMMANDS.items():
    _device.command(_name)(ungrouped(_command))
app.add_typer(_device, name="device")


@app.callback()
def _root() -> None:
    """Emulate KVM's asynchronous page fault: see what it buys, for this guest and this swap device."""


def main() -> None:
    """Entry point."""
    app()
