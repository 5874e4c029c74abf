"""Grafana's files without a Grafana: what is committed is what the code makes, the SDK's models read it, and it fits.

Whether the queries have data is asked of a real Prometheus, in ``tests/cluster/test_dashboards.py``.
"""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.generate import DIRECTORY, generated, write
from deploy.grafana.panels import DATASOURCE_UID, GRID, TAG

GRAFANA = DIRECTORY.parent
COMMITTED = {path.name: json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))}
UNITS = {value for name, value in vars(units).items() if name[0].isupper() and isinstance(value, str)}

each_dashboard = pytest.mark.parametrize("dashboard", COMMITTED.values(), ids=list(COMMITTED))


def shown(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Panels that are no headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_what_is_committed_is_what_the_code_makes() -> None:
    """If not: python -m deploy.grafana."""
    assert {path.name: path.read_text() for path in DIRECTORY.iterdir()} == generated()


def test_files_of_dashboards_that_are_no_more_go(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(COMMITTED)


@each_dashboard
def test_the_models_of_the_sdk_read_it(dashboard: dict[str, Any]) -> None:
    """All of it: what a model does not know it drops, and then the two differ."""
    register_default_plugins()
    read = Dashboard.from_json(json.loads(json.dumps(dashboard)))
    again = json.loads(JSONEncoder().encode(read))
    assert again == dashboard


@each_dashboard
def test_panels_fit_the_grid_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    boxes = {panel["id"]: panel["gridPos"] for panel in dashboard["panels"]}
    assert len(boxes) == len(dashboard["panels"]), "an id twice"
    for box in boxes.values():
        assert box["x"] >= 0 and box["y"] >= 0 and box["w"] > 0 and box["h"] > 0 and box["x"] + box["w"] <= GRID
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"panels {one} and {other}"


@each_dashboard
def test_rows_of_panels_leave_no_holes(dashboard: dict[str, Any]) -> None:
    """Every line of the grid is covered in its whole width."""
    covered: dict[int, int] = {}
    for panel in dashboard["panels"]:
        box = panel["gridPos"]
        for y in range(box["y"], box["y"] + box["h"]):
            covered[y] = covered.get(y, 0) + box["w"]
    assert set(covered) == set(range(len(covered))) and set(covered.values()) == {GRID}


@each_dashboard
def test_panels_say_how_to_read_them(dashboard: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in shown(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in shown(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert len(panel["description"]) > 80, panel["title"]
        assert defaults["unit"] in UNITS or defaults["unit"].startswith("suffix:"), panel["title"]
        values = [step["value"] for step in defaults["thresholds"]["steps"]]
        assert values[0] is None and values[1:] == sorted(values[1:]), panel["title"]


@each_dashboard
def test_queries_ask_the_provisioned_prometheus(dashboard: dict[str, Any]) -> None:
    known = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    for variable in dashboard["templating"]["list"]:
        assert variable["datasource"]["uid"] == DATASOURCE_UID and variable["includeAll"] and variable["multi"]
    for panel in shown(dashboard):
        assert panel["datasource"]["uid"] == DATASOURCE_UID
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs)
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == DATASOURCE_UID
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known


@each_dashboard
def test_dashboards_are_linked_to_one_another(dashboard: dict[str, Any]) -> None:
    """By their tag: Grafana shows a link to each dashboard that has it, with time and variables kept."""
    (link,) = dashboard["links"]
    assert dashboard["tags"] == [TAG] == link["tags"]
    assert link["type"] == "dashboards" and link["keepTime"] and link["includeVars"]


def test_there_is_one_question_each() -> None:
    assert all(dashboard["title"].endswith("?") for dashboard in COMMITTED.values())
    assert {dashboard["uid"] + ".json" for dashboard in COMMITTED.values()} == set(COMMITTED)
    assert len(COMMITTED) == 4


def test_provisioning_names_what_the_dashboards_name() -> None:
    datasource = (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert f"\n    uid: {DATASOURCE_UID}\n" in datasource and "type: prometheus" in datasource
    assert "type: file" in (GRAFANA / "provisioning" / "dashboards" / "apf.yml").read_text()
