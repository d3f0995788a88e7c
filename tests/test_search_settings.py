"""The search for settings: what is tried, that it runs, and what its table says."""

from __future__ import annotations

import contextlib
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import ROOT, change_params

from policy_export.backends import runtimes
from policy_export.benchmark.measured import Measured
from policy_export.benchmark.ratios import Ratio
from policy_export.config import params
from policy_export.device.errors import UserError
from policy_export.device.onnx_session import load_onnx, session_options
from policy_export.stage.files import write_table
from stages import record
from studies import search_settings

CHOSEN = {"threads": 1, "spinning": False, "memory_pattern": True, "arena": True, "optimization": "all"}
SMALL = {
    "record.greedy_episodes": 1,
    "record.epsilon_episodes": 1,
    "compile_aoti.max_autotune": False,
    "compile_aoti.gemm_backends": ["ATEN"],
    "bench.cold_starts": 1,
    "bench.rounds": 2,
    "bench.queries": 40,
    "bench.samples": 16,
}


@pytest.fixture(scope="module")
def recorded(workspace, tmp_path_factory):
    """Give the working folder: a copy of the untrained policy's, with episodes."""
    folder = shutil.copytree(workspace, tmp_path_factory.mktemp("recorded") / "workspace")
    change_params(folder / "params.yaml", SMALL)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        record.record("dqn")
        yield folder


def test_every_other_value_is_tried_alone():
    found = list(search_settings.changes(CHOSEN, search_settings.ONNX_SESSION, search_settings.ONNX_TOGETHER))
    alone = [change.settings for change in found if len(change.settings) == 1]
    assert len(alone) == sum(len(values) - 1 for values in search_settings.ONNX_SESSION.values())
    assert all(settings.items() & CHOSEN.items() == set() for settings in alone)
    assert len({change.name for change in found}) == len(found)
    assert found[-1].text == "memory_pattern false, arena false"
    lists = list(search_settings.changes({"gemm_backends": ["CPP"]}, {"gemm_backends": (["CPP"], ["ATEN", "CPP"])}))
    assert [(change.name, change.text) for change in lists] == [("gemm_backends_ATEN+CPP", "gemm_backends ATEN+CPP")]


def test_values_tried_are_those_that_params_allow():
    shipped = params.load(ROOT / "params.yaml")
    for key, values in search_settings.COMPILE_AOTI.items():
        for value in values:
            params.CompileAoti.model_validate(shipped.compile_aoti.model_dump() | {key: value})
    for key, values in search_settings.ONNX_SESSION.items():
        for value in values:
            chosen = shipped.manifest.onnx_session.model_dump() | {key: value}
            session_options(params.OnnxSession.model_validate(chosen).model_dump())


def test_manifest_carries_the_settings(workspace):
    with contextlib.chdir(workspace):
        manifest, _ = runtimes.read_model("dqn")
    assert manifest["onnx_session"] == CHOSEN


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threds": 2}, "onnx_session: threds is 2, expected some of"),
        ({"threads": "2"}, "onnx_session: threads is '2'"),
        ({"spinning": 1}, "onnx_session: spinning is 1"),
        ({"optimization": "most"}, "onnx_session: optimization is 'most', expected one of"),
        ([], "onnx_session is \\[\\]"),
    ],
)
def test_bad_settings_of_a_manifest(settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        session_options(settings)


@pytest.mark.parametrize(
    ("ratio", "failures", "finding"),
    [
        (Ratio(1.2, 1.1, 1.3, 0.03), [], "faster"),
        (Ratio(0.8, 0.7, 0.9, 0.03), [], "slower"),
        (Ratio(1.1, 1.0, 1.2, 0.03), [], "inside the noise"),
        (Ratio(0.95, 0.9, 0.98, 0.03), [], "inside the noise"),
        (Ratio(1.2, 1.1, 1.3, 0.03), ["action differs"], "wrong outputs: action differs"),
    ],
)
def test_finding_of_a_setting(ratio, failures, finding):
    assert search_settings.describe_finding(Measured(failures=failures), ratio) == finding


def test_saved_graph_gives_the_same(recorded, tmp_path):
    program = recorded / "models/dqn/policy.onnx"
    saved = search_settings.save_optimized(program, CHOSEN, tmp_path / "saved.onnx")
    assert saved.onnx_session == CHOSEN | {"optimization": "none"}
    run, optimized = load_onnx(program), load_onnx(Path(saved.path), saved.onnx_session)
    random = np.random.default_rng(0)
    inputs = {name: random.integers(2, size=(3, *shape)).astype(dtype) for name, (dtype, shape) in run.inputs.items()}
    for name, expected in run(inputs).items():
        np.testing.assert_allclose(optimized(inputs)[name], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "tried"),
    [("onnx", {"threads": (1, 2), "optimization": ("none", "all")}), ("aoti", {"freezing": (False, True)})],
)
def test_table_has_a_row_a_setting(recorded, monkeypatch, runtime, tried):
    """Check this for some settings only, as all would take minutes."""
    monkeypatch.setattr(search_settings, "ONNX_SESSION" if runtime == "onnx" else "COMPILE_AOTI", tried)
    monkeypatch.setattr(search_settings, "ONNX_TOGETHER", ())
    everything = params.load()
    if runtime == "aoti":
        search_settings.compile_candidate("dqn", everything.compile_aoti, Path("models/dqn/policy.aoti.pt2"))
    rows = search_settings.search("dqn", runtime, everything)
    write_table(recorded / "settings.csv", search_settings.COLUMNS, rows)
    with (recorded / "settings.csv").open() as file:
        written = list(csv.DictReader(file))
    settings = [row["setting"] for row in written]
    assert settings[:2] == ["as chosen", "as chosen, again"]
    assert settings[2:] == (
        ["threads 2", "optimization none", "optimised graph saved"] if runtime == "onnx" else ["freezing false"]
    )
    for row in written:
        assert row["finding"] in {"chosen", "inside the noise"}  # two rounds have no interval, and all answer as eager
        assert 0 < float(row["load_ms"]) < float(row["cold_start_ms"])
        assert float(row["p50_us"]) > 0
