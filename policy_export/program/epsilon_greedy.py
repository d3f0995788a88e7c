"""Epsilon-greedy exploration: the probabilities by which it draws, and its twin in a program."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import EGreedyModule

from policy_export.config.errors import ProfileError

TINY = 1e-30  # stands for an epsilon of zero, which nothing is below
BELOW_ONE = 1 - 2**-22  # times any number, this is less than that number


def probabilities_key(action_key: NestedKey, ending: str = "_probs") -> NestedKey:
    """Return the key of the probabilities by which an action is drawn: ``action_probs``."""
    key = unravel_key(action_key)
    return f"{key}{ending}" if isinstance(key, str) else (*key[:-1], f"{key[-1]}{ending}")


def choices(spec: TensorSpec) -> list[int]:
    """Return the number of choices of each part of an action; none where an action is no choice."""
    match spec:
        case MultiOneHot():
            return [space.n for space in spec.space]
        case MultiCategorical():
            return [int(number) for number in spec.nvec] if spec.nvec.ndim == 1 else []
        case Binary():
            return [2]
        case OneHot() | Categorical():
            return [spec.space.n]
        case _:
            return []


class EpsilonGreedy(TensorDictModuleBase):
    """TorchRL's epsilon-greedy exploration.

    The library's ``forward`` expands its spec to the batch at hand, which fixes the batch size of an exported program.
    It also draws twice: whether to explore, and which action. Here both come from one operator: ONNX Runtime seeds the
    second operator of a program by the first one's seed plus a small number, and its generator is linear, so that what
    the two draw differs by the same sequence after every start. A single choice is drawn from its probabilities, which
    it writes as well.

    Raises:
        ProfileError: the action's spec is of a kind that cannot be sampled here.
    """

    def __init__(self, module: EGreedyModule) -> None:
        super().__init__()
        self.in_keys, self.out_keys = module.in_keys, module.out_keys
        self.action_key, self.action_mask_key = module.action_key, module.action_mask_key
        self.drawn_by = probabilities_key(self.action_key, "_drawn_by")  # no other module's entry
        self.register_buffer("eps", module.eps)
        self.spec = spec = spec_of(module)
        self.sizes = choices(spec)
        self.one_hot, self.many = isinstance(spec, OneHot), isinstance(spec, MultiCategorical | MultiOneHot)
        self.unbounded = isinstance(spec, Unbounded) and spec.dtype.is_floating_point
        if isinstance(spec, Bounded):
            self.register_buffer("low", spec.space.low)
            self.register_buffer("high", spec.space.high)
        elif not self.sizes and not self.unbounded:
            kind = f"{type(spec).__name__}[{spec.dtype}]".replace("torch.", "")
            raise ProfileError(f"EGreedyModule: draws actions of a {kind} spec, which does not export")

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if exploration_type() not in (ExplorationType.RANDOM, None):
            return tensordict
        action = tensordict[self.action_key]
        mask = None if self.action_mask_key is None else tensordict[self.action_mask_key]
        probabilities = of_epsilon_greedy(action, self.spec, self.sizes, self.eps, mask)
        if probabilities is not None:
            tensordict.set(self.drawn_by, probabilities)
            if not self.many and probabilities.ndim == len(("batch", "choices")) and not isinstance(self.spec, Binary):
                return tensordict.set(self.action_key, self.draw(probabilities).to(action.dtype))
        # One uniform number for each part of an action, which lie along the last dimension where there are several.
        places = torch.Size((*action.shape[1:-1], len(self.sizes))) if self.many else action.shape[1:]
        like = action.reshape(action.shape[0], -1)[:, :1].expand(-1, 1 if self.unbounded else places.numel())
        uniform = torch.rand_like(like, dtype=torch.float32)
        explores = uniform[:, 0] < self.eps
        # What is below epsilon is itself uniform there: the same number says whether a row explores, and how.
        first = (uniform[:, :1] / self.eps.clamp_min(TINY)).clamp(max=1 - 2**-24)
        uniform = torch.cat([first, uniform[:, 1:]], 1)
        sampled = torch.randn_like(action) if self.unbounded else self.sample(uniform.view(-1, *places), mask)
        explores = explores.view(-1, *[1] * (action.ndim - 1))
        return tensordict.set(self.action_key, torch.where(explores, sampled.to(action.dtype), action))

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return one choice a row, as an index or as a one-hot vector: the inverse of the cumulative distribution."""
        below = probabilities.cumsum(-1)
        total = below[:, -1:]
        place = (torch.rand_like(total) * total).minimum(total * BELOW_ONE)
        index = (below <= place).to(torch.int64).sum(-1)
        return nn.functional.one_hot(index, self.sizes[0]) if self.one_hot else index

    def sample(self, uniform: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return any action, each with the same probability, from uniform numbers, ``(batch, ...)`` float32."""
        if not self.sizes:
            return self.sample_between(uniform)
        if not self.many:
            return self.sample_choice(uniform, self.sizes[0], mask)
        masks = [None] * len(self.sizes) if mask is None else mask.split(self.sizes, -1)
        parts = zip(uniform.unbind(-1), self.sizes, masks, strict=True)
        sampled = [self.sample_choice(number, size, one) for number, size, one in parts]
        return torch.cat(sampled, -1) if self.one_hot else torch.stack(sampled, -1)

    def sample_between(self, uniform: torch.Tensor) -> torch.Tensor:
        """Return numbers between the bounds; whole numbers include both bounds."""
        if self.low.dtype.is_floating_point:
            return self.low + (self.high - self.low) * uniform
        number = self.high.to(torch.int64) - self.low.to(torch.int64) + 1
        return self.low + (uniform.to(torch.float64) * number).to(torch.int64).minimum(number - 1)

    def sample_choice(self, uniform: torch.Tensor, number: int, mask: torch.Tensor | None) -> torch.Tensor:
        """Return one of ``number`` choices, or of those that a mask allows, as an index or as a one-hot vector."""
        if mask is None:
            index = (uniform * number).to(torch.int64).clamp(max=number - 1)
        else:
            left = mask.to(torch.int64).cumsum(-1)
            place = (uniform * left[..., -1]).to(torch.int64).minimum(left[..., -1] - 1)
            index = (left > place.unsqueeze(-1)).to(torch.int64).argmax(-1)
        return nn.functional.one_hot(index, number) if self.one_hot else index


def spec_of(module: EGreedyModule) -> TensorSpec:
    """Return the spec of the action that a module explores."""
    return module.spec[module.action_key] if isinstance(module.spec, Composite) else module.spec


def of_epsilon_greedy(
    action: torch.Tensor,
    spec: TensorSpec,
    sizes: list[int],
    epsilon: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    drawn_before: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return the probabilities of each choice, or of each bit to be 1, after epsilon-greedy exploration.

    Args:
        action: before the exploration, ``(batch, ...)``.
        spec: of the action.
        sizes: its :func:`choices`.
        epsilon: the chance that a row explores.
        mask: of the choices that are allowed, ``(batch, choices)``; none for all.
        drawn_before: the probabilities of ``action`` itself, where it was drawn.

    Returns:
        ``(batch, ..., choices)`` float32, the choices of several parts one after the other; as the action for bits;
        none where the action is no choice.
    """
    if not sizes:
        return None
    if isinstance(spec, Binary):
        kept, anything = action.to(torch.float32), torch.full_like(action, 0.5, dtype=torch.float32)
    else:
        if isinstance(spec, OneHot | MultiOneHot):
            kept = action.to(torch.float32)
        else:
            parts = action.unbind(-1) if isinstance(spec, MultiCategorical) else [action]
            places = [torch.arange(size, device=action.device) for size in sizes]
            taken = [part.unsqueeze(-1) == place for part, place in zip(parts, places, strict=True)]
            kept = torch.cat(taken, -1).to(torch.float32)
        allowed = torch.ones_like(kept) if mask is None else mask.to(torch.float32).expand_as(kept)
        shares = [part / part.sum(-1, keepdim=True) for part in allowed.split(sizes, -1)]
        anything = torch.cat(shares, -1)
    if drawn_before is not None and drawn_before.shape == kept.shape:
        kept = drawn_before
    return kept + (anything - kept) * epsilon.to(torch.float32)
