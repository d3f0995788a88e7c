"""Functions of tensors as functions of arrays. PyTorch is imported only where one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from policy_export.device.arrays import Arrays, Run

if TYPE_CHECKING:
    import torch


def on_arrays(function: Callable[..., dict[str, torch.Tensor]]) -> Run:
    """A function of named tensors as a function of named arrays.

    Arrays of any strides will do, and read-only ones: AOTInductor's programs read contiguous memory and do not check
    that they got it, and PyTorch's tensors are writable.
    """
    import numpy as np
    import torch

    def run(inputs: Arrays) -> Arrays:
        tensors = {
            name: torch.from_numpy(a if a.flags.carray else np.require(a, None, ["C", "W"]))
            for name, a in inputs.items()
        }
        return {name: tensor.numpy() for name, tensor in function(**tensors).items()}

    return run


def wrap(module: Callable[..., dict[str, torch.Tensor]]) -> Run:
    """A module with named tensors as a function of named arrays, without gradients."""
    import torch

    @torch.no_grad()
    def call(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return module(**inputs)

    return on_arrays(call)
