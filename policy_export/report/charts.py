"""What is drawn: the tables of ``dvc plots``, and the same charts as pictures for the page.

The charts are the Vega-Lite templates in ``plots``, which DVC fills in for ``dvc plots`` and this module for the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import vl_convert
from dvc_render import VegaRenderer

from policy_export.report.findings import Findings
from policy_export.stage.files import write_table

PLOTS = Path("results/plots")
TEMPLATES = Path(__file__).parent / "plots"
VEGA_LITE = "5.8"
Theme = Literal["light", "dark"]
LINES = {"light": "#ccc", "dark": "#555"}
TEXT = {"light": "#333", "dark": "#ddd"}


@dataclass(frozen=True)
class Chart:
    """A chart of all policies.

    Attributes:
        name: of the table in ``results/plots``, without its ending.
        template: of Vega-Lite, in ``plots``, without its ending.
        x: column.
        y: column.
        x_label: what it is, with its unit.
        y_label: the same of y.
        title: of the chart.
        rows: what is drawn.
        again: the command that measures it again; ``{policy}`` stands for a policy.
    """

    name: str
    template: str
    x: str
    y: str
    x_label: str
    y_label: str
    title: str
    rows: list[dict[str, Any]]
    again: str

    def draw(self, theme: Theme) -> str:
        """Return the chart as SVG with a transparent background."""
        properties = {name: getattr(self, name) for name in ("x", "y", "x_label", "y_label", "title")}
        properties["template"] = str(TEMPLATES / f"{self.template}.json")
        rows = [row | {"rev": "this"} for row in self.rows]
        renderer = VegaRenderer(rows, self.name, **properties)
        spec: dict[str, Any] = renderer.get_filled_template()
        return str(vl_convert.vegalite_to_svg(_without_revisions(spec) | {"config": _config(theme)}, VEGA_LITE))


def _config(theme: Theme) -> dict[str, Any]:
    text, line = TEXT[theme], LINES[theme]
    axis = {
        "labelColor": text,
        "titleColor": text,
        "gridColor": line,
        "gridOpacity": 0.5,
        "domainColor": line,
        "tickColor": line,
    }
    return {
        "background": None,
        "padding": {"left": 24, "right": 8, "top": 4, "bottom": 4},
        "view": {"stroke": None},
        "title": {"color": text, "fontSize": 14},
        "axis": {**axis, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12, "labelLimit": 240},
        "legend": {"labelColor": text, "titleColor": text, "labelFontSize": 11, "symbolOpacity": 1},
        "range": {"category": {"scheme": "tableau10"}},
    }


def _without_revisions(content: Any) -> Any:
    """Return a chart of one revision, of which it need not tell."""
    match content:
        case dict():
            return {
                key: _without_revisions(value)
                for key, value in content.items()
                if not (isinstance(value, dict) and value.get("field") == "rev")
            }
        case list():
            return [_without_revisions(value) for value in content]
        case _:
            return content


def make_charts(found: Sequence[Findings], allowed: float) -> list[Chart]:
    """Return the charts of all policies, without those that have nothing to show.

    Args:
        found: of each policy.
        allowed: largest difference of a value.
    """
    charts = [
        Chart(
            "learning_curves",
            "lines",
            "steps",
            "return",
            "decisions taken while training",
            "return, mean of 30 episodes",
            "Learning curves",
            [{"policy": each.policy} | row for each in found for row in each.curve],
            "dvc repro -f -s train@{policy}",
        ),
        Chart(
            "latency",
            "intervals",
            "p50_us",
            "program",
            "microseconds: median, quartiles of the rounds' medians, 99th percentile",
            "program",
            "From a raw observation to the action, one at a time",
            [row for each in found for row in latencies(each)],
            "dvc repro -f -s bench@{policy}",
        ),
        Chart(
            "differences",
            "differences",
            "largest",
            "program",
            "largest difference of a value or an action from the policy's own; red: allowed",
            "program",
            "How far values are from the policy's own",
            [row | {"allowed": allowed} for each in found for row in differences(each)],
            "dvc repro -f -s parity_check@{policy}",
        ),
        Chart(
            "margins",
            "margins",
            "margin",
            "share",
            "value of the best action minus that of the second best",
            "share of decisions",
            "How close was the second best action?",
            [row for each in found for row in margins(each)],
            "dvc repro -f -s parity_check@{policy}",
        ),
    ]
    return [chart for chart in charts if chart.rows]


def batch_chart(found: Sequence[Findings]) -> Chart | None:
    """Return the chart of decisions a second by the size of the batch, which only the page shows."""
    rows = [
        {"policy": each.policy, "program": name, "batch": int(size), "per_second": speed["median"]}
        for each in found
        for name, sizes in ((each.bench or {}).get("offline_rows_per_s") or {}).items()
        for size, speed in sizes.items()
    ]
    labels = "rows of a batch", "decisions a second, on one core"
    again = "dvc repro -f -s bench@{policy}"
    title = "Large batches"
    return Chart("batches", "log_lines", "batch", "per_second", *labels, title, rows, again) if rows else None


def latencies(found: Findings) -> list[dict[str, Any]]:
    """Return a row of the chart of latencies for each program."""
    return [
        {"policy": found.policy, "program": name, "p50_us": entry["p50_us"], "p99_us": entry["p99_us"]}
        | entry["rounds_p50_us"]
        for name, entry in (found.bench or {"programs": {}})["programs"].items()
    ]


def differences(found: Findings) -> list[dict[str, Any]]:
    """Return a row of the chart of differences for each program: its largest, of a value or an action."""
    return [
        {"policy": found.policy, "program": name, "largest": largest}
        for name, entry in found.programs.items()
        if (largest := found.largest(entry)) is not None
    ]


def margins(found: Findings) -> list[dict[str, Any]]:
    """Return a row of the chart of margins for each bin of the histogram that is not empty, and those between."""
    histogram = (found.parity or {}).get("margins")
    if not histogram or not (total := sum(histogram["decisions"])):
        return []
    places = [place for place, count in enumerate(histogram["decisions"]) if count]
    return [
        {
            "policy": found.policy,
            "margin": float(f"{math.sqrt(10.0 ** (low + high)):.3g}"),
            "share": round(histogram["decisions"][place] / total, 5),
        }
        for place in range(places[0], places[-1] + 1)
        for low, high in [histogram["edges"][place : place + 2]]
    ]


COLUMNS: Mapping[str, Sequence[str]] = {
    "learning_curves": ("policy", "steps", "return"),
    "latency": ("policy", "program", "p50_us", "lower_quartile", "upper_quartile", "p99_us"),
    "differences": ("policy", "program", "largest", "allowed"),
    "margins": ("policy", "margin", "share"),
}


def write_charts(charts: Sequence[Chart]) -> None:
    """Write the tables of ``dvc plots``, all of them: an empty one where there is nothing to show."""
    rows = {chart.name: chart.rows for chart in charts}
    for name, columns in COLUMNS.items():
        write_table(PLOTS / f"{name}.csv", columns, rows.get(name, []))
