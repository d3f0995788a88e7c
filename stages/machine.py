"""Record what DVC cannot see by itself: this machine, and the sources of each policy; always runs.

Only facts that stay the same from run to run. Stages whose output is true on one machine only depend on the first, and
stages that build or train a policy on the second: its factory and its algorithm are modules that params.yaml names.
params.yaml is checked first.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from stages.common import instructions, params
from stages.common.errors import run
from stages.common.files import write_json
from stages.common.profile import Profile, named_files
from stages.common.sources import needed_files

LIBRARIES = ("torch", "tensordict", "torchrl", "ale-py", "onnx", "onnxruntime", "numpy")
SOURCES = Path("results/sources")
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


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_sources(module: str) -> dict[str, str]:
    """SHA-256 of each of the project's files that a module needs."""
    return {path.as_posix(): hash_file(path) for path in sorted(needed_files([module]))}


def write_sources(policy: str, profile: Profile) -> None:
    """The hashes of what makes a policy, which includes files that its factory is given, and of what trains it."""
    folder = SOURCES / policy
    files = {path.as_posix(): hash_file(path) for path in sorted(named_files(profile))}
    write_json(folder / "policy.json", hash_sources(profile.policy.factory.partition(":")[0]) | files)
    write_json(folder / "algorithm.json", hash_sources(f"stages.algorithms.{profile.train.algorithm}"))


def machine() -> None:
    everything = params.load()
    for left in {path.name for path in SOURCES.glob("*")} - set(everything.matrix):
        shutil.rmtree(SOURCES / left)
    for policy in everything.matrix:
        write_sources(policy, everything.policies[policy])
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


if __name__ == "__main__":
    run(machine, __doc__, policy=False)
