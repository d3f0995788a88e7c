"""Replacements in a program for modules of TorchRL that do not export as they are.

A twin computes what its module does, in a way that ``torch.export`` can trace for any batch size. A policy keeps its
own modules everywhere else: in training, and as the reference of every check. Each twin says why it is needed;
``docs/policies.md`` lists all modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModuleBase
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
from torchrl.modules import (
    EGreedyModule,
    GRUModule,
    LSTMModule,
    MultiStepActorWrapper,
    TanhDelta,
    TruncatedNormal,
    VmapModule,
)
from torchrl.modules.distributions.continuous import SafeTanhTransform

from policy_export.config.errors import ProfileError
from policy_export.program.copies import copied, settle_weights
from policy_export.program.torch_private import part

TINY = 1e-30  # stands for an epsilon of zero, which nothing is below
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


class RecurrentStep(TensorDictModuleBase):
    """One step of TorchRL's recurrent module, for a batch of one dimension, with the library's own cell.

    The library's ``forward`` asks for the number of elements of its batch, which fixes the batch size of an exported
    program.
    """

    def __init__(self, module: LSTMModule | GRUModule) -> None:
        super().__init__()
        module.make_python_based()
        self.rnn = module.lstm if isinstance(module, LSTMModule) else module.gru
        self.in_keys, self.out_keys = module.in_keys, module.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        value, *states, is_init = (tensordict[key] for key in self.in_keys)
        states = [torch.where(is_init.unsqueeze(-1), 0, state).transpose(0, 1) for state in states]
        outputs, states = self.rnn(value.unsqueeze(1), states[0] if len(states) == 1 else tuple(states))
        states = [state.transpose(0, 1) for state in (states if isinstance(states, tuple) else (states,))]
        return tensordict.update(dict(zip(self.out_keys, [outputs.squeeze(1), *states], strict=True)))


class EpsilonGreedy(TensorDictModuleBase):
    """TorchRL's epsilon-greedy exploration.

    The library's ``forward`` expands its spec to the batch at hand, which fixes the batch size of an exported program.
    It also draws twice: whether to explore, and which action. Here both come from one operator: ONNX Runtime seeds the
    second operator of a program by the first one's seed plus a small number, and its generator is linear, so that what
    the two draw differs by the same sequence after every start.

    Raises:
        ProfileError: the action's spec is of a kind that cannot be sampled here.
    """

    def __init__(self, module: EGreedyModule) -> None:
        super().__init__()
        self.in_keys, self.out_keys = module.in_keys, module.out_keys
        self.action_key, self.action_mask_key = module.action_key, module.action_mask_key
        self.register_buffer("eps", module.eps)
        spec = module.spec[self.action_key] if isinstance(module.spec, Composite) else module.spec
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
        # One uniform number for each part of an action, which lie along the last dimension where there are several.
        places = action.shape[1:-1] if self.one_hot or self.many else action.shape[1:]
        places = torch.Size((*places, len(self.sizes))) if self.many else places
        like = action.reshape(action.shape[0], -1)[:, :1].expand(-1, 1 if self.unbounded else places.numel())
        uniform = torch.rand_like(like, dtype=torch.float32)
        explores = uniform[:, 0] < self.eps
        # What is below epsilon is itself uniform there: the same number says whether a row explores, and how.
        first = (uniform[:, :1] / self.eps.clamp_min(TINY)).clamp(max=BELOW_ONE)
        uniform = torch.cat([first, uniform[:, 1:]], 1)
        sampled = torch.randn_like(action) if self.unbounded else self.sample(uniform.view(-1, *places), mask)
        explores = explores.view(-1, *[1] * (action.ndim - 1))
        return tensordict.set(self.action_key, torch.where(explores, sampled.to(action.dtype), action))

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


class ActionChunk(TensorDictModuleBase):
    """One step of TorchRL's ``MultiStepActorWrapper``: the next action of a row's chunk, or the first of a new one.

    The library calls its actor only where a row needs a new chunk, and a graph has no branches: here the actor decides
    for all rows, and those that do not need a new chunk keep theirs.
    """

    def __init__(self, module: MultiStepActorWrapper) -> None:
        super().__init__()
        self.actor = twin_of(module.actor)
        self.in_keys, self.out_keys = module.in_keys, module.out_keys
        self.init_key, self.counter_key, self.keep_dim = module.init_key, module.counter_key, module.keep_dim
        self.interval = module.n_steps if module.replan_interval is None else module.replan_interval
        chunks = part(module, "_chunk_keys_map")
        # Each action's key, those of the chunk that the actor writes, and of the chunk that is remembered.
        self.keys = [(key, chunks[key], cache) for key, cache in part(module, "_actor_keys_map").items()]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        renews = tensordict[self.init_key]
        counter = tensordict.get(self.counter_key, renews.to(torch.int32))  # the library's own start
        if self.interval is not None:
            renews = renews | (counter >= self.interval)
        counter = counter.masked_fill(renews, 0)
        written = self.actor(tensordict.copy())
        for key, chunk_key, cache_key in self.keys:
            new = written[chunk_key]
            old = tensordict.get(cache_key, new)
            chunk = torch.where(renews.view(-1, *[1] * (new.ndim - 1)), new, old)
            index = counter[:, 0].to(torch.int64)
            if self.interval is None:
                index = index.remainder(chunk.shape[1])
            index = index.view(-1, *[1] * (chunk.ndim - 1)).expand(-1, 1, *chunk.shape[2:])
            action = chunk.gather(1, index)
            tensordict[cache_key] = chunk
            tensordict[key] = action if self.keep_dim else action.squeeze(1)
        return tensordict.set(self.counter_key, counter + 1)


class TracedTanhDelta(TanhDelta):
    """TorchRL's ``TanhDelta``, whose constructor refuses its own default, ``safe=True``, while it is traced.

    PyTorch before 2.6 could not trace the safe transform. It can now, and ``TanhNormal`` uses it.
    """

    def __init__(self, *args: Any, safe: bool = True, **keywords: Any) -> None:
        super().__init__(*args, safe=False, **keywords)
        if safe:
            self.transforms[0].parts[0] = SafeTanhTransform()


class TracedTruncatedNormal(TruncatedNormal):
    """TorchRL's ``TruncatedNormal``, which writes into ``.data`` of what it draws, and branches in its ``log_prob``.

    It branches on whether any value is beyond the bounds; what it then computes changes no other value. ``erfinv`` is
    written here with operators that ONNX has.
    """

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        base = self.base_dist
        chance = torch.rand(part(base, "_extended_shape")(sample_shape), dtype=base.a.dtype, device=base.a.device)
        chance = (
            part(base, "_dtype_min_gt_0") + (part(base, "_dtype_max_lt_1") - part(base, "_dtype_min_gt_0")) * chance
        )
        below = (part(base, "_big_phi_a") + chance * part(base, "_Z")).clamp(base.eps, 1 - base.eps)
        sampled = part(base, "_from_std_rv")(math.sqrt(2) * erfinv(2 * below - 1))
        return sampled.maximum(part(base, "_non_std_a")).minimum(part(base, "_non_std_b"))

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        return self.rsample(sample_shape)  # and not what the distribution inside draws

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        base, margin = self.base_dist, part(self.base_dist, "_dtype_min_gt_0")
        beyond = (self.low > value) | (self.high < value)
        inside = value.minimum(part(base, "_non_std_b") - margin).maximum(part(base, "_non_std_a") + margin)
        return super(TruncatedNormal, self).log_prob(inside).masked_fill(beyond.any(-1), -torch.inf)


def erfinv(value: torch.Tensor) -> torch.Tensor:
    """Return the inverse of ``erf`` between -1 and 1, as PyTorch computes it: a rational guess, two Newton steps."""
    square, far = value * value, torch.sqrt(-torch.log((1 - value.abs()) / 2))
    near = value * polynomial(square, 0.886226899, -1.645349621, 0.914624893, -0.140543331)
    near = near / polynomial(square, 1.0, -2.118377725, 1.442710462, -0.329097515, 0.012229801)
    tail = value.sign() * polynomial(far, -1.970840454, -1.624906493, 3.429567803, 1.641345311)
    tail = tail / polynomial(far, 1.0, 3.543889200, 1.637067800)
    guess = torch.where(value.abs() <= 0.7, near, tail)
    for _ in range(2):
        guess = guess - (torch.erf(guess) - value) / (2 / math.sqrt(math.pi) * torch.exp(-guess * guess))
    return guess


def polynomial(value: torch.Tensor, *coefficients: float) -> torch.Tensor:
    """Return the sum of each coefficient times the power of its place, the constant first."""
    result = torch.full_like(value, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * value + coefficient
    return result


def refuse_vmap(_module: VmapModule) -> nn.Module:
    """Refuse the module, as there is no twin for it.

    Raises:
        ProfileError: always.
    """
    raise ProfileError(
        "VmapModule: a program maps over its batch by itself; write the inner module for a batch of rows"
    )


# Each module that needs a twin, and what makes it.
TWINS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    LSTMModule: RecurrentStep,
    GRUModule: RecurrentStep,
    EGreedyModule: EpsilonGreedy,
    MultiStepActorWrapper: ActionChunk,
    VmapModule: refuse_vmap,
}

# The same of distributions.
DISTRIBUTIONS: dict[type[torch.distributions.Distribution], type[torch.distributions.Distribution]] = {
    TanhDelta: TracedTanhDelta,
    TruncatedNormal: TracedTruncatedNormal,
}


def twin_of(module: nn.Module) -> nn.Module:
    """Return a module's replacement in a program: its twin, or the module itself.

    A subclass that computes something else has no twin.
    """
    kinds = (kind for kind in TWINS if isinstance(module, kind) and type(module).forward is kind.forward)
    make = next((TWINS[kind] for kind in kinds), None)
    return module if make is None else make(module)


def use_traced_distributions(module: ProbabilisticTensorDictModule) -> None:
    """Let a module make distributions that can be traced, in place, also those that are parts of others."""
    module.distribution_class = DISTRIBUTIONS.get(module.distribution_class, module.distribution_class)
    parts = module.distribution_kwargs.get("distribution_map", {})
    if parts:
        traced = {key: DISTRIBUTIONS.get(kind, kind) for key, kind in parts.items()}
        module.distribution_kwargs = {**module.distribution_kwargs, "distribution_map": traced}


def use_plain_flags(module: nn.Module) -> None:
    """Turn buffers with a single truth value into plain values, in place.

    ``ObservationNorm`` keeps ``standard_normal`` in such a buffer and branches on it, and a graph has no branches.
    """
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dtype == torch.bool and buffer.ndim == 0:
            delattr(module, name)
            setattr(module, name, bool(buffer))


def exportable(policy: TensorDictModuleBase) -> TensorDictModuleBase:
    """Return a copy of a policy in which all modules export, in evaluation mode.

    Raises:
        ProfileError: a module of TorchRL is used in a way that its twin does not support.
    """
    policy = copied(policy).eval()
    for parent in list(policy.modules()):
        use_plain_flags(parent)
        settle_weights(parent)
        if isinstance(parent, ProbabilisticTensorDictModule):
            use_traced_distributions(parent)
        for name, child in list(parent.named_children()):
            twin = twin_of(child)
            if twin is not child:
                parent.add_module(name, twin)
    return policy.eval()  # a twin's parts are new modules, which start in training mode
