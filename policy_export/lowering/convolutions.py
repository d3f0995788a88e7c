"""Convolutions as matrix products, for which AOTInductor writes kernels of its own with the weights packed in advance.

A call of a library's convolution costs more than the few thousand products of a small image's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch.nn import functional

UNROLLED = 64  # kernels of a channel of its own with at most so many weights are written out, weight by weight


def take_patches(
    images: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """Return the patch of the images that each position of a kernel covers.

    Args:
        images: ``(batch, channels, *sizes)``, padded.

    Returns:
        ``(batch, channels, *positions, *kernel)``.
    """
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        images = images.unfold(axis, gap * (size - 1) + 1, step)
        images = images[..., ::gap] if gap != 1 else images
    return images


def pad(images: torch.Tensor, sides: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Add zeros before and after each axis of images, first axis first; a negative number crops."""
    widths = [width for pair in reversed(sides) for width in pair]
    return functional.pad(images, widths) if any(widths) else images


def multiply_patches(patches: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return one product of all patches ``(batch, channels, *positions, *kernel)`` and all kernels."""
    axes = weight.ndim - 2
    positions, kernel = range(2, 2 + axes), range(2 + axes, 2 + 2 * axes)
    batch, channels, *sizes = patches.shape[: 2 + axes]
    count = math.prod(sizes)
    rows = patches.permute(0, *positions, 1, *kernel)
    flat = rows.reshape(math.prod(sizes, start=batch), math.prod(weight.shape[2:], start=channels))
    product = functional.linear(flat, weight.flatten(1), bias)
    return product.reshape(batch, count, len(weight)).transpose(1, 2).reshape(batch, -1, *sizes)


def multiply_groups(patches: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return a product for each group of channels."""
    axes = weight.ndim - 2
    positions, kernel = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    grouped = patches.unflatten(1, (groups, -1))
    batch, sizes = len(patches), patches.shape[2 : 2 + axes]
    rows = grouped.permute(1, 0, *positions, 2, *kernel).reshape(groups, batch * sizes.numel(), -1)
    product = torch.bmm(rows, weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2))
    outputs = product.reshape(groups, batch, sizes.numel(), -1).permute(1, 0, 3, 2)
    return outputs.reshape(batch, len(weight), *sizes)


def take(tensor: torch.Tensor, place: tuple[int, ...]) -> torch.Tensor:
    """Return one place of the last axes."""
    for index in reversed(place):
        tensor = tensor.select(-1, index)
    return tensor


def weigh_channels(patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a weighted sum for each channel, without any other channel."""
    axes = weight.ndim - 2
    channels, kernel = patches.shape[1], weight.shape[2:]
    spread = weight.reshape(channels, -1, *[1] * axes, *kernel)
    seen = patches.unsqueeze(2)
    if kernel.numel() > UNROLLED:
        return (seen * spread).sum([*range(-axes, 0)]).flatten(1, 2)
    places: list[tuple[int, ...]] = [*itertools.product(*map(range, kernel))]
    total = take(seen, places[0]) * take(spread, places[0])
    for place in places[1:]:
        total = total + take(seen, place) * take(spread, place)
    return total.flatten(1, 2).contiguous()


def convolve(  # noqa: PLR0917  the operator's own arguments
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> torch.Tensor:
    """Compute ``torch.ops.aten.conv1d``, ``conv2d`` or ``conv3d`` as products of the images' patches and the kernels.

    Args:
        images: ``(batch, channels, *sizes)``, or one without batch.
        weight: ``(outputs, channels / groups, *kernel)``.
        bias: ``(outputs,)``.
        stride: of the kernels along each axis, or one for all; ``padding`` and ``dilation`` likewise.

    Returns:
        ``(batch, outputs, *positions)``, or without batch.
    """
    if images.ndim < weight.ndim:
        return convolve(images[None], weight, bias, stride, padding, dilation, groups)[0]
    kernel = weight.shape[2:]
    stride, dilation = along_axes(stride, kernel), along_axes(dilation, kernel)
    if isinstance(padding, str):
        widths = [gap * (size - 1) if padding == "same" else 0 for size, gap in zip(kernel, dilation, strict=True)]
        sides = [(width // 2, width - width // 2) for width in widths]
    else:
        sides = [(width, width) for width in along_axes(padding, kernel)]
    patches = take_patches(pad(images, sides), kernel, stride, dilation)
    if groups == 1:
        return multiply_patches(patches, weight, bias)
    outputs = weigh_channels(patches, weight) if weight.shape[1] == 1 else multiply_groups(patches, weight, groups)
    return outputs if bias is None else outputs + bias.reshape(-1, *[1] * len(kernel))


def convolve_transposed(  # noqa: PLR0917  the operator's own arguments
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> torch.Tensor:
    """Compute ``torch.ops.aten.conv_transpose1d`` and so on as a convolution of images with zeros between numbers.

    Args:
        images: ``(batch, channels, *sizes)``, or one without batch.
        weight: ``(channels, outputs / groups, *kernel)``.
        bias: ``(outputs,)``.
        stride: of the images along each axis, or one for all; the others likewise.

    Returns:
        ``(batch, outputs, *positions)``, or without batch.
    """
    if images.ndim < weight.ndim:
        return convolve_transposed(images[None], weight, bias, stride, padding, output_padding, groups, dilation)[0]
    kernel = weight.shape[2:]
    stride, dilation = along_axes(stride, kernel), along_axes(dilation, kernel)
    for axis, step in enumerate(stride, start=2):
        if step != 1:
            apart = functional.pad(images.unsqueeze(axis + 1), [0, 0] * (images.ndim - axis - 1) + [0, step - 1])
            images = apart.flatten(axis, axis + 1).narrow(axis, 0, (images.shape[axis] - 1) * step + 1)
    sides = [
        (gap * (size - 1) - width, gap * (size - 1) - width + more)
        for size, gap, width, more in zip(
            kernel, dilation, along_axes(padding, kernel), along_axes(output_padding, kernel), strict=True
        )
    ]
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip([*range(2, weight.ndim)])
    return convolve(pad(images, sides), turned, bias, dilation=dilation, groups=groups)


def convolve_any(  # noqa: PLR0917  the operator's own arguments
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,  # noqa: FBT001
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Compute ``torch.ops.aten.convolution``, with any number of axes, as products."""
    if transposed:
        return convolve_transposed(images, weight, bias, stride, padding, output_padding, groups, dilation)
    return convolve(images, weight, bias, stride, padding, dilation, groups)


def along_axes(values: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return a value for each axis of a kernel."""
    return [*values] if len(values) == len(kernel) else [*values] * len(kernel)


def as_product(  # noqa: PLR0917  the operator's own arguments
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> torch.Tensor:
    """Compute ``torch.ops.aten.conv2d`` as a product of the images' patches and the kernels.

    Args and result as of :func:`convolve`. A convolution with groups or dilation stays as it is: in batches,
    PyTorch's library is faster at it.
    """
    if groups != 1 or any(step != 1 for step in dilation):
        return torch.ops.aten.convolution(
            images, weight, bias, stride, padding, dilation, transposed=False, output_padding=[0, 0], groups=groups
        )
    return convolve(images, weight, bias, stride, padding)


def use_products(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with every plain convolution of images as a matrix product."""
    return program.run_decompositions({torch.ops.aten.conv2d.default: as_product})
