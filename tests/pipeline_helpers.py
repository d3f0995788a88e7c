"""Copies of the project, small parameters, and programs run in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from policy_export.backends.manifest import write_manifest
from policy_export.backends.registry import backends
from policy_export.config import params
from policy_export.device.manifest import digest
from policy_export.program.made import read_programs, write_record

ROOT = Path(__file__).parents[1]
OUTPUTS = ("models/", "results/", "data/", "dvc.lock", "studies/results/", "studies/dvc.lock")

# A training of seconds. Nothing in it depends on how well the policy plays.
TINY = {
    "policies.dqn.env.max_episode_steps": 100,
    "policies.dqn.preprocess.frames": 2,
    "policies.dqn.policy.epsilon": 0.01,
    "policies.dqn.train.total_steps": 4096,
    "policies.dqn.train.num_envs": 8,
    "policies.dqn.train.rollout_steps": 32,
    "policies.dqn.train.minibatch_size": 128,
    "policies.dqn.train.epsilon_start": 1.0,
    "policies.dqn.train.epsilon_steps": 2048,
    "policies.dqn.train.eval_episodes": 2,
    "parity_check.episodes": 2,
    "parity_check.random_calls": 4,
    "parity_check.soak_calls": 100,
}

# A benchmark of seconds, whose results are INVALID for want of queries.
QUICK_BENCH = {
    "bench.rounds": 1,
    "bench.cold_starts": 1,
    "bench.warmup_queries": 10,
    "bench.queries": 64,
    "bench.multi_stream_queries": 10,
    "bench.contended_queries": 10,
    "bench.samples": 16,
    "bench.batches": [1, 8],
    "bench.rollout_steps": 100,
}
# The whole pipeline of one policy, in a minute or two.
ONE_POLICY = (
    TINY
    | QUICK_BENCH
    | {
        "matrix": ["dqn"],
        "policies.dqn.env.max_episode_steps": 1000,  # a policy that plays badly has lost after 750 to 900
        "policies.dqn.train.num_envs": 4,  # a full episode in each
        "record.greedy_episodes": 2,
        "record.epsilon_episodes": 1,
        "compile_aoti.max_autotune": False,
        "compile_native.targets": ["native"],
    }
)

# The check of a few short episodes, with every comparison that a long one has.
SHORT_CHECK = params.ParityCheck(
    processes=2,
    min_observations=1,
    tolerance=1e-5,
    seed=3,
    episodes=2,
    soak_calls=100,
    random_inputs=4,
    random_calls=4,
    random_error_rate=1e-6,
)

# Short episodes of a user's policies.
SMALL: dict[str, dict[str, Any]] = {
    "record": {"greedy_episodes": 2, "epsilon_episodes": 2},
    "compile_native": {"targets": ["native"]},
    "parity_check": {"min_observations": 200, "episodes": 3, "soak_calls": 100, "random_inputs": 4, "random_calls": 8},
}
# The stages in one process, as importing PyTorch takes longer than most of them do.
BUILD = """
import runpy, sys
_, policy, *stages = sys.argv
for stage in stages:
    sys.argv = [stage, policy]
    runpy.run_module(f"stages.{stage}", run_name="__main__")
"""


def copy_project(folder: Path) -> None:
    """Copy what git tracks or would track, without what the pipeline writes, into a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(OUTPUTS):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run("git", "init", "--quiet", cwd=folder)


def change_params(path: Path, changes: dict[str, Any]) -> None:
    """Change values in a ``params.yaml``, by their dotted keys."""
    yaml = YAML()
    content = yaml.load(path.read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section[part]
        assert name in section, f"{key} is not in {path}"
        section[name] = value
    with path.open("w") as file:
        yaml.dump(content, file)


def choose_programs(folder: Path, policy: str, names: Sequence[str]) -> None:
    """Write which programs a policy has, as the stage machine does."""
    path = folder / "results/sources" / policy / "programs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: name in names for name in backends()}))


def write_params(folder: Path, changes: dict[str, Any]) -> None:
    """Write the project's ``params.yaml`` with other values."""
    path = folder / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    change_params(path, changes)


def run(*command: str, cwd: Path, status: int = 0, project: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program, with this interpreter as ``python`` and ``project`` as the place of our modules."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project or cwd),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "test@test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def python(*arguments: str, cwd: Path, status: int = 0, project: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *arguments, cwd=cwd, status=status, project=project)


def accept_files(policy: str, libraries: Sequence[str] = ("torch",)) -> None:
    """Record a policy's programs as they are now, as their stages do, and write the manifest again."""
    for name in (name for name, chosen in read_programs(policy).items() if chosen):
        folder = Path("models", policy)
        write_record(policy, name, [folder / file for file in backends()[name].outputs], libraries)
    write_manifest(policy)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a model folder's manifest says, with its digest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest | {"digest": digest(manifest)}))


def make_own_project(
    folder: Path,
    files: Mapping[str, str],
    profiles: Mapping[str, Any],
    settings: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Copy the project, with a user's files and profiles, whose settings are small but for those given."""
    copy_project(folder)
    yaml = YAML()
    content = yaml.load((folder / "params.yaml").read_text())
    content |= {"matrix": list(profiles)}
    content["policies"] |= profiles
    for section, values in (*SMALL.items(), *(settings or {}).items()):
        content[section] |= values
    yaml.dump(content, folder / "params.yaml")
    for name, text in files.items():
        (folder / name).write_text(text)


def build_policy(project: Path, policy: str, programs: Sequence[str]) -> dict[str, Any]:
    """Run the stages of a policy of such a project, unless they have run, and return the report of the check."""
    path = project / "results" / policy / "parity.json"
    if not path.exists():
        native = ["compile_native"] if "native" in programs else []
        stages = ["train", "record", "export_pt2", "golden", *native, "export_onnx", "manifest", "parity_check"]
        python("-c", BUILD, policy, *stages, cwd=project, project=project)
    report: dict[str, Any] = json.loads(path.read_text())
    return report
