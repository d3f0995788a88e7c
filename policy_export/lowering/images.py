"""Images resized with antialiasing, and pooled to a given size, in operators that AOTInductor writes kernels for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from policy_export.program.torch_private import OpOverload, OpOverloadPacket, operator, without_modes

MOST = 25  # numbers of a pool that AOTInductor writes out; larger ones it leaves to PyTorch's library
SHORT = np.iinfo(np.int16).max
MOST_DIGITS = 22  # of a weight of bytes, however small all weights are

Floats = npt.NDArray[np.float64]
Resize = Callable[..., torch.Tensor]


def measure_weights(
    resize: Resize,
    size: int,
    resized: int,
    align_corners: bool,  # noqa: FBT001
    scale: float | None,
) -> Floats:
    """Return the matrix ``(resized, size)`` of a resize of an image's lines, measured by resizing the identity."""
    with without_modes(), torch.no_grad():
        ones = torch.eye(size, dtype=torch.float64)[None, None]
        return resize(ones, [resized, size], align_corners, scale, None)[0, 0].numpy()


def in_short_integers(weights: Floats) -> tuple[npt.NDArray[np.int64], int]:
    """Return weights as PyTorch has them for bytes: whole numbers with as many binary digits as fit into 16 bits.

    Returns:
        Weights, and the number of digits after the point.
    """
    largest, digits = weights.max(), 0
    while digits < MOST_DIGITS and int(0.5 + largest * 2 ** (digits + 1)) <= SHORT:
        digits += 1
    scaled = weights * 2**digits
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64), digits


def resize_bytes(lines: torch.Tensor, weights: Floats) -> torch.Tensor:
    """Resize bytes ``(..., size)`` to ``(..., resized)``, rounded as PyTorch rounds them."""
    whole, digits = in_short_integers(weights)
    used = whole != 0
    first, last = used.argmax(1), used.shape[1] - used[:, ::-1].argmax(1)
    width = int((last - first).max())
    places = np.minimum(first, used.shape[1] - width)[:, None] + np.arange(width)
    few = torch.tensor(np.take_along_axis(whole, places, 1).tolist(), dtype=torch.int32)
    total = (lines[..., torch.tensor(places.tolist())].to(torch.int32) * few).sum(-1, dtype=torch.int32)
    return ((total + (1 << (digits - 1))) >> digits).clamp(0, 255).to(torch.uint8)


def resize_lines(lines: torch.Tensor, weights: Floats) -> torch.Tensor:
    """Resize lines ``(..., size)`` to ``(..., resized)``."""
    if lines.dtype == torch.uint8:
        return resize_bytes(lines, weights)
    return functional.linear(lines, torch.tensor(weights.tolist(), dtype=lines.dtype))


def resize_antialiased(resize: Resize) -> Resize:
    """Return ``BILINEAR`` or its bicubic counterpart as products with constant matrices.

    Args:
        resize: the operator, of which the matrices are measured.
    """

    def rewritten(
        images: torch.Tensor,
        output_size: Sequence[int],
        align_corners: bool,  # noqa: FBT001
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> torch.Tensor:
        (height, width), (new_height, new_width) = images.shape[-2:], output_size
        if width != new_width:
            images = resize_lines(images, measure_weights(resize, width, new_width, align_corners, scales_w))
        if height != new_height:
            rows = measure_weights(resize, height, new_height, align_corners, scales_h)
            images = resize_lines(images.mT, rows).mT
        return images.contiguous()

    return rewritten


def resize_antialiased_vec(operator: OpOverloadPacket) -> Resize:
    """Return the same for the operator's overload that takes a size or factors."""

    def rewritten(
        images: torch.Tensor,
        output_size: Sequence[int] | None,
        align_corners: bool,  # noqa: FBT001
        scale_factors: Sequence[float] | None,
    ) -> torch.Tensor:
        factors = scale_factors or (None, None)
        sizes = images.shape[-2:]
        size = output_size or [int(one * factor) for one, factor in zip(sizes, scale_factors or (), strict=True)]
        return resize_antialiased(operator)(images, size, align_corners, *factors)

    return rewritten


def look_into_windows(images: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the windows of an adaptive pool, each as wide as the widest.

    Args:
        images: ``(..., *axes)`` with as many axes at the end as there are ``sizes``.

    Returns:
        ``(..., *sizes, *window)``; and, for each axis, the positions that each window covers, ``(size, window)``; where
        a window is narrower, its last position is repeated.
    """
    places = []
    for axis, size in enumerate(sizes, start=images.ndim - len(sizes)):
        length = images.shape[axis]
        each = torch.arange(size)
        start, stop = each * length // size, ((each + 1) * length + size - 1) // size
        widest = max(((one + 1) * length + size - 1) // size - one * length // size for one in range(size))
        place = torch.minimum(start[:, None] + torch.arange(widest), stop[:, None] - 1)
        places.append(place)
        images = images.index_select(axis, place.flatten()).unflatten(axis, place.shape).movedim(axis + 1, -1)
    return images, places


def is_written(images: torch.Tensor, sizes: Sequence[int]) -> bool:
    """Return whether AOTInductor writes the kernel of an adaptive pool itself."""
    lengths = images.shape[-len(sizes) :]
    if len(sizes) > len("hw"):
        return False
    widest = [-(-(length + size - 1) // size) for length, size in zip(lengths, sizes, strict=True)]
    return all(length % size == 0 for length, size in zip(lengths, sizes, strict=True)) or math.prod(widest) <= MOST


def pool_means(images: torch.Tensor, output_size: Sequence[int]) -> torch.Tensor:
    """Compute ``adaptive_avg_pool1d``, ``2d`` or ``3d``; NotImplemented where the compiler has a kernel."""
    axes = len(output_size)
    if is_written(images, output_size):
        return NotImplemented
    for axis, size in enumerate(output_size, start=images.ndim - axes):
        windows, (place,) = look_into_windows(images.movedim(axis, -1), [size])
        first = torch.nn.functional.pad(place[:, 1:] != place[:, :-1], [1, 0], value=True)
        images = (torch.where(first, windows, 0).sum(-1) / first.sum(-1)).to(images.dtype).movedim(-1, axis)
    return images.contiguous()


def pool_largest(images: torch.Tensor, output_size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``adaptive_max_pool1d``, ``2d`` or ``3d``: the largest numbers, and where the first of each stands.

    NotImplemented where the compiler has a kernel.
    """
    axes = len(output_size)
    if is_written(images, output_size):
        return NotImplemented
    windows, places = look_into_windows(images, output_size)
    flat = windows.flatten(-axes)
    values, best = flat.max(-1)
    position: Any = 0
    for axis, place in enumerate(places):
        inside = best // windows.shape[windows.ndim - axes + axis + 1 :].numel() % place.shape[1]
        numbers = torch.arange(len(place)).reshape([-1] + [1] * (axes - axis - 1))
        position = position * images.shape[images.ndim - axes + axis] + place[numbers, inside]
    return values.contiguous(), position.contiguous()


BILINEAR, BICUBIC = operator("_upsample_bilinear2d_aa"), operator("_upsample_bicubic2d_aa")
IMAGES: dict[OpOverload, Callable[..., Any]] = {
    BILINEAR.default: resize_antialiased(BILINEAR),
    BICUBIC.default: resize_antialiased(BICUBIC),
    BILINEAR.vec: resize_antialiased_vec(BILINEAR),
    BICUBIC.vec: resize_antialiased_vec(BICUBIC),
    torch.ops.aten.adaptive_avg_pool1d.default: pool_means,
    torch.ops.aten.adaptive_avg_pool2d.default: pool_means,
    torch.ops.aten.adaptive_avg_pool3d.default: pool_means,
    torch.ops.aten.adaptive_max_pool1d.default: pool_largest,
    torch.ops.aten.adaptive_max_pool2d.default: pool_largest,
    torch.ops.aten.adaptive_max_pool3d.default: pool_largest,
}
