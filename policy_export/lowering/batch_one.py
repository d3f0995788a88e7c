"""A program for one row at a time, in the operators that AOTInductor writes C++ for, and the fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from policy_export.lowering import layers, orders, running
from policy_export.lowering.convolutions import convolve, convolve_any, convolve_transposed
from policy_export.lowering.images import IMAGES
from policy_export.program.torch_private import OpOverload

aten = torch.ops.aten

FLAT = 2  # dimensions


def as_flat_concatenation(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Compute ``torch.ops.aten.cat`` of matrices.

    In memory, an image of one channel can also be read as one with channels last. The compiler reads it so, joins the
    images pixel by pixel, and has to take them apart again. With two dimensions there is no such doubt.
    """
    first = tensors[0]
    if first.ndim <= FLAT:
        return NotImplemented
    dim %= first.ndim
    before, after = first.shape[:dim], first.shape[dim + 1 :]
    flat = [tensor.reshape(before.numel(), -1) for tensor in tensors]
    return torch.cat(flat, 1).reshape(*before, -1, *after)


OPERATORS: dict[OpOverload, Callable[..., Any]] = {
    aten.cat.default: as_flat_concatenation,
    aten.conv1d.default: convolve,
    aten.conv1d.padding: convolve,
    aten.conv2d.default: convolve,
    aten.conv2d.padding: convolve,
    aten.conv3d.default: convolve,
    aten.conv3d.padding: convolve,
    aten.conv_transpose1d.default: convolve_transposed,
    aten.conv_transpose2d.input: convolve_transposed,
    aten.conv_transpose3d.input: convolve_transposed,
    aten.convolution.default: convolve_any,
    aten.sort.default: orders.sort,
    aten.sort.stable: orders.sort,
    aten.argsort.default: orders.argsort,
    aten.argsort.stable: orders.argsort,
    aten.msort.default: orders.msort,
    aten.topk.default: orders.topk,
    aten.kthvalue.default: orders.kthvalue,
    aten.median.dim: orders.median,
    aten.median.default: orders.median_of_all,
    aten.searchsorted.Tensor: orders.searchsorted,
    aten.bucketize.Tensor: orders.bucketize,
    aten.cumsum.default: running.cumsum,
    aten.cumprod.default: running.cumprod,
    aten.logcumsumexp.default: running.logcumsumexp,
    aten.cummax.default: running.cummax,
    aten.cummin.default: running.cummin,
    aten.group_norm.default: layers.group_norm,
    aten.bilinear.default: layers.bilinear,
    aten.cdist.default: layers.cdist,
    aten.addbmm.default: layers.addbmm,
    aten.scatter_reduce.two: layers.scatter_reduce,
    aten.scatter_add.default: layers.scatter_add,
    aten.masked_scatter.default: layers.masked_scatter,
    aten.lstm.input: layers.lstm,
    **IMAGES,
}


def lower_batch_one(
    program: torch.export.ExportedProgram, inputs: Sequence[Mapping[str, Any]]
) -> torch.export.ExportedProgram:
    """Return the program for a batch of one.

    Args:
        inputs: ``name``, ``dtype`` and ``shape`` of each, the first size a batch's.
    """
    examples = {
        spec["name"]: torch.zeros([1, *spec["shape"][1:]], dtype=getattr(torch, spec["dtype"])) for spec in inputs
    }
    with torch.no_grad():
        batch_one = torch.export.export(program.module(), (), examples)
        lowered = batch_one.run_decompositions(OPERATORS)
    for spec in lowered.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:  # AOTInductor packs what is a buffer
            spec.kind, spec.persistent = InputKind.BUFFER, False
    return lowered
