"""How many instructions the first bytes of a block hold, without an instruction decoder of our own.

A block cut short by a fault was counted whole when it started; the engine needs the number of instructions before
the faulting one. Unicorn's translator knows where instructions begin: a ruler is an engine that runs nothing and is
only asked for the translation of the block's remainder, with an undefined instruction put behind it as a stop. A
block ends at its natural end or at the translator's limits (512 instructions, 4064 bytes), and a remainder is never
nearer to a limit than its block, so the translation ends where the block ends, or at the stop. It is a user-mode CPU
like the one measured: a privileged instruction ends a block there, before all of its bytes are looked at.

The answer depends on the bytes alone, hence it is remembered by them.
"""

from __future__ import annotations

from typing import Any

from vcpud.cpu.user_mode import new_user_cpu

_BASE = 0x10000
_ROOM = 0x3000
_STOP = b"\x0f\x0b"
_REMEMBERED = 4096


class Ruler:
    """Measures beginnings of blocks."""

    def __init__(self) -> None:
        self._uc: Any = None
        self._known: dict[tuple[bytes, int], int] = {}

    def instructions_before(self, block: bytes, total: int, offset: int) -> int:
        """Instructions in the first ``offset`` bytes of ``block``, which has ``total`` of them.

        ``offset`` must be where an instruction begins; raises AssertionError if the translator disagrees.
        """
        if offset == 0 or offset == len(block):
            return total if offset else 0
        known = self._known.get((block, offset))
        if known is not None:
            return known
        if self._uc is None:
            self._uc = new_user_cpu(beyond=_BASE + _ROOM)
            self._uc.mem_map(_BASE, _ROOM)
        remainder = block[offset:]
        self._uc.mem_write(_BASE, remainder + _STOP)
        self._uc.ctl_flush_tb()
        _, instructions, size = self._uc.ctl_request_cache(_BASE)
        beyond = size - len(remainder)
        assert beyond in (0, len(_STOP)), f"offset {offset} of {block.hex()}: translated {size} bytes"
        count = total - (int(instructions) - (1 if beyond else 0))
        assert 0 < count < total, f"offset {offset} of {block.hex()}: {count} of {total} instructions"
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[(block, offset)] = count
        return count
