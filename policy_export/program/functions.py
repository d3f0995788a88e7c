"""Functions of PyTorch, by operators that export.

Gamma distributed numbers, by which ``Gamma``, ``Beta``, ``Dirichlet``, ``Chi2`` and ``StudentT`` draw, have no meaning
for a graph, and ONNX has none. Distances between rows are computed in one of two ways, by the size of the batch.
Transformers look at their mask whether it is the causal one, for which they have a faster function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

TRIES = 8


def draw_gamma(concentration: torch.Tensor, **_: Any) -> torch.Tensor:
    """Return one number of each gamma distribution of rate 1, by the method of Marsaglia and Tsang (2000).

    It rejects less than 4.9 % of what it draws, and a graph has no loop: of several tries, the first that is not
    rejected counts. All are, and the first counts, once in 3e10.

    Args:
        concentration: ``(batch, ...)``, above zero.
        _: a generator, which no program has.

    Returns:
        ``(batch, ...)``, of the same dtype.
    """
    # One operator draws everything, as two of them are no independent ones in ONNX Runtime.
    uniform = 1 - torch.rand_like(concentration.unsqueeze(-1).expand(*concentration.shape, 3 * TRIES + 1))
    radius, angle, chance = (uniform[..., place * TRIES : (place + 1) * TRIES] for place in range(3))
    normal = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
    raised = torch.where(concentration < 1, concentration + 1, concentration).unsqueeze(-1)
    size = raised - 1 / 3
    cube = (1 + normal / torch.sqrt(9 * size)) ** 3
    likely = normal**2 / 2 + size - size * cube + size * torch.log(cube.clamp_min(torch.finfo(cube.dtype).tiny))
    taken = (cube > 0) & (torch.log(chance) < likely)
    first = taken.to(torch.int64).argmax(-1, keepdim=True)
    drawn = (size * cube).gather(-1, first).squeeze(-1)
    drawn = torch.where(concentration < 1, drawn * uniform[..., -1] ** (1 / concentration), drawn)
    return drawn.clamp_min(torch.finfo(drawn.dtype).tiny)


def draw_dirichlet(concentration: torch.Tensor) -> torch.Tensor:
    """Return numbers that sum to 1 along the last dimension, ``(batch, ..., n)``, of Dirichlet distributions."""
    drawn = draw_gamma(concentration)
    return drawn / drawn.sum(-1, keepdim=True)


def measure_distances(ones: torch.Tensor, others: torch.Tensor, p: float = 2.0, *_: Any, **_names: Any) -> torch.Tensor:
    """Return the distances of ``torch.cdist`` between rows ``(..., m, n)`` of ``(..., m, k)`` and ``(..., n, k)``."""
    return torch.linalg.vector_norm(ones.unsqueeze(-2) - others.unsqueeze(-3), p, -1)


def is_causal(_mask: torch.Tensor | None, causal: Any = None, *_: Any) -> bool:
    """Return whether a transformer is told that its mask is the causal one; otherwise it adds any mask, as that one."""
    return causal is True


# What stands for each while a program is traced, by its name in ``torch``.
REPLACED: dict[str, Callable[..., Any]] = {
    "_standard_gamma": draw_gamma,
    "_sample_dirichlet": draw_dirichlet,
    "cdist": measure_distances,
    "nn.modules.transformer._detect_is_causal_mask": is_causal,
}
