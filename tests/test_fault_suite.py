"""The check on trial, in full: programs of the trained policies, every fault, and faultless runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, change_params, choose_programs, copy_project, python

POLICIES = ("dqn", "drqn", "ppo")
PROGRAMS = ("pt2", "aoti", "onnx")


@pytest.fixture
def project(tmp_path) -> Path:
    """Give a copy of the project with the trained policies' programs, but without their native libraries."""
    copy_project(tmp_path)
    for policy in POLICIES:
        choose_programs(tmp_path, policy, PROGRAMS)
        for kept in (Path("models", policy, "policy.safetensors"), Path("data", policy, "episodes.safetensors")):
            (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / kept, tmp_path / kept)
        for stage in ("export_pt2", "golden", "compile_aoti", "export_onnx", "manifest"):
            python("-m", f"stages.{stage}", policy, cwd=tmp_path, project=tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_fault_is_caught_and_nothing_else(project):
    python("-m", "studies.fault_suite", cwd=project, project=project)
    score = json.loads((project / "studies/results/fault_suite.json").read_text())
    assert (score["missed"], score["alarms"]) == ([], [])
    assert (score["killed"], score["false_alarms"]) == (score["total"], 0)
    assert score["total"] >= 60
    assert score["clean_runs"] >= 20
    (project / "models/dqn/policy.onnx").unlink()
    done = python("-m", "studies.fault_suite", cwd=project, project=project, status=1)
    assert done.stderr == "error: models/dqn/policy.onnx: No such file or directory\n"
    for stage in ("export_onnx", "manifest"):
        python("-m", f"stages.{stage}", "dqn", cwd=project, project=project)
    change_params(project / "params.yaml", {"parity_check.tolerance": 1e-12})
    done = python("-m", "studies.fault_suite", cwd=project, project=project, status=1)
    assert done.stderr.splitlines()[-1].startswith("error: the unmodified program ")
    assert "does not pass, so no fault can be checked" in done.stderr
