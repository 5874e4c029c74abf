"""Assemble the built-in programs: every ``*.asm`` beside this file, into ``builtin.json``.

    python -m guestsched.programs.assemble

A development tool: it needs keystone-engine, which the emulator itself does not. Keystone knows neither ``.include``
nor ``.rept``; both are expanded here. In an included file ``@`` stands for the including program's name, so that all
labels of a program extend its name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from keystone import KS_ARCH_X86, KS_MODE_64, Ks

SOURCES = Path(__file__).parent
OUTPUT = SOURCES / "builtin.json"

_INCLUDE = re.compile(r'^\.include\s+"([\w.]+)"\n', re.MULTILINE)
_REPEAT = re.compile(r"^\s*\.rept\s+(\d+)\n(.*?)^\s*\.endr\n", re.MULTILINE | re.DOTALL)
_LABEL = re.compile(r"^(\w+):", re.MULTILINE)
_COMMENT = re.compile(r"#.*$", re.MULTILINE)


def assemble(name: str, source: str) -> tuple[bytes, dict[str, int]]:
    """Intel-syntax ``source`` of program ``name`` as code for any address, and the offset of every label in it."""
    text = _INCLUDE.sub(lambda match: (SOURCES / match[1]).read_text(), source)
    text = _COMMENT.sub("", text).replace("@", name)
    text = _REPEAT.sub(lambda match: match[2] * int(match[1]), text)
    assembler = Ks(KS_ARCH_X86, KS_MODE_64)
    symbols = {match[1]: _offset(assembler, text, match[1]) for match in _LABEL.finditer(text)}
    return bytes(assembler.asm(text)[0]), symbols


def _offset(assembler: Ks, text: str, label: str) -> int:
    """Where ``label`` is. Keystone keeps its symbols to itself, but an appended absolute reference shows one."""
    whole = bytes(assembler.asm(f"{text}\n        .quad {label}\n")[0])
    return int.from_bytes(whole[-8:], "little")


def built() -> str:
    """The contents that ``builtin.json`` should have."""
    programs = {}
    for path in sorted(SOURCES.glob("*.asm")):
        code, symbols = assemble(path.stem, path.read_text())
        programs[path.stem] = {"code": code.hex(), "symbols": symbols}
    return json.dumps(programs, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(built())
