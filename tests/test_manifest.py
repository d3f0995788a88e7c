from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from pipeline_helpers import choose_programs

from policy_export.backends import manifest, runtimes
from policy_export.backends.manifest import write_manifest
from policy_export.backends.registry import deterministic, exploring, quickest
from policy_export.config.params import load as load_params
from policy_export.device.errors import UserError
from policy_export.device.manifest import SCHEMA_VERSION, check_file, read_manifest
from policy_export.program.archive import read_facts
from policy_export.program.made import make, record_path
from policy_export.program.policy import make_agent
from policy_export.program.weights import save_weights


@pytest.fixture
def project(workspace, tmp_path, monkeypatch) -> Path:
    """Give a copy of the workspace, to be changed; the working folder."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write() -> dict:
    write_manifest("dqn")
    return read_manifest(Path("models/dqn"))


def refuse() -> str:
    """Expect one line of error, and the manifest to stay what it was; returns the line."""
    before = Path("models/dqn/manifest.json").read_bytes()
    with pytest.raises(UserError) as caught:
        write_manifest("dqn")
    assert Path("models/dqn/manifest.json").read_bytes() == before
    (line,) = str(caught.value).splitlines()
    return line


def test_manifest_tells_what_a_device_needs(workspace, profile):
    written = json.loads((workspace / "models/dqn/manifest.json").read_text())
    assert written["schema_version"] == SCHEMA_VERSION
    assert written["policy"] == "dqn"
    assert written["environment"]["id"] == profile.env.id
    assert [action["ale_id"] for action in written["actions"]] == [0, 1, 3, 4, 11, 12]
    assert [spec["name"] for spec in written["inputs"]] == ["observation", "frames", "is_init"]
    assert [spec["name"] for spec in written["outputs"]] == ["action", "action_value", "next_frames"]
    assert [(state["input"], state["output"]) for state in written["states"]] == [("frames", "next_frames")]
    assert written["parameters"]["preprocess"] == profile.preprocess.model_dump()
    assert written["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    assert written["onnx_session"] == load_params(workspace / "params.yaml").manifest.onnx_session.model_dump()


def test_programs_that_explore_are_told_of_where_they_take_and_give_more(project, monkeypatch):
    """Check that the manifest has their inputs and outputs if these differ: by probabilities, and a state of noise."""
    told = read_manifest(project / "models/dqn")
    more = {"name": "action_probs", "dtype": "float32", "shape": ["batch", len(told["actions"])]}
    assert told["random"] == {key: told[key] for key in ("inputs", "states")} | {"outputs": [*told["outputs"], more]}
    noise = {"name": "noise", "dtype": "float32", "shape": ["batch", 1]}

    def with_noise(path: Path, policy: str):
        facts = read_facts(path, policy)
        if path.name == "policy_random.pt2":
            facts["inputs"].append(noise)
            facts["outputs"].append(noise | {"name": "next_noise"})
            facts["states"].append({"input": "noise", "output": "next_noise"})
        return facts

    monkeypatch.setattr(manifest, "read_facts", with_noise)
    written = write()
    assert [spec["name"] for spec in written["inputs"]] == ["observation", "frames", "is_init"]
    assert set(written["random"]) == {"inputs", "outputs", "states"}
    assert [spec["name"] for spec in written["random"]["inputs"]] == ["observation", "frames", "is_init", "noise"]
    assert written["random"]["outputs"][-1] == {"name": "next_noise", "dtype": "float32", "shape": ["batch", 1]}
    start = written["states"][0]["start"]
    assert written["random"]["states"][-1] == {"input": "noise", "output": "next_noise", "start": start}


def test_every_file_is_listed_with_its_hash(workspace):
    folder = workspace / "models/dqn"
    files = read_manifest(folder)["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == there - {"manifest.json", "policy.pt2.txt", "policy_random.pt2.txt"}
    for name, entry in files.items():
        assert check_file(folder, name, {"files": files}) == folder / name
        assert entry["bytes"] == (folder / name).stat().st_size


def test_programs_are_listed_with_what_made_them(workspace):
    written = read_manifest(workspace / "models/dqn")
    assert list(written["programs"]) == ["pt2", "onnx"]
    assert deterministic(written) == {"pt2": "policy.pt2", "onnx": "policy.onnx"}
    assert exploring(written) == {"pt2_random": "policy_random.pt2", "onnx_random": "policy_random.onnx"}
    assert quickest(written) == "onnx"
    libraries = {"pt2": ("torch", "tensordict", "torchrl"), "onnx": ("torch", "onnx", "onnxscript")}
    for name, names in libraries.items():
        for file in (f"policy.{name}", f"policy_random.{name}"):
            entry = written["files"][file]
            assert entry["versions"] == {library: metadata.version(library) for library in names}
            assert ("RANDOM" if "random" in file else "DETERMINISTIC") in entry["content"]
    assert "versions" not in written["files"]["policy.safetensors"]
    others = {"numpy", "ale-py", "gymnasium", "onnxruntime"}
    assert set(written["versions"]) == others.union(*libraries.values())


def test_player_is_copied_as_it_is(project, root):
    """Check that nothing from before is left there."""
    source, target = root / "policy_export/device", project / "models/dqn/player"
    (target / "old.py").write_text("")
    (target / "command.py").write_text("")
    files = write()["files"]
    names = {path.name for path in source.glob("*.py")}
    assert {path.name for path in target.iterdir()} == names
    assert {name for name in files if name.startswith("player/")} == {f"player/{name}" for name in names}
    for name in names:
        assert (target / name).read_bytes() == (source / name).read_bytes()


def test_program_that_the_profile_leaves_out_is_not_listed(project):
    """Check that the empty files in its place are not listed."""
    choose_programs(project, "dqn", ["pt2"])
    files = [Path("models/dqn/policy.onnx"), Path("models/dqn/policy_random.onnx")]
    make("dqn", "onnx", lambda: pytest.fail("it is built"), libraries=("onnx",), files=files)
    assert [path.stat().st_size for path in files] == [0, 0]
    written = write()
    assert list(written["programs"]) == ["pt2"]
    assert not [name for name in written["files"] if name.endswith(".onnx")]
    assert not {"onnx", "onnxruntime"} & set(written["versions"])
    assert quickest(written) == "pt2"


def test_program_that_runs_another_s_file_lists_no_file_of_its_own(project, monkeypatch):
    """Check the manifest's entries without the runtime's library installed."""
    before = read_manifest(project / "models/dqn")
    monkeypatch.setattr(manifest, "versions_of", lambda names: dict.fromkeys(names, "1"))
    choose_programs(project, "dqn", ["pt2", "onnx", "openvino"])
    written = write()
    assert written["programs"]["openvino"]["file"] == written["programs"]["onnx"]["file"]
    assert written["programs"]["openvino"]["random_file"] is None
    assert written["versions"]["openvino"] == "1"
    assert set(written["files"]) == set(before["files"])


def test_every_file_of_a_folder_is_listed(project):
    """Check this with the native library, which is one of many files."""
    folder, names = Path("models/dqn/native"), ["libpolicy.so", "policy", "policy.h", "golden.bin", "x/libpolicy.so"]

    def build() -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)

    choose_programs(project, "dqn", ["pt2", "native"])
    make("dqn", "native", build, libraries=("torch",), folder=folder)
    written = write()
    assert written["programs"]["native"] == {"file": "native/libpolicy.so", "random_file": None}
    assert {name for name in written["files"] if name.startswith("native/")} == {f"native/{name}" for name in names}
    assert all(entry["content"] for entry in written["files"].values())
    assert "native_random" not in exploring(written)


def test_programs_of_other_weights(project, profile):
    torch.manual_seed(1)
    save_weights(project / "models/dqn/policy.safetensors", "dqn", make_agent("dqn", profile).actor)
    with pytest.raises(UserError, match=r"^models/dqn/policy\.pt2: made from other weights than .*dvc repro"):
        write_manifest("dqn")


@pytest.mark.parametrize(
    "name", ["policy.pt2", "policy.onnx", "policy_random.onnx", "policy.safetensors", "golden.safetensors"]
)
def test_missing_file(project, name):
    (project / "models/dqn" / name).unlink()
    line = refuse()
    assert line.startswith(f"models/dqn/{name}: ")
    assert line.endswith("dvc repro`")


def test_file_that_its_stage_has_not_made(project):
    with (project / "models/dqn/policy.onnx").open("ab") as file:
        file.write(b"more")
    assert refuse() == "models/dqn/policy.onnx: not the file that its stage has made; run `dvc repro`"


@pytest.mark.parametrize("content", [None, b"{"])
def test_record_that_cannot_be_read(project, content):
    path = project / record_path("dqn", "onnx")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    line = refuse()
    assert line.startswith("results/dqn/programs/onnx.json: ")
    assert line.endswith("; run `dvc repro`")


EDITS = {
    "environment.frame_skip": "four",
    "environment.repeat_action_probability": 1.5,
    "actions.2.ale_id": -3,
    "inputs.0.dtype": "uint7",
    "inputs.0.shape": [],
    "outputs.0.shape.0": "rows",
    "states.0.output": None,
    "programs.onnx.file": 3,
    "onnx_session.optimization": "most",
    "versions.torch": None,
    "files": [],
    "files.policy\u2024onnx.sha256": "abc",  # a dot of another kind stands for the one in a file's name
}


def changed(manifest: dict, key: str, value: object) -> dict:
    content = json.loads(json.dumps(manifest))
    *path, last = [int(part) if part.isdigit() else part.replace("\u2024", ".") for part in key.split(".")]
    inner = content
    for part in path:
        inner = inner[part]
    inner[last] = value
    return content


@pytest.mark.parametrize("key", EDITS)
@pytest.mark.usefixtures("project")
def test_edited_manifest_is_refused_by_the_key(key):
    path = Path("models/dqn/manifest.json")
    path.write_text(json.dumps(changed(read_manifest(path.parent), key, EDITS[key])))
    with pytest.raises(UserError) as caught:
        runtimes.read_model("dqn")
    assert str(caught.value).startswith(f"{path}: damaged: ")
    assert key.replace("\u2024", ".").split(".")[0] in str(caught.value)


@pytest.mark.usefixtures("project")
def test_schema_lies_beside_the_manifest():
    """Check that other languages' readers find it, and that it lists what a manifest has."""
    schema = json.loads(Path("models/dqn/manifest.schema.json").read_text())
    manifest = read_manifest(Path("models/dqn"))
    assert set(manifest) <= set(schema["properties"])
    assert set(schema["required"]) <= set(manifest)
    assert {"facts", "names", "control_rate_hz", "license"} <= set(schema["properties"])
    assert "manifest.schema.json" in manifest["files"]
