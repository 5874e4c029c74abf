"""The journal: what a core did, when. Its digest is the run's fingerprint.

One line a record: ``<time_ns> <kind> <field> <field> ...``, fields are integers or words without white space. Every
core keeps its own journal, in its own deterministic order; a run's digest is made of the cores' digests in a fixed
order of names. Two runs are the same exactly if their digests are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from operator import index
from typing import TextIO

import msgspec

_FLUSH_RECORDS = 256
_ENCODER = msgspec.json.Encoder(enc_hook=index)
_SPACES = bytes.maketrans(b",", b" ")
_OTHERS = bytes(set(range(256)) - set(b"[],\\"))

Record = tuple[int | str, ...]


def _lines(records: list[Record]) -> bytes:
    """Their lines, by way of JSON: four times as fast as one after the other."""
    text = _ENCODER.encode_lines(records)
    # Of a record of n fields JSON itself has two brackets and n - 1 commas.
    if len(text.translate(None, _OTHERS)) != sum(map(len, records)) + len(records):
        return b"".join(map(_line, records))  # a word that JSON writes otherwise
    return text.translate(_SPACES, b'[]"')


def _line(record: Record) -> bytes:
    return b" ".join(word.encode() if isinstance(word, str) else _ENCODER.encode(word) for word in record) + b"\n"


class Journal(list[Record]):
    """Records of one core. Hashes as it goes; writes the lines to ``sink`` too if there is one.

    It is the list of those records that are not hashed yet, so that ``record`` is no more than a list's ``append``. A
    core calls ``settle`` now and then.
    """

    __slots__ = ("_flushed", "_hash", "_sink")

    def __init__(self, sink: TextIO | None = None) -> None:
        super().__init__()
        self._hash = hashlib.blake2b(digest_size=16)
        self._sink = sink
        self._flushed = 0

    record = list.append
    """Append one record: its time, its kind, and what else it has."""

    @property
    def records(self) -> int:
        """How many there are."""
        return self._flushed + len(self)

    def settle(self) -> None:
        """Flush if that is worth while."""
        if len(self) >= _FLUSH_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Format, hash and write what is pending."""
        if not self:
            return
        lines = _lines(self)
        self._flushed += len(self)
        self.clear()
        self._hash.update(lines)
        if self._sink is not None:
            self._sink.write(lines.decode())
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
