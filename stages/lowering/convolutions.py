"""Convolutions as matrix products, for which AOTInductor writes kernels of its own with the weights packed in advance.

A call of a library's convolution costs more than the few thousand products of a small image's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def as_product(  # noqa: PLR0917  the operator's own arguments
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> torch.Tensor:
    """``torch.ops.aten.conv2d`` as a product of the images' patches and the kernels.

    Args:
        images: ``(batch, channels, h, w)``, or one without batch.
        weight: ``(outputs, channels / groups, kernel_h, kernel_w)``.
        bias: ``(outputs,)``.
        stride: of the kernels, in rows and columns; the others likewise.

    Returns:
        ``(batch, outputs, h', w')``, or without batch. What has groups or dilation stays the convolution that it is.
    """
    if groups != 1 or any(step != 1 for step in dilation):
        return torch.ops.aten.convolution(
            images, weight, bias, stride, padding, dilation, transposed=False, output_padding=[0, 0], groups=groups
        )
    if images.ndim == len("chw"):
        return as_product(images[None], weight, bias, stride, padding)[0]
    rows, columns = stride
    kernel_rows, kernel_columns = weight.shape[2:]
    if any(padding):
        images = torch.nn.functional.pad(images, [padding[1], padding[1], padding[0], padding[0]])
    patches = images.unfold(2, kernel_rows, rows).unfold(3, kernel_columns, columns)
    batch, channels, height, width = patches.shape[:4]
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(batch * height * width, channels * kernel_rows * kernel_columns)
    product = torch.nn.functional.linear(flat, weight.flatten(1), bias)
    return product.reshape(batch, height * width, len(weight)).transpose(1, 2).reshape(batch, -1, height, width)


def use_products(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with every plain convolution of images as a matrix product."""
    return program.run_decompositions({torch.ops.aten.conv2d.default: as_product})
