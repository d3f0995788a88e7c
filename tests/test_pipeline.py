"""dvc.yaml against the code, and what DVC would run again after a change."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from dvc.repo import Repo
from pipeline_helpers import ROOT, change_params, copy_project, python
from ruamel.yaml import YAML

from policy_export.device.errors import UserError
from policy_export.stage.sources import needed_files

# DVC's own use of a library of its own.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

YAML_READER = YAML(typ="safe", pure=True)
STAGES = YAML_READER.load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = YAML_READER.load((ROOT / "params.yaml").read_text())

# Every parameter, and the stages that run again when it changes. `*` is any policy: only its own stages run.
AFTER_TRAIN = {"record", "export_pt2", "compile_aoti", "export_onnx", "manifest", "parity_check", "bench"}
AFTER_TRAIN |= {"export_naive", "compile_native", "quantise"}
RERUNS = {
    "policies.*": {"train"} | AFTER_TRAIN,
    "record": {"record", "compile_native", "manifest", "parity_check", "bench", "quantise"},
    "compile_aoti": {"compile_aoti", "manifest", "parity_check", "bench", "quantise"},
    "compile_native": {"compile_native", "manifest", "parity_check", "bench", "quantise"},
    "export_onnx": {"export_onnx", "export_naive", "manifest", "parity_check", "bench", "quantise"},
    "manifest": {"manifest", "parity_check", "bench", "quantise"},
    "parity_check": {"parity_check", "bench", "quantise"},
    "bench": {"bench", "quantise"},
    "quantise": {"quantise"},
}


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every parameter."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


LEAVES = {key: value for key, value in leaves(PARAMS) if key != "matrix"}
# Of parameters that several policies have, the first policy's.
OF_MATRIX = {
    key.split(".", 2)[-1] if key.startswith("policies.") else key: key
    for key in reversed(LEAVES)
    if key.split(".")[1] in PARAMS["matrix"] or not key.startswith("policies.")
}


def another(value: Any) -> Any:
    """Some other value of the same type; DVC compares, nothing runs."""
    match value:
        case bool():
            return not value
        case str():
            return f"{value}x"
        case list():
            return [*value, value[-1]]
        case _:
            return value + 1


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_modules_that_the_script_imports(stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    declared = {dependency for dependency in STAGES[stage]["deps"] if dependency.endswith(".py")}
    needed = {path.as_posix() for path in needed_files([f"stages.{stage}"])}
    assert needed - declared == set(), f"dvc.yaml: {stage} does not list these"
    assert declared - needed == set(), f"dvc.yaml: {stage} lists these, which it does not import"


def test_stage_and_script_have_the_same_name():
    for stage, content in STAGES.items():
        assert content["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]


def test_only_machine_always_runs():
    assert [stage for stage, content in STAGES.items() if content.get("always_changed")] == ["machine"]


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory) -> Iterator[Repo]:
    """A copy of the pipeline for two policies, all of whose stages are up to date, with stand-ins for their outputs.

    It is the working folder of the tests in this file: DVC takes some paths from there, whatever its root is.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    copy_project(folder)
    policies = PARAMS["policies"] | {"other": copy.deepcopy(PARAMS["policies"]["dqn"])}
    change_params(folder / "params.yaml", {"policies": policies, "matrix": [*PARAMS["matrix"], "other"]})
    with contextlib.chdir(folder):
        repo = Repo(config={"core": {"site_cache_dir": str(folder / ".dvc/site")}})
        python("-m", "policy_export.machine.facts", cwd=folder, project=folder)
        for output in repo.index.outs:
            path = Path(output.fs_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(path.name)
        repo.commit(force=True)
        yield repo


@pytest.fixture
def pipeline(unchanged) -> Iterator[Repo]:
    params = Path("params.yaml")
    text = params.read_text()
    yield unchanged
    params.write_text(text)


@pytest.fixture
def _kept_sources(tmp_path) -> Iterator[None]:
    """The hashes of sources, put back after the test; to find them again means to try policies again."""
    sources = shutil.copytree("results/sources", tmp_path / "sources")
    yield
    shutil.rmtree("results/sources")
    shutil.copytree(sources, "results/sources")


@pytest.fixture(scope="module")
def downstream(unchanged) -> dict[str, set[str]]:
    """All stages that come after each stage."""
    graph = unchanged.index.graph  # its edges point to what a stage needs
    return {stage.addressing: {later.addressing for later in nx.ancestors(graph, stage)} for stage in graph}


def reruns(repo: Repo, downstream: dict[str, set[str]]) -> set[str]:
    """The stages with a changed dependency or parameter, and all that come after them."""
    changed = {
        stage
        for stage, reasons in repo.status().items()
        if any("changed deps" in reason for reason in reasons if isinstance(reason, dict))
    }
    return changed.union(*(downstream[stage] for stage in changed))


def expected_reruns(key: str) -> set[str]:
    """What the table says, for all policies or for the one that the parameter belongs to."""
    section, name, *_ = key.split(".")
    policies = [*PARAMS["matrix"], "other"]
    if section == "policies":
        section, policies = "policies.*", [name] if name in policies else []
    return {f"{stage}@{policy}" for stage in RERUNS[section] for policy in policies}


def test_nothing_but_machine_runs_without_a_change(pipeline):
    assert pipeline.status() == {"machine": ["always changed"]}


@pytest.mark.parametrize(
    "key",
    [*OF_MATRIX.values(), "policies.other.env.frame_skip", "policies.other.train.seed", "policies.cartpole.train.seed"],
)
def test_changed_parameter_reruns(pipeline, downstream, key):
    value = another(LEAVES[key.replace("other", "dqn")])
    change_params(Path("params.yaml"), {key: value})
    assert reruns(pipeline, downstream) == expected_reruns(key)


def test_another_machine_recompiles_and_never_retrains(pipeline, downstream):
    path = Path("results/machine.json")
    text = path.read_text()
    path.write_text("another machine")
    try:
        found = reruns(pipeline, downstream)
    finally:
        path.write_text(text)
    stages = {"compile_aoti", "compile_native", "manifest", "parity_check", "bench", "quantise"}
    rebuilt = {f"{stage}@{policy}" for stage in stages for policy in (*PARAMS["matrix"], "other")}
    assert found == rebuilt | {"export_tutorial"}


@pytest.mark.parametrize(
    ("path", "stages", "policies"),
    [
        ("stages/policies/recurrent_q_value.py", {"train"} | AFTER_TRAIN, {"drqn"}),
        ("stages/policies/q_value.py", {"train"} | AFTER_TRAIN, {"dqn", "drqn", "other"}),
        ("stages/algorithms/ppo.py", {"train"} | AFTER_TRAIN, {"ppo"}),
        ("stages/algorithms/dqn.py", set(), set()),
        ("stages/algorithms/rollouts.py", {"train"} | AFTER_TRAIN, {"dqn", "drqn", "ppo", "other"}),
    ],
)
@pytest.mark.usefixtures("_kept_sources")
def test_changed_source_of_a_kind_reruns(pipeline, downstream, path, stages, policies):
    text = Path(path).read_text()
    Path(path).write_text(f"{text}# changed\n")
    try:
        python("-m", "policy_export.machine.facts", cwd=Path(), project=Path().absolute())
        found = reruns(pipeline, downstream)
    finally:
        Path(path).write_text(text)
    assert found - {"machine"} == {f"{stage}@{policy}" for stage in stages for policy in policies}


def test_file_that_a_factory_is_given_counts_as_its_source(tmp_path):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    path, found = tmp_path / "results/sources/cartpole/policy.json", []
    policy = {"factory": "my_policy:make_policy", "weights": "weights.safetensors"}
    change_params(tmp_path / "params.yaml", {"policies.cartpole.policy": policy, "matrix": ["cartpole"]})
    (tmp_path / "my_policy.py").write_text(
        "from policy_export.policies import q_value\n"
        "def make_policy(observations, actions, *, weights: str):\n"
        "    return q_value.make_policy(observations, actions, conv=[], hidden=[], epsilon=0.1)\n"
    )
    for content in ("one", "two", "two"):
        (tmp_path / "weights.safetensors").write_text(content)
        python("-m", "policy_export.machine.facts", cwd=tmp_path)
        found.append(path.read_text())
    assert found[0] != found[1] == found[2]


MACHINE = """
import runpy, sys
runpy.run_module("policy_export.machine.facts", run_name="__main__")
print(*{"torch", "torchrl", "tensordict", "onnxruntime"} & set(sys.modules))
"""


def test_source_that_is_not_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("import torch\ndef make(:\n")
    with pytest.raises(UserError, match=r"^mine\.py: line 2: invalid syntax$"):
        needed_files(["mine"])


def test_machine_imports_no_torch_and_writes_the_same_again(tmp_path):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    change_params(tmp_path / "params.yaml", {"matrix": ["cartpole"]})
    path = tmp_path / "results/machine.json"
    assert python("-c", MACHINE, cwd=tmp_path).stdout == "\n"
    written = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    assert len(written) == 1 + 3
    python("-m", "policy_export.machine.facts", cwd=tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")} == written
    first = path.read_bytes()
    assert json.loads(first)["cpu"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bench.rounds": 0}, "error: params.yaml: bench.rounds: 0: "),
        ({"policies.dqn.train.gamma": "high"}, "error: params.yaml: policies.dqn.train.gamma: 'high': "),
        ({"matrix": ["dqm"]}, "error: params.yaml: matrix names 'dqm'"),
    ],
)
def test_machine_checks_params(tmp_path, changes, message):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    change_params(tmp_path / "params.yaml", changes)
    (line,) = python("-m", "policy_export.machine.facts", cwd=tmp_path, status=1).stderr.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "results").exists()
