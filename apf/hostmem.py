"""The memory all processes of one emulated host share: frames, EPTs, accessed and dirty bytes, frame generations.

hostd owns it; vCPU workers read the EPT and the generations, use the frames, and set accessed and dirty bytes. Within
a window the EPT is read-only; hostd rewrites it at borders, when no vCPU runs. hostd also reads and clears accessed
and dirty bytes at borders only, so one bank is enough: no store to it can race with hostd. Two vCPUs may store the
same byte at once, but all store 1.

An EPT entry is a u64: ``pfn << 12 | EPT_WRITE | EPT_PRESENT``, or 0 for not present.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apf import sharedfile
from apf.messages import PAGE_SHIFT, PAGE_SIZE
from apf.scenario import Scenario

EPT_PRESENT = 1
EPT_WRITE = 2

_ALIGN = 2 << 20


def ept_entry(pfn: int, writable: bool) -> int:
    """The EPT entry that maps ``pfn``."""
    return pfn << PAGE_SHIFT | (EPT_WRITE if writable else 0) | EPT_PRESENT


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that all processes of a host agree on: frames in the pool, and guest pages of each VM, in order."""

    frames: int
    guest_pages: tuple[int, ...]

    @classmethod
    def of(cls, scenario: Scenario) -> Geometry:
        """The geometry of the scenario's host."""
        vms = scenario.host.places
        managed = scenario.host.memory or vms * scenario.vm.group_memory
        return cls(
            managed // PAGE_SIZE + scenario.host.reserve_frames, (scenario.vm.guest_memory // PAGE_SIZE,) * vms
        )

    def regions(self) -> dict[str, tuple[int, int]]:
        """Name -> (offset, length in bytes) of every region in the shared file."""
        sizes = {
            "frames": self.frames * PAGE_SIZE,
            "accessed": self.frames,
            "dirty": self.frames,
            "generation": self.frames * 4,
        }
        for vm, pages in enumerate(self.guest_pages):
            sizes[f"ept{vm}"] = pages * 8
        offset, regions = 0, {}
        for name, size in sizes.items():
            regions[name] = (offset, size)
            offset += -(-size // PAGE_SIZE) * PAGE_SIZE
        return regions

    @property
    def bytes(self) -> int:
        """Length of the shared file; only pages that are used take memory."""
        offset, size = max(self.regions().values())
        return -(-(offset + size) // _ALIGN) * _ALIGN


class HostMemory:
    """One process's view of the shared file (or, for the twin, of anonymous memory)."""

    def __init__(self, geometry: Geometry, mapping: mmap.mmap) -> None:
        self.geometry = geometry
        self._mapping = mapping
        whole = np.frombuffer(mapping, dtype=np.uint8)
        self.address = int(whole.ctypes.data)
        """Where the mapping starts in this process; frames come first, so it is also frame 0's address."""
        regions = geometry.regions()

        def view(name: str) -> npt.NDArray[np.uint8]:
            offset, size = regions[name]
            return whole[offset : offset + size]

        self.frames: npt.NDArray[np.uint8] = view("frames").reshape(geometry.frames, PAGE_SIZE)
        self.accessed: npt.NDArray[np.uint8] = view("accessed")
        self.dirty: npt.NDArray[np.uint8] = view("dirty")
        self.generation: npt.NDArray[np.uint32] = view("generation").view(np.uint32)
        self.epts: list[npt.NDArray[np.uint64]] = [
            view(f"ept{vm}").view(np.uint64) for vm in range(len(geometry.guest_pages))
        ]

    @classmethod
    def anonymous(cls, geometry: Geometry) -> HostMemory:
        """Memory of this process alone."""
        return cls(geometry, mmap.mmap(-1, geometry.bytes))

    @classmethod
    def create(cls, geometry: Geometry, path: Path) -> HostMemory:
        """Make the shared file at ``path`` (which must not exist) and map it."""
        return cls(geometry, sharedfile.create(path, geometry.bytes))

    @classmethod
    def attach(cls, geometry: Geometry, path: Path) -> HostMemory:
        """Map the shared file another process made."""
        return cls(geometry, sharedfile.attach(path, geometry.bytes))
