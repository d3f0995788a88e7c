"""Convert the exported programs to ONNX: one file each, weights inside, any batch size."""

from __future__ import annotations

from pathlib import Path

from policy_export.config import params
from policy_export.lowering.onnx import convert_programs
from policy_export.program.archive import EXPORTS
from policy_export.program.made import make
from policy_export.stage.command import run

LIBRARIES = ("torch", "onnx", "onnxscript")  # whose versions decide what the files are


def export_onnx(policy: str) -> None:
    settings = params.load().export_onnx
    make(
        policy,
        "onnx",
        lambda: convert_programs(policy, settings),
        libraries=LIBRARIES,
        files=[Path("models", policy, f"{name}.onnx") for name in EXPORTS],
    )


if __name__ == "__main__":
    run(export_onnx, __doc__)
