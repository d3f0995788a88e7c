"""Sorting and searching by comparing all pairs, which compile to loops; for the few numbers of a policy."""

from __future__ import annotations

import torch

LARGEST = 2048  # numbers; beyond, comparing all pairs takes longer than a policy has


def is_before(one: torch.Tensor, other: torch.Tensor, *, descending: bool) -> torch.Tensor:
    """Return whether a number comes before another; NaN counts as the largest, as in PyTorch."""
    if not one.is_floating_point():
        return one > other if descending else one < other
    if descending:
        return (one > other) | (one.isnan() & ~other.isnan())
    return (one < other) | (other.isnan() & ~one.isnan())


def find_order(numbers: torch.Tensor, count: int, *, descending: bool) -> torch.Tensor:
    """Return the places of the first numbers of each row in sorted order; equal ones keep their order.

    Args:
        numbers: ``(..., n)``.
        count: of the numbers that are wanted.

    Returns:
        ``(..., count)``, int64.
    """
    size = numbers.shape[-1]
    one, other = numbers[..., None, :], numbers[..., :, None]
    places = torch.arange(size)
    earlier = places[None, :] < places[:, None]
    before = is_before(one, other, descending=descending)
    after = is_before(other, one, descending=descending)
    ranks = (before | (~after & earlier)).sum(-1)
    chosen = ranks[..., None, :] == torch.arange(count)[:, None]
    return torch.where(chosen, places, 0).sum(-1)


def pick_first(numbers: torch.Tensor, count: int, dim: int, *, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first numbers of the order along an axis, and where they stood."""
    if numbers.ndim == 0:
        return numbers.clone(), torch.zeros([], dtype=torch.int64)
    if numbers.shape[dim] > LARGEST:
        return NotImplemented
    last = numbers.movedim(dim, -1)
    comparable = last.to(torch.uint8) if last.dtype == torch.bool else last
    indices = find_order(comparable, count, descending=descending)
    values = last.gather(-1, indices)
    return values.movedim(-1, dim).contiguous(), indices.movedim(-1, dim).contiguous()


def sort(
    numbers: torch.Tensor,
    dim: int = -1,
    descending: bool = False,  # noqa: FBT001, FBT002  the operator's own arguments
    *,
    stable: bool | None = None,  # noqa: ARG001  it always is
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.sort``: values and indices, both of the numbers' shape; NotImplemented for too many."""
    size = numbers.shape[dim] if numbers.ndim else 1
    return pick_first(numbers, size, dim, descending=descending)


def argsort(
    numbers: torch.Tensor,
    dim: int = -1,
    descending: bool = False,  # noqa: FBT001, FBT002  the operator's own arguments
    *,
    stable: bool = True,
) -> torch.Tensor:
    """Compute ``torch.ops.aten.argsort``."""
    return torch.ops.aten.sort.stable(numbers, stable=stable, dim=dim, descending=descending)[1]


def msort(numbers: torch.Tensor) -> torch.Tensor:
    """Compute ``torch.ops.aten.msort``."""
    return torch.ops.aten.sort.default(numbers, 0)[0]


def topk(
    numbers: torch.Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,  # noqa: FBT001, FBT002  the operator's own arguments
    sorted: bool = True,  # noqa: A002, ARG001, FBT001, FBT002  they always are
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.topk``; of equal numbers it takes the first, where PyTorch may take any."""
    return pick_first(numbers, k, dim, descending=largest)


def kthvalue(
    numbers: torch.Tensor,
    k: int,
    dim: int = -1,
    keepdim: bool = False,  # noqa: FBT001, FBT002  the operator's own arguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.kthvalue``: the ``k``-th smallest number, counted from 1, and where it stands."""
    first = pick_first(numbers, k, dim, descending=False)
    if first is NotImplemented or numbers.ndim == 0:
        return first
    values, indices = (part.narrow(dim, k - 1, 1) for part in first)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


def median(
    numbers: torch.Tensor,
    dim: int = -1,
    keepdim: bool = False,  # noqa: FBT001, FBT002  the operator's own arguments
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.median``: the lower one of an even count, or the first NaN."""
    middle = kthvalue(numbers, (numbers.shape[dim] - 1) // 2 + 1 if numbers.ndim else 1, dim, keepdim=True)
    if middle is NotImplemented or numbers.ndim == 0:
        return middle
    values, indices = middle
    if numbers.is_floating_point():
        found = numbers.isnan().any(dim, keepdim=True)
        first = numbers.isnan().to(torch.uint8).argmax(dim, keepdim=True)
        values, indices = torch.where(found, torch.nan, values), torch.where(found, first, indices)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


def median_of_all(numbers: torch.Tensor) -> torch.Tensor:
    """Compute ``torch.ops.aten.median`` without an axis."""
    found = median(numbers.flatten())
    return NotImplemented if found is NotImplemented else found[0]


def searchsorted(
    bounds: torch.Tensor,
    numbers: torch.Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``torch.ops.aten.searchsorted``: how many bounds ``(..., n)`` are before each number ``(..., m)``."""
    if bounds.shape[-1] > LARGEST:
        return NotImplemented
    bounds = bounds if sorter is None else bounds.gather(-1, sorter)
    given, limits = (numbers[..., None], bounds) if bounds.ndim == 1 else (numbers[..., None], bounds[..., None, :])
    behind = limits > given if (right or side == "right") else limits >= given
    return (~behind).sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def bucketize(
    numbers: torch.Tensor, bounds: torch.Tensor, *, out_int32: bool = False, right: bool = False
) -> torch.Tensor:
    """Compute ``torch.ops.aten.bucketize``."""
    return searchsorted(bounds, numbers, out_int32=out_int32, right=right)
