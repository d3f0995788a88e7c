"""dvc.yaml against the code, and what DVC would run again after a change."""

from __future__ import annotations

import ast
import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from dvc.repo import Repo
from pipeline_helpers import ROOT, change_params, copy_project, python
from ruamel.yaml import YAML

# DVC's own use of a library of its own.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")

YAML_READER = YAML(typ="safe", pure=True)
STAGES = YAML_READER.load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = YAML_READER.load((ROOT / "params.yaml").read_text())

# Every parameter, and the stages that run again when it changes. `*` is any policy: only its own stages run.
AFTER_TRAIN = {"record", "export_pt2", "compile_aoti", "export_onnx", "manifest", "parity_check", "bench"}
RERUNS = [
    ("policies.*.env", "id frame_skip repeat_action_probability max_episode_steps", {"train"} | AFTER_TRAIN),
    (
        "policies.*.preprocess",
        "crop.top crop.left crop.height crop.width grey resize size mean std frames",
        {"train"} | AFTER_TRAIN,
    ),
    ("policies.*.policy", "conv hidden epsilon", {"train"} | AFTER_TRAIN),
    (
        "policies.*.train",
        """seed total_steps num_envs rollout_steps epochs minibatch_size learning_rate max_grad_norm gamma_start
        gamma lambda_ return_ends_at_reward epsilon_start epsilon_steps eval_episodes""",
        {"train"} | AFTER_TRAIN,
    ),
    ("record", "seed greedy_episodes epsilon_episodes epsilon", {"record", "parity_check", "bench"}),
    ("compile_aoti", "threads freezing max_autotune", {"compile_aoti", "manifest", "parity_check", "bench"}),
    ("export_onnx", "opset", {"export_onnx", "manifest", "parity_check", "bench"}),
    ("parity_check", "tolerance seed random_situations random_calls random_error_rate", {"parity_check", "bench"}),
    ("bench", "rounds warmup_steps steps rollout_steps threads", {"bench"}),
]
TABLE = {f"{section}.{name}": stages for section, names, stages in RERUNS for name in names.split()}


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every parameter."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


LEAVES = {key: value for key, value in leaves(PARAMS) if key != "matrix"}


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


def module_file(name: str) -> str | None:
    path = f"{name.replace('.', '/')}.py"
    return path if (ROOT / path).is_file() else None


def imported_files(path: str) -> set[str]:
    """The project's modules that one imports anywhere in it, or starts with ``python -m``."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom(level=0, module=str(module)):
                names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            case ast.ImportFrom():
                raise AssertionError(f"{path}:{node.lineno}: relative imports are not followed here")
            case ast.Constant(value=str(text)) if text.startswith("stages."):
                names.add(text)
    packages = {f"{name.rpartition('.')[0]}.__init__" for name in names if "." in name}
    files = {module_file(name) for name in names | packages} - {None}
    return {file for file in files if (ROOT / file).stat().st_size}


def needed_files(stage: str) -> set[str]:
    found, unread = set(), [module_file(STAGES[stage]["cmd"].split()[2])]
    while unread:
        path = unread.pop()
        if path not in found:
            found.add(path)
            unread += imported_files(path)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_modules_that_the_script_imports(stage):
    declared = {dependency for dependency in STAGES[stage]["deps"] if dependency.endswith(".py")}
    needed = needed_files(stage)
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
        for output in repo.index.outs:
            path = Path(output.fs_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
        repo.commit(force=True)
        yield repo


@pytest.fixture
def pipeline(unchanged) -> Iterator[Repo]:
    params = Path("params.yaml")
    text = params.read_text()
    yield unchanged
    params.write_text(text)


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
    section, _, rest = key.partition(".")
    policies = [*PARAMS["matrix"], "other"]
    if section == "policies":
        policy, _, rest = rest.partition(".")
        key, policies = f"policies.*.{rest}", [policy] if policy in policies else []
    return {f"{stage}@{policy}" for stage in TABLE[key] for policy in policies}


def test_table_lists_every_parameter():
    listed = {key.replace("*", policy) for key in TABLE for policy in PARAMS["policies"]}
    assert listed == set(LEAVES)


def test_nothing_but_machine_runs_without_a_change(pipeline):
    assert pipeline.status() == {"machine": ["always changed"]}


@pytest.mark.parametrize("key", [*LEAVES, "policies.other.env.frame_skip", "policies.other.train.seed"])
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
    stages = {"compile_aoti", "manifest", "parity_check", "bench"}
    assert found == {f"{stage}@{policy}" for stage in stages for policy in (*PARAMS["matrix"], "other")}


MACHINE = """
import runpy, sys
runpy.run_module("stages.machine", run_name="__main__")
print(*{"torch", "torchrl", "tensordict", "onnxruntime"} & set(sys.modules))
"""


def test_machine_imports_no_torch_and_writes_the_same_again(tmp_path):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    path = tmp_path / "results/machine.json"
    assert python("-c", MACHINE, cwd=tmp_path).stdout == "\n"
    first = path.read_bytes()
    python("-m", "stages.machine", cwd=tmp_path)
    assert path.read_bytes() == first
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
    (line,) = python("-m", "stages.machine", cwd=tmp_path, status=1).stderr.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "results").exists()
