"""Compile the exported programs for this machine's processor with AOTInductor."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stages.common import params
from stages.common.archive import EXPORTS, load_program
from stages.common.errors import run
from stages.common.files import replacing
from stages.common.processes import processes


def compile_program(policy: str, name: str, settings: params.CompileAoti) -> str:
    """Compile one of a policy's programs; returns what to tell the user."""
    folder = Path("models", policy)
    program, facts = load_program(folder / f"{name}.pt2", policy)
    options = {
        "cpp.threads": settings.threads,
        "freezing": settings.freezing,
        "max_autotune": settings.max_autotune,
        "aot_inductor.metadata": {"policy": policy, "facts": json.dumps(facts)},
    }
    path = folder / f"{name}.aoti.pt2"
    with torch.no_grad(), replacing(path) as temporary:
        torch._inductor.aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=options)
    return f"compile_aoti {policy}  {path.name}  {path.stat().st_size:,} bytes"


def compile_aoti(policy: str) -> None:
    settings = params.load().compile_aoti
    with processes(len(EXPORTS)) as executor:
        compiling = [executor.submit(compile_program, policy, name, settings) for name in EXPORTS]
        for done in compiling:
            print(done.result(), flush=True)


if __name__ == "__main__":
    run(compile_aoti, __doc__)
