"""Convert the exported programs to ONNX: one file each, weights inside, any batch size."""

from __future__ import annotations

from policy_export.lowering.onnx import export_onnx
from policy_export.stage.command import run

if __name__ == "__main__":
    run(export_onnx, __doc__)
