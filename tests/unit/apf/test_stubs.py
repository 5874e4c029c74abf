"""The committed stubs are what the committed protos come to."""

from __future__ import annotations

import re
from pathlib import Path

from grpc_tools import protoc

import apf.v1

ROOT = Path(__file__).parents[3]
STUBS = Path(apf.v1.__file__).parent
NAMES = ("types", "host", "guest", "load")


def test_fresh(tmp_path: Path) -> None:
    protos = [str(ROOT / "protos" / "apf" / "v1" / f"{name}.proto") for name in NAMES]
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT / 'protos'}", *out, *protos]) == 0
    made = sorted(path.name for path in (tmp_path / "apf" / "v1").iterdir())
    assert made == sorted(f"{name}_pb2{end}" for name in NAMES for end in (".py", ".pyi", "_grpc.py"))
    for name in made:
        fresh, committed = ((path / name).read_text() for path in (tmp_path / "apf" / "v1", STUBS))
        assert committed == fresh, f"{name} is stale: run 'poe protos'"


def test_every_proto_is_among_them() -> None:
    assert {path.stem for path in (ROOT / "protos").rglob("*.proto")} == set(NAMES)


def test_every_message_and_field_is_commented() -> None:
    """A comment on the line before, or at the end of the line."""
    thing = re.compile(r"\s*(message|enum|service|rpc|oneof)\s+\w+|\s*[\w. ]+ \w+ = \d+;|\s*[A-Z_0-9]+ = \d+;")
    for path in (ROOT / "protos").rglob("*.proto"):
        before = ""
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if thing.match(line) and not line.startswith(("syntax", "package")):
                assert "//" in line or before.lstrip().startswith("//"), f"{path.name}:{number}: {line.strip()}"
            before = line
