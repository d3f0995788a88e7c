"""The programs that a policy has: chosen in params.yaml, left out, refused; the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, change_params, copy_project, python
from ruamel.yaml import YAML

from policy_export.backends.registry import backends

# A decomposition has no kernel for a native library and none in ONNX.
DECOMPOSED = """
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import Composite
from torchrl.modules import QValueModule


class Diagonal(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, observation):
        return self.layer(torch.linalg.qr(observation[..., :, None] + torch.eye(4))[1][..., 0])


def make_policy(observation_spec, action_spec):
    values = TensorDictModule(Diagonal(), in_keys=["observation"], out_keys=["action_value"])
    return TensorDictSequential(values, QValueModule(spec=Composite(action=action_spec)))
"""
PROFILE = {
    "env": {"id": "CartPole-v1", "max_episode_steps": 20},
    "preprocess": None,
    "policy": {"factory": "decomposed:make_policy"},
    "train": {"algorithm": "none", "seed": 0, "eval_episodes": 1},
}


@pytest.fixture
def project(tmp_path) -> Path:
    """Give a project with a policy that one back end refuses."""
    copy_project(tmp_path)
    (tmp_path / "decomposed.py").write_text(DECOMPOSED)
    yaml, path = YAML(), tmp_path / "params.yaml"
    content = yaml.load(path.read_text())
    content["policies"]["decomposed"], content["matrix"] = PROFILE, ["decomposed"]
    yaml.dump(content, path)
    change_params(path, {"record.greedy_episodes": 1, "record.epsilon_episodes": 1})
    return tmp_path


def choose(project: Path, names: list[str]) -> None:
    yaml, path = YAML(), project / "params.yaml"
    content = yaml.load(path.read_text())
    content["policies"]["decomposed"]["programs"] = names
    yaml.dump(content, path)


def chosen(project: Path) -> dict[str, bool]:
    return json.loads((project / "results/sources/decomposed/programs.json").read_text())


@pytest.mark.slow
def test_refused_program_is_left_out_and_the_others_go_on(project):
    done = python("-m", "stages.machine", cwd=project, project=project, status=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: params.yaml: policies.decomposed")
    assert "QR" in line
    assert "decomposed.py" in line
    assert "; to go on without native, give the profile `programs: [pt2, aoti, onnx]`" in line
    choose(project, ["pt2", "aoti"])
    python("-m", "stages.machine", cwd=project, project=project)
    assert [name for name, wanted in chosen(project).items() if wanted] == ["pt2", "aoti"]
    for stage in (
        "train",
        "record",
        "export_pt2",
        "golden",
        "compile_aoti",
        "compile_native",
        "export_onnx",
        "manifest",
    ):
        done = python("-m", f"stages.{stage}", "decomposed", cwd=project, project=project)
        if stage in ("compile_native", "export_onnx"):
            assert "left out, as the profile's programs leave it out" in done.stdout
    folder = project / "models/decomposed"
    assert not (folder / "policy.onnx").read_bytes()
    assert list((folder / "native").iterdir()) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["programs"]) == ["pt2", "aoti"]
    assert not any(name.startswith("native") or name.endswith("onnx") for name in manifest["files"])
    done = python("-m", "policy_export.device", "models/decomposed", cwd=project, project=project, status=1)
    assert done.stderr.startswith("error: models/decomposed/manifest.json: lists no policy.onnx, only policy.safe")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["onnx"], "lacks pt2, from which all others are made"),
        (["pt2", "tflite"], "'tflite': unknown program; known: pt2, aoti, openvino, onnx, native"),
        (["pt2", "pt2"], "names a program twice"),
        (["pt2", "openvino"], "openvino runs policy.onnx, add onnx"),
    ],
)
def test_choice_that_cannot_be(project, names, message):
    choose(project, names)
    done = python("-m", "stages.machine", cwd=project, project=project, status=1)
    assert done.stderr.startswith("error: params.yaml: policies.decomposed.programs: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (project / "results").exists()


def test_programs_of_params_are_those_that_policies_have_by_default():
    shipped = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    assert shipped["programs"] == [name for name, backend in backends().items() if backend.default]
