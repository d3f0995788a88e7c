"""Golden decisions: every program replays them, from any language; rounding is told from damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from pipeline_helpers import ROOT, accept_files
from safetensors.numpy import load_file, save_file

from policy_export.device.golden import GOLDEN, read_golden
from policy_export.device.manifest import read_manifest
from policy_export.program.golden import near_ties, pick_steps

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples/golden"
RUNTIME = "onnxruntime-node@1.30.0"
PLACES = (os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")
HEADERS = [path for path in PLACES if Path(path, "onnxruntime_cxx_api.h").is_file()]


@pytest.fixture(scope="module")
def folder(workspace, tmp_path_factory) -> Path:
    """Give a model folder, and beside it others: with numbers that are rounded otherwise, ties, and damage."""
    place = tmp_path_factory.mktemp("golden")
    shutil.copytree(workspace / "models/dqn", place / "dqn")
    tensors = load_file(place / "dqn" / GOLDEN)
    values, other = tensors["output/action_value"], (tensors["output/action"] + 1) % 6
    for name, changed in {
        "rounded": {"output/action_value": values + np.float32(4e-6)},
        "tied": {"output/action": other, "tie": np.ones_like(tensors["tie"])},
        "damaged_values": {"output/action_value": values + np.float32(3e-5), "tie": np.ones_like(tensors["tie"])},
        "damaged_actions": {"output/action": other, "tie": np.zeros_like(tensors["tie"])},
    }.items():
        shutil.copytree(place / "dqn", place / name)
        save_file(tensors | changed, place / name / GOLDEN)
    return place


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)


def check_replays(command: list[str | Path], folder: Path, cwd: Path = ROOT) -> None:
    """Check what a program says of a model folder, whose path is the last word, and of the changed ones."""
    for name in ("dqn", "rounded", "tied"):
        done = run(*command, folder / name, cwd=cwd)
        assert done.returncode == 0, done.stderr
        assert "64 golden decisions, all as they were" in done.stdout
        assert name == "dqn" or "64 of them but for rounding" in done.stdout
    for name in ("damaged_values", "damaged_actions"):
        done = run(*command, folder / name, cwd=cwd)
        assert done.returncode != 0
        assert "no rounding explains" in done.stderr


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_javascript_replays_them(folder, tmp_path):
    shutil.copy(EXAMPLES / "selftest.mjs", tmp_path)
    # Its script would fetch programs for graphics cards.
    done = run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", RUNTIME, cwd=tmp_path)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {RUNTIME}: {done.stderr.splitlines()[0]}")
    check_replays(["node", "selftest.mjs"], folder, cwd=tmp_path)


@pytest.mark.skipif(not HEADERS, reason="the headers of ONNX Runtime are not installed")
def test_cpp_replays_them(folder, tmp_path):
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)  # as it is installed elsewhere
    options = [f"-I{HEADERS[0]}", f"-L{tmp_path}", "-l:libonnxruntime.so.1", f"-Wl,-rpath,{tmp_path}"]
    built = tmp_path / "selftest"
    done = run("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", EXAMPLES / "selftest.cpp", *options, "-o", built)
    assert done.returncode == 0, done.stderr
    check_replays([built], folder)


@pytest.fixture
def models(folder, workspace, tmp_path, monkeypatch) -> Path:
    """Give model folders whose manifests list the golden decisions as they are."""
    monkeypatch.chdir(tmp_path)
    for name in ("dqn", "rounded", "tied", "damaged_values", "damaged_actions"):
        place = tmp_path / name
        shutil.copytree(workspace, place)
        shutil.copy(folder / name / GOLDEN, place / "models/dqn" / GOLDEN)
        with monkeypatch.context() as patch:
            patch.chdir(place)
            accept_files("dqn")
        (place / "models/dqn").rename(tmp_path / f"{name}_model")
        shutil.rmtree(place)
        (tmp_path / f"{name}_model").rename(place)
    return tmp_path


@pytest.mark.parametrize("module", ["policy_export.backends", "policy_export.device"])
def test_commands_replay_them(models, module):
    words = ["--selftest"] if module.endswith("device") else []
    check_replays([sys.executable, "-m", module, *words], models)
    told = run(sys.executable, "-m", module, *words, models / "dqn").stdout.splitlines()
    names = ["policy.onnx"] if words else ["pt2", "onnx"]
    assert [line.split(":")[0] for line in told] == [f"selftest dqn, {name}" for name in names]


def test_episode_s_start_is_marked(folder):
    golden = read_golden(folder / "dqn" / GOLDEN, read_manifest(folder / "dqn"))
    assert np.flatnonzero(golden.starts).tolist() == [0, 16, 32, 48]
    assert golden.tolerance == 1e-5


def test_steps_are_spread_over_the_episode():
    assert pick_steps(1000, 64) == [range(16), range(328, 344), range(656, 672), range(984, 1000)]
    assert sum(map(len, pick_steps(3, 64))) == 3


def test_tie_is_where_rounding_may_choose_another():
    kinds = {"action": {"kind": "index", "sizes": [3]}}
    values = np.array([[1, 0, 1.00001], [1, 0, 1.0001], [200, 0, 200.003], [200, 0, 200.01], [0, -np.inf, -np.inf]])
    outputs = {"action": np.array([2, 2, 2, 2, 0]), "action_value": values.astype(np.float32)}
    assert near_ties(outputs, ["action_value"], kinds, 1e-5).tolist() == [True, False, True, False, False]
    assert not near_ties({"action": np.zeros((2, 3), np.float32)}, [], {"action": {"kind": "vector"}}, 1e-5).any()
