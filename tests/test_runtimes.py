"""Every runtime refuses what is not its input, and says what came and what it takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_export.backends import runtimes
from policy_export.config import params
from policy_export.device.arrays import Arrays
from policy_export.device.errors import UserError
from policy_export.device.manifest import read_manifest
from policy_export.device.onnx_session import load_onnx
from policy_export.lowering.aoti import compile_program
from policy_export.lowering.native import compile_target

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
    """A model folder with all programs."""
    place = shutil.copytree(workspace, tmp_path_factory.mktemp("compiled"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        compile_program("dqn", "policy", params.load(Path(__file__).parents[1] / "params.yaml").compile_aoti)
        compile_target("dqn", "native", Path("models/dqn/native"))
    return place


@pytest.fixture(scope="module")
def programs(compiled) -> dict[str, runtimes.Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(compiled)
        return {name: runtimes.load_by_name.__wrapped__("dqn", name, 1) for name in ("eager", *runtimes.PROGRAMS)}


@pytest.fixture(scope="module")
def inputs(workspace) -> Arrays:
    random, specs = np.random.default_rng(0), read_manifest(workspace / "models/dqn")["inputs"]
    return {spec["name"]: random.integers(2, size=(2, *spec["shape"][1:])).astype(spec["dtype"]) for spec in specs}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", *runtimes.PROGRAMS])
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_inputs_are_refused(programs, inputs, name, change, message):
    with pytest.raises(UserError, match=rf"^(eager|models/dqn/\S+): .*{re.escape(message)}"):
        programs[name](change(inputs))
    assert set(programs[name](inputs)) == {"action", "action_value", "next_frames"}  # it still runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eager", *runtimes.PROGRAMS])
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
    """Without anything of the pipeline."""
    with pytest.raises(UserError, match=re.escape(message)):
        load_onnx(workspace / "models/dqn/policy.onnx")(change(inputs))


LOAD = """
import sys
from pathlib import Path
from policy_export.backends import runtimes

runtimes.load(Path(sys.argv[1]), 1)
"""


@pytest.mark.slow
def test_package_is_loaded_without_a_compiler(compiled, tmp_path):
    """PyTorch's own loader compiles a program to find out what the processor is, where it has not done so before."""
    root = Path(__file__).parents[1]
    environment = {"PATH": "/nowhere", "PYTHONPATH": str(root), "HOME": str(tmp_path)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    path = compiled / "models/dqn/policy.aoti.pt2"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
