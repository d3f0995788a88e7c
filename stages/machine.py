"""Record what programs and timings of this machine depend on; always runs, and checks params.yaml first.

Only facts that stay the same from run to run: stages whose output is true on one machine only depend on this file.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from stages.common import params
from stages.common.errors import run
from stages.common.files import write_json

LIBRARIES = ("torch", "tensordict", "torchrl", "ale-py", "onnx", "onnxruntime", "numpy")
# What compilers and runtimes choose their code by.
INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile")
INSTRUCTION_SETS_ARM = ("asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2")


def first_line(*command: str) -> str | None:
    """The first line a command prints, or nothing where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def cpu() -> tuple[str, list[str]]:
    """Model and instruction sets, as the kernel tells them."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    sets = [name for name in (*INSTRUCTION_SETS, *INSTRUCTION_SETS_ARM) if name in flags]
    return fields.get("model name") or platform.processor() or platform.machine(), sets


def machine() -> None:
    params.load()
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
