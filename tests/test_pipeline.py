"""dvc.yaml against the code, and what DVC would run again after a change."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
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
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")]

YAML_READER = YAML(typ="safe", pure=True)
STAGES = YAML_READER.load((ROOT / "dvc.yaml").read_text())["stages"]
STUDIES = YAML_READER.load((ROOT / "studies/dvc.yaml").read_text())["stages"]
PARAMS = YAML_READER.load((ROOT / "params.yaml").read_text())
POLICIES = (*PARAMS["matrix"], "other")

# What is judged and timed, once a program or the manifest has changed.
JUDGED = {"parity_check", "bench", "report", "compare", "quantise", "search_settings", "fault_suite"}
GOLDEN = {"golden", "compile_native", "manifest"}
AFTER_TRAIN = {"record", "export_pt2", "compile_aoti", "export_onnx", "export_naive"} | GOLDEN | JUDGED
# Every parameter, and the stages that run again when it changes. `*` is any policy: only its own stages run.
RERUNS = {
    "policies.*": {"train"} | AFTER_TRAIN,
    "record": {"record"} | GOLDEN | JUDGED,
    "golden": GOLDEN | JUDGED,
    "compile_aoti": {"compile_aoti", "manifest"} | JUDGED,
    "compile_native": {"compile_native", "manifest"} | JUDGED,
    "export_onnx": {"export_onnx", "export_naive", "manifest"} | JUDGED,
    "manifest": {"manifest"} | JUDGED,
    "parity_check": {"parity_check", "bench", "report", "fault_suite"},
    "parity_check.min_observations": {"record"} | GOLDEN | JUDGED,
    "parity_check.tolerance": {"parity_check", "bench", "report", "fault_suite", "compare", "search_settings"},
    "bench": {"bench", "report", "compare", "quantise", "search_settings"},
}
STUDIES_RERUN = {"compare": {"compare"}, "quantise": {"quantise"}, "fault_suite": {"fault_suite"}}
NO_POLICY = {"report", "fault_suite", "export_tutorial"}
# The table of what an edit runs again: file, its text before and after, stages, policies.
TRAINING, RECORDING = {"train"}, {"record"}
EXPORTS = {"export_pt2", "golden", "export_onnx", "compile_aoti", "compile_native"}


def leaves(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every parameter."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


LEAVES = {key: value for key, value in leaves(PARAMS) if key not in ("matrix", "programs")}
# Of parameters that several policies have, the first policy's.
OF_MATRIX = {
    key.split(".", 2)[-1] if key.startswith("policies.") else key: key
    for key in reversed(LEAVES)
    if key.split(".")[1] in PARAMS["matrix"] or not key.startswith("policies.")
}


def another(value: Any) -> Any:
    """Return some other value of the same type; DVC compares, nothing runs."""
    match value:
        case bool():
            return not value
        case str():
            return f"{value}x"
        case list():
            return [*value, value[-1]]
        case _:
            return value + 1


def code_of(stage: str) -> set[str]:
    """Return the files whose code decides what a stage makes, by the hashes that it depends on."""
    content = {**STAGES, **STUDIES}[stage]
    hashed = {name for name in content["deps"] if name.startswith("results/code/")}
    found = {path.as_posix() for name in hashed for path in needed_files([f"stages.{Path(name).stem}"])}
    if "results/sources/${item.policy}/algorithm.json" in content["deps"]:
        found |= {path.as_posix() for path in needed_files(["stages.train"])}
    return found


def is_declared(path: str, stage: str) -> bool:
    """Return whether a stage depends on a file, on a folder above it, or on the hash of what its code does."""
    declared = {**STAGES, **STUDIES}[stage]["deps"]
    return any(path == name or path.startswith(f"{name}/") for name in declared) or path in code_of(stage)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "machine"])
def test_every_import_of_a_stage_lies_under_what_it_declares(stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    needed = {path.as_posix() for path in needed_files([f"stages.{stage}"])}
    if "policy_export/backends/registry.py" in needed:  # which imports every module that it finds in its folder
        modules = [f"policy_export.backends.{path.stem}" for path in Path("policy_export/backends").glob("*.py")]
        needed |= {path.as_posix() for path in needed_files(modules)}
    assert {path for path in needed if not is_declared(path, stage)} == set()
    rooms = {name for name in STAGES[stage]["deps"] if name.startswith("policy_export/")}
    assert {room for room in rooms if not any(path.startswith(f"{room}/") for path in needed)} == set()


@pytest.mark.parametrize("stage", STUDIES)
def test_every_own_module_of_a_study_is_declared(stage, monkeypatch):
    """Check only the study's own modules: those of the policy's programs have been checked before."""
    monkeypatch.chdir(ROOT)
    needed = {path.as_posix() for path in needed_files([f"studies.{stage}"])}
    own = {path for path in needed if path.startswith("studies/")} - {"studies/settings.py"}
    assert {path for path in own if not is_declared(path, stage)} == set()


def test_stage_and_script_have_the_same_name():
    for folder, stages in (("stages", STAGES), ("studies", STUDIES)):
        for stage, content in stages.items():
            assert content["cmd"].split()[:3] == ["python", "-m", f"{folder}.{stage}"]


def test_only_machine_always_runs():
    always = [stage for stage, content in (STAGES | STUDIES).items() if content.get("always_changed")]
    assert always == ["machine"]


@pytest.mark.parametrize("stage", ["export_pt2", "golden", "compile_aoti", "compile_native", "export_onnx"])
def test_versions_that_a_stage_depends_on_are_those_it_records(stage):
    (declared,) = (entry for entry in STAGES[stage]["params"] if "results/versions.json" in entry)
    module = importlib.import_module(f"stages.{stage}")
    assert declared["results/versions.json"] == list(module.LIBRARIES)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory) -> Iterator[Repo]:
    """Give a copy of the pipeline for two policies, with stand-ins for their outputs; all stages are up to date.

    It is the working folder of the tests in this file: DVC takes some paths from there, whatever its root is.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    copy_project(folder)
    policies = PARAMS["policies"] | {"other": copy.deepcopy(PARAMS["policies"]["dqn"])}
    change_params(folder / "params.yaml", {"policies": policies, "matrix": [*PARAMS["matrix"], "other"]})
    with contextlib.chdir(folder):
        repo = Repo(config={"core": {"site_cache_dir": str(folder / ".dvc/site")}})
        python("-m", "stages.machine", cwd=folder, project=folder)
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
def _kept_facts(tmp_path) -> Iterator[None]:
    """Restore what the stage machine has written after the test, as finding it again means trying policies again."""
    kept = [shutil.copytree(f"results/{name}", tmp_path / name) for name in ("code", "sources")]
    yield
    for folder in kept:
        shutil.rmtree(f"results/{folder.name}")
        shutil.copytree(folder, f"results/{folder.name}")


@pytest.fixture(scope="module")
def downstream(unchanged) -> dict[str, set[str]]:
    """Return, for each stage, all stages that come after it."""
    graph = unchanged.index.graph  # its edges point to what a stage needs
    return {name_of(stage): {name_of(later) for later in nx.ancestors(graph, stage)} for stage in graph}


def name_of(stage: Any) -> str:
    """Return a stage's name, whichever file it stands in."""
    return stage.addressing.rpartition(":")[2]


def reruns(repo: Repo, downstream: dict[str, set[str]]) -> set[str]:
    """Return the stages with a changed dependency or parameter, and all that come after them."""
    changed = {
        stage.rpartition(":")[2]
        for stage, reasons in repo.status().items()
        if any("changed deps" in reason for reason in reasons if isinstance(reason, dict))
    }
    return changed.union(*(downstream[stage] for stage in changed))


def stages_of(stages: set[str], policies: Iterable[str]) -> set[str]:
    """Return stages by DVC's names for them, for each of some policies."""
    chosen = list(policies)
    shared = stages & NO_POLICY if chosen else set()
    return {f"{stage}@{policy}" for stage in stages - NO_POLICY for policy in chosen} | shared


def expected_reruns(key: str) -> set[str]:
    """Return what the table says, for all policies or for the one that the parameter belongs to."""
    section, name, *_ = key.split(".")
    policies = list(POLICIES)
    if section == "policies":
        section, policies = "policies.*", [name] if name in policies else []
    return stages_of(RERUNS.get(key, RERUNS[section]), policies)


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


@pytest.mark.parametrize(("key", "stages"), STUDIES_RERUN.items())
def test_changed_parameter_of_a_study_reruns(pipeline, downstream, key, stages):
    path = Path("studies/params.yaml")
    text, section = path.read_text(), YAML_READER.load(path.read_text())[key]
    change_params(path, {f"{key}.{name}": another(value) for name, value in list(section.items())[:1]})
    try:
        assert reruns(pipeline, downstream) == stages_of(stages, POLICIES)
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("file", "key", "stages"),
    [
        ("machine", "cpu", {"compile_aoti", "compile_native", "export_tutorial", "manifest"} | JUDGED),
        ("machine", "compiler", {"compile_aoti", "compile_native", "export_tutorial", "manifest"} | JUDGED),
        ("machine", "cores", {"bench", "report", "compare", "quantise", "search_settings"}),
        ("machine", "gpu", set()),
        ("machine", "python", set()),
        ("versions", "torch", AFTER_TRAIN - {"record"} | {"export_tutorial"}),
        ("versions", "onnxscript", {"export_onnx", "export_naive", "export_tutorial", "manifest"} | JUDGED),
        ("versions", "onnxruntime", {"manifest"} | JUDGED),
        ("versions", "ale-py", {"record"} | GOLDEN | JUDGED),
    ],
)
def test_another_machine_or_version_reruns(pipeline, downstream, file, key, stages):
    """Check that nothing is trained again, and that nothing is made again that would be the same."""
    path = Path(f"results/{file}.json")
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {key: "another"}))
    try:
        assert reruns(pipeline, downstream) == stages_of(stages, POLICIES)
    finally:
        path.write_text(text)


def append(text: str) -> Callable[[str], str]:
    return lambda content: content + text


def replace(old: str, new: str) -> Callable[[str], str]:
    def edit(content: str) -> str:
        assert old in content
        return content.replace(old, new)

    return edit


CODE = append("\n\nADDED = 1\n")
ALGORITHM = """
from typing import Literal

from policy_export.config.training.base import Learning


class Mine(Learning):
    algorithm: Literal["mine"]


SETTINGS = Mine
"""
BACKEND = """
import dataclasses

from policy_export.backends import onnx

BACKEND = dataclasses.replace(onnx.BACKEND, name="mine", owns_file=False, default=False)
"""


@pytest.mark.parametrize(
    ("path", "edit", "stages", "policies"),
    [
        # What a person reads: documentation, and the texts of errors
        ("docs/policies.md", append("More.\n"), set(), POLICIES),
        ("README.md", append("More.\n"), set(), POLICIES),
        ("tests/test_env.py", CODE, set(), POLICIES),
        ("policy_export/algorithms/rollouts.py", append("# a comment\n"), set(), POLICIES),
        ("policy_export/program/weights.py", replace("damaged: ", "broken: "), JUDGED | {"manifest"}, POLICIES),
        ("policy_export/device/command.py", replace("episodes to play", "games"), JUDGED | {"manifest"}, POLICIES),
        ("policy_export/stage/quiet.py", CODE, JUDGED | {"manifest"}, POLICIES),
        ("policy_export/stage/progress.py", CODE, JUDGED | {"manifest"}, POLICIES),
        ("policy_export/device/gif.py", CODE, JUDGED | {"manifest"}, POLICIES),
        # What is new, and nobody uses yet
        ("policy_export/config/training/mine.py", append(ALGORITHM), JUDGED | {"manifest"}, POLICIES),
        ("policy_export/algorithms/mine.py", append("class Learner: ...\n"), set(), POLICIES),
        ("policy_export/backends/mine.py", append(BACKEND), JUDGED | {"manifest"}, POLICIES),
        ("policy_export/policies/mine.py", CODE, set(), POLICIES),
        # A policy's own code, and that of its algorithm
        ("policy_export/policies/recurrent_q_value.py", CODE, {"train"} | AFTER_TRAIN, {"drqn"}),
        ("policy_export/policies/q_value.py", CODE, {"train"} | AFTER_TRAIN, {"dqn", "drqn", "other"}),
        ("policy_export/algorithms/ppo.py", CODE, {"train"} | AFTER_TRAIN, {"ppo"}),
        ("policy_export/algorithms/dqn.py", CODE, set(), POLICIES),
        ("policy_export/algorithms/rollouts.py", CODE, {"train"} | AFTER_TRAIN, POLICIES),
        # What a profile says of its numbers
        ("params.yaml", replace("  dqn:\n", "  dqn:\n    facts: {unit: rad}\n"), EXPORTS | {"manifest"}, {"dqn"}),
        # What programs are made with
        ("policy_export/lowering/redundant_reshapes.py", CODE, {"export_onnx", "export_naive", "manifest"}, POLICIES),
        ("policy_export/lowering/loops.py", CODE, {"compile_native", "manifest"}, POLICIES),
        ("policy_export/backends/onnx.py", CODE, {"manifest"}, POLICIES),
        ("native/src/policy.cpp", append("// more\n"), {"compile_native", "manifest"}, POLICIES),
    ],
)
@pytest.mark.usefixtures("_kept_facts")
def test_edit_reruns(pipeline, downstream, path, edit, stages, policies):  # noqa: PLR0917
    file = Path(path)
    text = file.read_text() if file.exists() else None
    file.write_text(edit(text or ""))
    try:
        python("-m", "stages.machine", cwd=Path(), project=Path().absolute())
        found = reruns(pipeline, downstream) - {"machine"}
    finally:
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
    if "manifest" in stages:
        stages = stages | JUDGED
    judged = stages_of(JUDGED, POLICIES)
    assert found - judged == stages_of(stages - JUDGED, policies)
    # What is judged again is more than what has changed: a check depends on whole rooms.
    assert found & judged >= stages_of(stages & JUDGED, policies) & judged


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
        python("-m", "stages.machine", cwd=tmp_path)
        found.append(path.read_text())
    assert found[0] != found[1] == found[2]


MACHINE = """
import runpy, sys
runpy.run_module("stages.machine", run_name="__main__")
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
    assert {path.parent.name for path in written} == {"results", "code", "cartpole"}
    python("-m", "stages.machine", cwd=tmp_path)
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
    (line,) = python("-m", "stages.machine", cwd=tmp_path, status=1).stderr.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "results").exists()
