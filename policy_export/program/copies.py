"""Copies of policies."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import prune

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
    """Give a module the weight that ``weight_norm``, ``spectral_norm`` or pruning makes before each call, in place.

    Parametrizations export as they are; these are hooks, which set an attribute while a graph is made.
    """
    removers: dict[str, list[Callable[[nn.Module, str], object]]] = {
        "_g": [nn.utils.remove_weight_norm],
        "_orig": [nn.utils.remove_spectral_norm, prune.remove],
    }
    for name, _ in list(module.named_parameters(recurse=False)):
        for ending, removing in removers.items():
            for remove in removing if name.endswith(ending) else ():
                with contextlib.suppress(ValueError):  # it is no hook of this kind
                    remove(module, name.removesuffix(ending))
