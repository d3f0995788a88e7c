"""Compile the exported programs for this machine's processor with AOTInductor.

PyTorch is imported by the processes that compile, and not before they start.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from policy_export.config import params
from policy_export.program.archive import EXPORTS, load_program
from policy_export.program.failures import in_one_line
from policy_export.stage.files import replacing
from policy_export.stage.processes import processes

if TYPE_CHECKING:
    import torch


def inductor_options(settings: params.CompileAoti) -> dict[str, Any]:
    """Return AOTInductor's options for the code that it makes."""
    return {
        "cpp.threads": settings.threads,
        "freezing": settings.freezing,
        "max_autotune": settings.max_autotune,
        "max_autotune_gemm_backends": ",".join(settings.gemm_backends),
        "autotune_fallback_to_aten": True,
        "autotune_num_choices_displayed": 0,
    }


def lower(program: torch.export.ExportedProgram, settings: params.CompileAoti) -> torch.export.ExportedProgram:
    """Return the program in the operators that are compiled."""
    from policy_export.lowering.convolutions import use_products

    return use_products(program) if settings.convolutions_as_products else program


def compile_to(
    path: Path, program: torch.export.ExportedProgram, facts: dict[str, Any], settings: params.CompileAoti
) -> None:
    """Compile a program into a package that knows its facts."""
    from torch._inductor import select_algorithm

    from policy_export.program.torch_private import compile_package, part

    metadata = {"policy": facts["policy"], "facts": json.dumps(facts)}
    options = inductor_options(settings) | {"aot_inductor.metadata": metadata}
    # What it measures of the kernels that it chooses from, it writes to standard error: no option switches that off.
    telling = "_log_autotune_choices_stats"
    part(select_algorithm, telling)
    with replacing(path) as temporary, mock.patch.object(select_algorithm, telling):
        compile_package(lower(program, settings), temporary, options)


def compile_program(policy: str, name: str, settings: params.CompileAoti) -> str:
    """Compile one of a policy's programs; returns the message for the user."""
    folder = Path("models", policy)
    path = folder / f"{name}.aoti.pt2"
    program, facts = load_program(folder / f"{name}.pt2", policy)
    with in_one_line(policy, "compile_aoti", program):
        compile_to(path, program, facts, settings)
    return f"compile_aoti {policy}  {path.name}  {path.stat().st_size:,} bytes"


def compile_programs(policy: str, settings: params.CompileAoti) -> None:
    """Compile a policy's programs, side by side."""
    with processes(len(EXPORTS)) as executor:
        compiling = [executor.submit(compile_program, policy, name, settings) for name in EXPORTS]
        for done in compiling:
            print(done.result(), flush=True)
