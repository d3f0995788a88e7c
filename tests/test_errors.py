from __future__ import annotations

import os
import subprocess
import sys

import pytest

from policy_export.stage import command as errors


@pytest.fixture
def folder(tmp_path, root):
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    return tmp_path


@pytest.fixture
def run(folder, root):
    def python(*arguments):
        environment = os.environ | {"PYTHONPATH": str(root)}
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return python


@pytest.mark.slow
def test_policy_that_params_do_not_have(run, folder):
    done = run("stages.export_pt2", "nosuch")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: params.yaml: ")
    assert "'nosuch'" in line
    assert "dqn" in line
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_every_mistake_is_a_line(run, folder):
    params = folder / "params.yaml"
    params.write_text(
        params.read_text().replace("greedy_episodes: 10", "greedy_episodes: ten").replace("opset:", "version:")
    )
    done = run("stages.machine")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: params.yaml: ") for line in lines)
    assert not (folder / "results").exists()


@pytest.mark.parametrize("arguments", [[], ["dqn", "pong"], ["--nosuch", "dqn"]])
def test_wrong_arguments(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    with pytest.raises(SystemExit) as caught:
        errors.run(lambda **_: pytest.fail("the stage was run"), "Does something.")
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_stage_gets_its_policy(monkeypatch):
    given = []
    monkeypatch.setattr(sys, "argv", ["stage", "dqn"])
    errors.run(lambda **arguments: given.append(arguments), "Does something.")
    assert given == [{"policy": "dqn"}]


def test_errors_of_ours_keep_their_traceback(monkeypatch):
    """Check that a bug shows where it is; only errors that the user can fix are one line."""
    monkeypatch.setattr(sys, "argv", ["stage", "dqn"])
    with pytest.raises(ZeroDivisionError):
        errors.run(lambda policy: 1 / 0, "Does something.")  # noqa: ARG005
