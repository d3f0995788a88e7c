from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from policy_export.stage.files import replacing, write_json, write_text


def names(folder) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write_and_fail(path, error):
    with replacing(path) as temporary:
        temporary.write_text("half of the ne")
        raise error


@pytest.mark.parametrize("old", [None, "old"])
def test_new_content_takes_the_place_of_the_old(tmp_path, old):
    path = tmp_path / "new folder" / "file.json"
    if old is not None:
        write_text(path, old)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.json"]


def test_nothing_changes_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_temporary_has_the_ending_that_writers_go_by(tmp_path):
    with replacing(tmp_path / "policy.aoti.pt2") as temporary:
        assert temporary.name.endswith(".aoti.pt2")
        temporary.touch()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        write_and_fail(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"score": 1.0})
    old = path.read_bytes()
    with pytest.raises(ValueError, match="nan"):  # which no JSON reader but Python's takes
        write_json(path, {"score": float("nan")})
    assert path.read_bytes() == old


KILLED = """
import os, signal, sys
from pathlib import Path
from policy_export.stage.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_the_old_file(tmp_path, root):
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_readable_by_whoever_reads_the_folder(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.touch(0o600)  # as safetensors does
    assert path.stat().st_mode & 0o777 == 0o644
