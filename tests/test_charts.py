"""The charts of the page are those of ``dvc plots``."""

from __future__ import annotations

from pipeline_helpers import ROOT
from ruamel.yaml import YAML

from policy_export.report.charts import COLUMNS, PLOTS, make_charts
from policy_export.report.findings import Findings

PROGRAM = {"max_abs_difference": {"action_value": 1e-6, "next_hidden": 1.0}, "flip_rate_bound": {}}
FOUND = Findings(
    "mine",
    train=None,
    curve=[{"steps": 10.0, "return": 1.0, "loss": 0.1}],
    parity={"programs": {"onnx": PROGRAM}, "margins": {"edges": [-1, 0, 1, 2, 3], "decisions": [0, 1, 0, 3]}},
    bench={
        "programs": {"onnx": {"p50_us": 5, "p99_us": 9, "rounds_p50_us": {"lower_quartile": 4, "upper_quartile": 6}}}
    },
    manifest=None,
    stands=False,
)


def test_charts_are_as_dvc_yaml_has_them():
    stage = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    declared = {path: props for plot in stage["plots"] for path, props in plot.items()}
    charts = {(PLOTS / f"{chart.name}.csv").as_posix(): chart for chart in make_charts([FOUND], 1e-5)}
    assert charts.keys() == declared.keys()
    for path, props in declared.items():
        chart = charts[path]
        assert props["template"] == f"policy_export/report/plots/{chart.template}.json"
        assert all(props[key] == getattr(chart, key) for key in props.keys() - {"cache", "template"})
        assert {props["x"], "policy"} <= set(COLUMNS[chart.name]) <= set(chart.rows[0])


def test_what_is_drawn():
    rows = {chart.name: chart.rows for chart in make_charts([FOUND], 1e-5)}
    assert rows["differences"] == [{"policy": "mine", "program": "onnx", "largest": 1e-6, "allowed": 1e-5}]
    assert [(row["margin"], row["share"]) for row in rows["margins"]] == [(3.16, 0.25), (31.6, 0.0), (316.0, 0.75)]


def test_charts_need_not_have_anything_to_show():
    empty = Findings("mine", None, [], None, None, None, stands=False)
    assert make_charts([empty], 1e-5) == []
    assert [chart.draw("dark").count("<svg") for chart in make_charts([FOUND], 1e-5)[2:3]] == [1]
