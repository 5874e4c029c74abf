"""Loads the device profiles that ship with the host core (TOML data in ``hostd/core/profiles``)."""

from __future__ import annotations

import tomllib
from importlib import resources

from hostd.core.device import DeviceProfile

NAMES = ("hdd-7200", "nvme")


def load(name: str) -> DeviceProfile:
    """The profile called ``name``; FileNotFoundError if there is none."""
    text = resources.files("hostd.core").joinpath("profiles", f"{name}.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return DeviceProfile(
        name=name,
        servers=data["servers"],
        background=data["background"],
        read_median_ns=data["read_median_ns"],
        read_ns=tuple(data["read_ns"]),
        write_ns=tuple(data["write_ns"]),
        rotation_ns=data["rotation_ns"],
        transfer_ns=data["transfer_ns"],
        skip_slots_max=data["skip_slots_max"],
    )
