"""Scores of other seeds, which a command trains."""

from __future__ import annotations

import json

import pytest
from pipeline_helpers import ROOT, TINY, python, write_params

pytestmark = pytest.mark.slow


def test_every_seed_is_trained_and_none_is_left_out(tmp_path):
    write_params(tmp_path, TINY)
    for name in ("stages", "policy_export"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "models").mkdir()
    python("-m", "studies.seeds", "dqn", "--seeds", "4", "5", cwd=tmp_path)
    found = json.loads((tmp_path / "studies/results/dqn/seeds.json").read_text())
    assert [entry["seed"] for entry in found] == [4, 5]
    for entry in found:
        assert entry["episodes"] == TINY["policies.dqn.train.eval_episodes"]
        assert entry["env_steps"] == TINY["policies.dqn.train.total_steps"]
        assert entry["seconds"] > 0
        assert entry["processor"]
    assert list((tmp_path / "models").iterdir()) == []  # the project's own weights are not touched


def test_policy_that_is_not_there_is_told(tmp_path):
    write_params(tmp_path, TINY)
    done = python("-m", "studies.seeds", "dqm", cwd=tmp_path, status=1)
    assert done.stderr.startswith("error: params.yaml: policies has no dqm; it has dqn, ")
