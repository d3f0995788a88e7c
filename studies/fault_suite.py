"""Hold the parity check against faults of every kind: each must be caught, and faultless programs must pass.

Nothing of the pipeline depends on it. Its score is a metric, so that a change which makes the check blind shows up in
``dvc metrics diff``. It works on the bundles that ``dvc repro`` has built.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

from policy_export.backends import runtimes
from policy_export.device.errors import UserError
from policy_export.stage.files import write_json
from policy_export.stage.processes import processes
from studies.faults.catalogue import FAULTS, RANDOM_FAULTS
from studies.faults.subject import EPISODES, Subject

PATH = Path("results/fault_suite.json")
SEED = 30_000
CLEAN_RUNS = 20
POLICIES = ("dqn", "drqn", "ppo")


@functools.cache
def subject(policy: str, seed: int) -> Subject:
    return Subject.load(policy, seed)


def judge(policy: str, fault: str, *, random: bool = False) -> str | None:
    """How a fault is caught, if it is."""
    make = (RANDOM_FAULTS if random else FAULTS)[policy][fault]
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = make(subject(policy, SEED), Path(folder))
            if random:
                return subject(policy, SEED).find_random(lambda: runtimes.load(path, threads=1))
            return subject(policy, SEED).find(runtimes.load(path, threads=1))
        except UserError as error:
            return str(error)


def judge_faultless(policy: str, program: str, seed: int) -> str | None:
    """What the check finds wrong with a program and the one that explores, in play with other seeds: a false alarm."""
    held = Subject.load(policy, seed)
    path = Path("models", policy, runtimes.RANDOM_PROGRAMS[f"{program}_random"])
    return held.find(runtimes.load_by_name(policy, program, threads=1)) or held.find_random(
        lambda: runtimes.load(path, threads=1)
    )


def fault_suite() -> int:
    """Judge everything, in processes side by side; fails where a fault is missed or an alarm is false."""
    programs = [name for name in runtimes.PROGRAMS if f"{name}_random" in runtimes.RANDOM_PROGRAMS]
    with processes(2) as executor:
        caught = {
            f"{policy}, {name}": executor.submit(judge, policy, name, random=random)
            for random, catalogue in ((False, FAULTS), (True, RANDOM_FAULTS))
            for policy, faults in catalogue.items()
            for name in faults
        }
        alarms = {}
        for run in range(CLEAN_RUNS):
            policy, program, seed = POLICIES[run % 3], programs[run // 3 % 3], SEED + 2 * EPISODES * (run + 1)
            alarms[f"{policy}, {program}, seed {seed}"] = executor.submit(judge_faultless, policy, program, seed)
        for name, judged in (caught | alarms).items():
            print(f"fault_suite  {name}: {judged.result() or 'nothing found'}", flush=True)
        found = {name: judged.result() for name, judged in caught.items()}
        false = {name: judged.result() for name, judged in alarms.items() if judged.result()}
    score = {"killed": sum(map(bool, found.values())), "total": len(found)}
    score |= {"false_alarms": len(false), "clean_runs": len(alarms)}
    write_json(PATH, {**score, "missed": [name for name, what in found.items() if not what], "alarms": list(false)})
    print("fault_suite  " + "  ".join(f"{name} {count}" for name, count in score.items()), flush=True)
    return int(score["killed"] < score["total"] or bool(false))


if __name__ == "__main__":
    sys.exit(fault_suite())
