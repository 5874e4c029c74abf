"""Every query of every panel, variable and rule, asked of a real Prometheus that scrapes real runs.

Two clusters of one scenario, one of them without APF, on one Prometheus: what "is it paying off?" needs. A query passes
if it has data, and names nothing but what the daemons serve, Prometheus itself makes, or a rule records. Skipped, and
said so, where no Prometheus is installed (Debian: apt-get install prometheus).
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_runs import until
from prometheus_client.parser import text_string_to_metric_families

from deploy.clusters import Clusters
from deploy.grafana.generate import DIRECTORY
from deploy.scraper import Prometheus, Scraping, find_binary, rule_files

ROOT = Path(__file__).resolve().parents[2]
MODES = {"with": "pv2010", "without": "off"}
SCENARIO = """\
duration_s = 0
# Half of what two cores would do, so that commands and Prometheus have their turn.
pace = 0.5
[vm]
vcpus = 2
guest_memory = "96MiB"
group_memory = "16MiB"
[swap]
device = "nvme"
[host]
reserve_frames = 1024
[[process]]
name = "workers"
memory = "1MiB"
[[process.thread]]
program = "work_thread"
count = 2
[[process]]
name = "mem"
memory = "16MiB"
access_threads = 2
[[process]]
name = "faulters"
memory = "32MiB"
[[process.thread]]
program = "fault_thread"
count = 2
"""
INTERVAL_MS = 500
WINDOW = "6s"
"""What Grafana would put for $__rate_interval, with room for scrapes that came late on a busy machine."""
DEADLINE_S = 60.0
# What Prometheus makes itself.
ITS_OWN = {"up", "ALERTS", "ALERTS_FOR_STATE", "scrape_duration_seconds", "scrape_samples_scraped"}
WORDS = {
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "or",
    "and",
    "unless",
    "bool",
    "offset",
    "inf",
}

pytestmark = [
    pytest.mark.skipif(find_binary() is None, reason="no prometheus on this machine (apt-get install prometheus)"),
    pytest.mark.timeout(300),
]


@dataclass(frozen=True)
class Scraped:
    """A Prometheus that knows both runs, and the names of all samples their daemons serve."""

    address: str
    names: frozenset[str]

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that has a value now."""
        data = self.get("query", query=expr)
        found = [(series["metric"], float(series["value"][1])) for series in data["result"]]
        return [(labels, value) for labels, value in found if not math.isnan(value)]

    def one(self, expr: str) -> tuple[dict[str, str], float]:
        """The only series, soon if not now: a scrape that came too late leaves a gap."""
        found: list[tuple[dict[str, str], float]] = []

        def arrived() -> bool:
            found[:] = self.query(expr)
            return bool(found)

        until(f"data of {expr}", arrived)
        (series,) = found
        return series


def started(directory: Path, *command: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *command],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
    )


def apf(directory: Path, *commands: tuple[str, ...]) -> None:
    """Commands of the emulator, all at once; none may fail."""
    running = [started(directory, *command, stdout=subprocess.PIPE) for command in commands]
    told = [(command.communicate(timeout=120)[0], command.returncode) for command in running]
    assert not any(code for _, code in told), "\n".join(text for text, _ in told)


def sample_names(addresses: list[str]) -> frozenset[str]:
    names = set()
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            names |= {sample.name for family in families for sample in family.samples}
    return frozenset(names)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    base = tmp_path_factory.mktemp("scraped")
    (base / "apf").mkdir(mode=0o700)
    clusters = Clusters(base / "apf")
    path = base / "both.toml"
    path.write_text(SCENARIO)
    binary = find_binary()
    assert binary is not None
    told = Scraping(binary, clusters.targets("*"), interval_ms=INTERVAL_MS, rules=rule_files())
    loads: list[subprocess.Popen[str]] = []
    with Prometheus(told, base / "prometheus", DEADLINE_S) as prometheus:
        try:
            apf(base, *(("up", str(path), "--name", name, "--apf", mode) for name, mode in MODES.items()))
            found = [record for name in MODES if (record := clusters.find(name)) is not None]
            names = sample_names([address for record in found for address in record.metrics.values()])
            load = ("load", "--process", "mem", "--iodepth", "1", "--duration", "280")
            loads += [started(base, *load, "--name", name) for name in MODES]
            yield Scraped(prometheus.address, names)
        finally:
            for running in loads:
                running.terminate()
                running.wait(DEADLINE_S)
            apf(base, *(("down", "--name", name) for name in clusters.names()))


def dashboards() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))}


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{name}: {panel['title']}")
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        if panel["type"] != "row"
    ]


def variables() -> list[Any]:
    return [
        pytest.param(variable["query"]["query"], id=f"{name}: {variable['name']}")
        for name, dashboard in dashboards().items()
        for variable in dashboard["templating"]["list"]
    ]


def filled_in(expr: str, **chosen: str) -> str:
    """An expression as Grafana sends it, all variables at "All" but for those ``chosen``."""
    expr = expr.replace("$__rate_interval", WINDOW)
    for name in re.findall(r"\$(\w+)", expr):
        expr = expr.replace(f"${name}", chosen.get(name, ".*"))
    return expr


def metric_names(expr: str) -> set[str]:
    """The metrics an expression names: its identifiers but for functions, key words and labels."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expr)
    bare = re.sub(r"\{[^{}]*\}", "", bare)
    bare = re.sub(r"\[[^\[\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)", " ", bare)
    found = re.findall(r"(?<![\w.:])([A-Za-z_:][\w:]*)(?!\w)(?!\s*\()", bare)
    return {name for name in found if name not in WORDS}


def test_names_are_found_in_expressions() -> None:
    expr = (
        'sum by (vm, le) (rate(a_total{vm=~"b.*",code!~"c(d)"}[5s])) / on (vm) group_left (mode) (e > 0) or 1e3 * f:g'
    )
    assert metric_names(expr) == {"a_total", "e", "f:g"}


def asked(scraped: Scraped, expr: str, known: set[str]) -> None:
    """``expr`` has data, soon if not yet, and names what there is."""
    unknown = metric_names(expr) - scraped.names - ITS_OWN - known
    assert not unknown, f"{expr}: no daemon exports {unknown}"
    until(f"data of {expr}", lambda: bool(scraped.query(expr)))


@pytest.mark.parametrize("panel", panels())
def test_every_panel_has_data(scraped: Scraped, panel: dict[str, Any]) -> None:
    repeated = panel.get("repeat")
    choices = [{repeated: mode} for mode in MODES.values()] if repeated else [{}]
    for target in panel["targets"]:
        for chosen in choices:
            asked(scraped, filled_in(target["expr"], **chosen), set())


@pytest.mark.parametrize("query", variables())
def test_every_variable_has_values(scraped: Scraped, query: str) -> None:
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", filled_in(query))
    assert match, query
    assert metric_names(match[1]) <= scraped.names
    until(query, lambda: bool(scraped.get(f"label/{match[2]}/values", **{"match[]": match[1]})))


def test_every_rule_works(scraped: Scraped) -> None:
    """Rules that record have data; those that alert are evaluated, and need none."""
    groups = scraped.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(groups) >= len(rule_files())
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    for rule in rules:
        assert not rule.get("lastError"), rule
        if rule["type"] == "recording":
            asked(scraped, rule["query"], recorded)
            continue
        unknown = metric_names(rule["query"]) - scraped.names - ITS_OWN - recorded
        assert not unknown, f"{rule['name']}: no daemon exports {unknown}"
        scraped.query(rule["query"])


def test_the_answer_is_right(scraped: Scraped) -> None:
    """Two threads that fault and two that count, on two vCPUs: APF nearly doubles the work, as ``apf bench`` says."""
    (page,) = (dashboard for name, dashboard in dashboards().items() if name == "apf-paying-off")
    first = next(panel for panel in page["panels"] if panel["type"] == "stat")
    labels, ratio = scraped.one(filled_in(first["targets"][0]["expr"]))
    assert labels == {"mode": "pv2010"} and 1.2 < ratio < 2.5


def test_stages_add_up_to_latencies(scraped: Scraped) -> None:
    """What 'where does a fault's time go?' rests upon: one query, for both are of one scrape then."""
    stages, latencies = (f'sum (apf_fault_{what}_seconds_sum{{cluster="with"}})' for what in ("stage", "latency"))
    _, quotient = scraped.one(f"{stages} / ({latencies} > 0)")
    # A fault may end between the two being read.
    assert abs(quotient - 1) < 0.01
