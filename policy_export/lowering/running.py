"""Running sums and the like along an axis, each computed from all numbers before; for the few numbers of a policy."""

from __future__ import annotations

import torch

LARGEST = 2048  # numbers; beyond, looking at all that came before takes longer than a policy has


def so_far(numbers: torch.Tensor, rest: float) -> torch.Tensor:
    """Return, for each number of the last axis, all up to it, with ``rest`` in place of the others: ``(..., n, n)``."""
    places = torch.arange(numbers.shape[-1])
    return torch.where(places[None, :] <= places[:, None], numbers[..., None, :], rest)


def too_many(numbers: torch.Tensor, dim: int) -> bool:
    return numbers.ndim == 0 or numbers.shape[dim] > LARGEST


def choose_dtypes(numbers: torch.Tensor, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype in which PyTorch adds up, and the dtype of its result."""
    given = dtype or (numbers.dtype if numbers.is_floating_point() else torch.int64)
    return {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(
        given, given
    ), given


def cumsum(numbers: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Compute ``torch.ops.aten.cumsum``; NotImplemented for too many numbers, as in the others."""
    if too_many(numbers, dim):
        return NotImplemented
    inside, given = choose_dtypes(numbers, dtype)
    last = numbers.to(given).to(inside).movedim(dim, -1)
    return so_far(last, 0).sum(-1).to(given).movedim(-1, dim).contiguous()


def cumprod(numbers: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Compute ``torch.ops.aten.cumprod``."""
    if too_many(numbers, dim):
        return NotImplemented
    inside, given = choose_dtypes(numbers, dtype)
    last = numbers.to(given).to(inside).movedim(dim, -1)
    return so_far(last, 1).prod(-1).to(given).movedim(-1, dim).contiguous()


def logcumsumexp(numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """Compute ``torch.ops.aten.logcumsumexp``."""
    if too_many(numbers, dim):
        return NotImplemented
    return so_far(numbers.movedim(dim, -1), -torch.inf).logsumexp(-1).movedim(-1, dim).contiguous()


def find_extreme(numbers: torch.Tensor, dim: int, *, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if too_many(numbers, dim) or numbers.dtype == torch.bool:
        return NotImplemented
    last = numbers.movedim(dim, -1)
    if numbers.is_floating_point():
        rest = -torch.inf if largest else torch.inf
    else:
        rest = torch.iinfo(numbers.dtype).min if largest else torch.iinfo(numbers.dtype).max
    seen = so_far(last, rest)
    values = seen.amax(-1) if largest else seen.amin(-1)
    places = torch.arange(last.shape[-1])
    same = (last[..., None, :] == values[..., :, None]) | (last != last)[..., None, :]  # noqa: PLR0124  no number
    indices = torch.where(same & (places[None, :] <= places[:, None]), places, -1).amax(-1)
    return values.movedim(-1, dim).contiguous(), indices.movedim(-1, dim).contiguous()


def cummax(numbers: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.cummax``: the largest number so far, and where the last of those stands."""
    return find_extreme(numbers, dim, largest=True)


def cummin(numbers: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``torch.ops.aten.cummin``: the smallest number so far, and where the last of those stands."""
    return find_extreme(numbers, dim, largest=False)
