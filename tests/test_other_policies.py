"""Other environments, and the README's own policy, through the whole pipeline with parameters alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnxruntime
import pytest
from pipeline_helpers import QUICK_BENCH, ROOT, TINY, change_params, copy_project, python

from studies.export_naive import NAIVE

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
POLICIES = {
    "breakout": {"env.max_episode_steps": 100, **{key.removeprefix("policies.dqn."): TINY[key] for key in TINY}},
    "cartpole": {"train.total_steps": 50000, "train.gamma": 0.95, "train.eval_episodes": 2},
    "pendulum": {"train.total_steps": 4096, "train.eval_episodes": 2},
    "mine": {},
}
SMALL = QUICK_BENCH | {
    "matrix": list(POLICIES),
    "record.greedy_episodes": 30,
    "record.epsilon_episodes": 2,
    "parity_check.random_calls": 4,
}
STUDY = {
    "compare.baseline_queries": 64,
    "quantise.calibration_samples": 16,
    "quantise.checked_samples": 16,
    "quantise.episodes": 2,
}
STUDIES = ("export_naive", "export_tutorial", "compare", "quantise")


def code_block(language: str, first: str) -> str:
    """Return the README's block of code that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = (block for block in blocks if block.lstrip().startswith(first))
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Give a project after ``dvc repro`` of four policies and some of the studies; it must not be changed."""
    folder = tmp_path_factory.mktemp("others")
    copy_project(folder)
    (folder / "my_policy.py").write_text(code_block("python", "import torch"))
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("\nrecord:\n", f"\n{code_block('yaml', 'mine:')}\nrecord:\n"))
    changes = {
        f"policies.{policy}.{key}": value
        for policy, values in POLICIES.items()
        for key, value in values.items()
        if not key.startswith("parity")
    }
    change_params(params, SMALL | changes)
    change_params(folder / "studies/params.yaml", STUDY)
    python("-m", "dvc", "repro", cwd=folder, project=folder)
    python("-m", "dvc", "repro", *(f"studies/dvc.yaml:{stage}" for stage in STUDIES), cwd=folder, project=folder)
    return folder


def test_readme_example_is_as_long_as_it_says():
    assert len([line for line in code_block("python", "import torch").splitlines() if line.strip()]) <= 20


def result(built: Path, policy: str, name: str):
    return json.loads((built / "results" / policy / f"{name}.json").read_text())


def study(built: Path, policy: str, name: str):
    return result(built / "studies", policy, name)


@pytest.mark.parametrize("policy", POLICIES)
def test_programs_are_verified_and_measured(built, policy):
    parity = result(built, policy, "parity")
    assert parity["passed"]
    both = {f"{name}{kind}" for name in ("pt2", "aoti", "onnx") for kind in ("", "_random")}
    assert set(parity["programs"]) == both | {"native"}
    assert set(result(built, policy, "bench")["programs"]) == {"eager", "pt2", "aoti", "onnx", "native"}


@pytest.mark.parametrize("policy", POLICIES)
def test_programs_are_compared_with_what_others_export(built, policy):
    """Check the programs' names and results; the tutorial's program exists only for screens like Pong's."""
    programs = study(built, policy, "comparison")["programs"]
    assert {"pt2", "aoti", "onnx", "native", *NAIVE} <= set(programs)
    assert ("tutorial_onnx" in programs) == (policy == "breakout")
    assert all(not entry["reason"].startswith("wrong outputs") for entry in programs.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_smaller_programs_have_a_verdict(built, policy):
    """Check verdicts for all kinds of observations and actions; a network of one layer cannot be made smaller."""
    programs = study(built, policy, "quantised")["programs"]
    convolutions = {"int8_products"} if policy == "breakout" else set()
    assert set(programs) == {"int8", "fp16", "bf16"} | convolutions
    assert all(entry["verdict"] in {"accepted", "rejected", "not measured"} for entry in programs.values())
    if policy == "mine":
        assert programs["int8"]["reason"].startswith("the program has no layer")
    else:
        assert (programs["int8"]["other_actions"] is None) == (policy == "pendulum")


@pytest.mark.parametrize(
    ("policy", "inputs", "outputs", "actions"),
    [
        ("breakout", ["observation", "frames", "is_init"], ["action", "action_value", "next_frames"], 4),
        ("cartpole", ["observation"], ["action", "action_value"], 2),
        ("pendulum", ["observation"], ["action", "loc", "scale"], {"low": [-2.0], "high": [2.0]}),
        ("mine", ["observation"], ["action", "action_value"], 2),
    ],
)
def test_signature(built, policy, inputs, outputs, actions):
    folder = built / "models" / policy
    manifest = json.loads((folder / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(folder / "policy.onnx", providers=["CPUExecutionProvider"])
    for kind, tensors, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        assert [spec["name"] for spec in manifest[kind]] == [tensor.name for tensor in tensors] == expected
        assert [spec["shape"] for spec in manifest[kind]] == [tensor.shape for tensor in tensors]
    assert manifest["actions"] == actions if isinstance(actions, dict) else len(manifest["actions"]) == actions


@pytest.mark.parametrize("policy", ["cartpole", "pendulum", "mine"])
def test_player_plays_it(built, policy):
    output = python(f"models/{policy}/player", "--episodes", "2", cwd=built, project=built).stdout
    assert "mean score" in output
    if policy == "mine":
        assert "mean score 500.00" in output


def test_player_draws_no_pendulum(built):
    done = python("-m", "policy_export.device", "models/pendulum", "--gif", "x.gif", cwd=built, project=built, status=1)
    assert done.stderr == "error: --gif: draws Atari games only, models/pendulum plays 'Pendulum-v1'\n"


def test_own_module_is_a_dependency(built):
    """Check that a change in it makes its own policy's stages run again, and no others."""
    path = built / "my_policy.py"
    text = path.read_text()
    path.write_text(text.replace("push = observation", "push = 2 * observation"))
    try:
        python("-m", "stages.machine", cwd=built, project=built)
        status = json.loads(python("-m", "dvc", "status", "--json", cwd=built, project=built).stdout)
    finally:
        path.write_text(text)
        python("-m", "stages.machine", cwd=built, project=built)
    changed = {
        stage
        for stage, reasons in status.items()
        if not stage.startswith("studies/") and any("changed deps" in reason for reason in reasons)
    }
    assert changed == {f"{stage}@mine" for stage in ("train", "record", "export_pt2", "parity_check", "bench")}
