"""Experiments: what `dvc exp` does to params.yaml, and the commands of docs/experiments.md, as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import ROOT, TINY, change_params, copy_project, run
from ruamel.yaml import YAML

from policy_export.config import params

pytestmark = pytest.mark.slow

SMALL = TINY | {
    "matrix": ["dqn"],
    "policies.dqn.env.max_episode_steps": 30,
    "policies.dqn.train.total_steps": 512,
    "policies.dqn.train.epsilon_steps": 256,
    "policies.dqn.train.collectors": 1,
    "record.greedy_episodes": 1,
    "record.epsilon_episodes": 1,
    "parity_check.min_observations": 10,
}
PAGE = (ROOT / "docs/experiments.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
WIDTH = 160


def start(project: Path) -> None:
    """Commit everything in a project, which is what experiments begin with."""
    run("git", "add", "--all", cwd=project)
    run("git", "commit", "--quiet", "--message", "start", cwd=project)


def test_set_parameters_are_all_that_changes(tmp_path):
    """Check it on the project's own params.yaml: comments, lists and numbers stay as they are written."""
    run("git", "init", "--quiet", cwd=tmp_path)
    run("dvc", "init", "--quiet", cwd=tmp_path)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    stage = {"cmd": "true", "params": ["policies.dqn.train.seed"]}
    YAML().dump({"stages": {"nothing": stage}}, tmp_path / "dvc.yaml")
    start(tmp_path)
    before = params.load(tmp_path / "params.yaml").model_dump()
    changes = ("policies.dqn.train.seed=2", "policies.ppo.train.learning_rate=7.0e-5", "bench.rounds=3")
    run("dvc", "exp", "run", *(word for change in changes for word in ("-S", change)), cwd=tmp_path)
    diff = run("git", "diff", "--unified=0", "params.yaml", cwd=tmp_path).stdout
    changed = [line for line in diff.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]
    assert [line.split("#")[0].split() for line in changed] == [
        *(["-", "seed:", "3"], ["+", "seed:", "2"]),
        *(["-", "learning_rate:", "3.0e-4"], ["+", "learning_rate:", "7e-05"]),
        *(["-", "rounds:", "24"], ["+", "rounds:", "3"]),
    ]
    before["policies"]["dqn"]["train"]["seed"] = 2
    before["policies"]["ppo"]["train"]["learning_rate"] = 7.0e-5
    before["bench"]["rounds"] = 3
    assert params.load(tmp_path / "params.yaml").model_dump() == before


def keep_stages(path: Path, names: list[str]) -> None:
    """Leave out stages that take minutes; `dvc exp apply` wants the outputs of all that there are, but the studies'."""
    yaml = YAML()
    content = yaml.load(path.read_text())
    content["stages"] = {name: content["stages"][name] for name in names}
    yaml.dump(content, path)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Give a project whose results are committed, after all commands of the page; what they print is in `told`."""
    folder = tmp_path_factory.mktemp("experiments")
    copy_project(folder)
    change_params(folder / "params.yaml", SMALL)
    keep_stages(folder / "dvc.yaml", ["machine", "train", "record"])
    start(folder)
    run("dvc", "repro", "train@dqn", "record@dqn", cwd=folder)
    start(folder)
    (folder / ".dvc/tmp/told").mkdir()
    for number, command in enumerate(COMMANDS):
        done = run("env", f"COLUMNS={WIDTH}", "bash", "-c", command, cwd=folder)
        (folder / f".dvc/tmp/told/{number}").write_text(done.stdout)
    return folder


def told(project: Path, beginning: str) -> str:
    """Return what the only command of the page that begins so has printed."""
    (number,) = (number for number, command in enumerate(COMMANDS) if command.startswith(beginning))
    return (project / f".dvc/tmp/told/{number}").read_text()


def shown(project: Path, revision: str) -> dict[str, dict[str, Any]]:
    """Return the parameters of the experiments of a commit, by the experiments' names."""
    (of_commit,) = json.loads(run("dvc", "exp", "show", "--json", "--rev", revision, cwd=project).stdout)[1:]
    found = [revision for group in of_commit["experiments"] or [] for revision in group["revs"]]
    return {each["name"]: each["data"]["params"]["params.yaml"]["data"] for each in found}


def seed(content: dict[str, Any]) -> int:
    return content["policies"]["dqn"]["train"]["seed"]


def test_experiment_runs_what_depends_on_its_parameter(project):
    assert re.findall(r"Running stage '(\S+)'", told(project, "dvc exp run --name")) == [
        *("machine", "train@dqn", "record@dqn")
    ]
    assert "policies.dqn.train.seed" in told(project, "dvc params diff")
    changed = told(project, "git diff --stat")
    assert re.search(r"params\.yaml +\| +2 \+-", changed)
    assert "models/dqn/policy.safetensors" in changed


def test_plots_have_both_curves(project):
    assert told(project, "dvc plots diff").strip().endswith("dvc_plots/index.html")
    page = (project / "dvc_plots/index.html").read_text()
    assert all(f'"rev": "{revision}"' in page for revision in ("HEAD", "workspace"))


def test_queue_trains_every_seed(project):
    assert len(re.findall("Success", told(project, "dvc queue status"))) == 3
    assert sorted(seed(content) for content in shown(project, "HEAD~1").values()) == [1, 2, 4, 5]


def test_table_of_experiments_fits(project):
    """Check that no column is left out, squeezed or broken, neither for a terminal nor as Markdown."""
    table = told(project, "dvc exp show --no-pager")
    assert "[seed-5]" in table
    assert table.count("[") == 4
    assert {"score_mean", "score_std", "policies.dqn.train.seed"} <= set(table.split())
    assert "\u2026" not in table
    assert max(map(len, table.splitlines())) <= WIDTH


def test_experiments_are_compared(project):
    difference = told(project, "dvc exp diff")
    assert re.search(r"policies\.dqn\.train\.seed +3 +5 ", difference)


def test_experiment_that_is_applied_and_committed_is_what_it_was(project):
    assert seed(YAML(typ="safe", pure=True).load((project / "params.yaml").read_text())) == 5
    assert not run("git", "status", "--porcelain", "--untracked-files=no", cwd=project).stdout
    status = json.loads(run("dvc", "status", "--json", "train@dqn", "record@dqn", cwd=project).stdout)
    assert set(status) <= {"machine"}


def test_what_was_run_by_hand_is_saved(project):
    assert set(shown(project, "HEAD")) == {"by-hand"}
