"""``apf device list``: the profiles of swap devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from apf import swapdevice
from apf.swapdevice import NAMES, Profile, ProfileError
from deploy.clusters import BadInput
from hostd import device_profiles


def table(files: Sequence[Path]) -> Table:
    """The profiles that ship, and those in ``files``. OSError, BadInput."""
    shown = Table()
    shown.add_column("device", no_wrap=True)
    shown.add_column("median read", justify="right")
    shown.add_column("servers", justify="right")
    shown.add_column("background")
    shown.add_column("source")
    try:
        profiles: dict[str, Profile] = {name: device_profiles.shipped(name) for name in NAMES}
        profiles |= {str(file): swapdevice.carry(file) for file in files}
    except ProfileError as error:
        raise BadInput(str(error)) from error
    for name, profile in profiles.items():
        shown.add_row(
            name,
            f"{profile.median_ns / 1000:g} us",
            str(profile.servers or "per vCPU"),
            "yes" if profile.background else "no",
            profile.source,
        )
    return shown
