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
from policy_export.program.epsilon_greedy import EpsilonGreedy
from policy_export.program.torch_private import part


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
