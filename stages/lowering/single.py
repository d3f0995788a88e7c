"""A program for one row at a time, in the operators that AOTInductor writes the fastest C++ for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stages.lowering.convolutions import as_product

FLAT = 2  # dimensions


def as_flat_concatenation(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """``torch.ops.aten.cat`` of matrices.

    An image of one channel may lie in memory as one of channels last, too; the compiler takes it for such, joins images
    pixel by pixel, and has to take them apart again. With two dimensions there is no such doubt.
    """
    first = tensors[0]
    if first.ndim <= FLAT:
        return NotImplemented
    dim %= first.ndim
    before, after = first.shape[:dim], first.shape[dim + 1 :]
    flat = [tensor.reshape(before.numel(), -1) for tensor in tensors]
    return torch.cat(flat, 1).reshape(*before, -1, *after)


def lower_single(
    program: torch.export.ExportedProgram, inputs: Sequence[dict[str, Any]]
) -> torch.export.ExportedProgram:
    """The program for a batch of one.

    Args:
        inputs: ``name``, ``dtype`` and ``shape`` of each, the first size a batch's.
    """
    examples = {
        spec["name"]: torch.zeros([1, *spec["shape"][1:]], dtype=getattr(torch, spec["dtype"])) for spec in inputs
    }
    with torch.no_grad():
        single = torch.export.export(program.module(), (), examples)
        return single.run_decompositions(
            {torch.ops.aten.conv2d.default: as_product, torch.ops.aten.cat.default: as_flat_concatenation}
        )
