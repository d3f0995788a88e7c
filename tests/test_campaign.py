"""A few attempts of every campaign: nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import campaign
import pytest
from campaign import CAMPAIGNS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    campaign.build(folder)
    return folder


def can_mount(folder: Path) -> bool:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    return mounted.returncode == 0


@pytest.mark.parametrize("kind", CAMPAIGNS)
def test_nothing_is_lost(kept, tmp_path, kind):
    if kind == "disks" and not can_mount(tmp_path):
        pytest.skip("no disk can be mounted here")
    project = tmp_path / "project"
    shutil.copytree(kept, project, symlinks=True)
    counts, lost = campaign.campaign(project, kept, kind, CAMPAIGNS[kind].few, seed=1)
    assert lost == []
    assert counts.total() == CAMPAIGNS[kind].few


def test_a_file_that_changes_without_a_word_is_lost(kept, tmp_path):
    """Check the campaigns themselves: with other answers, and with a traceback."""
    project = tmp_path / "project"
    shutil.copytree(kept, project, symlinks=True)
    right, refused = campaign.answers(project)
    assert refused is None
    assert campaign.judge_answers(project, right)[0] == "survived"
    assert campaign.judge_answers(project, right[1:])[0] == "lost"
    (project / "models/dqn/player/__main__.py").write_text("raise RuntimeError\n")
    assert campaign.judge_answers(project, right)[0] == "lost"
