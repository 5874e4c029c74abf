"""What a panel and a dashboard of ours look like: the same everywhere, so that only questions and queries differ.

Every panel has a unit, thresholds, and a description that says how to read it to somebody who plans capacity and does
not know the emulator. Thresholds colour single values, and are dashed lines in graphs; a panel in which no value is
better than another has none (``PLAIN``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Self

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE_UID = "apf-prometheus"
"""Also in provisioning/datasources."""
TAG = "apf"
"""All dashboards that have it link to each other."""
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid=DATASOURCE_UID)

Steps = tuple[tuple[float | None, str], ...]
PLAIN: Steps = ((None, "blue"),)

GRID = 24
STAT_HEIGHT = 5
GRAPH_HEIGHT = 9


def rising(good: float, bad: float) -> Steps:
    """Small values are good, those from ``bad`` on are bad."""
    return ((None, "green"), (good, "yellow"), (bad, "red"))


def falling(bad: float, good: float) -> Steps:
    """Values below ``bad`` are bad, those from ``good`` on are good."""
    return ((None, "red"), (bad, "yellow"), (good, "green"))


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and the name of its series, ``{{label}}`` for a label's value."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Look:
    """What is the same of every kind of panel."""

    title: str
    description: str
    unit: str
    steps: Steps = PLAIN
    minimum: float | None = 0.0
    maximum: float | None = None
    decimals: int | None = None
    # What is shown where there is no data: what would have to run for there to be some.
    empty: str | None = None


# Builders of panels share methods but no class; that of tables stands for all of them.
def _common(builder: Any, look: Look, width: int, height: int) -> Any:
    steps = [models.Threshold(value=value, color=color) for value, color in look.steps]
    builder.title(look.title).description(look.description).datasource(DATASOURCE)
    builder.unit(look.unit).span(width).height(height)
    builder.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if look.minimum is not None:
        builder.min(look.minimum)
    if look.maximum is not None:
        builder.max(look.maximum)
    if look.decimals is not None:
        builder.decimals(look.decimals)
    if look.empty is not None:
        builder.no_value(look.empty)
    return builder


def _targets(
    builder: Any, queries: Sequence[Query], *, instant: bool = False, form: PromQueryFormat | None = None
) -> Any:
    for ref, query in zip(ascii_uppercase, queries, strict=False):
        target = (
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref).datasource(DATASOURCE)
        )
        target = target.instant() if instant else target.range()
        builder.with_target(target.format(form or PromQueryFormat.TIME_SERIES))
    return builder


def single(look: Look, queries: Sequence[Query], width: int) -> Any:
    """The last value of each series in large figures, with its course behind it."""
    builder = stat.Panel().graph_mode(common_models.BigValueGraphMode.AREA)
    builder.color_mode(common_models.BigValueColorMode.VALUE)
    builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    builder.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return _targets(_common(builder, look, width, STAT_HEIGHT), queries)


def graph(look: Look, queries: Sequence[Query], width: int, *, stacked: bool = False, log: bool = False) -> Any:
    """Series over time; ``stacked`` where they add up to a whole, ``log`` where they span decades."""
    builder = timeseries.Panel().line_width(1).fill_opacity(60 if stacked else 8)
    builder.show_points(common_models.VisibilityMode.NEVER)
    builder.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    builder.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "mean", "max"])
    )
    builder.tooltip(
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )
    if stacked:
        builder.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if log:
        scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        builder.scale_distribution(scale)
    lines = len(look.steps) > 1
    style = common_models.GraphThresholdsStyleMode.DASHED if lines else common_models.GraphThresholdsStyleMode.OFF
    builder.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    return _targets(_common(builder, look, width, GRAPH_HEIGHT), queries)


def heat(look: Look, expr: str, width: int) -> Any:
    """A histogram over time: a column an interval, the darker the more. ``expr`` keeps the label ``le``."""
    builder = heatmap.Panel().calculate(False).cell_gap(1)
    builder.color(
        heatmap.HeatmapColorOptions()
        .mode(heatmap_models.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
    )
    builder.y_axis(heatmap.YAxisConfig().unit(look.unit))
    builder.hide_from(common.HideSeriesConfig().legend(False).tooltip(False).viz(False))
    builder.mode(common_models.TooltipDisplayMode.SINGLE).show_y_histogram().show_color_scale(True)
    builder.show_legend().filter_values(heatmap.FilterValueRange().le(1e-9))
    queries = [Query(expr, "{{le}}")]
    return _targets(_common(builder, look, width, GRAPH_HEIGHT), queries, form=PromQueryFormat.HEATMAP)


def bars(look: Look, queries: Sequence[Query], width: int) -> Any:
    """The last value of each series as a bar: to compare series, not times."""
    builder = bargauge.Panel().orientation(common_models.VizOrientation.HORIZONTAL)
    builder.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    builder.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    return _targets(_common(builder, look, width, GRAPH_HEIGHT), queries)


def rows(look: Look, query: Query, columns: Sequence[str], width: int) -> Any:
    """The labels ``columns`` of what there is now, as a table."""
    builder = table.Panel().align(common_models.FieldTextAlignment.AUTO).inspect(False)
    hidden = dict.fromkeys(("Time", "Value"), True)
    order = {name: index for index, name in enumerate(columns)}
    options = {"excludeByName": hidden, "indexByName": order, "renameByName": {}}
    builder.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    return _targets(_common(builder, look, width, GRAPH_HEIGHT), [query], instant=True, form=PromQueryFormat.TABLE)


def variable(name: str, label: str, description: str, query: str) -> dashboard.QueryVariable:
    """A choice of any number of a label's values, at first all of them."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        # Also what has no such label, or has it no more.
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


CLUSTERS = variable(
    "cluster",
    "Cluster",
    "Runs, by the label that is put on when they are scraped; empty if nothing puts it on.",
    "label_values(apf_virtual_time_seconds, cluster)",
)
VMS = variable("vm", "VM", "VMs of these runs.", 'label_values(apf_mode_info{cluster=~"$cluster"}, vm)')


class Page:
    """A dashboard in the making: rows and panels from left to right, then downwards."""

    def __init__(self, uid: str, title: str, description: str, *variables: dashboard.QueryVariable) -> None:
        self.uid = uid
        self._numbers = 0
        self._builder = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .readonly()
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time("now-15m", "now")
            .refresh("5s")
            .timezone("browser")
            .variables([*variables])
            .link(
                dashboard.DashboardLink("APF emulator")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .as_dropdown(False)
                .include_vars(True)
                .keep_time(True)
            )
        )

    def row(self, title: str, *panels: Any) -> Self:
        """A heading, and panels below it."""
        self._builder.with_row(dashboard.Row(title).id(self._next()))
        for panel in panels:
            self._builder.with_panel(panel.id(self._next()))
        return self

    def build(self) -> models.Dashboard:
        """The dashboard."""
        return self._builder.build()

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers
