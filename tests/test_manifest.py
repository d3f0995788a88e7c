from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import play
import pytest
import torch

from policy_export.backends import manifest
from policy_export.config import params
from policy_export.config.params import load as load_params
from policy_export.device.errors import UserError
from policy_export.program.archive import read_facts
from policy_export.program.policy import make_agent, save_weights


def test_manifest_tells_what_a_device_needs(workspace, profile):
    written = json.loads((workspace / "models/dqn/manifest.json").read_text())
    assert written["schema_version"] == play.SCHEMA_VERSION
    assert written["policy"] == "dqn"
    assert written["environment"]["id"] == profile.env.id
    assert [action["ale_id"] for action in written["actions"]] == [0, 1, 3, 4, 11, 12]
    assert [spec["name"] for spec in written["inputs"]] == ["observation", "frames", "is_init"]
    assert [spec["name"] for spec in written["outputs"]] == ["action", "action_value", "next_frames"]
    assert [(state["input"], state["output"]) for state in written["states"]] == [("frames", "next_frames")]
    assert written["parameters"]["preprocess"] == profile.preprocess.model_dump()
    assert written["versions"]["onnxruntime"] == metadata.version("onnxruntime")


def test_programs_that_explore_are_told_of_where_they_take_and_give_more(workspace, tmp_path, monkeypatch):
    """As where their noise has a state; otherwise nothing is said of them."""
    assert "random" not in json.loads((workspace / "models/dqn/manifest.json").read_text())
    shutil.copytree(workspace / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manifest, "FILES", {name: text for name, text in manifest.FILES.items() if "aoti" not in name})
    monkeypatch.setattr(params, "load", lambda: load_params(workspace / "params.yaml"))
    noise = {"name": "noise", "dtype": "float32", "shape": ["batch", 1]}

    def with_noise(path: Path, policy: str):
        facts = read_facts(path, policy)
        if path.name == "policy_random.pt2":
            facts["inputs"].append(noise)
            facts["outputs"].append(noise | {"name": "next_noise"})
            facts["states"].append({"input": "noise", "output": "next_noise"})
        return facts

    monkeypatch.setattr(manifest, "read_facts", with_noise)
    manifest.manifest("dqn")
    written = play.read_manifest(Path("models/dqn"))
    assert [spec["name"] for spec in written["inputs"]] == ["observation", "frames", "is_init"]
    assert set(written["random"]) == {"inputs", "outputs", "states"}
    assert [spec["name"] for spec in written["random"]["inputs"]] == ["observation", "frames", "is_init", "noise"]
    assert written["random"]["outputs"][-1] == {"name": "next_noise", "dtype": "float32", "shape": ["batch", 1]}
    start = written["states"][0]["start"]
    assert written["random"]["states"][-1] == {"input": "noise", "output": "next_noise", "start": start}


def test_every_file_is_listed_with_its_hash(workspace):
    folder = workspace / "models/dqn"
    files = play.read_manifest(folder)["files"]
    programs = {path.name for path in folder.iterdir()} - {"manifest.json", "policy.pt2.txt", "policy_random.pt2.txt"}
    assert set(files) == programs
    for name, entry in files.items():
        assert play.check_file(folder, name, {"files": files}) == folder / name
        assert entry["bytes"] == (folder / name).stat().st_size


def test_programs_of_other_weights(workspace, tmp_path, monkeypatch, profile):
    shutil.copytree(workspace / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    save_weights(Path("models/dqn/policy.safetensors"), "dqn", make_agent("dqn", profile).actor)
    with pytest.raises(UserError, match=r"^models/dqn/policy\.pt2: made from other weights than .*dvc repro"):
        manifest.manifest("dqn")
