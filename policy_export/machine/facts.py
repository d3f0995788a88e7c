"""What DVC cannot see by itself: this machine, its libraries, what code does, and the sources of each policy.

All facts stay the same from run to run. A stage depends on the facts that decide what it makes: on single keys of
``machine.json`` and ``versions.json``, and on the hashes of the code that it runs. params.yaml is checked first, and
every policy that has changed is tried: it is built once, untrained.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from policy_export.backends import registry
from policy_export.config import params
from policy_export.config.errors import naming
from policy_export.config.profile import PATH, Profile, check_files, named_files, named_modules, reference_files
from policy_export.device.errors import UserError
from policy_export.lowering import instructions
from policy_export.machine.trial import digest, try_policies
from policy_export.program.made import PROGRAMS, SOURCES
from policy_export.stage.files import write_json
from policy_export.stage.processor import processor_name
from policy_export.stage.sources import hash_files, needed_files

RESULTS = Path("results")
CODE = RESULTS / "code"
POLICY, ALGORITHM, TRIAL = "policy.json", "algorithm.json", "trial.json"
MEANING_FILE, REFERENCE_FILE = "meaning.json", "reference.json"  # keys that DVC would ask for in each profile
# The stages that make what others are compared with, or that take minutes, or that only read: they run again where
# what their code does has changed, and not where only a word of it has.
HASHED_STAGES = ("record", "export_pt2", "golden", "compile_aoti", "compile_native", "export_onnx", "report")
LIBRARIES = (
    *("torch", "tensordict", "torchrl", "ale-py", "gymnasium", "onnx", "onnxscript", "onnxruntime", "openvino"),
    "numpy",
)
# What compilers and runtimes choose their code by.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16"),
)
INSTRUCTION_SETS_ARM = ("asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2")


def first_line(*command: str) -> str | None:
    """Return the first line that a command prints; none where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def describe_machine() -> dict[str, Any]:
    """Return what decides how code is compiled and how fast it is."""
    found = instructions.flags()
    return {
        "cpu": processor_name(),
        "architecture": platform.machine(),
        "instruction_sets": [name for name in (*INSTRUCTION_SETS, *INSTRUCTION_SETS_ARM) if name in found],
        "cores": len(os.sched_getaffinity(0)),
        "gpu": first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "system": platform.system(),
        "compiler": first_line("g++", "--version"),
        "python": platform.python_version(),
    }


def describe_versions(programs: Mapping[str, Mapping[str, bool]]) -> dict[str, str | None]:
    """Return the version of every library that makes or runs programs.

    A runtime that no policy has a program for has none, whether it is installed or not: it decides nothing.

    Args:
        programs: for each policy, which programs it has.

    Raises:
        UserError: a library is not installed.
    """
    runtimes = {backend.name: set(backend.run_by) for backend in registry.backends().values()}
    chosen = {name for wanted in programs.values() for name, has in wanted.items() if has}
    unused = set().union(*runtimes.values()) - set().union(*(runtimes[name] for name in chosen))
    versions: dict[str, str | None] = dict.fromkeys(LIBRARIES)
    for library in versions.keys() - unused:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            needing = [name for name in runtimes if name in chosen and library in runtimes[name]]
            what = f"params.yaml: programs: {', '.join(needing)} needs" if needing else "the pipeline needs"
            raise UserError(f"{what} {library}, which is not installed: pip install {library}") from None
    return versions


def hash_sources(profile: Profile, environment: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Hash what makes a policy, including the files that its factory is given, and what trains it.

    Args:
        profile: the policy's profile.
        environment: modules of its environment that the profile does not name.
    """
    policy = needed_files([*named_modules(profile), *environment]) | named_files(profile)
    training = needed_files(["stages.train", *training_modules(profile)])
    hashes = hash_files(policy)
    if profile.transforms is not None:  # a key that not every profile has, which DVC asks for in each
        content = json.dumps(profile.transforms.model_dump(), sort_keys=True)
        hashes[f"{PATH}: transforms"] = hashlib.sha256(content.encode()).hexdigest()
    return hashes, hash_files(training)


def hash_reference(profile: Profile) -> dict[str, str]:
    """Hash what a profile's reference is made of; nothing if it has none."""
    if (reference := profile.reference) is None:
        return {}
    name = reference if isinstance(reference, str) else reference.factory
    content = reference if isinstance(reference, str) else reference.model_dump_json()
    own = {f"{PATH}: reference": hashlib.sha256(content.encode()).hexdigest()}
    return hash_files(needed_files([name.partition(":")[0]]) | reference_files(profile)) | own


def training_modules(profile: Profile) -> list[str]:
    """Return the modules of a profile's algorithm that no other module imports."""
    algorithm = profile.train.algorithm
    return [f"policy_export.{room}.{algorithm}" for room in ("algorithms", "config.training")]


def read_trial(policy: str) -> dict[str, Any]:
    """Return what is known of a policy's last trial.

    It is the ``sha256`` of what was tried, and the ``environment``'s own modules.
    """
    try:
        trial = json.loads((SOURCES / policy / TRIAL).read_text())
        return {"sha256": str(trial["sha256"]), "environment": [str(name) for name in trial["environment"]]}
    except (OSError, ValueError, TypeError, KeyError):
        return {"sha256": "", "environment": []}


def choose_programs(everything: params.Params) -> dict[str, dict[str, bool]]:
    """Return which programs each policy has.

    Raises:
        UserError: a name is unknown, or a program is missing that others need.
    """
    chosen = {}
    for policy in everything.matrix:
        own = everything.policies[policy].programs
        key = "programs" if own is None else f"policies.{policy}.programs"
        names = registry.choose(everything.programs if own is None else own, key)
        chosen[policy] = {name: name in names for name in registry.backends()}
    return chosen


def follow(profiles: Mapping[str, Profile], programs: Mapping[str, Mapping[str, bool]]) -> None:
    """Write the hashes of every policy's sources, if all policies that have changed can be built.

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

    def tried(policy: str) -> str:
        return digest(profiles[policy], sources[policy], programs[policy])

    changed = [policy for policy in sources if tried(policy) != trials[policy]["sha256"]]
    try:
        for policy, environment in try_policies(changed, programs).items():
            sources[policy] = hash_sources(profiles[policy], environment)
            trials[policy] = {"sha256": tried(policy), "environment": environment}
    except UserError as error:
        mistakes.append(str(error))
    if mistakes:
        raise UserError("\n".join(mistakes))
    for policy, hashes in sources.items():
        for name, content in zip((POLICY, ALGORITHM, TRIAL), (*hashes, trials[policy]), strict=True):
            write_json(SOURCES / policy / name, content)
        write_json(SOURCES / policy / PROGRAMS, programs[policy])
        write_json(SOURCES / policy / MEANING_FILE, profiles[policy].meaning)
        write_json(SOURCES / policy / REFERENCE_FILE, hash_reference(profiles[policy]))


def write_facts() -> None:
    """Check ``params.yaml``, try what has changed, and write all facts.

    Raises:
        UserError: the mistakes of ``params.yaml``, or of all policies.
    """
    everything = params.load()
    programs = choose_programs(everything)
    follow({policy: everything.policies[policy] for policy in everything.matrix}, programs)
    for left in {path.name for path in SOURCES.iterdir()} - set(everything.policies):
        shutil.rmtree(SOURCES / left)
    for stage in HASHED_STAGES:
        write_json(CODE / f"{stage}.json", hash_files(needed_files([f"stages.{stage}"])))
    write_json(RESULTS / "machine.json", describe_machine())
    write_json(RESULTS / "versions.json", describe_versions(programs))
