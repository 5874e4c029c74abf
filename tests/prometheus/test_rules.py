"""Recording rules and alerts: promtool's own unit tests, and that they name only what is exported, and are all tested.

promtool comes with Debian's package ``prometheus``; where it is missing, its tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from apf import metrics
from hostd.core.mm import COUNTERS

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy" / "prometheus"
RULES = sorted(DEPLOY.glob("*.rules.yml"))
TESTS = sorted(HERE.glob("*_test.yml"))
PROMTOOL = shutil.which("promtool")
NAME = re.compile(r"\bapf_[a-z0-9_]+\b")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")


def promtool(*arguments: str | Path) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def uncommented(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))


@needs_promtool
@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_check_rules(path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", path)


@needs_promtool
@pytest.mark.parametrize("path", sorted(set(DEPLOY.glob("*.yml")) - set(RULES)), ids=lambda path: path.stem)
def test_check_config(path: Path) -> None:
    assert "2 rule files found" in promtool("check", "config", path)


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules(path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rules_name_what_is_exported(path: Path) -> None:
    known = {
        name
        for line in (metrics.__doc__ or "").splitlines()
        if line.startswith("| apf_")
        for name in NAME.findall(line)
    }
    known |= {f"apf_host_{name}_total" for name in COUNTERS}
    known |= {f"{name}_{suffix}" for name in known for suffix in ("bucket", "sum", "count")}
    # Recorded series have a level before and an operation after a colon: no metrics, nor are labels' values.
    expressions = re.sub(r'"[^"]*"|[a-z_]+:[a-z_]+:[a-z0-9_]+', "", uncommented(path))
    named = set(NAME.findall(expressions))
    assert named and named <= known, named - known


def test_everything_is_tested() -> None:
    told = "\n".join(uncommented(path) for path in TESTS)
    recorded = [name for path in RULES for name in re.findall(r"- record: (\S+)", path.read_text())]
    alerts = [name for path in RULES for name in re.findall(r"- alert: (\S+)", path.read_text())]
    assert len(recorded) == 12 and len(alerts) == 12
    for name in recorded:
        assert re.fullmatch(r"[a-z_]+:apf_[a-z_]+:[a-z0-9_]+", name)
        assert f"expr: {name}" in told or f"* {name})" in told, name
    for name in alerts:
        silent = f"alertname: {name}, exp_alerts: []"
        fires = re.search(rf"alertname: {name}\n\s+exp_alerts:\n", told)
        assert silent in told and fires, name
