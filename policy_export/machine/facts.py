"""Record what DVC cannot see by itself: this machine, and the sources of each policy; always runs.

Only facts that stay the same from run to run. Stages whose output is true on one machine only depend on the first, and
stages that build or train a policy on the second: its factory and its algorithm are modules that params.yaml names.
params.yaml is checked first, and whatever has changed of a policy is tried: it is built once, untrained.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from policy_export.config import params
from policy_export.config.errors import naming
from policy_export.config.profile import Profile, check_files, named_files, named_modules
from policy_export.device.errors import UserError
from policy_export.lowering import instructions
from policy_export.machine.trial import digest, try_policies
from policy_export.stage.files import write_json
from policy_export.stage.sources import hash_files, needed_files

LIBRARIES = ("torch", "tensordict", "torchrl", "ale-py", "onnx", "onnxruntime", "numpy")
SOURCES = Path("results/sources")
POLICY, ALGORITHM, TRIAL = "policy.json", "algorithm.json", "trial.json"
# What compilers and runtimes choose their code by.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16"),
)
INSTRUCTION_SETS_ARM = ("asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2")


def first_line(*command: str) -> str | None:
    """The first line a command prints, or nothing where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def cpu() -> tuple[str, list[str]]:
    """Model and instruction sets, as the kernel tells them."""
    found = instructions.flags()
    sets = [name for name in (*INSTRUCTION_SETS, *INSTRUCTION_SETS_ARM) if name in found]
    return instructions.processor().get("model name") or platform.processor() or platform.machine(), sets


def hash_sources(profile: Profile, environment: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of each file that makes a policy, which includes files that its factory is given, and that trains it.

    Args:
        profile: of the policy.
        environment: modules of its environment that the profile does not name.
    """
    policy = needed_files([*named_modules(profile), *environment]) | named_files(profile)
    return hash_files(policy), hash_files(needed_files([f"policy_export.algorithms.{profile.train.algorithm}"]))


def read_trial(policy: str) -> dict[str, Any]:
    """What is known of a policy's last trial: ``sha256`` of what was tried, and the ``environment``'s own modules."""
    try:
        trial = json.loads((SOURCES / policy / TRIAL).read_text())
        return {"sha256": str(trial["sha256"]), "environment": [str(name) for name in trial["environment"]]}
    except (OSError, ValueError, TypeError, KeyError):
        return {"sha256": "", "environment": []}


def follow(profiles: dict[str, Profile]) -> None:
    """Write the hashes of every policy's sources, once all that have changed can be built.

    Raises:
        UserError: the mistakes of all policies; nothing is written.
    """
    trials = {policy: read_trial(policy) for policy in profiles}
    sources, mistakes = {}, []
    for policy, profile in profiles.items():
        try:
            with naming(policy):
                check_files(profile)
                sources[policy] = hash_sources(profile, trials[policy]["environment"])
        except UserError as error:
            mistakes.append(str(error))
    changed = [name for name in sources if digest(profiles[name], sources[name]) != trials[name]["sha256"]]
    try:
        for policy, environment in try_policies(changed).items():
            sources[policy] = hash_sources(profiles[policy], environment)
            sha256 = digest(profiles[policy], sources[policy])
            trials[policy] = {"sha256": sha256, "environment": environment}
    except UserError as error:
        mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    for policy, hashes in sources.items():
        for name, content in zip((POLICY, ALGORITHM, TRIAL), (*hashes, trials[policy]), strict=True):
            write_json(SOURCES / policy / name, content)


def machine() -> None:
    everything = params.load()
    follow({policy: everything.policies[policy] for policy in everything.matrix})
    for left in {path.name for path in SOURCES.iterdir()} - set(everything.policies):
        shutil.rmtree(SOURCES / left)
    model, instruction_sets = cpu()
    write_json(
        Path("results/machine.json"),
        {
            "cpu": model,
            "architecture": platform.machine(),
            "instruction_sets": instruction_sets,
            "cores": len(os.sched_getaffinity(0)),
            "gpu": first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
            "system": platform.system(),
            "compiler": first_line("g++", "--version"),
            "python": platform.python_version(),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
        },
    )
