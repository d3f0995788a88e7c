"""Copies of policies."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from policy_export.program.torch_private import part

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """Return a copy of a module.

    Some modules hold what they have computed, which Python does not copy: ``weight_norm``, ``spectral_norm`` and
    pruning, as far as they are no parametrizations, keep the weight that they make of their parameters.
    """
    made = [
        value
        for inner in module.modules()
        for value in vars(inner).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in made})


def settle_weights(module: nn.Module) -> None:
    """Give a module the weights that are made of its parameters at each call, in place, as numbers.

    ``weight_norm``, ``spectral_norm`` and pruning do so by hooks, which set an attribute while a graph is made.
    Parametrizations do it by operators that not every runtime has; one that draws random numbers stays.
    """
    if parametrize.is_parametrized(module):
        names = list(part(module, "parametrizations"))
        with torch.no_grad():
            made, again = ({name: getattr(module, name).clone() for name in names} for _ in range(2))
        if all(torch.equal(made[name], again[name]) for name in names):
            # `remove_parametrizations` would change the class, which a copy shares with its original.
            module.__class__ = type(module).__mro__[1]
            del module.parametrizations
            for name, tensor in made.items():
                module.register_parameter(name, nn.Parameter(tensor))
    removers: dict[str, list[Callable[[nn.Module, str], object]]] = {
        "_g": [nn.utils.remove_weight_norm],
        "_orig": [nn.utils.remove_spectral_norm, prune.remove],
    }
    for name, _ in list(module.named_parameters(recurse=False)):
        for ending, removing in removers.items():
            for remove in removing if name.endswith(ending) else ():
                with contextlib.suppress(ValueError):  # it is no hook of this kind
                    remove(module, name.removesuffix(ending))
