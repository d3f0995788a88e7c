"""Two builds in two folders make the same files, which name no folder of the machine that has built them."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, copy_project, python, write_params

pytestmark = pytest.mark.slow

POLICY = "ppo"
STAGES = ("export_pt2", "golden", "compile_aoti", "compile_native", "export_onnx")
FILES = (
    *("policy.pt2", "policy.pt2.txt", "policy_random.pt2", "policy_random.pt2.txt", "golden.safetensors"),
    *("policy.aoti.pt2", "policy_random.aoti.pt2", "policy.onnx", "policy_random.onnx"),
    *("native/libpolicy.so", "native/policy", "native/golden.bin", "native/policy.h"),
)


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> list[Path]:
    projects = [tmp_path_factory.mktemp(name) / "project" for name in ("one", "another-longer")]
    for project in projects:
        project.mkdir()
        copy_project(project)
        for name in (f"models/{POLICY}/policy.safetensors", f"data/{POLICY}/episodes.safetensors"):
            (project / name).parent.mkdir(parents=True)
            shutil.copyfile(ROOT / name, project / name)
        # What autotuning measures differs from run to run, and with it the kernels that it takes.
        write_params(project, {"compile_native.targets": ["native"], "compile_aoti.max_autotune": False})
        python("-m", "stages.machine", cwd=project, project=project)
        with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", folder)
            for stage in STAGES:
                python("-m", f"stages.{stage}", POLICY, cwd=project, project=project)
    return [project / "models" / POLICY for project in projects]


@pytest.mark.parametrize("name", FILES)
def test_two_builds_make_the_same_file(builds, name):
    one, another = (folder / name for folder in builds)
    assert one.read_bytes() == another.read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_no_folder_of_the_building_machine_is_named(builds, name):
    path = builds[0] / name
    contents = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents += [archive.read(member) for member in archive.namelist()]
    for content in contents:
        for place in (str(ROOT), str(builds[0].parents[1]), tempfile.gettempdir(), str(Path.home())):
            assert f"{place}/".encode() not in content
