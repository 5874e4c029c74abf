"""The journal: what a core did, when. Its digest is the run's fingerprint.

One line a record: ``<time_ns> <kind> <field> <field> ...``, fields are integers or words without white space. Every
core keeps its own journal, in its own deterministic order; a run's digest is made of the cores' digests in a fixed
order of names. Two runs are the same exactly if their digests are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TextIO

_FLUSH_RECORDS = 4096
_END = "\n"
_BETWEEN = f" {_END} "


class Journal:
    """Records of one core. Hashes as it goes; writes the lines to ``sink`` too if there is one."""

    def __init__(self, sink: TextIO | None = None) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._pending: list[int | str] = []
        self._sink = sink
        self.records = 0

    def record(self, time_ns: int, kind: str, *fields: int | str) -> None:
        """Append one record."""
        self._pending += (time_ns, kind, *fields, _END) if fields else (time_ns, kind, "", _END)
        self.records += 1
        if self.records % _FLUSH_RECORDS == 0:
            self.flush()

    def flush(self) -> None:
        """Hash and write what is pending."""
        if not self._pending:
            return
        text = " ".join(map(str, self._pending)).replace(_BETWEEN, _END)[:-2] + _END
        self._pending.clear()
        self._hash.update(text.encode())
        if self._sink is not None:
            self._sink.write(text)
            self._sink.flush()

    def digest(self) -> str:
        """Hex digest of all records so far."""
        self.flush()
        return self._hash.hexdigest()


def run_digest(parts: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """The run's digest from (core name, core digest) pairs, whatever order they come in."""
    pairs = sorted(dict(parts).items())
    joined = "".join(f"{name} {digest}\n" for name, digest in pairs)
    return hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()
