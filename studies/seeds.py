"""Train policies with other seeds than their profiles', each in a folder of its own, and write their scores.

``make seeds`` trains every policy of ``matrix`` with the seeds of ``studies/params.yaml``: hours. It is no stage, as
nothing is made from what it trains. ``python -m studies.seeds dqn --seeds 4 5`` chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy_export.config import params
from policy_export.config.profile import PATH, read
from policy_export.device.errors import UserError
from policy_export.stage.command import fail_of
from policy_export.stage.files import write_json
from studies.settings import RESULTS, load

OWN = {PATH.name, "models", "results", ".checkpoints"}  # of each training; all else is the project's
KEPT = ("env_steps", "device", "processor", "versions")


def train_with(policy: str, seed: int) -> dict[str, Any]:
    """Train a policy with a seed, in a folder that is gone afterwards; return its scores, and the seconds that it took.

    Raises:
        UserError: the training fails, which has said why.
    """
    content = read(PATH)
    content["policies"][policy]["train"]["seed"] = seed
    project = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for entry in project.iterdir():
            if entry.name not in OWN:
                (folder / entry.name).symlink_to(entry)
        (folder / PATH.name).write_text(json.dumps(content))
        begun = time.monotonic()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run([sys.executable, "-m", "stages.train", policy], cwd=folder, env=environment, check=False)
        if done.returncode != 0:
            raise UserError(f"{policy} with seed {seed}: its training has ended with status {done.returncode}")
        seconds = time.monotonic() - begun
        report = json.loads((folder / "results" / policy / "train.json").read_text())
    return {"seed": seed, **report["evaluation"], "seconds": round(seconds), **{key: report[key] for key in KEPT}}


def train_all(policies: Sequence[str], seeds: Sequence[int]) -> None:
    """Train policies with seeds, and write ``studies/results/<policy>/seeds.json`` after each; none is left out."""
    for policy in policies:
        found = []
        for seed in seeds:
            found.append(train_with(policy, seed))
            write_json(RESULTS / policy / "seeds.json", found)
            print(f"seeds {policy}  seed {seed}  mean score {found[-1]['mean_score']:+.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("policies", nargs="*", help="of params.yaml; those of matrix, if none is given")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those in studies/params.yaml")
    arguments = parser.parse_args()
    try:
        everything = params.load()
        if unknown := set(arguments.policies) - set(everything.policies):
            known = ", ".join(everything.policies)
            raise UserError(f"params.yaml: policies has no {', '.join(sorted(unknown))}; it has {known}")
        train_all(arguments.policies or everything.matrix, arguments.seeds or load().seeds.reported)
    except Exception as error:
        fail_of(error)


if __name__ == "__main__":
    main()
