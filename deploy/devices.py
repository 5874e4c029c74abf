"""``apf device list``: the profiles of swap devices.

Errors are shown as the share of reads and of writes that fail; the bandwidth is the cap, where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from apf import swapdevice
from apf.swapdevice import ERRORS_OF, NAMES, Profile, ProfileError
from deploy.clusters import BadInput
from hostd import device_profiles


def table(files: Sequence[Path]) -> Table:
    """The profiles that ship, and those in ``files``. OSError, BadInput."""
    shown = Table()
    shown.add_column("device", no_wrap=True)
    shown.add_column("median read", justify="right")
    shown.add_column("servers", justify="right")
    shown.add_column("background")
    shown.add_column("at most", justify="right")
    shown.add_column("errors: read", justify="right")
    shown.add_column("write", justify="right")
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
            f"{profile.bandwidth / 1e6:g} MB/s" if profile.bandwidth else "-",
            *(
                f"{errors / ERRORS_OF:.2g}" if errors else "-"
                for errors in (profile.read_errors, profile.write_errors)
            ),
            profile.source,
        )
    return shown
