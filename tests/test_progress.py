"""What a training shows while it runs, and that what is not known yet is no number in its files."""

from __future__ import annotations

import csv
import math
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from pipeline_helpers import ROOT, TINY, python, write_params

from policy_export.algorithms.training import train
from policy_export.device.errors import UserError
from policy_export.stage.progress import Progress

pytestmark = pytest.mark.slow

TRAIN = "import sys; from policy_export.algorithms.training import train; train(sys.argv[1])"
# Too short for an episode to end.
NO_EPISODE = TINY | {"policies.dqn.train.total_steps": 512}
# Episodes end before anything is learned, which is in the last rollout only.
NO_LOSS = {
    "policies.dqn_replay.env.max_episode_steps": 20,
    "policies.dqn_replay.train.total_steps": 512,
    "policies.dqn_replay.train.num_envs": 8,
    "policies.dqn_replay.train.learning_starts": 500,
    "policies.dqn_replay.train.eval_episodes": 1,
}


def shown(folder: Path, policy: str = "dqn") -> list[str]:
    return python("-c", TRAIN, policy, cwd=folder).stdout.splitlines()


def read_curve(folder: Path, policy: str = "dqn") -> list[dict[str, str]]:
    with (folder / "results" / policy / "learning_curve.csv").open() as file:
        return list(csv.DictReader(file))


def test_return_is_a_dash_until_an_episode_has_ended(tmp_path):
    write_params(tmp_path, NO_EPISODE)
    trained = [line for line in shown(tmp_path) if " steps " in line]
    assert re.search(r" 512/512 steps .*return -  loss \d", trained[-1])
    assert read_curve(tmp_path) == []


def test_evaluation_shows_how_many_episodes_have_ended(tmp_path):
    """Check it for episodes that two processes play."""
    write_params(tmp_path, NO_EPISODE | {"policies.dqn.train.eval_episodes": 5})
    evaluated = [line for line in shown(tmp_path) if "evaluating" in line]
    assert evaluated[0].startswith("train dqn  evaluating  0/5 episodes  after 00:00")
    assert evaluated[-1].startswith("train dqn  evaluating  5/5 episodes  after ")
    counts = [int(re.findall(r"(\d+)/5 episodes", line)[0]) for line in evaluated]
    assert counts == sorted(counts)


def test_terminal_shows_bars(tmp_path):
    write_params(tmp_path, NO_EPISODE)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    command = [sys.executable, "-c", TRAIN, "dqn"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=theirs) as training:
        os.close(theirs)
        told = b""
        while part := read_terminal(ours):
            told += part
    os.close(ours)
    assert training.returncode == 0
    bars = told.decode().split("\r")
    assert any("train dqn: 100%|" in bar and "return -" in bar for bar in bars)
    assert any("train dqn  evaluating: 100%|" in bar and "2/2" in bar for bar in bars)


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how the end of a terminal is told on Linux
        return b""


def test_loss_that_is_not_known_is_no_number_in_the_curve(tmp_path):
    write_params(tmp_path, NO_LOSS)
    shown(tmp_path, "dqn_replay")
    *rows, last = read_curve(tmp_path, "dqn_replay")
    assert rows
    assert {row["loss"] for row in rows} == {""}
    assert all(math.isfinite(float(number)) for number in (last["loss"], *(row["return"] for row in rows)))


def test_loss_that_is_no_number_ends_the_training(tmp_path, monkeypatch):
    write_params(tmp_path, TINY | {"policies.dqn.train.learning_rate": 1e30})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train: the loss is (nan|inf) after [\d,]+ steps, must be a number: lower "):
        train("dqn")
    assert not Path("results/dqn/learning_curve.csv").exists()


def test_more_than_the_total_is_shown_as_the_total(capsys):
    """Check it for an environment whose batch plays more episodes than are wanted."""
    progress = Progress("evaluating", 6, "episodes")
    for done in (4, 8):
        progress.show(done)
    assert capsys.readouterr().out.splitlines()[-1].startswith("evaluating  6/6 episodes")
