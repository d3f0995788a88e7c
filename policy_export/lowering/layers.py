"""Layers and other operators in terms of those that AOTInductor writes kernels for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from policy_export.program.torch_private import lstm_by_steps


def group_norm(  # noqa: PLR0917  the operator's own arguments
    images: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001, FBT001, FBT002  the operator's own argument
) -> torch.Tensor:
    """Compute ``torch.ops.aten.group_norm``.

    The compiler's own result has its input's memory layout; PyTorch's has not, and later operators rely on that.
    """
    groups = images.reshape(len(images), num_groups, -1)
    variance, mean = torch.var_mean(groups, -1, correction=0, keepdim=True)
    normal = ((groups - mean) * torch.rsqrt(variance + eps)).reshape(images.shape)
    shape = [-1, *[1] * (images.ndim - 2)]
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


def bilinear(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute ``torch.ops.aten.bilinear`` of ``(..., n)``, ``(..., m)`` and weights ``(outputs, n, m)``."""
    pairs = (one[..., :, None] * other[..., None, :]).flatten(-2)
    return functional.linear(pairs, weight.flatten(1), bias)


def cdist(one: torch.Tensor, other: torch.Tensor, p: float = 2, compute_mode: int | None = None) -> torch.Tensor:  # noqa: ARG001
    """Compute ``torch.ops.aten.cdist`` of ``(..., n, size)`` and ``(..., m, size)``."""
    return torch.linalg.vector_norm(one[..., :, None, :] - other[..., None, :, :], p, -1)


def addbmm(
    start: torch.Tensor, one: torch.Tensor, other: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    """Compute ``torch.ops.aten.addbmm``."""
    total = alpha * torch.bmm(one, other).sum(0)
    return total if beta == 0 else beta * start + total


REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


def scatter_reduce(
    start: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    src: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> torch.Tensor:
    """Compute ``torch.ops.aten.scatter_reduce`` by comparing each place with all indices."""
    if start.ndim == 0 or index.numel() == 0:
        return NotImplemented
    floats = start.is_floating_point()
    lowest = -torch.inf if floats else torch.iinfo(start.dtype).min
    highest = torch.inf if floats else torch.iinfo(start.dtype).max
    neutral = dict(zip(REDUCTIONS, (0, 1, 0, lowest, highest), strict=True))[reduce]
    dim %= start.ndim
    region = start
    for axis, size in enumerate(index.shape):  # what no index reaches stays as it is
        region = region.narrow(axis, 0, size) if axis != dim else region
        src = src.narrow(axis, 0, size)
    old, places, values = (tensor.movedim(dim, -1) for tensor in (region, index, src))
    meant = places[..., None, :] == torch.arange(old.shape[-1])[:, None]
    given = torch.where(meant, values[..., None, :], neutral)
    count = meant.sum(-1)
    if not include_self:
        base = torch.where(count > 0, torch.full_like(old, neutral), old)
    else:
        base, count = old, count + 1
    if reduce in {"sum", "mean"}:
        new = base + given.sum(-1, dtype=start.dtype)
    elif reduce == "prod":
        new = base * given.prod(-1, dtype=start.dtype)
    else:
        new = torch.maximum(base, given.amax(-1)) if reduce == "amax" else torch.minimum(base, given.amin(-1))
    if reduce == "mean":
        shares = count.clamp(min=1)
        new = new / shares if floats else torch.div(new, shares, rounding_mode="floor")
    new = new.to(start.dtype).movedim(-1, dim)
    for axis, size in reversed([*enumerate(index.shape)]):
        if axis != dim and size != start.shape[axis]:
            whole = start
            for earlier in range(axis):
                whole = whole.narrow(earlier, 0, index.shape[earlier]) if earlier != dim else whole
            new = torch.cat([new, whole.narrow(axis, size, start.shape[axis] - size)], axis)
    return new.contiguous()


def scatter_add(start: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
    """Compute ``torch.ops.aten.scatter_add`` of whole numbers; NotImplemented where the compiler has a kernel."""
    return NotImplemented if start.is_floating_point() else scatter_reduce(start, dim, index, src, "sum")


def masked_scatter(start: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Compute ``torch.ops.aten.masked_scatter``."""
    shape = torch.broadcast_shapes(start.shape, mask.shape)
    chosen = mask.expand(shape).flatten()
    places = torch.ops.aten.cumsum.default(chosen, 0) - 1
    values = source.flatten()[places.clamp(0, source.numel() - 1)]
    return torch.where(chosen, values, start.expand(shape).flatten()).reshape(shape)


def lstm(  # noqa: PLR0917  the operator's own arguments
    sequence: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    has_biases: bool,  # noqa: FBT001
    num_layers: int,
    dropout: float,
    train: bool,  # noqa: FBT001
    bidirectional: bool,  # noqa: FBT001
    batch_first: bool,  # noqa: FBT001
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.lstm`` of a tensor ``(steps, batch, size)``, step by step."""
    found = lstm_by_steps(sequence, states, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)
    hidden, cell = (torch.stack(parts) for parts in zip(*found[1], strict=True))
    return found[0], hidden, cell
