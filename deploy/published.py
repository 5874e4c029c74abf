"""Figures others have published, to be shown beside ours."""

from __future__ import annotations

PUBLISHED_SECONDS = 60

COUNTERS: dict[str, tuple[int, ...]] = {
    # The 2010 talk on asynchronous page faults: 4 vCPUs, 2 GiB guest in a group of 512 MiB, one minute.
    "off": (30_619_912_622, 33_951_339_266, 31_577_780_093, 33_603_607_972),
    "pv2010": (63_972_141_051, 65_149_033_299, 66_301_967_246, 63_423_000_989),
}
"""What each of the four working threads counted, by mode."""
