"""Profiles of swap devices as data: those that ship, by name, and those of users, in files of their own.

A scenario that names a file carries what the file says, so that every process, every recording and every replay has
it, and the scenario's fingerprint covers it.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from apf import refusal
from apf.messages import PAGE_SIZE

DeviceName = Literal["hdd-7200", "sata-ssd", "nvme", "rdma", "zswap", "zram", "file"]
MEASURED = "file"
"""No profile: I/O takes as long as it takes on a real file."""
NAMES: tuple[str, ...] = tuple(name for name in get_args(DeviceName) if name != MEASURED)

_NS_PER_S = 1_000_000_000
ERRORS_OF = 10**15
"""Of so many I/Os a profile says how many fail: data sheets give rates of 1 in 10**14 to 10**17 bits read."""

_Time = Annotated[int, Field(ge=0, le=60_000_000_000)]
_Errors = Annotated[int, Field(ge=0, le=ERRORS_OF)]
_Quantiles = Annotated[
    tuple[Annotated[int, Field(ge=1, le=60_000_000_000)], ...], Field(min_length=2, max_length=65537)
]


class ProfileError(Exception):
    """A profile that cannot be used; the message names file, field, value and what is allowed, a line each."""


class Profile(BaseModel):
    """A latency model, all in integer guest ns; what the fields do is told in ``hostd.core.device``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Where the figures are from, in a line.
    source: Annotated[str, Field(pattern=r"^[ -~]*$", max_length=500)] = ""
    # I/Os at a time; 0: one a vCPU of the host, for devices that are work of the CPU.
    servers: Annotated[int, Field(ge=0, le=4096)]
    # False: the I/O finishes on the CPU that submits it.
    background: bool = True
    # 0: the middle of read_ns, half a revolution and a transfer.
    read_median_ns: _Time = 0
    # A revolution; 0: nothing rotates.
    rotation_ns: _Time = 0
    # Of one page.
    transfer_ns: _Time = 0
    # Slots ahead that cost only transfers; 0: every I/O is drawn.
    skip_slots_max: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    # Bytes a second that all servers together move at the most, as on a link that they share; 0: no matter how many.
    bandwidth: Annotated[int, Field(ge=0, le=10**15)] = 0
    # Of 10**15 reads, and of as many writes, so many fail at random, as of [[swap.fault]]'s read_error and write_error.
    read_errors: _Errors = 0
    write_errors: _Errors = 0
    # Quantiles of the service time at 0, 1/n, ..., 1.
    read_ns: Annotated[_Quantiles, Field(strict=False)]
    write_ns: Annotated[_Quantiles, Field(strict=False)]

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for field, table in (("read_ns", self.read_ns), ("write_ns", self.write_ns)):
            for index in range(1, len(table)):
                if table[index] < table[index - 1]:
                    raise ValueError(
                        f"{field}.{index} = {table[index]}: quantiles ascend, so at least {table[index - 1]}"
                    )
        if self.skip_slots_max and not self.transfer_ns:
            raise ValueError(f"skip_slots_max = {self.skip_slots_max}: 0, because transfer_ns is 0")
        if 0 < self.bandwidth < PAGE_SIZE:
            raise ValueError(f"bandwidth = {self.bandwidth}: 0, or at least {PAGE_SIZE}, a page a second")
        return self

    @property
    def page_ns(self) -> int:
        """What a page takes of ``bandwidth``, rounded up; 0: nothing."""
        return -(-PAGE_SIZE * _NS_PER_S // self.bandwidth) if self.bandwidth else 0

    @property
    def median_ns(self) -> int:
        """Median of a read."""
        return self.read_median_ns or self.read_ns[len(self.read_ns) // 2] + self.rotation_ns // 2 + self.transfer_ns

    def text(self, comment: str) -> str:
        """The profile as a TOML file that begins with the lines of ``comment``."""
        plain = self.model_dump(exclude={"read_ns", "write_ns"})
        return (
            "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
            + "\n"
            + "".join(f"{name} = {json.dumps(value)}\n" for name, value in plain.items())
            + f"\n# Quantiles at i/{len(self.read_ns) - 1}, ns.\n{_array('read_ns', self.read_ns)}"
            + _array("write_ns", self.write_ns)
        )


class CarriedProfile(Profile):
    """A profile as a scenario carries it, with the file it was in and that file's sha256."""

    file: Annotated[str, Field(max_length=4096)] = ""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @property
    def name(self) -> str:
        """What to call the device: the file's name without its suffix."""
        return Path(self.file).stem or "of the scenario"


def is_file(device: str) -> bool:
    """Whether ``device`` means a file: it has a suffix or a directory."""
    path = Path(device)
    return bool(path.suffix) or len(path.parts) > 1


def parse(raw: bytes, where: str) -> Profile:
    """The profile in the text of a TOML file that is called ``where``; ProfileError."""
    try:
        return Profile.model_validate(tomllib.loads(raw.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{where}: not TOML: {error}") from error
    except ValidationError as error:
        raise ProfileError("\n".join(f"{where}: {line}" for line in refusal.lines(error, Profile))) from error


def carry(file: Path) -> CarriedProfile:
    """The profile in ``file``, to be carried by a scenario; OSError, ProfileError."""
    raw = file.read_bytes()
    profile = parse(raw, str(file))
    return CarriedProfile(**profile.model_dump(), file=str(file), sha256=hashlib.sha256(raw).hexdigest())


def _array(name: str, table: tuple[int, ...]) -> str:
    rows = [", ".join(map(str, table[start : start + 10])) for start in range(0, len(table), 10)]
    return f"{name} = [\n" + "".join(f"  {row},\n" for row in rows) + "]\n"
