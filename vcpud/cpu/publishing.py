"""Stand-in for ``apf.clockpage.publish`` until that module is there: delete it and change the import in ``hooks``."""

from __future__ import annotations

from numba import njit

from vcpud.cpu.native import store64


@njit("void(int64, int64, int64)", cache=True)
def publish(page_address: int, slot: int, time_ns: int) -> None:
    """Store ``time_ns`` as the clock of ``slot`` in the page of 64-byte slots at ``page_address``."""
    store64(page_address + slot * 64, time_ns)
