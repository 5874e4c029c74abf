"""An address space as the fill hook reads it: rows of int64, in ascending order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from unicorn import unicorn_const

from apf.messages import PAGE_SIZE, AddressSpace, Extent

ASID_MAX = (1 << 15) - 1
"""The address space is the top 16 bits of a block's key, whose sign bit stays free."""


def rows_of(space: AddressSpace, guest_pages: int) -> npt.NDArray[np.int64]:
    """``space`` as rows of (first gva, end gva, first gfn, ``UC_PROT`` permissions) for ``hooks.Word.EXTENTS``.

    Raises ValueError if it breaks a rule of ``AddressSpace`` or leaves the VM's ``guest_pages``.
    """
    if not 0 < space.asid <= ASID_MAX:
        raise ValueError(f"asid {space.asid} is not in 1..{ASID_MAX}")
    end = 0
    for extent in space.extents:
        _check_extent(extent, end, guest_pages)
        end = extent.gva + extent.pages * PAGE_SIZE
    return np.array([_row(extent) for extent in space.extents], np.int64).reshape(-1, 4)


def _row(extent: Extent) -> tuple[int, int, int, int]:
    permissions = unicorn_const.UC_PROT_READ
    if extent.writable:
        permissions |= unicorn_const.UC_PROT_WRITE
    if extent.executable:
        permissions |= unicorn_const.UC_PROT_EXEC
    return extent.gva, extent.gva + extent.pages * PAGE_SIZE, extent.gfn, permissions


def _check_extent(extent: Extent, end: int, guest_pages: int) -> None:
    if extent.writable and extent.executable:
        raise ValueError(f"{extent} is both writable and executable")
    if extent.gva % PAGE_SIZE or extent.pages < 1:
        raise ValueError(f"{extent} is not made of whole pages")
    if extent.gva < end:
        raise ValueError(f"{extent} begins before the end of its predecessor, {end:#x}")
    if extent.gva + extent.pages * PAGE_SIZE > 1 << 47:
        raise ValueError(f"{extent} leaves the user half of the address space")
    if extent.gfn < 0 or extent.gfn + extent.pages > guest_pages:
        raise ValueError(f"{extent} leaves the VM's {guest_pages} guest pages")
