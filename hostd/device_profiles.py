"""The device of a scenario: one of the profiles that ship (TOML data in ``hostd/core/profiles``), or its own."""

from __future__ import annotations

from importlib import resources

from apf import swapdevice
from apf.swapdevice import MEASURED, CarriedProfile, Profile
from hostd.core.device import DeviceProfile

_REAL = DeviceProfile(
    name=MEASURED,
    servers=1,
    background=True,
    read_median_ns=100_000,  # chosen, an SSD's: windows are a part of it
    read_ns=(),
    write_ns=(),
    rotation_ns=0,
    transfer_ns=0,
    skip_slots_max=0,
    measured=True,
)


def shipped(name: str) -> Profile:
    """The profile called ``name`` as data; FileNotFoundError if there is none."""
    file = resources.files("hostd.core").joinpath("profiles", f"{name}.toml")
    return swapdevice.parse(file.read_bytes(), file.name)


def load(device: str | CarriedProfile) -> DeviceProfile:
    """The model of ``swap.device``; FileNotFoundError for a name that none has."""
    if device == MEASURED:
        return _REAL
    data, name = (shipped(device), device) if isinstance(device, str) else (device, device.name)
    return DeviceProfile(
        name=name,
        servers=data.servers,
        background=data.background,
        read_median_ns=data.median_ns,
        read_ns=data.read_ns,
        write_ns=data.write_ns,
        rotation_ns=data.rotation_ns,
        transfer_ns=data.transfer_ns,
        skip_slots_max=data.skip_slots_max,
        page_ns=data.page_ns,
        errors=(data.read_errors, data.write_errors),
    )
