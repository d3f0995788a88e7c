"""Test the parity check with faults of every kind: each must be caught, and faultless programs must pass.

Its score is a metric, so that a change which makes the check blind shows up in ``dvc metrics diff``. A fault counts
only where the unmodified program passes the same check, and where the faulty file is there.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from policy_export.backends import registry, runtimes
from policy_export.device.errors import UserError
from policy_export.stage.command import run
from policy_export.stage.files import write_json
from policy_export.stage.processes import processes
from studies import settings
from studies.faults import environment
from studies.faults.catalogue import FAULTS, RANDOM_FAULTS
from studies.faults.subject import EPISODES, Subject, find_policies

PATH = settings.RESULTS / "fault_suite.json"


@functools.cache
def subject(policy: str, seed: int) -> Subject:
    return Subject.load(policy, seed)


def check_fault(kind: str, fault: str, seed: int, *, random: bool = False) -> str | None:
    """Return how a fault is caught; none if it is not.

    Raises:
        UserError: there is no faulty program to check.
    """
    policy = find_policies()[kind]
    make = (RANDOM_FAULTS if random else FAULTS)[kind][fault]
    with tempfile.TemporaryDirectory() as folder:
        held = subject(policy, seed)
        try:
            path = make(held, Path(folder))
        except UserError as error:
            return str(error)  # the pipeline itself refuses to make such a program
        if not path.is_file():
            raise UserError(f"{path}: no such file: the fault {fault!r} of {policy} cannot be checked")
        try:
            if random:
                return held.find_random(lambda: runtimes.load(path, threads=1, explores=True))
            return held.find(runtimes.load(path, threads=1))
        except UserError as error:
            return str(error)


def check_unmodified(policy: str, program: str, seed: int) -> str | None:
    """Return what the check finds wrong with an unmodified program; anything that it finds is a false alarm."""
    held = subject(policy, seed)
    if program.endswith(registry.RANDOM):
        path = Path("models", policy, registry.exploring(held.manifest)[program])
        return held.find_random(lambda: runtimes.load(path, threads=1, explores=True))
    return held.find(runtimes.load_by_name(policy, program, threads=1))


def fault_suite() -> None:
    """Check all faults and all unmodified programs, in parallel processes, and write the score.

    Raises:
        UserError: an unmodified program does not pass, a fault is missed, or an alarm is false.
    """
    study, policies = settings.load().fault_suite, find_policies()
    programs: dict[str, list[str]] = {}
    for policy in policies.values():
        manifest, _ = runtimes.read_model(policy)  # whose files are all there, and undamaged
        both = [name for name in registry.deterministic(manifest) if manifest["programs"][name]["random_file"]]
        programs[policy] = [one for name in both for one in (name, f"{name}{registry.RANDOM}")]
    catalogues = ((False, FAULTS), (True, RANDOM_FAULTS))
    with processes(study.processes) as executor:
        unmodified = {
            f"{policy}, {program}": executor.submit(check_unmodified, policy, program, study.seed)
            for policy, names in programs.items()
            for program in names
        }
        for name, checked in unmodified.items():
            print(f"fault_suite  unmodified {name}: {checked.result() or 'passes'}", flush=True)
            if checked.result():
                raise UserError(f"the unmodified program {name} does not pass, so no fault can be checked")
        caught = {
            f"{kind}, {name}": executor.submit(check_fault, kind, name, study.seed, random=random)
            for random, catalogue in catalogues
            for kind, faults in catalogue.items()
            if kind in policies
            for name in faults
        }
        caught |= {
            f"environment, {name}": executor.submit(environment.find, name, study.seed)
            for name in environment.ENVIRONMENT_FAULTS
        }
        alarms, every = {}, [(policy, program) for policy, names in programs.items() for program in names]
        for number in range(study.clean_runs):
            (policy, program), seed = every[number % len(every)], study.seed + 2 * EPISODES * (number + 1)
            alarms[f"{policy}, {program}, seed {seed}"] = executor.submit(check_unmodified, policy, program, seed)
        for name in environment.ENVIRONMENT_FAULTS:
            alarms[f"environment, {name}"] = executor.submit(environment.find, name, study.seed, faulty=False)
        for name, checked in (caught | alarms).items():
            print(f"fault_suite  {name}: {checked.result() or 'nothing found'}", flush=True)
        found = {name: checked.result() for name, checked in caught.items()}
        false = {name: checked.result() for name, checked in alarms.items() if checked.result()}
    score = {"killed": sum(map(bool, found.values())), "total": len(found)}
    score |= {"false_alarms": len(false), "clean_runs": len(alarms)}
    missed = [name for name, what in found.items() if not what]
    write_json(PATH, {**score, "missed": missed, "alarms": list(false)})
    print("fault_suite  " + "  ".join(f"{name} {count}" for name, count in score.items()), flush=True)
    if missed or false:
        raise UserError(f"{len(missed)} faults are missed and {len(false)} alarms false; report: {PATH}")


if __name__ == "__main__":
    run(fault_suite, __doc__, policy=False)
