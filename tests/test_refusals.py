"""What a machine refuses: a full disk, a folder that cannot be written, no place for temporary files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import TINY, copy_project, python, run, write_params

from policy_export.device.errors import refusal
from policy_export.device.manifest import sha256
from policy_export.stage.files import replacing
from policy_export.stage.scratch import PREFIX

FULL = 4096  # bytes that a file may have
# In the order of the pipeline, with what they make that is larger.
STAGES = {
    "train": ".checkpoints/",
    "record": "data/dqn/episodes.safetensors",
    "export_pt2": "models/dqn/policy.pt2",
    "golden": "models/dqn/golden.safetensors",
    "compile_aoti": "",  # the compiler is refused, somewhere
    "compile_native": "models/dqn/native/golden.bin",
    "export_onnx": "models/dqn/policy.onnx",
    "manifest": "models/dqn/player/",
    "parity_check": "",
    "bench": "",
}


def stage(project: Path, name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(project), **options.pop("environment", {})}
    command = [sys.executable, "-m", f"stages.{name}", *arguments]
    return subprocess.run(
        command, check=False, **{"cwd": project, "env": environment, "stderr": subprocess.PIPE, "text": True} | options
    )


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a folder for temporary files: pytest's own have long names."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def contents(project: Path) -> dict[str, str]:
    folders = [project / name for name in ("data", "models", "results")]
    return {str(path.relative_to(project)): sha256(path) for at in folders for path in at.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def left() -> dict[str, list[str]]:
    """Give what each stage leaves in the folder for temporary files; ``built`` fills it."""
    return {}


@pytest.fixture(scope="module")
def built(tmp_path_factory, left) -> Path:
    """Give a small project in which all stages have run."""
    project = tmp_path_factory.mktemp("built")
    copy_project(project)
    changes = {
        "parity_check.min_observations": 50,
        "compile_native.targets": ["native"],
        "bench.rounds": 1,
        "bench.cold_starts": 1,
        "bench.batches": [1],
        "bench.rollout_steps": 5,
    }
    write_params(project, TINY | changes)
    python("-m", "stages.machine", cwd=project, project=project)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for name in STAGES:
            assert stage(project, name, "dqn", environment={"TMPDIR": folder}).returncode == 0
            left[name] = names(Path(folder))
    return project


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_with_a_full_disk_says_so_in_a_line(built, name):
    before = contents(built)
    done = stage(built, name, "dqn", preexec_fn=limit_files)
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert told.startswith("error: ")
    assert STAGES[name] in told
    assert "File too large" in told or "no room" in told
    assert "to go on without" not in told
    after = contents(built)
    assert {
        path: after[path] for path in after if "/failures/" not in path
    }.items() <= before.items()  # whole or absent
    if after != before:
        python("-m", f"stages.{name}", "dqn", cwd=built, project=built)


@pytest.mark.slow
def test_a_full_disk_ends_with_the_way_out_for_dvc(built, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    data, kept = built / "data/dqn", built / "kept"
    data.rename(kept)
    data.symlink_to(disk)
    try:
        (disk / "other").write_bytes(bytes(60 * 1024))
        done = stage(built, "record", "dqn")
        assert (done.returncode, names(disk)) == (1, ["other"])
    finally:
        data.unlink()
        kept.rename(data)
        subprocess.run(["umount", disk], check=True)
    assert done.stderr.splitlines() == [
        "error: data/dqn/episodes.safetensors: cannot be written: No space left on device",
        "error: where DVC calls dvc.lock broken from now on: git checkout dvc.lock",
    ]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(built):
    data, kept = built / "data/dqn", built / "kept"
    data.rename(kept)
    data.symlink_to("/sys/kernel")  # not even by root
    try:
        done = stage(built, "record", "dqn")
    finally:
        data.unlink()
        kept.rename(data)
    (told,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert told.startswith("error: data/dqn/episodes.safetensors: cannot be written: ")


@pytest.mark.slow
def test_standard_output_that_cannot_be_written(built):
    with Path("/dev/full").open("w") as full:
        done = stage(built, "golden", "dqn", stdout=full)
        player = run(sys.executable, "-m", "policy_export.device", "models/dqn", "--info", cwd=built)
        assert "policy" in player.stdout
        told = subprocess.run(
            [sys.executable, "models/dqn/player", "--info"], cwd=built, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "error: No space left on device")
    assert (told.returncode, told.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.slow
def test_nothing_stays_in_the_folder_for_temporary_files(built, left):  # noqa: ARG001
    assert left == {name: [] for name in STAGES}


@pytest.mark.slow
def test_what_a_killed_stage_has_left_is_removed_by_the_next(built, place):
    environment = {**os.environ, "PYTHONPATH": str(built), "TMPDIR": str(place)}
    command = [sys.executable, "-m", "stages.compile_aoti", "dqn"]
    with subprocess.Popen(command, cwd=built, env=environment, stderr=subprocess.DEVNULL) as process:
        while not any(place.glob(f"{PREFIX}*/*")):
            time.sleep(0.05)
        (of_another,) = place.glob(f"{PREFIX}*")
        assert stage(built, "golden", "dqn", environment={"TMPDIR": str(place)}).returncode == 0
        assert list(place.iterdir()) == [of_another]  # which runs
        process.send_signal(signal.SIGKILL)
    assert stage(built, "golden", "dqn", environment={"TMPDIR": str(place)}).returncode == 0
    assert names(place) == []


@pytest.mark.parametrize("name", ["with space", "with'quote", "long" * 20])
def test_folders_for_temporary_files_that_cannot_be_used(root, place, name):
    folder = place / name
    folder.mkdir()
    done = stage(root, "golden", "dqn", environment={"TMPDIR": str(folder)})
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert told.startswith("error: TMPDIR: ")
    assert name in told
    assert names(folder) == []


def test_other_errors_are_no_refusals(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        (tmp_path / "missing").read_text()
    assert refusal(FileNotFoundError(2, "No such file or directory", "missing")) is None
    assert refusal(ValueError("File too large")) is None


def test_errors_of_libraries_that_tell_the_number():
    for text in (
        "I/O error: No space left on device (os error 28)",
        "OSError: [Errno 28] No space left on device: 'x'",
    ):
        refused = refusal(RuntimeError(text))
        assert refused is not None
        assert refused.strerror == "No space left on device"
