"""Every runtime refuses what is not its input, and says what came and what it takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import change_manifest

from policy_export.backends import onnx, runtimes
from policy_export.backends.base import Backend
from policy_export.backends.registry import backends, by_file, choose, deterministic, exploring, quickest
from policy_export.config import params
from policy_export.device.arrays import Arrays
from policy_export.device.errors import UserError
from policy_export.device.manifest import read_manifest
from policy_export.device.onnx_session import load_onnx
from policy_export.lowering.aoti import compile_program
from policy_export.lowering.native import compile_target


def is_installed(backend: Backend) -> bool:
    try:
        return all(map(metadata.version, backend.run_by))
    except metadata.PackageNotFoundError:
        return False


# Those that policies have by themselves, and what is installed beside them.
BACKENDS = [name for name, backend in backends().items() if backend.default or is_installed(backend)]
FRAMES = "float32[batch, 1, 40, 40]"
SCREEN = "uint8[batch, 210, 160, 3]"


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Arrays], Arrays]:
    return lambda inputs: inputs | {name: change(inputs[name])}


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda inputs: {key: array for key, array in inputs.items() if key != name}


ROWS = "inputs must have the same number of rows, at least 1, found observation"
WRONG = [
    (changed("observation", lambda a: a.astype("f4")), f"observation is float32[2, 210, 160, 3], expected {SCREEN}"),
    (changed("observation", lambda a: a.astype("i1")), f"observation is int8[2, 210, 160, 3], expected {SCREEN}"),
    (changed("observation", lambda a: a.transpose(0, 3, 1, 2)), f"is uint8[2, 3, 210, 160], expected {SCREEN}"),
    (changed("observation", lambda a: a[0]), f"input observation is uint8[210, 160, 3], expected {SCREEN}"),
    (changed("observation", lambda a: a.tolist()), f"input observation is a list, expected an array {SCREEN}"),
    (changed("frames", lambda a: a.astype("f8")), f"input frames is float64[2, 1, 40, 40], expected {FRAMES}"),
    (changed("frames", lambda a: a[..., :39]), f"input frames is float32[2, 1, 40, 39], expected {FRAMES}"),
    (changed("is_init", lambda a: a.astype("u1")), "input is_init is uint8[2, 1], expected bool[batch, 1]"),
    (changed("frames", lambda a: a[:1]), f"{ROWS} 2, frames 1, is_init 2"),
    (lambda inputs: {name: array[:0] for name, array in inputs.items()}, f"{ROWS} 0, frames 0, is_init 0"),
    (without("frames"), f"input frames, {FRAMES}, is missing; found observation, is_init"),
    (lambda inputs: inputs | {"hidden0": inputs["frames"]}, "input hidden0 is unknown; expected observation, frames, "),
]


@pytest.fixture(scope="module")
def compiled(workspace, tmp_path_factory) -> Path:
    """Give a model folder with all programs."""
    place = shutil.copytree(workspace, tmp_path_factory.mktemp("compiled"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        compile_program("dqn", "policy", params.load(Path(__file__).parents[1] / "params.yaml").compile_aoti)
        compile_target("dqn", "native", Path("models/dqn/native"))
    programs = {name: {"file": backend.file, "random_file": None} for name, backend in backends().items()}
    change_manifest(place / "models/dqn", lambda manifest: manifest.update(programs=programs))
    return place


@pytest.fixture(scope="module")
def programs(compiled) -> dict[str, runtimes.Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(compiled)
        return {name: runtimes.load_by_name.__wrapped__("dqn", name, 1) for name in ("eager", *BACKENDS)}


@pytest.fixture(scope="module")
def inputs(workspace) -> Arrays:
    random, specs = np.random.default_rng(0), read_manifest(workspace / "models/dqn")["inputs"]
    return {spec["name"]: random.integers(2, size=(2, *spec["shape"][1:])).astype(spec["dtype"]) for spec in specs}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", *BACKENDS])
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_inputs_are_refused(programs, inputs, name, change, message):
    with pytest.raises(UserError, match=rf"^(eager|models/dqn/\S+( \(OpenVINO\))?): .*{re.escape(message)}"):
        programs[name](change(inputs))
    assert set(programs[name](inputs)) == {"action", "action_value", "next_frames"}  # it still runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", *BACKENDS])
def test_memory_may_lie_in_any_way(programs, inputs, name):
    expected = programs[name](inputs)
    spread = {key: np.repeat(array, 2, -1)[..., ::2] for key, array in inputs.items()}
    assert not spread["observation"].flags["C_CONTIGUOUS"]
    fixed = {key: array.copy() for key, array in inputs.items()}
    for array in fixed.values():
        array.flags.writeable = False
    for others in (spread, fixed, {key: np.asfortranarray(array) for key, array in inputs.items()}):
        found = programs[name](others)
        for output, array in expected.items():
            np.testing.assert_array_equal(found[output], array)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_player_s_program_refuses_the_same(workspace, inputs, change, message):
    """Check this without any code of the pipeline."""
    with pytest.raises(UserError, match=re.escape(message)):
        load_onnx(workspace / "models/dqn/policy.onnx")(change(inputs))


@pytest.fixture
def project(workspace, tmp_path, monkeypatch) -> Path:
    """Give the model folder of a copy of the workspace, to be damaged; the working folder is the copy."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("models/dqn")


def test_model_is_its_manifest_and_its_programs(project):
    manifest, paths = runtimes.read_model("dqn")
    assert manifest == read_manifest(project)
    files = {"pt2": "policy.pt2", "onnx": "policy.onnx"}
    files |= {"pt2_random": "policy_random.pt2", "onnx_random": "policy_random.onnx"}
    assert paths == {name: project / file for name, file in files.items()}
    assert set(paths) == set(deterministic(manifest)) | set(exploring(manifest))
    assert quickest(manifest) == "onnx"


@pytest.mark.parametrize("name", ["policy.pt2", "policy_random.onnx", "policy.safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "No such file or directory"),
        (lambda path: path.write_bytes(b""), "damaged or from another policy"),
    ],
)
def test_model_with_a_file_that_is_not_its_own(project, name, damage, message):
    damage(project / name)
    with pytest.raises(UserError, match=rf"^models/dqn/{re.escape(name)}: {message}"):
        runtimes.read_model("dqn")


def test_model_of_another_policy(project):
    project.rename("models/other")
    with pytest.raises(UserError, match=r"^models/other/manifest\.json: is of the policy 'dqn', expected 'other'$"):
        runtimes.read_model("other")


def test_model_whose_manifest_lists_no_programs(project):
    """Check the error for a manifest such as that of an earlier version."""
    path = project / "manifest.json"
    content = json.loads(path.read_text())
    del content["programs"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^models/dqn/manifest\.json: damaged: programs: Field required$"):
        runtimes.read_model("dqn")


def test_onnx_runtime_is_set_as_the_manifest_says(project, monkeypatch):
    """Check the settings, with as many threads as requested."""
    asked = []
    monkeypatch.setattr(onnx, "load_onnx", lambda path, settings: asked.append((path, settings)))
    session = read_manifest(project)["onnx_session"] | {"optimization": "basic", "threads": 7}
    change_manifest(project, lambda manifest: manifest.update(onnx_session=session))
    for name in ("onnx", "onnx_random"):
        runtimes.load_by_name.__wrapped__("dqn", name, 2)
    runtimes.load(project / "policy.onnx", 3, {"arena": False})
    runtimes.load(project / "policy.onnx", 1)
    assert asked == [
        (project / "policy.onnx", session | {"threads": 2}),
        (project / "policy_random.onnx", session | {"threads": 2}),
        (project / "policy.onnx", {"arena": False, "threads": 3}),
        (project / "policy.onnx", {"threads": 1}),
    ]


def test_records_of_back_ends():
    """Check that those that start without PyTorch come last, and that exactly one back end makes each file."""
    assert next(iter(backends())) == "pt2"
    assert [name for name, backend in backends().items() if backend.required] == ["pt2"]
    assert {name for name, backend in backends().items() if backend.default} == {"pt2", "aoti", "onnx", "native"}
    assert [name for name, backend in backends().items() if backend.on_device] == list(backends())[-2:]
    for name, backend in backends().items():
        assert backend.name == name
        owners = [other for other in backends().values() if other.owns_file and other.file == backend.file]
        assert len(owners) == 1
        assert by_file(Path("anywhere", backend.file)) is owners[0]
        if backend.random_file is not None:
            assert by_file(Path(backend.random_file)) is owners[0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pt2", "nosuch"], "'nosuch': unknown program; known: pt2, "),
        (["pt2", "onnx", "onnx"], "names a program twice"),
        (["onnx"], "lacks pt2, from which all others are made"),
        (["pt2", "openvino"], "openvino runs policy.onnx, add onnx"),
    ],
)
def test_choice_of_programs_that_cannot_be(names, message):
    with pytest.raises(UserError, match=rf"^params\.yaml: policies\.mine\.programs: .*{message}"):
        choose(names, "policies.mine.programs")


def test_choice_of_programs_is_in_one_order():
    assert choose(["native", "onnx", "pt2"], "programs") == choose(["pt2", "native", "onnx"], "programs")
    assert choose(list(reversed(backends())), "programs") == list(backends())


LOAD = """
import sys
from pathlib import Path
from policy_export.backends import runtimes

runtimes.load(Path(sys.argv[1]), 1)
"""


@pytest.mark.slow
def test_package_is_loaded_without_a_compiler(compiled, tmp_path):
    """Check this because PyTorch's own loader first compiles a program to find out what the processor is."""
    root = Path(__file__).parents[1]
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(root), "HOME": str(tmp_path)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    path = compiled / "models/dqn/policy.aoti.pt2"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
