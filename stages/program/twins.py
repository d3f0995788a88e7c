"""Modules of TorchRL that do not export as they are, and what takes their place in a program.

A twin computes what its module does, in a way that ``torch.export`` can trace for any batch size. A policy keeps its
own modules everywhere else: in training, and as the reference of every check. Each twin says why it is needed;
``docs/policies.md`` lists all modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import EGreedyModule, GRUModule, LSTMModule

from stages.common.errors import ProfileError


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

    Raises:
        ProfileError: the action's spec is of a kind that has no uniform draw here.
    """

    def __init__(self, module: EGreedyModule) -> None:
        super().__init__()
        self.in_keys, self.out_keys = module.in_keys, module.out_keys
        self.action_key, self.action_mask_key = module.action_key, module.action_mask_key
        self.register_buffer("eps", module.eps)
        spec = module.spec[self.action_key] if isinstance(module.spec, Composite) else module.spec
        if not isinstance(spec, Categorical | OneHot | Bounded) or isinstance(
            spec, MultiOneHot | MultiCategorical | Binary
        ):
            raise ProfileError(f"EGreedyModule: draws actions of a {type(spec).__name__} spec, which does not export")
        self.spec = spec
        if isinstance(spec, Bounded):
            self.register_buffer("low", spec.space.low)
            self.register_buffer("high", spec.space.high)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if exploration_type() not in (ExplorationType.RANDOM, None):
            return tensordict
        action = tensordict[self.action_key]
        explores = torch.rand_like(action[:, *[0] * (action.ndim - 1)], dtype=torch.float32) < self.eps
        drawn = self.draw(action, None if self.action_mask_key is None else tensordict[self.action_mask_key])
        explores = explores.view(-1, *[1] * (action.ndim - 1))
        return tensordict.set(self.action_key, torch.where(explores, drawn, action))

    def draw(self, action: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Any action, each with the same chance, in the shape and dtype of ``action``."""
        if isinstance(self.spec, Bounded):
            return self.low + (self.high - self.low) * torch.rand_like(action)
        one_hot = isinstance(self.spec, OneHot)
        index = action[..., 0] if one_hot else action
        number = self.spec.space.n
        if mask is None:
            index = torch.randint_like(index, number, dtype=torch.int64)
        else:
            index = torch.multinomial(mask.to(torch.float32).flatten(0, -2), 1).view(index.shape)
        drawn = nn.functional.one_hot(index, number) if one_hot else index
        return drawn.to(action.dtype)


# Each module that needs a twin, and what makes it.
TWINS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    LSTMModule: RecurrentStep,
    GRUModule: RecurrentStep,
    EGreedyModule: EpsilonGreedy,
}


def twin_of(module: nn.Module) -> nn.Module:
    """What takes a module's place in a program: its twin, or the module itself.

    A subclass that computes something else has no twin.
    """
    kinds = (kind for kind in TWINS if isinstance(module, kind) and type(module).forward is kind.forward)
    make = next((TWINS[kind] for kind in kinds), None)
    return module if make is None else make(module)


def use_plain_flags(module: nn.Module) -> None:
    """Turn buffers of one truth value into plain ones, in place.

    ``ObservationNorm`` keeps ``standard_normal`` in such a buffer and branches on it, and a graph has no branches.
    """
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dtype == torch.bool and buffer.ndim == 0:
            delattr(module, name)
            setattr(module, name, bool(buffer))


def exportable(policy: TensorDictModuleBase) -> TensorDictModuleBase:
    """A copy of a policy in which all modules export, in evaluation mode.

    Raises:
        ProfileError: a module of TorchRL's is used in a way that its twin does not know.
    """
    policy = copy.deepcopy(policy)
    for parent in list(policy.modules()):
        use_plain_flags(parent)
        for name, child in list(parent.named_children()):
            twin = twin_of(child)
            if twin is not child:
                parent.add_module(name, twin)
    return policy.eval()  # a twin's parts are new modules, which start in training mode
