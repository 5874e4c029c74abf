"""``apf policies``: every policy against the optimum for the same uses, as table, plot and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.policies import POLICIES, PROGRAMS

RUN = ["policies", "--duration", "0.05", "--group-memory", "4MiB"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, object]], str, bytes]:
    directory = tmp_path_factory.mktemp("policies")
    plot, document = directory / "plot.png", directory / "found.json"
    done = CliRunner().invoke(app, [*RUN, "--plot", str(plot), "--json", str(document)])
    assert done.exit_code == 0, done.output
    return json.loads(document.read_text()), done.output, plot.read_bytes()


def test_every_policy_on_every_program_with_its_bound(compared: tuple[list[dict[str, object]], str, bytes]) -> None:
    found, text, picture = compared
    assert [(one["program"], one["policy"]) for one in found] == [(a, b) for a in PROGRAMS for b in POLICIES]
    for one in found:
        assert 0 < one["fewest"] <= one["page_ins"] < one["accesses"] * 1.1, one
        assert one["rate"] == 1000 * one["page_ins"] / one["accesses"]
    assert len({one["digest"] for one in found if one["program"] == "zipfian"}) > 2
    for policy in POLICIES:
        assert policy in text
    assert picture.startswith(b"\x89PNG") and len(picture) > 5_000


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--programs", "zipfian,nothing"], "nothing"),
        (["--policies", "kernel,,fifo"], "--policies = 'kernel,,fifo': names with commas between, each once"),
        (["--policies", "mru"], "host.reclaim = 'mru': allowed: kernel, clock, lru, fifo"),
        (["--plot", "x.gif"], "--plot = x.gif: a file .png, .svg or .pdf"),
        (["--duration", "long"], "duration_s"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: list[str], told: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*RUN, *options])
    assert done.exit_code == 2 and told in " ".join(done.output.split()), done.output
