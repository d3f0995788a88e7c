"""Compile the exported programs for this machine's processor with AOTInductor."""

from __future__ import annotations

from pathlib import Path

from policy_export.config import params
from policy_export.lowering.aoti import compile_programs
from policy_export.program.archive import EXPORTS
from policy_export.program.made import make
from policy_export.stage.command import run

LIBRARIES = ("torch",)  # whose versions decide what the files are


def compile_aoti(policy: str) -> None:
    settings = params.load().compile_aoti
    make(
        policy,
        "aoti",
        lambda: compile_programs(policy, settings),
        libraries=LIBRARIES,
        files=[Path("models", policy, f"{name}.aoti.pt2") for name in EXPORTS],
    )


if __name__ == "__main__":
    run(compile_aoti, __doc__)
