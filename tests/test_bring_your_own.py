"""The profiles of docs/bring-your-own.md, taken out of the page, through the real stages."""

from __future__ import annotations

import ctypes
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from pipeline_helpers import ROOT, SMALL, build_policy, make_own_project, python, run
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from policy_export.program.archive import read_facts

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/bring-your-own.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
FILES = {text.partition("\n")[0].removeprefix("# "): text for language, text in BLOCKS if language == "python"}
PROFILES = {
    name: profile
    for language, text in BLOCKS
    if language == "yaml"
    for name, profile in YAML(typ="safe", pure=True).load(text).items()
}
PROGRAMS = {name: ["pt2", "onnx"] for name in PROFILES} | {"robot": ["pt2", "onnx", "native"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Give a project with the page's files and profiles, after the stage machine."""
    folder = tmp_path_factory.mktemp("own")
    profiles = {name: profile | {"programs": PROGRAMS[name]} for name, profile in PROFILES.items()}
    make_own_project(folder, FILES, profiles)
    for language, text in BLOCKS:
        if language == "sh":
            assert text.startswith("python ")
            python(*shlex.split(text)[1:], cwd=folder, project=folder)
    python("write_recording.py", cwd=folder, project=folder)
    python("-m", "stages.machine", cwd=folder, project=folder)
    return folder


@pytest.fixture(scope="module")
def build(project):
    """Build and check a policy, once, and return its report."""

    def built(policy):
        return build_policy(project, policy, PROGRAMS[policy])

    return built


def manifest_of(project, policy):
    return json.loads((project / "models" / policy / "manifest.json").read_text())


def names(specs):
    return [spec["name"] for spec in specs]


def test_page_has_five_profiles():
    assert list(PROFILES) == ["swing", "robot", "normalised", "team", "pole"]


@pytest.mark.parametrize("policy", PROFILES)
def test_every_program_is_proven(build, policy):
    report = build(policy)
    assert report["passed"]
    wanted = set(PROGRAMS[policy])
    assert set(report["programs"]) == wanted | {f"{name}_random" for name in wanted - {"native"}}
    assert report["programs"]["onnx"]["observations"] >= SMALL["parity_check"]["min_observations"]
    assert all(report["programs"][name]["different_actions"] == 0 for name in wanted)


@pytest.mark.parametrize("policy", [name for name in PROFILES if name != "pole"])
def test_policy_decides_as_in_its_training_environment(build, policy):
    training = build(policy)["training_environment"]
    assert training["decisions"] > 0
    assert training["different_actions"] == 0


def test_checkpoint_is_what_was_exported(build, project):
    import torch

    build("swing")
    saved = load_file(project / "models/swing/policy.safetensors").values()
    kept = {(array.shape, array.tobytes()) for array in saved}
    own = torch.load(project / "swing.pt", weights_only=True).values()
    assert {(tuple(tensor.shape), tensor.numpy().tobytes()) for tensor in own} <= kept
    assert manifest_of(project, "swing")["environment"]["kwargs"] == {"g": 9.81}


def test_program_has_all_observations(build, project):
    build("robot")
    manifest = manifest_of(project, "robot")
    assert names(manifest["inputs"]) == ["camera", "joints", "allowed_mask"]
    assert names(manifest["outputs"]) == ["action", "logits"]


def test_meaning_of_numbers_goes_with_every_program(build, project):
    build("robot")
    folder, profile = project / "models/robot", PROFILES["robot"]
    meaning = {key: profile[key] for key in ("facts", "names", "control_rate_hz")}
    metadata = onnx.load(folder / "policy.onnx").metadata_props
    found = [
        manifest_of(project, "robot"),
        read_facts(folder / "policy.pt2"),
        json.loads(next(entry.value for entry in metadata if entry.key == "facts")),
    ]
    for facts in found:
        assert {key: facts[key] for key in meaning} == meaning
    library = ctypes.CDLL(str(folder / "native/libpolicy.so"))
    library.policy_facts.restype = ctypes.c_char_p
    assert json.loads(library.policy_facts()) == meaning
    told = run(str(folder / "native/policy"), "info", cwd=project).stdout.splitlines()
    (line,) = (line for line in told if line.startswith("facts "))
    assert json.loads(line.removeprefix("facts ")) == meaning


def test_statistics_are_in_the_weights_file(build, project):
    build("normalised")
    saved = load_file(project / "models/normalised/policy.safetensors")
    statistics = {name for name in saved if name.startswith("transforms/0.")}
    assert statistics
    assert manifest_of(project, "normalised")["actions"] == {"low": [-2.0], "high": [2.0]}


def test_agents_are_a_dimension_of_inputs_and_outputs(build, project):
    build("team")
    manifest = manifest_of(project, "team")
    assert [(spec["name"], spec["shape"][1:]) for spec in manifest["inputs"]] == [("agents_observation", [3, 4])]
    assert manifest["outputs"][0]["name"] == "agents_action"
    assert manifest["outputs"][0]["shape"][1:] == [3, 2]
    assert manifest["actions"]["entries"]["agents_action"] == {"kind": "indices", "sizes": [[5, 2]] * 3}


def test_recording_is_compared_with_the_owners_actions(build, project):
    report = build("pole")
    assert "training_environment" not in report
    assert report["closed_loop"].startswith("closed loop was not possible")
    assert not any("closed_loop" in entry for entry in report["programs"].values())
    steps = int(np.size(load_file(project / "pole.safetensors")["is_init"]))
    assert (report["owner"]["observations"], report["owner"]["different_actions"]) == (steps, 0)
