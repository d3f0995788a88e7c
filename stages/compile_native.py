"""Compile a policy into a library, a C header and a command that need no PyTorch at run time."""

from __future__ import annotations

from pathlib import Path

from policy_export.config import params
from policy_export.lowering.native import compile_libraries
from policy_export.program.made import make
from policy_export.stage.command import run

LIBRARIES = ("torch",)  # whose versions decide what the files are


def compile_native(policy: str) -> None:
    settings = params.load().compile_native
    make(
        policy,
        "native",
        lambda: compile_libraries(policy, settings),
        libraries=LIBRARIES,
        folder=Path("models", policy, "native"),
    )


if __name__ == "__main__":
    run(compile_native, __doc__)
