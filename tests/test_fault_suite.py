"""The check on trial, in full: programs of the trained policies, every fault, and faultless runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, copy_project, python

POLICIES = ("dqn", "drqn", "ppo")


@pytest.mark.slow
def test_every_fault_is_caught_and_nothing_else(tmp_path):
    copy_project(tmp_path)
    for policy in POLICIES:
        weights = Path("models", policy, "policy.safetensors")
        (tmp_path / weights).parent.mkdir(parents=True)
        shutil.copyfile(ROOT / weights, tmp_path / weights)
        for stage in ("export_pt2", "compile_aoti", "export_onnx", "manifest"):
            python("-m", f"stages.{stage}", policy, cwd=tmp_path, project=tmp_path)
    python("-m", "studies.fault_suite", cwd=tmp_path, project=tmp_path)
    score = json.loads((tmp_path / "results/fault_suite.json").read_text())
    assert (score["missed"], score["alarms"]) == ([], [])
    assert (score["killed"], score["false_alarms"]) == (score["total"], 0)
    assert score["total"] >= 30
    assert score["clean_runs"] >= 20
